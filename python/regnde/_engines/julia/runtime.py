"""Julia in this process: how it starts, and the two threads that may call it, one at a time.

A worker thread starts Julia and makes the calls; callers wait for that thread. Julia's tasks and its output need it:
they run where Julia was started. A call that waits for neither is made on Python's main thread itself, if it comes
from there: to hand it over costs more than a small solve. Other threads are not given to Julia, which never forgets
one. What leaves this file are plain Python values and plain Python exceptions.

A garbage collection of Julia's waits for every thread that it knows, until that thread is inside Julia or is said to
be outside. Of the main thread Julia's compiled functions say so. Of the worker thread `park` says so once.

This file imports no torch, and juliacall in one function only.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from regnde._engines.julia import availability, project
from regnde._engines.julia.entries import Entries, JuliaFailure, evaluate, park
from regnde._engines.julia.forks import guard
from regnde._engines.julia.signals import Flags, Safepoints, ctrl_c_kept
from regnde._engines.julia.turn import held_here
from regnde._errors import EngineUnavailable

__all__ = [
    "JuliaFailure",
    "call",
    "load",
    "missing",
    "numbered",
    "prepared",
    "running",
    "start",
    "why_not",
]

T = TypeVar("T")

DEFAULTS = {
    "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",  # without it Julia's own signals at safepoints are segfaults
    "PYTHON_JULIACALL_THREADS": "1",  # of Julia's own, for samples; BLAS has others
    "PYTHON_JULIACALL_STARTUP_FILE": "no",
    "PYTHON_JULIACALL_AUTOLOAD_IPYTHON_EXTENSION": "no",  # it would wait for ever
}


class _Owned(weakref.ref[object]):
    """The number of what Julia is to forget, and the object with which it does."""

    __slots__ = ("number",)
    number: int


class _State:
    """The worker thread, RegNDE's functions, and the process that they belong to.

    Attributes:
        turn: held by the thread that is inside Julia.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.beginning: Future[Entries] | None = None  # goes on where the caller that waits is interrupted
        self.failure: str | None = None  # why Julia did not start; there is one start in a process
        self.entries: Entries | None = None
        self.pid = 0
        self.loaded: set[str] = set()
        self.numbers = itertools.count(1)
        self.discarded: deque[_Owned] = deque()
        self.owned: set[_Owned] = set()
        self.flags = Flags()
        self.safepoints: Safepoints | None = None  # where Julia has several threads
        self.turn = threading.RLock()


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
            if availability.chosen() == (None, None):
                project.settle()
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


LOAD = """
let notice = Timer(5) do timer
        println(
            stderr,
            "regnde: Julia compiles packages that are new or have changed. This takes minutes, once. Ctrl-C stops it.",
        )
    end
    try
        space = Module(:regnde)
        Base.eval(space, :(import {name}))
        {value}
    catch exception
        "ERROR: " * sprint(showerror, exception, catch_backtrace())
    finally
        close(notice)
    end
end
"""


OURS = LOAD.format(name="RegNDE", value="Base.invokelatest(getfield(space, :RegNDE).entries)")
SAFE_ENTER = "string(UInt(cglobal(:jl_gc_safe_enter)))"


def _begin() -> Entries:
    """On the worker thread: Julia, and RegNDE in a Julia module of our own."""
    with warnings.catch_warnings():
        # torch is always imported before: tried in both orders (tests/test_julia_engine.py, case 21)
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        with ctrl_c_kept():
            import juliacall
    guard(juliacall)
    library = juliacall.CONFIG["libpath"]
    entries = Entries(_loaded(evaluate(library, OURS)))
    entries.bridge_set_flags(_state.flags.address)
    if evaluate(library, "string(Threads.nthreads())") != "1":
        _state.safepoints = Safepoints()
    park(int(evaluate(library, SAFE_ENTER)))
    return entries


def _loaded(answer: str) -> str:
    """What `LOAD` has given.

    Raises:
        JuliaFailure: if that is an error.
    """
    if answer.startswith("ERROR: "):
        raise JuliaFailure(answer.removeprefix("ERROR: "))
    return answer


def load(*packages: str) -> None:
    """Loads further Julia packages, which bring our extensions with them."""
    start()
    names = [name for name in packages if name not in _state.loaded]
    if not names:
        return
    try:
        call(lambda julia: [_loaded(julia.bridge_evaluate(LOAD.format(name=name, value='""'))) for name in names])
    except JuliaFailure as problem:
        raise EngineUnavailable(
            f"the Julia package {' or '.join(names)} does not load. Julia says: {problem}"
        ) from None
    _state.loaded.update(names)


def call(function: Callable[[Entries], T], *, waits: bool = True) -> T:
    """Calls `function(RegNDE)`. What it takes and returns are numbers and text.

    Args:
        function: what to call.
        waits: whether it may wait for tasks or the output of Julia, and so needs the worker thread.

    Raises:
        JuliaFailure: if Julia throws.
        EngineUnavailable: if Julia can not run here, or no more.
        KeyboardInterrupt: once Julia has stopped, at its next step, and so for what handlers of other signals raise.
        RuntimeError: inside another call, in the handler of a signal.
    """
    start()
    if held_here(_state.turn):
        raise RuntimeError("Julia is at work on this thread: a signal's handler can not call it.")
    if not waits and threading.get_ident() == threading.main_thread().ident:
        return _run(function, serve=True)
    future = _submit(function)
    try:
        return future.result()
    except BaseException:  # of the call, or of a signal's handler before the call has ended
        # a call that has not begun waits for another thread's, which goes on
        if not future.done() and not future.cancel():
            _state.flags.stop()
            wait([future])
        raise
    finally:
        del future  # it holds the exception, whose traceback holds this frame


def _submit(function: Callable[[Entries], T]) -> Future[T]:
    executor = _state.executor
    assert executor is not None
    try:
        return executor.submit(_run, function)
    except RuntimeError:  # Python lets no thread begin anything once the main thread has ended
        raise EngineUnavailable(
            "Python is ending, and with it the thread that Julia runs on. In the main thread, wait for the threads "
            "that solve: call their join()."
        ) from None


def _run(function: Callable[[Entries], T], *, serve: bool = False) -> T:
    """Calls it on this thread, when Julia is free; `serve` lets Julia run handlers of signals meanwhile."""
    entries = _state.entries
    assert entries is not None
    with _state.turn:
        try:
            if _state.safepoints is not None:
                _state.safepoints.keep()
            _state.flags.reset(serve=serve)
            while _state.discarded:
                _forget(entries, _state.discarded[0])
                _state.discarded.popleft()
            return function(entries)
        finally:
            _state.flags.reraise()


def _forget(entries: Entries, what: _Owned) -> None:
    """Lets Julia forget it; once more, where the handler of a signal has raised behind the first time."""
    entries.bridge_free(what.number)
    _state.owned.discard(what)


def numbered(owner: object) -> int:
    """A number for what Julia is to keep. It forgets that when it is called next after the owner's end, on any thread.

    There is no code in Python at that end: what the handler of a signal raises in `__del__` is lost, as Ctrl-C is.
    """
    owned = _Owned(owner, _state.discarded.append)
    owned.number = next(_state.numbers)
    _state.owned.add(owned)
    return owned.number
