"""What keeps Julia from being installed, in one line each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

__all__ = ["beforehand", "reason"]

CHOICE = (
    "It needs a network once, or PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT set to a Julia and a project that "
    "have it."
)


def reason(problem: Exception) -> str:
    """Why an installation failed and what to do, in one line: juliapkg's errors repeat the command that it ran."""
    if (why := _full_disk() or _out_of_reach()) is not None:
        return why
    if isinstance(problem, subprocess.CalledProcessError):
        return f"Julia's package manager failed and has said above why. {CHOICE}"
    if isinstance(problem, urllib.error.URLError):
        return f"Julia can not be downloaded ({problem.reason}). {_own_julia()}{CHOICE}"
    return f"{type(problem).__name__}: {problem}".split("\n")[0] + f". {CHOICE}"


def beforehand() -> str | None:
    """What makes it useless to begin, where nothing is installed yet."""
    return _full_disk() or _out_of_reach() if _is_first() else None


def _out_of_reach() -> str | None:
    """What to do, if the server that packages come from does not answer."""
    server = os.environ.get("JULIA_PKG_SERVER") or "https://pkg.julialang.org"
    try:
        urllib.request.urlopen(server if "://" in server else f"https://{server}", timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as unreachable:
        why = getattr(unreachable, "reason", unreachable)
        return f"the package server {server} can not be reached ({why}). {_own_julia()}{CHOICE}"
    return None


def _depot() -> str:
    """The folder that Julia installs packages into."""
    return os.environ.get("JULIA_DEPOT_PATH", "").split(os.pathsep)[0] or os.path.expanduser("~/.julia")


def _is_first() -> bool:
    """Whether there is nothing on the disk yet that packages could be installed from without their server."""
    return os.environ.get("JULIA_PKG_SERVER") != "" and not os.path.isdir(os.path.join(_depot(), "registries"))


NEEDED = 4 << 30
"""Bytes that Julia and its packages take while they are installed."""


def _full_disk() -> str | None:
    """What to do, if the disk that Julia is installed on is full."""
    for folder in (_depot(), sys.prefix):
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        free = shutil.disk_usage(folder).free
        if free < NEEDED:
            return (
                f"{free >> 20} MiB are free on the disk of {folder}, Julia and its packages need about "
                f"{NEEDED >> 30} GiB: make room, or set JULIA_DEPOT_PATH to a folder on another disk, followed by a "
                f"{os.pathsep!r}."
            )
    return None


def _own_julia() -> str:
    """Which Julia is on the PATH, where one is: juliapkg downloads another if it is too old."""
    found = shutil.which("julia")
    if found is None:
        return ""
    try:
        asked = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    version = re.search(r"(\d+)\.(\d+)", asked.stdout)
    if version is None or (int(version[1]), int(version[2])) >= (1, 10):
        return ""
    return f"The Julia on PATH ({found}) is {version[0]}, and 1.10 or newer is needed. "
