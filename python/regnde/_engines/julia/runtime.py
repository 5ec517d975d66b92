"""Julia in this process: how it starts, and the one thread that may talk to it.

A Julia garbage collection that begins on another Python thread than the one that started Julia
deadlocks the process. So one worker thread starts it and makes every call; callers wait for that
thread. What leaves it are plain Python values and plain Python exceptions.

This file imports no torch, and juliacall in one function only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from regnde._engines.julia import availability
from regnde._engines.julia.entries import Entries, JuliaFailure, evaluate
from regnde._errors import EngineUnavailable

__all__ = [
    "JuliaFailure",
    "call",
    "discard",
    "load",
    "missing",
    "prepared",
    "running",
    "start",
    "why_not",
]

T = TypeVar("T")

DEFAULTS = {
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",  # without it Julia's own signals at safepoints are segfaults
    "PYTHON_JULIACALL_THREADS": "1",  # one thread makes all calls; BLAS has its own
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
}


class _State:
    """The worker thread, RegNDE's functions, and the process that they belong to."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.beginning: Future[Entries] | None = None  # goes on where the caller that waits is interrupted
        self.failure: str | None = None  # why Julia did not start; there is one start in a process
        self.entries: Entries | None = None
        self.pid = 0
        self.loaded: set[str] = set()
        self.discarded: deque[int] = deque()
        self.stop_flag = ctypes.c_int32(0)  # Julia reads it at every step


_state = _State()


def prepared() -> bool:
    """Whether Julia can start here without installing anything."""
    return why_not() is None


def why_not() -> str | None:
    """Why Julia can not run here and what to do, or None if it can. Starts nothing, asks no network."""
    if running() or _state.beginning is not None:
        return _of_another_process() or _state.failure
    if _started_elsewhere():
        return (
            "another package has started Julia in this process, on a thread that regnde can not use. "
            "Solve once with Solver(engine='julia') before that package is imported."
        )
    return availability.why_not()


def missing(*packages: str) -> list[str]:
    """Those of the Julia packages that are not installed."""
    return availability.missing(packages, _state.loaded)


def _started_elsewhere() -> bool:
    juliacall = sys.modules.get("juliacall")
    return juliacall is not None and bool(getattr(juliacall, "CONFIG", {}).get("inited"))


def _of_another_process() -> str | None:
    if _state.pid == os.getpid():
        return None
    return (
        f"Julia runs in process {_state.pid}, of which this one is a fork, and can not be used here. "
        "Start workers with the 'spawn' method, or use Solver(engine='torch') in them."
    )


def running() -> bool:
    """Whether Julia has been started, here or in the process that this one is a fork of."""
    return _state.entries is not None


def start() -> None:
    """Starts Julia and loads our package, unless it runs already.

    Raises:
        EngineUnavailable: if it can not run here.
    """
    if running() and _state.pid == os.getpid():
        return
    availability.forget()
    if (why := why_not()) is not None:
        raise EngineUnavailable(why)
    with _state.lock:
        if running():
            return
        if _state.beginning is None:
            for name, value in DEFAULTS.items():
                os.environ.setdefault(name, value)
            _state.executor, _state.pid = ThreadPoolExecutor(1, thread_name_prefix="regnde-julia"), os.getpid()
            _state.beginning = _state.executor.submit(_begin)
        try:
            _state.entries = _state.beginning.result()
        except Exception as problem:
            _state.failure = f"Julia does not start: {type(problem).__name__}: {problem}"
            if not _started_elsewhere():  # nothing has begun
                _state.beginning = None
            raise EngineUnavailable(_state.failure) from None
    _take_back_ctrl_c()


def _take_back_ctrl_c() -> None:
    """Installs Python's handler of SIGINT again, which Julia has replaced by its own."""
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGINT)
        if handler is not None:  # otherwise it was not Python's before either
            signal.signal(signal.SIGINT, handler)


LOAD = """
try
    space = Module(:regnde)
    Base.eval(space, :(import RegNDE))
    Base.invokelatest(getfield(space, :RegNDE).entries)
catch exception
    "ERROR: " * sprint(showerror, exception, catch_backtrace())
end
"""


def _begin() -> Entries:
    """On the worker thread: Julia, and RegNDE in a Julia module of our own."""
    with warnings.catch_warnings():
        # torch is always imported before: tried in both orders (tests/test_julia_engine.py, case 21)
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        import juliacall
    table = evaluate(juliacall.CONFIG["libpath"], LOAD)
    if table.startswith("ERROR: "):
        raise JuliaFailure(table.removeprefix("ERROR: "))
    entries = Entries(table)
    entries.bridge_set_stop_flag(ctypes.addressof(_state.stop_flag))
    return entries


def load(*packages: str) -> None:
    """Loads further Julia packages, which bring our extensions with them."""
    start()
    missing = [name for name in packages if name not in _state.loaded]
    if not missing:
        return

    try:
        call(lambda julia: [julia.bridge_load(name) for name in missing] and None)
    except JuliaFailure as problem:
        raise EngineUnavailable(
            f"the Julia package {' or '.join(missing)} does not load. In Julia's project run "
            f"`using Pkg; Pkg.add({availability.julia_list(missing)})`. Julia says: {problem}"
        ) from None
    _state.loaded.update(missing)


def call(function: Callable[[Entries], T]) -> T:
    """Calls `function(RegNDE)` on the worker thread. What it takes and returns are numbers and text.

    Raises:
        JuliaFailure: if Julia throws.
        KeyboardInterrupt: once Julia has stopped, at its next step.
    """
    start()
    executor, entries = _state.executor, _state.entries
    assert executor is not None
    assert entries is not None

    def run() -> T:
        _state.stop_flag.value = 0
        while _state.discarded:
            entries.bridge_free(_state.discarded.popleft())
        return function(entries)

    future: Future[T] = executor.submit(run)
    try:
        return future.result()
    except KeyboardInterrupt:
        _state.stop_flag.value = 1
        wait([future])
        raise
    finally:
        del future  # it holds the exception, whose traceback holds this frame


def discard(number: int) -> None:
    """Lets Julia forget the field or solve of that number, when it is called next. Safe on any thread."""
    _state.discarded.append(number)
