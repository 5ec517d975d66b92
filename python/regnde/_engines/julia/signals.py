"""Signals while Julia is at work: what it looks at between two steps, and whose Ctrl-C is."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Flags", "Safepoints", "ctrl_c_kept"]

# A handler in Python runs on the main thread, between two of its instructions, and there are none while Julia is at
# work on that thread. So Julia lets Python run it: it takes Python's lock, runs it, keeps what it raises, and gives
# the lock back.
FUNCTIONS = ("PyGILState_Ensure", "PyErr_CheckSignals", "PyErr_Fetch", "PyGILState_Release")
SIGACTION = 256  # bytes, more than C's struct has
STOP, SERVE, FIRST_FUNCTION, RAISED, SIZE = 0, 1, 2, 6, 9

_restore = ctypes.pythonapi.PyErr_Restore
_restore.argtypes, _restore.restype = [ctypes.c_void_p] * 3, None

# unlike those of `signal`, any thread may call them
_handler, _set_handler = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
_handler.argtypes, _handler.restype = [ctypes.c_int], ctypes.c_void_p
_set_handler.argtypes, _set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p


@contextmanager
def ctrl_c_kept() -> Iterator[None]:
    """Behind the block the handler of SIGINT is the one before it; Julia's own is installed where Julia starts.

    Julia's would throw into whatever task runs, of which most say nothing when they end.
    """
    before = _handler(signal.SIGINT)
    try:
        yield
    finally:
        _set_handler(signal.SIGINT, before)


class Flags:
    """Integers in memory that Julia reads at every step.

    Attributes:
        address: of the integers.
    """

    def __init__(self) -> None:
        self._integers = (ctypes.c_int64 * SIZE)()
        self.address = ctypes.addressof(self._integers)
        for place, name in enumerate(FUNCTIONS, FIRST_FUNCTION):
            function = getattr(ctypes.pythonapi, name)
            self._integers[place] = ctypes.cast(function, ctypes.c_void_p).value or 0

    def reset(self, *, serve: bool) -> None:
        """For the next call, which goes on until it is stopped; `serve` lets it run handlers of signals."""
        self._integers[STOP], self._integers[SERVE] = 0, serve

    def stop(self) -> None:
        """Asks Julia to stop at its next step."""
        self._integers[STOP] = 1

    def reraise(self) -> None:
        """Raises what the handler of a signal has raised during the call, if one has."""
        if self._integers[RAISED]:
            raised = self._integers[RAISED:]
            self._integers[RAISED:] = [0, 0, 0]
            _restore(*raised)


class Safepoints:
    """Julia's handler of segmentation faults, by which its threads wait for each other in a garbage collection.

    `faulthandler.enable()` puts one in its place that takes such a fault for a crash and ends the process.
    """

    def __init__(self) -> None:
        self._installed = self._now()

    def keep(self) -> None:
        """Installs Julia's handler again where another one is in its place."""
        if self._now().raw != self._installed.raw:
            ctypes.pythonapi.sigaction(signal.SIGSEGV, self._installed, None)

    @staticmethod
    def _now() -> ctypes.Array[ctypes.c_char]:
        action = ctypes.create_string_buffer(SIGACTION)
        if os.name != "nt":
            ctypes.pythonapi.sigaction(signal.SIGSEGV, None, action)
        return action
