"""Whether a Julia with our package is on this disk, and what to do if not. Starts nothing, asks no network."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path

__all__ = ["CUDA", "chosen", "folder", "forget", "julia_list", "missing_cuda", "why_not"]

CUDA = {"CUDA": "052768ef-5323-5732-b1bb-66c8b64840ba", "DLPack": "53c2dc0f-f7d5-43fd-8906-6c0220547083"}
"""The Julia packages that tensors on CUDA devices need, by name."""

RECHECK = 1.0
"""How many seconds it is believed that Julia is not there; that it is, is believed until it is started."""

INSTALL = "run `python -m regnde julia` once, with a network, to install it"


class _Seen:
    """What was found for which choice of Julia, and until when that is believed."""

    def __init__(self) -> None:
        self.last: tuple[tuple[str | None, str | None], str | None, float] | None = None


_seen = _Seen()


def why_not() -> str | None:
    """Why no Julia can start from this disk, or None if one can.

    Asked before every solve with engine="auto": the disk is looked at once, or once a second.
    """
    choice, now = chosen(), time.monotonic()
    if _seen.last is None or _seen.last[0] != choice or now >= _seen.last[2]:
        why = _why_not_on_disk(*choice)
        _seen.last = choice, why, math.inf if why is None else now + RECHECK
    return _seen.last[1]


def forget() -> None:
    """Looks again next time: what was seen may have been put right."""
    _seen.last = None


def chosen() -> tuple[str | None, str | None]:
    """The user's Julia and its project, where the environment names them."""
    return os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")


def _why_not_on_disk(executable: str | None, project: str | None) -> str | None:
    if importlib.util.find_spec("juliacall") is None:
        return "the package juliacall is not installed: `pip install juliacall`, then " + INSTALL + "."
    return _why_not_chosen(executable, project) if executable or project else _why_not_installed()


def _why_not_chosen(executable: str | None, project: str | None) -> str | None:
    """Whether PYTHON_JULIACALL_EXE and _PROJECT name a Julia with our package."""
    if not (executable and project):
        return "PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT must be set together, or neither."
    if not (os.path.isfile(executable) and os.access(executable, os.X_OK)):
        return f"PYTHON_JULIACALL_EXE={executable} is no executable file."
    if not _has_package(Path(project)):
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

    if not os.path.exists(STATE["meta"]) or not _has_package(Path(STATE["project"])):
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
    missing = [name for name in CUDA if name not in loaded and not _depends_on(name)]
    if not missing:
        return None
    steps = f"in Julia's project run `using Pkg; Pkg.add({julia_list(missing)})`"
    if chosen() == (None, None):
        steps = "run `python -m regnde julia --cuda` once, with a network"
    return (
        f"the state lies on a CUDA device, and the Julia package {' and '.join(missing)} is not installed: {steps}, "
        "or set Solver(engine='torch')."
    )


def _depends_on(package: str) -> bool:
    """Whether Julia's project has the package among its direct dependencies."""
    project = chosen()[1]
    if project is None:
        if importlib.util.find_spec("juliapkg") is None:
            return False
        from juliapkg.state import STATE

        project = str(STATE["project"])
    file = Path(project) / "Project.toml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    dependencies = text.partition("[deps]")[2].partition("\n[")[0]
    return re.search(rf"(?m)^{package}\s*=", dependencies) is not None


def julia_list(names: Iterable[str]) -> str:
    """A Julia array of strings."""
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def _has_package(project: Path) -> bool:
    """Whether a Julia project or its manifest names our package."""
    for name in ("Project.toml", "Manifest.toml"):
        file = project / name
        if file.is_file() and "RegNDE" in file.read_text(encoding="utf-8"):
            return True
    return False
