"""Whether a Julia with our package is on this disk, and what to do if not. Starts nothing, asks no network."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import time
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from regnde._engines.julia.packages import Group

__all__ = ["chosen", "command", "folder", "forget", "kept", "missing", "pkg_add", "what_to_do", "why_not"]

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
        path = _julia_text(str(folder()))
        add = f'using Pkg; Pkg.develop(path={path}); Pkg.add("PythonCall")'
        return f"PYTHON_JULIACALL_PROJECT={project} holds no package RegNDE: run {_in_own_project(add)}"
    return None


def _why_not_installed() -> str | None:
    """Whether juliapkg has installed a Julia with our package into this environment."""
    if importlib.util.find_spec("juliapkg") is None:
        return "the package juliapkg, which installs Julia, is not installed: `pip install juliacall`."
    from juliapkg.state import STATE

    if not os.path.exists(STATE["meta"]) or not _has_package(_project()):
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
    once = f" once, with a network, which takes {group.takes}" if chosen() == (None, None) else ""
    which = " and ".join(names)
    packages_are = f"packages {which} are" if len(names) > 1 else f"package {which} is"
    return f"{need}, and the Julia {packages_are} not installed: run {command(group, names)}{once}, or {instead}."


def command(group: Group, names: Iterable[str]) -> str:
    """What installs those packages of a group: our command, or Julia's in a project of the user's own."""
    return f"`python -m regnde julia --{group.option}`" if chosen() == (None, None) else pkg_add(names)


def pkg_add(names: Iterable[str]) -> str:
    """The command that adds packages to a project of the user's own."""
    return _in_own_project("using Pkg; Pkg.add([" + ", ".join(map(_julia_text, names)) + "])")


def _in_own_project(code: str) -> str:
    """The command that runs Julia code in the project that the environment names."""
    executable, project = chosen()
    words = [executable or "julia", f"--project={project}", "-e", code]
    return f"`{subprocess.list2cmdline(words) if os.name == 'nt' else shlex.join(words)}`"


def _julia_text(text: str) -> str:
    """A Julia string."""
    return '"' + re.sub(r'(["$\\])', r"\\\1", text) + '"'


def _project() -> str:
    """The folder of Julia's project, or "" if nothing says which.

    While it is changed, and if that was broken off, the copy of what it was.
    """
    project = chosen()[1]
    if project is not None or importlib.util.find_spec("juliapkg") is None:
        return project or ""
    from juliapkg.state import STATE

    return str(kept() if kept().is_dir() else STATE["project"])


def kept() -> Path:
    """Where the files of juliapkg's project are kept while it is changed."""
    from juliapkg.state import STATE

    return Path(STATE["prefix"]) / "before"


def _text(project: str, name: str) -> str:
    """A file of a Julia project, or "" if it is not there."""
    file = Path(project) / name
    return file.read_text(encoding="utf-8") if project and file.is_file() else ""


def _has_package(project: str) -> bool:
    """Whether a Julia project or its manifest names our package."""
    return "RegNDE" in _text(project, "Project.toml") + _text(project, "Manifest.toml")
