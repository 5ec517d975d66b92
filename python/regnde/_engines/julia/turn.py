"""A lock for one thread at a time that tells the thread which has it."""

from __future__ import annotations

import threading

__all__ = ["Turn"]


class Turn:
    """A lock that a thread may ask whether it has it already, as the handler of a signal must that came meanwhile.

    A handler that comes just before the lock is told to be this thread's, or just behind it, may take it once more:
    what the lock is for has not begun then, or has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._owner = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread is between the two."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self._owner = 0
        self._lock.release()
