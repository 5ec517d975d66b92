"""Locks of which a thread asks whether it has them already, as the handler of a signal must that came meanwhile."""

from __future__ import annotations

import threading

__all__ = ["held_here"]


def held_here(lock: threading.RLock) -> bool:
    """Whether this thread holds the lock."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]  # `threading.Condition` asks a lock by this name, too
