"""Whether a Julia with our package is on this disk, and what to do if not. Starts nothing, asks no network."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

__all__ = [
    "ADJOINTS",
    "CUDA",
    "FFT",
    "GROUPS",
    "SDE",
    "STIFF",
    "Group",
    "chosen",
    "folder",
    "forget",
    "julia_list",
    "missing",
    "what_to_do",
    "why_not",
]


@dataclass(frozen=True)
class Group:
    """Julia packages that come with an option of `python -m regnde julia`.

    Attributes:
        option: the option, without its dashes.
        content: what the packages are for.
        takes: how long their installation takes.
        packages: their uuids by name.
        versions: which ones, by name; others come as the packages of Julia's project need them.
        without_workload: uuids by name of packages among them, or of what they need, whose own precompile workload is
            not run: it would compile what no solve of ours uses.
    """

    option: str
    content: str
    takes: str
    packages: Mapping[str, str]
    versions: Mapping[str, str]
    without_workload: Mapping[str, str] = field(default_factory=dict)


LINEAR = {
    "LinearSolve": "7ed4a6bd-45f5-4d41-b270-4a48e9bafcae",
    "SparseColumnPivotedQR": "a57abbd0-fea5-4d57-96be-5e525945e8e4",
}
STIFF = Group(
    "stiff",
    "methods for stiff ODEs: rosenbrock23, rodas4, rodas5p, autotsit5, trbdf2, kencarp4",
    "about two minutes",
    {
        "OrdinaryDiffEqRosenbrock": "43230ef6-c299-4910-a778-202eb28ce4ce",
        "OrdinaryDiffEqSDIRK": "2d112036-d095-4a1e-ab9a-08536f3ecdbf",
    },
    {"OrdinaryDiffEqRosenbrock": "2", "OrdinaryDiffEqSDIRK": "2"},
    without_workload={
        "OrdinaryDiffEqRosenbrock": "43230ef6-c299-4910-a778-202eb28ce4ce",
        "OrdinaryDiffEqSDIRK": "2d112036-d095-4a1e-ab9a-08536f3ecdbf",
        "LineSearch": "87fe0de2-c867-4266-b59a-2f0a94fc965b",
        "NonlinearSolve": "8913a72c-1f9b-4ce2-8d82-65094dcecaec",
        "NonlinearSolveFirstOrder": "5959db7a-ea39-4486-b5fe-2dd0bf03d60d",
        "NonlinearSolveQuasiNewton": "9a2c21bd-3a47-402d-9113-8faf9a0ee114",
        "NonlinearSolveSpectralMethods": "26075421-4e9a-44e1-8bd1-420ed7ad02b2",
        "SimpleNonlinearSolve": "727e6d20-b764-4bd8-a329-72de5adea6c7",
        "SparseMatrixColorings": "0a514795-09f3-496d-8182-132a7b665d35",
        **LINEAR,
    },
)
SDE = Group(
    "sde",
    "methods for SDEs",
    "about two minutes",
    {
        "DiffEqNoiseProcess": "77a26b50-5914-5dd7-bc55-306e6241c503",
        "StochasticDiffEqHighOrder": "0520c28c-50fd-4d16-9c96-902fc80b3bab",
        "StochasticDiffEqLowOrder": "d15fe365-ce7f-450a-828a-7985bd5b681b",
    },
    {"DiffEqNoiseProcess": "5", "StochasticDiffEqHighOrder": "2", "StochasticDiffEqLowOrder": "2"},
    without_workload={"SimpleNonlinearSolve": "727e6d20-b764-4bd8-a329-72de5adea6c7"},
)
ADJOINTS = Group(
    "adjoints",
    "SciMLSensitivity's adjoints and gradients of a JuliaField",
    "about ten minutes",
    {
        "SciMLSensitivity": "1ed8b502-d754-442c-8d5d-10ac956f44a1",
        "ChainRulesCore": "d360d2e6-b24c-11e9-a2a3-2a2ae2dbcce4",
        "Tracker": "9f7883ad-71c0-57eb-9f7f-b5c9e6d3789c",
        "Zygote": "e88e6eb3-aa80-5325-afca-941959d7151f",
    },
    {"SciMLSensitivity": "7", "ChainRulesCore": "1", "Tracker": "0.2", "Zygote": "0.7"},
    without_workload=LINEAR,
)
FFT = Group(
    "fft",
    "fields with Fourier transforms",
    "about a minute",
    {"FFTW": "7a1cc6ca-52ef-59f5-83cd-3a7055c09341"},
    {"FFTW": "1"},
)
CUDA = Group(
    "cuda",
    "tensors on CUDA devices",
    "several minutes",
    {"CUDA": "052768ef-5323-5732-b1bb-66c8b64840ba", "DLPack": "53c2dc0f-f7d5-43fd-8906-6c0220547083"},
    {},
)
GROUPS = (STIFF, SDE, FFT, ADJOINTS, CUDA)
"""What is installed where it is asked for. All else comes with our own package (juliapkg.json)."""

INSTALL = "run `python -m regnde julia` once, with a network, to install it"


def why_not() -> str | None:
    """Why no Julia can start from this disk, or None if one can.

    Asked before every solve with engine="auto": the disk is looked at once a second.
    """
    return _why_not_on_disk(*chosen(), int(time.monotonic()))


def forget() -> None:
    """Looks again next time: what was seen may have been put right."""
    _why_not_on_disk.cache_clear()


def chosen() -> tuple[str | None, str | None]:
    """The user's Julia and its project, where the environment names them."""
    return os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")


@lru_cache(maxsize=1)
def _why_not_on_disk(executable: str | None, project: str | None, second: int) -> str | None:
    if importlib.util.find_spec("juliacall") is None:
        return "the package juliacall is not installed: `pip install juliacall`, then " + INSTALL + "."
    return _why_not_chosen(executable, project) if executable or project else _why_not_installed()


def _why_not_chosen(executable: str | None, project: str | None) -> str | None:
    """Whether PYTHON_JULIACALL_EXE and _PROJECT name a Julia with our package."""
    if not (executable and project):
        return "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT must be set together, or neither."
    if not (os.path.isfile(executable) and os.access(executable, os.X_OK)):
        return f"PYTHON_JULIACALL_EXE={executable} is no executable file."
    if not _has_package(project):
        return (
            f"PYTHON_JULIACALL_PROJECT={project} holds no package RegNDE: in that project run "
            f"`using Pkg; Pkg.develop(path={str(folder())!r})`."
        )
    return None


def _why_not_installed() -> str | None:
    """Whether juliapkg has installed a Julia with our package into this environment."""
    if importlib.util.find_spec("juliapkg") is None:
        return "the package juliapkg, which installs Julia, is not installed: `pip install juliacall`."
    from juliapkg.state import STATE

    if not os.path.exists(STATE["meta"]) or not _has_package(STATE["project"]):
        return f"Julia and its packages are not installed in this environment: {INSTALL}."
    return None


def folder() -> Path:
    """The folder of the Julia package."""
    return Path(__file__).resolve().parents[2] / "julia"


def missing(packages: Iterable[str], loaded: Collection[str]) -> list[str]:
    """Those of the packages that are not in Julia's project.

    Args:
        packages: their names.
        loaded: Julia packages that are there for certain.
    """
    names = [name for name in packages if name not in loaded]
    if not names:
        return []
    dependencies = _text(_project(), "Project.toml").partition("[deps]")[2].partition("\n[")[0]
    return [name for name in names if not re.search(rf"(?m)^{name}\s*=", dependencies)]


def what_to_do(group: Group, names: Sequence[str], need: str, instead: str) -> str:
    """How packages of a group that are missing are installed, in one line.

    Args:
        group: whose option installs them.
        names: those that are missing.
        need: why they are needed.
        instead: what can be done without them.
    """
    steps = f"in Julia's project run `using Pkg; Pkg.add({julia_list(names)})`"
    if chosen() == (None, None):
        steps = f"run `python -m regnde julia --{group.option}` once, with a network, which takes {group.takes}"
    which = " and ".join(names)
    packages_are = f"packages {which} are" if len(names) > 1 else f"package {which} is"
    return f"{need}, and the Julia {packages_are} not installed: {steps}, or {instead}."


def _project() -> str:
    """The folder of Julia's project, or "" if nothing says which."""
    project = chosen()[1]
    if project is not None or importlib.util.find_spec("juliapkg") is None:
        return project or ""
    from juliapkg.state import STATE

    return str(STATE["project"])


def julia_list(names: Iterable[str]) -> str:
    """A Julia array of strings."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _text(project: str, name: str) -> str:
    """A file of a Julia project, or "" if it is not there."""
    file = Path(project) / name
    return file.read_text(encoding="utf-8") if project and file.is_file() else ""


def _has_package(project: str) -> bool:
    """Whether a Julia project or its manifest names our package."""
    return "RegNDE" in _text(project, "Project.toml") + _text(project, "Manifest.toml")
