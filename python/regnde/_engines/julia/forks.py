"""Children of `os.fork()` in which Julia does not run: nothing of it may be called there, not even at their end.

Julia writes the code that it compiles through a descriptor of its own memory (`/proc/self/mem`). That of a child still
leads to the parent's memory: what a child compiles is missing in the child and overwrites the parent.
"""

from __future__ import annotations

import ctypes
import os
from types import ModuleType

__all__ = ["guard"]


def guard(juliacall: ModuleType) -> None:
    """Keeps children of this process from calling Julia when they end, which juliacall would do.

    Args:
        juliacall: the module, which has started Julia.
    """
    os.register_at_fork(after_in_child=lambda: _leave_alone(juliacall))


def _leave_alone(juliacall: ModuleType) -> None:
    juliacall.CONFIG["lib"].jl_atexit_hook = _nothing  # juliacall calls it at exit
    keep = ctypes.pythonapi.Py_IncRef
    for value in vars(juliacall).values():  # of objects of Julia's Julia would be told that they are freed
        keep(ctypes.py_object(value))


def _nothing(_: int) -> None:
    """In place of Julia's work at exit."""
