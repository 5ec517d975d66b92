"""Whether a Julia with our package is on this disk, and what to do if not. Starts nothing, asks no network."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

__all__ = [
    "ADJOINTS",
    "CUDA",
    "SDIRK",
    "STOCHASTIC",
    "VERSIONS",
    "chosen",
    "folder",
    "forget",
    "julia_list",
    "missing_adjoints",
    "missing_cuda",
    "missing_sdirk",
    "missing_stochastic",
    "why_not",
]

CUDA = {"CUDA": "052768ef-5323-5732-b1bb-66c8b64840ba", "DLPack": "53c2dc0f-f7d5-43fd-8906-6c0220547083"}
"""The Julia packages that tensors on CUDA devices need, by name."""

ADJOINTS = {
    "SciMLSensitivity": "1ed8b502-d754-442c-8d5d-10ac956f44a1",
    "ChainRulesCore": "d360d2e6-b24c-11e9-a2a3-2a2ae2dbcce4",
    "Tracker": "9f7883ad-71c0-57eb-9f7f-b5c9e6d3789c",
    "Zygote": "e88e6eb3-aa80-5325-afca-941959d7151f",
}
"""The Julia packages that continuous adjoints need; gradients of a `JuliaField` need the last one."""

SDIRK = {"OrdinaryDiffEqSDIRK": "2d112036-d095-4a1e-ab9a-08536f3ecdbf"}
"""The Julia package of the methods trbdf2 and kencarp4: with what it needs, nearly half of all there was to compile."""

STOCHASTIC = {
    "DiffEqNoiseProcess": "77a26b50-5914-5dd7-bc55-306e6241c503",
    "StochasticDiffEqHighOrder": "0520c28c-50fd-4d16-9c96-902fc80b3bab",
    "StochasticDiffEqLowOrder": "d15fe365-ce7f-450a-828a-7985bd5b681b",
}
"""The Julia packages of the methods for SDEs, which are installed with ours (juliapkg.json)."""

VERSIONS = {
    "SciMLSensitivity": "7",
    "ChainRulesCore": "1",
    "Tracker": "0.2",
    "Zygote": "0.7",
    "OrdinaryDiffEqSDIRK": "2",
}

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


def missing_cuda(loaded: Collection[str]) -> str | None:
    """What to do before tensors on a CUDA device can be solved, or None if nothing is missing.

    Args:
        loaded: Julia packages that are there for certain.
    """
    return _missing(CUDA, loaded, "the state lies on a CUDA device", "--cuda", "set Solver(engine='torch')")


def missing_adjoints(loaded: Collection[str], *, gradient: str) -> str | None:
    """What to do before a continuous adjoint, or the gradient of a `JuliaField`, can be computed.

    Args:
        loaded: Julia packages that are there for certain.
        gradient: the adjoint's name, or "" for a `JuliaField` with its discrete gradient.
    """
    if gradient:
        need, instead = f"gradient={gradient!r} is SciMLSensitivity's", "use gradient='discrete'"
        return _missing(ADJOINTS, loaded, need, "--adjoints", instead)
    instead = "use torch.no_grad() for values alone"
    return _missing(("Zygote",), loaded, "Zygote differentiates a JuliaField", "--adjoints", instead)


def missing_sdirk(loaded: Collection[str], *, method: str) -> str | None:
    """What to do before trbdf2 or kencarp4 can be used, or None if nothing is missing.

    Args:
        loaded: Julia packages that are there for certain.
        method: the method's name.
    """
    need, instead = f"method={method!r} is OrdinaryDiffEqSDIRK's", "use 'rodas5p' or 'rosenbrock23'"
    return _missing(SDIRK, loaded, need, "--sdirk", instead)


def missing_stochastic(loaded: Collection[str]) -> str | None:
    """What to do before an SDE can be solved, or None if nothing is missing.

    Args:
        loaded: Julia packages that are there for certain.
    """
    return _missing(STOCHASTIC, loaded, "the equation is an SDE", "", "set Solver(engine='torch')")


def _missing(packages: Iterable[str], loaded: Collection[str], need: str, option: str, instead: str) -> str | None:
    missing = [name for name in packages if name not in loaded]
    if missing:
        dependencies = _text(_project(), "Project.toml").partition("[deps]")[2].partition("\n[")[0]
        missing = [name for name in missing if not re.search(rf"(?m)^{name}\s*=", dependencies)]
    if not missing:
        return None
    steps = f"in Julia's project run `using Pkg; Pkg.add({julia_list(missing)})`"
    if chosen() == (None, None):
        minutes = ", which takes a few minutes" if option in ("--adjoints", "--sdirk") else ""
        steps = f"run `{' '.join(('python -m regnde julia', option)).strip()}` once, with a network{minutes}"
    names = " and ".join(missing)
    packages_are = f"packages {names} are" if len(missing) > 1 else f"package {names} is"
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
