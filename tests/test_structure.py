"""The shape of the package: one direction of imports, light start, documented names, versions that agree."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import regnde
import regnde.nn
import regnde.plot
from regnde import _doctor

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "regnde"

# What each layer may import of the package (design.md 2); engines never import each other.
BASE = {
    *("_additive", "_controller", "_dense", "_derivative_check", "_errors", "_event", "_event_locator"),
    *("_last_derivative", "_last_step", "_mass"),
    *("_solver", "_solution", "_state", "_state_dict", "_stops"),
    *("_equation", "_grid_method", "_noise", "_normals", "_rosenbrock_tableau", "_sde_method", "_tableau"),
    *("_tolerance", "_transforms"),
}
ALLOWED = {
    "_errors": {"_solution"},
    "_additive": set(),
    "_options": set(),
    "_controller": {"_options"},
    "_grid_method": {"_tableau"},
    "_sde_method": {"_equation", "_tableau"},
    "_solver": {
        *("_controller", "_equation", "_grid_method", "_last_step"),
        *("_options", "_sde_method", "_tableau", "_tolerance"),
    },
    "_state": {"_equation"},
    "_tolerance": {"_state"},
    "_arguments": {"_equation"},
    "_last_derivative": set(),
    "_last_step": {"_state_dict"},
    "_mass": set(),
    "_rosenbrock_tableau": {"_tableau"},
    "_tableau": set(),
    "_equation": set(),
    "_dense": {"_transforms"},
    "_derivative_check": set(),
    "_event": {"_arguments"},
    "_event_locator": {"_dense", "_equation", "_event", "_solution", "_transforms"},
    "_state_dict": set(),
    "_stops": set(),
    "_transforms": set(),
    "_noise": {"_normals"},
    "_normals": set(),
    "_solution": {"_dense", "_last_step", "_solver", "_state"},
    "_engines.base": BASE,
    "_engines.torch": BASE | {"_engines.base", "_engines.torch"},
    "_engines.julia": BASE | {"_engines.base", "_engines.julia"},
    "_engines": BASE | {"_engines.base", "_engines.torch", "_engines.julia"},
    "_recording": {"_solution", "_solver", "_state"},
    "_times": {"_engines.base", "_transforms"},
    "_solve": BASE | {"_arguments", "_engines", "_engines.base", "_recording", "_times"},
    "_dropin_options": set(),
    "_dropin_methods": BASE,
    "_dropin_callbacks": BASE | {"_engines.base"},
    "_dropin_problem": BASE | {"_arguments", "_dropin_callbacks", "_dropin_methods", "_engines.base"},
    "_dropin_adaptive": BASE
    | {"_dropin_methods", "_dropin_options", "_dropin_problem", "_engines.base", "_solve", "_times"},
    "_dropin_grid": BASE
    | {"_dropin_methods", "_dropin_options", "_dropin_problem", "_engines.base", "_solve", "_times"},
    "_dropin_scipy": BASE | {"_dropin_options", "_dropin_problem", "_recording"},
    "_dropin_event": BASE | {"_arguments", "_dropin_adaptive", "_dropin_grid", "_dropin_problem"},
    "_dropin": BASE
    | {"_dropin_adaptive", "_dropin_event", "_dropin_grid", "_dropin_problem", "_dropin_scipy", "_solve"},
    "_path_divergence": {"_equation"},
    "_dropin_sde_problem": BASE | {"_path_divergence"},
    "_dropin_sde": BASE
    | {"_dropin_sde_problem", "_engines.base", "_path_divergence", "_recording", "_solve", "_times"},
    "_install": {"_dropin", "_dropin_sde"},
    "_divergence": set(),
    "_grid_report": set(),
    "_fixed_grid": BASE | {"_arguments", "_engines.torch", "_grid_report", "_times"},
    "_grid_choice": BASE | {"_engines.torch", "_fixed_grid", "_grid_report", "_recording", "_solve", "_times"},
    "nn": BASE | {"_arguments", "_divergence", "_path_divergence", "_solve", "_times", "nn"},
    "_penalty": {"_solution"},
    "_budget": {"_state_dict"},
    "_fit": {"_budget", "_penalty", "_recording", "_solution", "_solver"},
    "_cheapen": {"_budget", "_fit", "_modules", "_penalty", "_recording", "_solver"},
    "_run": {"_solution", "_solver"},
    "_report": {"_run", "_solver", "plot"},
    "_advice": {"_report", "_run"},
    "_modules": set(),
    "_bench": BASE | {"_modules", "_penalty", "_report", "_run", "_solve"},
    "_diagnose": BASE | {"_advice", "_bench", "_modules", "_recording", "_report", "_run", "_times"},
    "plot": {"_run", "_solution"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below `regnde`."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    names, known = set[str](), {f"regnde.{name}" for name in modules()}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "regnde":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & known
            names |= submodules if len(submodules) == len(node.names) else {node.module, *submodules}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "regnde"}
    return {name.removeprefix("regnde").removeprefix(".") for name in names}


def layer(module: str) -> str:
    """The layer of design.md 2 that a module belongs to."""
    if module.startswith("_engines."):
        return ".".join(module.split(".")[:2])
    return "nn" if module.startswith("nn.") else module


@pytest.mark.parametrize("module", [name for name in modules() if layer(name) in ALLOWED])
def test_imports_point_one_way(module: str) -> None:
    used = {layer(name) for name in imports(modules()[module])}
    assert used <= ALLOWED[layer(module)], f"{module} imports {used - ALLOWED[layer(module)]}"


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports in functions count, too."""
    waiting = {name: imports(path) & modules().keys() for name, path in modules().items()}
    while free := {name for name, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting, f"a cycle is among, or imported by, {sorted(waiting)}"


def test_every_file_of_the_torch_engine_is_explained() -> None:
    page = (ROOT / "docs" / "contributing.md").read_text()
    files = {path.name for path in (PACKAGE / "_engines" / "torch").glob("*.py")}
    assert not {name for name in files if f"`{name}`" not in page}


def test_heavy_imports_stand_in_one_file_each() -> None:
    where = {"juliacall": set(), "matplotlib": set()}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for heavy in where.keys() & {n.split(".")[0] for n in names}:
                where[heavy].add(name)
    assert where["matplotlib"] <= {"plot", "_demo_report"}
    assert where["juliacall"] <= {"_engines.julia.runtime"}


def test_nothing_but_the_julia_runtime_executes_text() -> None:
    """Only one file evaluates text in Julia: to load our package, which compiles what export.py or the user wrote."""
    executing = {"eval", "exec", "seval", "evaluate", "jl_eval_string", "compile", "__import__", "system", "popen"}
    allowed = {"_engines.julia.runtime": {"evaluate"}, "_engines.julia.entries": {"jl_eval_string"}}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            word = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if word == "eval" and isinstance(called, ast.Attribute):  # nn.Module.eval
                continue
            if word == "compile" and ast.unparse(called) in ("torch.compile", "re.compile"):
                continue
            assert word not in executing or word in allowed.get(name, set()), f"{name}: {ast.unparse(node)}"


def test_checkpoints_are_loaded_as_data() -> None:
    """Every torch.load of the package and the examples says weights_only=True; pickle is not read at all."""
    for path in [*modules().values(), *(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads"), path


def test_case_21b_import_is_light_and_starts_nothing() -> None:
    """No Julia on the path, no network, a home that can not be written: the import works and starts no Julia."""
    code = (
        "import torch, sys; had = set(sys.modules); import regnde;"
        "print('juliacall' in sys.modules, 'matplotlib' in sys.modules, 'sympy.printing' in set(sys.modules) - had)"
    )
    env = {"PATH": "/usr/bin:/bin", "HOME": "/proc", "PYTHONPATH": str(ROOT / "python"), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=300)
    assert out.stdout.split() == ["False", "False", "False"]


def test_public_names_are_documented() -> None:
    for module in (regnde, regnde.nn, regnde.plot):
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), name
                for attribute, member in vars(thing).items() if inspect.isclass(thing) else ():
                    if inspect.isfunction(member) and not attribute.startswith("_"):
                        assert inspect.getdoc(member) or inspect.getdoc(getattr(thing, attribute)), (
                            f"{name}.{attribute}"
                        )


def test_versions_agree() -> None:
    assert f'version = "{regnde.__version__}"' in (ROOT / "pyproject.toml").read_text()
    project = ROOT / "julia" / "Project.toml"
    if project.exists():
        assert f'version = "{regnde.__version__}"' in project.read_text()
    assert regnde.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_case_has_its_number_in_a_test_name() -> None:
    """The cases that concern what is built so far; the SDE and Julia cases stand in their own files."""
    text = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    covered = {int(number) for number in re.findall(r"def test_case_(\d+)", text)}
    assert {1, 2, 4, 5, 6, 9, 11, 12, 13, *range(15, 23)} <= covered


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    return subprocess.run(
        [sys.executable, "-m", "regnde", *arguments], capture_output=True, text=True, timeout=300, env=env, check=False
    )


def test_doctor_says_what_works() -> None:
    out = run("doctor")
    assert out.returncode == 0, out.stderr
    assert re.search(r"torch +works: \d+ steps, NFE \d+, y\(1\) = 0.36788,", out.stdout)


def test_doctor_names_a_depot_that_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_doctor, "_try", lambda name: (True, "works"))
    for depot, said in (("/one", True), (f"/one{os.pathsep}", False), ("", False)):
        monkeypatch.setenv("JULIA_DEPOT_PATH", depot)
        assert any("is the only depot" in line for line in _doctor.report()[0]) == said


def test_command_line_refuses_unknown_methods() -> None:
    out = run("demo", "--methods", "vanilla,magic")
    assert out.returncode == 2
    assert "unknown methods magic" in out.stderr


# What one language alone has of a step, and why.
# Julia records one step at a time.
BATCHES = ("sample_rms", "whole_rms", "estimates_of_one", "columns", "column", "stacked", "sde_stacked")
ARRAYS = (
    "Estimates",
    "Interval",
    "StepNoise",
    "noise_weights",
    "product",
    "all_finite",
)  # how tensors are grouped: Julia writes to buffers
ONE_STAGE = ("stage_times", "stage_time", "take_stage")  # Python makes all times at once, Julia each where it is used
MEMORY = ("empty_step", "keep_residuals")  # Julia's steps own their arrays
OWN_PART = ("with_noise",)  # in Python inside `dense_output`; private there
MATRICES = ("added", "driven")  # Julia's steps have diagonal noise alone
CHECKS = ("all_finite",)  # Julia's compiler fuses the test of every entry
ONE_SIDED = {*CHECKS, *BATCHES, *ARRAYS, *ONE_STAGE, *MATRICES, *MEMORY, *OWN_PART}
# Julia has one function for the steps of both kinds of methods, in step.jl, and what it asks of each.
BOTH_KINDS = {"error_ratio", "error_estimate", "extra_stages", "scale_of", "first_slope"}


def python_names(path: Path) -> list[str]:
    body = ast.parse(path.read_text()).body
    return [x.name for x in body if isinstance(x, ast.FunctionDef | ast.ClassDef) and not x.name.startswith("_")]


def julia_names(path: Path) -> list[str]:
    pattern = (
        r"^(?:mutable struct |(?:@inline )?(?:function )?)([A-Za-z]\w*)(?:!?\(.*\)(?: where .*)?(?: =.*)?|\{V.*\})$"
    )
    found = re.findall(pattern, re.sub(r'(?s)""".*?"""', "", path.read_text()), re.M)
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(
    ("name", "one_sided"), [("step", ONE_SIDED), ("sde_step", ONE_SIDED), ("rosenbrock_step", BOTH_KINDS)]
)
def test_a_step_reads_alike_in_both_languages(name: str, one_sided: set[str]) -> None:
    python = python_names(PACKAGE / "_engines" / "torch" / f"{name}.py")
    julia = julia_names(ROOT / "julia" / "src" / f"{name}.jl")
    assert set(python) ^ set(julia) <= one_sided
    shared = set(python) & set(julia)
    assert shared
    assert not shared & one_sided
    assert [x for x in python if x in shared] == [x for x in julia if x in shared]
