"""The installation of Julia and its packages on demand."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence

from regnde._engines.julia import availability, project, runtime
from regnde._engines.julia.obstacles import beforehand
from regnde._engines.julia.packages import Group, Package
from regnde._errors import EngineUnavailable

__all__ = ["install"]


def install(groups: Sequence[Group] = ()) -> float:
    """Installs Julia and the packages, unless they are there, and starts; returns the seconds it took.

    Args:
        groups: what to install beside our own package.

    Raises:
        EngineUnavailable: with the reason, if that does not work.
    """
    began = time.perf_counter()
    further = [name for group in groups for name in group.names]
    if availability.chosen() != (None, None):
        if (missing := runtime.missing(*further)) and runtime.prepared():
            raise EngineUnavailable(
                "PYTHON_JULIACALL_PROJECT names a project of your own, and nothing is installed into it from here: run "
                f"{availability.pkg_add(missing)}"
            )
    elif not runtime.running() and (runtime.missing(*further) or not runtime.prepared()):
        if importlib.util.find_spec("juliapkg") is None:
            raise EngineUnavailable("the package juliapkg is missing: `pip install juliacall`.")
        if (why := beforehand()) is not None:
            raise EngineUnavailable(f"Julia could not be installed: {why}")
        with project.alone():  # until Julia is up: another installation would change the project meanwhile
            _change([package for group in groups for package in (*group.packages, *group.behind)])
            runtime.start()
    runtime.load(*further)
    return time.perf_counter() - began


def _change(packages: Sequence[Package]) -> None:
    """Installs Julia, our own package, and these."""
    try:
        project.change(packages)
    except KeyboardInterrupt:
        raise EngineUnavailable(
            "the installation was interrupted, and what worked before still works: run the same command again, it goes "
            "on where it stopped."
        ) from None
    finally:
        availability.forget()
