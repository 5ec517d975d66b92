"""The Julia engine's edges that need no Julia: when it may start, what it refuses, what is shipped."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
import urllib.error
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import regnde
from regnde import Local, Solver
from regnde._engines import choose, engines
from regnde._engines.base import Request, StepRules
from regnde._engines.julia import availability, installation, obstacles, packages, runtime
from regnde._engines.julia.entries import Entries
from regnde._engines.julia.handle import Handle

ROOT = Path(__file__).parent.parent
JULIA_FILES = {"Project.toml", "src/RegNDE.jl", "src/tableaux.toml", "src/bridge.jl", "ext/RegNDEZygoteExt.jl"}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """No Julia has started, none is named, and juliapkg has installed nothing."""
    with suppress(ImportError):
        from juliapkg.state import STATE

        beside = tmp_path / "julia_env" / "pyjuliapkg"
        places = dict(project=beside.parent, prefix=beside, deps=beside / "juliapkg.json", meta=beside / "meta.json")
        for name, place in places.items():
            monkeypatch.setitem(STATE, name, str(place))
    monkeypatch.setattr(runtime.project, "settle", lambda: None)
    monkeypatch.setattr(runtime, "_state", runtime._State())
    availability.forget()
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)
    for name in ("EXE", "PROJECT"):
        monkeypatch.delenv(f"PYTHON_JULIACALL_{name}", raising=False)
    yield monkeypatch
    availability.forget()


def looked_again() -> str:
    """What is said of the disk as it is now."""
    availability.forget()
    return runtime.why_not() or ""


OF_REQUEST = ("tolerances", "mass", "stops", "events", "rules", "dense")


def request(f: object = lambda t, y: -y, y0: object = None, record: object = "none", **options: object) -> Request:
    state = torch.ones(2, 2) if y0 is None else y0
    more = {name: options.pop(name) for name in OF_REQUEST if name in options}
    solver = Solver(engine="julia", **options).resolve(sde=isinstance(f, regnde.SDE))  # type: ignore[arg-type]
    return Request(
        equation=f,  # type: ignore[arg-type]
        y0=state,  # type: ignore[arg-type]
        ts=torch.tensor([0.0, 1.0]),
        times=(0.0, 1.0),
        solver=solver,
        record=record,  # type: ignore[arg-type]
        noise=None,
        throw=True,
        **more,  # type: ignore[arg-type]
    )


def test_missing_juliacall_is_explained(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(availability.importlib.util, "find_spec", lambda name: None)
    assert "pip install juliacall" in (runtime.why_not() or "")


def test_case_24_chosen_julia_is_checked(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """PYTHON_JULIACALL_EXE and _PROJECT: both or neither, an executable, a project with our package."""
    fresh.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    assert "together" in looked_again()
    fresh.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    assert "Pkg.develop" in looked_again()
    (tmp_path / "Project.toml").write_text("[deps]\nRegNDE = ''\n")
    tmp_path.chmod(0o555)  # a prepared project may be read-only
    assert looked_again() == ""
    fresh.setenv("PYTHON_JULIACALL_EXE", str(tmp_path / "nowhere"))
    assert "no executable" in looked_again()


def test_the_disk_is_not_looked_at_before_every_solve(fresh: pytest.MonkeyPatch) -> None:
    """Once a second; at once for another choice of Julia."""
    looks: list[str] = []
    fresh.setattr(availability.importlib.util, "find_spec", looks.append)
    now = iter([1e9, 1e9 + 0.1, 1e9 + 0.8, 1e9 + 1.5, 1e9 + 1.6])
    fresh.setattr(availability.time, "monotonic", lambda: next(now))
    for _ in range(4):
        assert "pip install juliacall" in (runtime.why_not() or "")
    assert len(looks) == 2
    fresh.setenv("PYTHON_JULIACALL_EXE", "other")
    runtime.why_not()
    assert len(looks) == 3


def test_cuda_packages_are_asked_for(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    project = tmp_path / "Project.toml"
    project.write_text('[deps]\nCUDA = "052768ef"\n\n[compat]\nDLPack = "0.3"\n')
    assert runtime.missing(*packages.CUDA.names) == ["DLPack"]
    assert 'Pkg.add(["DLPack"])' in availability.what_to_do(packages.CUDA, ["DLPack"], "", "")
    project.write_text('[deps]\nCUDA = "052768ef"\nDLPack = "53c2dc0f"\n')
    assert runtime.missing(*packages.CUDA.names) == []
    fresh.delenv("PYTHON_JULIACALL_PROJECT")
    pytest.importorskip("juliapkg")
    assert "python -m regnde julia --cuda" in availability.what_to_do(packages.CUDA, ["DLPack"], "", "")


def test_a_state_on_cuda_without_cuda_jl_goes_to_torch(fresh: pytest.MonkeyPatch) -> None:
    """Asked for by name it is an error that says what to install; "auto" takes the other engine."""
    asked = request()
    asked = replace(asked, y0=SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32))  # type: ignore[arg-type]
    fresh.setattr(runtime, "why_not", lambda: None)
    fresh.setattr(runtime, "missing", lambda *names: list(names))
    with pytest.raises(regnde.EngineUnavailable, match="CUDA device, and the Julia packages CUDA and DLPack"):
        choose(asked)
    fresh.setenv("REGNDE_ENGINE", "auto")
    fresh.setattr(engines()["torch"].__class__, "why_unsupported", lambda self, request: None)
    assert choose(replace(asked, solver=replace(asked.solver, engine="auto"))).name == "torch"


def test_not_installed_is_explained(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state = pytest.importorskip("juliapkg.state")
    fresh.setitem(state.STATE, "meta", str(tmp_path / "meta.json"))
    assert "python -m regnde julia" in (runtime.why_not() or "")
    with pytest.raises(regnde.EngineUnavailable, match="python -m regnde julia"):
        runtime.start()
    assert not runtime.running()


def test_an_installation_that_fails_is_explained_in_one_line(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deps = pytest.importorskip("juliapkg")

    def resolve() -> None:
        raise subprocess.CalledProcessError(1, ["julia", "-e", "import Pkg\nPkg.add()"])

    fresh.setattr(deps, "resolve", resolve)
    fresh.setattr(runtime, "prepared", lambda: False)
    fresh.setenv("JULIA_PKG_SERVER", "http://127.0.0.1:9")
    fresh.setenv("JULIA_DEPOT_PATH", str(tmp_path))
    (tmp_path / "registries").mkdir()
    with pytest.raises(regnde.EngineUnavailable, match="9 can not be reached") as caught:
        installation.install()
    assert "\n" not in str(caught.value)
    assert "Pkg.add" not in str(caught.value)


@pytest.fixture
def failing(fresh: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An installation that fails, with a package server that can not be reached."""
    deps = pytest.importorskip("juliapkg")

    def resolve() -> None:
        raise subprocess.CalledProcessError(1, ["julia"])

    fresh.setattr(deps, "resolve", resolve)
    fresh.setattr(deps, "add", lambda *args, **kwargs: None)
    fresh.setattr(runtime, "prepared", lambda: False)
    fresh.setenv("JULIA_PKG_SERVER", "http://127.0.0.1:9")
    return fresh


def reason() -> str:
    with pytest.raises(regnde.EngineUnavailable) as caught:
        installation.install([packages.ADJOINTS])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_full_disk_is_named(failing: pytest.MonkeyPatch) -> None:
    failing.setattr(obstacles.shutil, "disk_usage", lambda folder: SimpleNamespace(free=300 << 20))
    assert "300 MiB are free on the disk of" in reason()
    assert "JULIA_DEPOT_PATH" in reason()


def test_a_julia_that_is_too_old_is_named(failing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "julia"
    old.write_text("#!/bin/sh\necho julia version 1.9.4\n")
    old.chmod(0o755)
    failing.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert f"The Julia on PATH ({old}) is 1.9, and 1.10 or newer is needed" in reason()


def test_a_download_that_fails_names_the_julia_that_is_too_old(failing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def resolve() -> None:
        raise urllib.error.URLError("name not known")

    old = tmp_path / "julia"
    old.write_text("#!/bin/sh\necho julia version 1.9.4\n")
    old.chmod(0o755)
    failing.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    failing.setattr("juliapkg.resolve", resolve)
    failing.setattr(obstacles, "_out_of_reach", lambda: None)
    assert "can not be downloaded (name not known). The Julia on PATH" in reason()


def test_a_server_out_of_reach_is_found_before_anything_is_tried(
    failing: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing.setenv("JULIA_DEPOT_PATH", str(tmp_path))
    failing.setattr("juliapkg.resolve", lambda: pytest.fail("nothing can be installed"))
    assert "the package server http://127.0.0.1:9 can not be reached" in reason()
    assert capsys.readouterr().err == ""


def test_an_interrupted_installation_says_that_it_goes_on(failing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    failing.setenv("JULIA_DEPOT_PATH", str(tmp_path))
    (tmp_path / "registries").mkdir()
    failing.setattr("juliapkg.resolve", interrupted)
    assert "run the same command again" in reason()


@pytest.fixture
def without_options(fresh: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The Project.toml of a Julia that has our package and nothing that comes with an option."""
    pytest.importorskip("juliapkg")
    fresh.setattr(runtime, "why_not", lambda: None)
    fresh.setenv("PYTHON_JULIACALL_EXE", "julia")
    fresh.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    project = tmp_path / "Project.toml"
    project.write_text('[deps]\nRegNDE = "c76cb92b"\n')
    return project


def with_option() -> list[tuple[Request, str, packages.Group]]:
    """Requests that need further packages, one of them, and the group that it is of."""
    by_hand = regnde.JuliaField("(t, y, w) -> w * y", [torch.ones(1, requires_grad=True)])
    sde = regnde.SDE(lambda t, y: -y, lambda t, y: y)
    stiff, names = packages.STIFF, ("rosenbrock23", "rodas4", "rodas5p", "autotsit5")
    return [
        *((request(method=name), "OrdinaryDiffEqRosenbrock", stiff) for name in names),
        (request(method="trbdf2"), "OrdinaryDiffEqSDIRK", stiff),
        (request(sde, method="sosri"), "StochasticDiffEqHighOrder", packages.SDE),
        (request(gradient="gauss"), "SciMLSensitivity", packages.ADJOINTS),
        (request(by_hand), "Zygote", packages.ADJOINTS),
    ]


def test_packages_that_are_missing_are_named(fresh: pytest.MonkeyPatch, without_options: Path) -> None:
    """In a project of the user's own by `Pkg.add`; else by our command, with the time that it takes."""
    for asked, name, _ in with_option():
        with pytest.raises(regnde.EngineUnavailable, match=name) as caught:
            choose(asked)
        assert "Pkg.add([" in str(caught.value)
        assert "\n" not in str(caught.value)
    fresh.delenv("PYTHON_JULIACALL_EXE")
    fresh.delenv("PYTHON_JULIACALL_PROJECT")
    for asked, _, group in with_option():
        with pytest.raises(regnde.EngineUnavailable) as caught:
            choose(asked)
        assert f"python -m regnde julia --{group.option}` once, with a network, which takes {group.takes}" in str(
            caught.value
        )
        assert "\n" not in str(caught.value)


def test_packages_that_are_there_are_used(without_options: Path) -> None:
    """Explicit methods need none of them, a `JuliaField` only for its gradient."""
    for method in ("tsit5", "vern9"):
        assert choose(request(method=method)).name == "julia"
    assert choose(request(method="rk4", dt0=0.1)).name == "julia"
    assert choose(request(regnde.JuliaField("(t, y) -> -y", []))).name == "julia"
    for asked, _, group in with_option():
        without_options.write_text(
            "[deps]\n" + "".join(f'{package.name} = "{package.uuid}"\n' for package in group.packages)
        )
        assert choose(asked).name == "julia"


def test_auto_runs_on_torch_where_packages_are_missing(fresh: pytest.MonkeyPatch, without_options: Path) -> None:
    """Unless torch has no such method: then it says what to install."""
    fresh.setenv("REGNDE_ENGINE", "auto")
    for asked, name, group in with_option():
        asked = replace(asked, solver=replace(asked.solver, engine="auto"))
        if name in ("OrdinaryDiffEqRosenbrock", "StochasticDiffEqHighOrder"):
            assert choose(asked).name == "torch"
        else:
            with pytest.raises(regnde.EngineUnavailable, match=name):
                choose(asked)
        without_options.write_text(
            "[deps]\n" + "".join(f'{package.name} = "{package.uuid}"\n' for package in group.packages)
        )
        assert choose(asked).name == "julia"
        without_options.write_text("[deps]\n")


def test_the_command_line_has_an_option_for_each_group(fresh: pytest.MonkeyPatch) -> None:
    from regnde import __main__, _doctor

    installed: list[tuple[str, ...]] = []
    fresh.setattr(_doctor, "install_julia", lambda groups: installed.append(tuple(g.option for g in groups)) or [])
    every = ("stiff", "sde", "fft", "adjoints")
    for option in ("", "--stiff", "--sde", "--fft", "--adjoints", "--cuda", "--all"):
        assert __main__.main(["julia", *option.split()]) == 0
    assert installed == [(), ("stiff",), ("sde",), ("fft",), ("adjoints",), ("cuda",), every]


def test_what_is_asked_for_is_installed(fresh: pytest.MonkeyPatch) -> None:
    """With the versions that our package takes; afterwards it is loaded."""
    deps = pytest.importorskip("juliapkg")
    added: dict[str, object] = {}
    loaded: list[str] = []
    fresh.setattr(runtime, "prepared", lambda: False)
    fresh.setattr(obstacles, "_is_first", lambda: False)
    fresh.setattr(
        deps, "add", lambda name, uuid, **more: added.update({name: (uuid, more["version"], more["preferences"])})
    )
    fresh.setattr(deps, "resolve", lambda: None)
    fresh.setattr(runtime, "start", lambda: None)
    fresh.setattr(runtime, "load", lambda *names: loaded.extend(names))
    installation.install([packages.STIFF])
    assert added == {
        package.name: (package.uuid, package.version, {"precompile_workload": False})
        for package in (*packages.STIFF.packages, *packages.STIFF.behind)
    }
    assert loaded == list(packages.STIFF.names)


def test_case_23_another_packages_julia_is_refused(fresh: pytest.MonkeyPatch) -> None:
    fresh.setitem(sys.modules, "juliacall", SimpleNamespace(CONFIG={"inited": True}, __spec__=SimpleNamespace()))
    assert "another package" in (runtime.why_not() or "")


def _inited(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(availability, "why_not", lambda: None)
    fresh.setitem(sys.modules, "juliacall", SimpleNamespace(CONFIG={"inited": True}, __spec__=SimpleNamespace()))


def test_a_start_that_was_interrupted_is_waited_for(fresh: pytest.MonkeyPatch) -> None:
    """Ctrl-C while packages compile: they go on compiling, and the next solve waits for them."""
    goes_on = threading.Event()

    def begin() -> Entries:
        while runtime._state.beginning is None:
            time.sleep(0.001)
        _inited(fresh)
        os.kill(os.getpid(), signal.SIGINT)
        assert goes_on.wait(100)
        return Entries("")

    fresh.setattr(availability, "why_not", lambda: None)
    fresh.setattr(runtime, "_begin", begin)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            runtime.start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not runtime.running()
    assert runtime.why_not() is None
    goes_on.set()
    runtime.start()
    assert runtime.running()


def test_ctrl_c_while_packages_compile_is_pythons(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Julia replaces the handler where it starts, on a thread on which Python's `signal` sets none."""
    (tmp_path / "juliacall.py").write_text(
        "import ctypes\nctypes.pythonapi.PyOS_setsig.argtypes = [ctypes.c_int, ctypes.c_void_p]\n"
        "ctypes.pythonapi.PyOS_setsig(2, 1)\nCONFIG = {'inited': True, 'libpath': ''}"
    )
    fresh.syspath_prepend(tmp_path)
    fresh.setattr(availability, "why_not", lambda: None)
    for name in ("guard", "park"):
        fresh.setattr(runtime, name, lambda _: None)
    fresh.setattr(runtime, "Entries", lambda _: SimpleNamespace(bridge_set_flags=lambda _: None))

    def evaluate(library: str, text: str) -> str:
        if text == runtime.OURS:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return "1"

    fresh.setattr(runtime, "evaluate", evaluate)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            runtime.start()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
        assert runtime._state.executor is not None
        runtime._state.executor.shutdown()  # it would go on with what is not replaced any more
    sys.modules.pop("juliacall", None)


def test_a_start_that_failed_says_why_again(fresh: pytest.MonkeyPatch) -> None:
    def begin() -> Entries:
        _inited(fresh)
        raise runtime.JuliaFailure("no package RegNDE")

    fresh.setattr(availability, "why_not", lambda: None)
    fresh.setattr(runtime, "_begin", begin)
    for _ in range(2):
        with pytest.raises(regnde.EngineUnavailable, match="no package RegNDE"):
            runtime.start()
    assert "no package RegNDE" in (runtime.why_not() or "")


def test_case_22_forks_are_refused(fresh: pytest.MonkeyPatch) -> None:
    """Julia belongs to the process that started it: a child with another pid is told so, at once."""
    runtime._state.entries, runtime._state.pid = Entries(""), os.getpid() + 1
    assert "fork" in (runtime.why_not() or "")
    with pytest.raises(regnde.EngineUnavailable, match="spawn"):
        runtime.call(lambda julia: None)


def begun(fresh: pytest.MonkeyPatch) -> None:
    fresh.setattr(availability, "why_not", lambda: None)
    fresh.setattr(runtime, "_begin", lambda: Entries(""))
    runtime.start()


def test_only_the_main_thread_calls_julia_itself(fresh: pytest.MonkeyPatch) -> None:
    """And only where the call waits for nothing; all other calls are made on one thread."""
    begun(fresh)
    threads: dict[bool, int] = {}

    def elsewhere() -> None:
        threads.update(
            {waits: runtime.call(lambda julia: threading.get_ident(), waits=waits) for waits in (False, True)}
        )

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert threads[False] == threads[True] not in (threading.get_ident(), other.ident)
    assert runtime.call(lambda julia: threading.get_ident()) == threads[True]
    assert runtime.call(lambda julia: threading.get_ident(), waits=False) == threading.get_ident()


def test_a_call_when_python_ends_says_what_to_wait_for(fresh: pytest.MonkeyPatch) -> None:
    begun(fresh)
    assert runtime._state.executor is not None
    runtime._state.executor.shutdown()
    with pytest.raises(regnde.EngineUnavailable, match=r"join\(\)"):
        runtime.call(lambda julia: None)


def test_a_signals_handler_that_raises_is_not_lost_where_a_solve_ends(fresh: pytest.MonkeyPatch) -> None:
    """Julia forgets what nothing refers to any more, and Python runs no code of ours there, which would hide Ctrl-C."""
    begun(fresh)
    freed: list[int] = []
    runtime._state.entries = SimpleNamespace(bridge_free=freed.append)  # type: ignore[assignment]
    kept, dropped = Handle(), Handle()
    cycle = [Handle()]
    cycle.append(cycle)  # type: ignore[arg-type]
    lines: list[str] = []
    sys.setprofile(lambda frame, event, _: lines.append(frame.f_code.co_name) if event == "call" else None)
    try:
        del dropped
    finally:
        sys.setprofile(None)
    assert lines == []
    del cycle
    gc.collect()
    for _ in range(2):
        runtime.call(lambda julia: None)
    assert freed == [2, 3]
    assert kept.number == 1
    assert len(runtime._state.owned) == 1


def test_calls_of_julia_follow_each_other(fresh: pytest.MonkeyPatch) -> None:
    """That of the main thread waits for that of another one; one inside another, of a signal's handler, is refused."""
    begun(fresh)
    inside, order = threading.Event(), list[str]()

    def long(julia: object) -> None:
        inside.set()
        time.sleep(0.2)
        order.append("other")

    other = threading.Thread(target=runtime.call, args=(long,))
    other.start()
    assert inside.wait(100)
    runtime.call(lambda julia: order.append("main"), waits=False)
    other.join()
    assert order == ["other", "main"]
    with pytest.raises(RuntimeError, match="handler"):
        runtime.call(lambda julia: runtime.call(lambda julia: None), waits=False)
    assert runtime.call(lambda julia: 1, waits=False) == 1


@pytest.fixture(params=[KeyboardInterrupt, TimeoutError])
def alarm(request: pytest.FixtureRequest) -> Iterator[type[BaseException]]:
    """What the handler of SIGALRM raises, on the main thread, the first time that it runs."""
    raised: list[bool] = []

    def handler(*_: object) -> None:
        if not raised:
            raised.append(True)
            raise request.param

    before = signal.signal(signal.SIGALRM, handler)
    yield request.param
    signal.signal(signal.SIGALRM, before)


def asked_to_stop(seconds: float) -> bool:
    """Whether Julia is asked to stop within this time, while the main thread gets signals.

    One signal could come just before the main thread begins to wait. It would not end the wait.
    """
    flag = ctypes.c_int64.from_address(runtime._state.flags.address)
    main, until = threading.main_thread().ident, time.monotonic() + seconds
    assert main is not None
    while not flag.value and time.monotonic() < until:
        signal.pthread_kill(main, signal.SIGALRM)
        time.sleep(0.01)
    return bool(flag.value)


def test_a_call_has_ended_when_a_signals_handler_raises(alarm: type[BaseException], fresh: pytest.MonkeyPatch) -> None:
    """On the other thread Julia is asked to stop, and waited for: what it works on is given back afterwards."""
    begun(fresh)
    asked: list[bool] = []

    def long(julia: object) -> None:
        asked.append(asked_to_stop(100))

    with pytest.raises(alarm):
        runtime.call(long)
    assert asked == [True]
    assert runtime.call(lambda julia: 1) == 1


def test_an_interrupt_leaves_the_call_of_another_thread_alone(fresh: pytest.MonkeyPatch) -> None:
    """A call that waits behind it is given up, and never made."""
    begun(fresh)
    inside, go_on, made = threading.Event(), threading.Event(), list[str]()
    stop = (ctypes.c_int64 * 1).from_address(runtime._state.flags.address)

    def long(julia: object) -> None:
        inside.set()
        assert go_on.wait(100)
        made.append(f"other, asked to stop: {stop[0]}")

    other = threading.Thread(target=runtime.call, args=(long,))
    other.start()
    assert inside.wait(100)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    interrupt.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runtime.call(lambda julia: made.append("main"))
    finally:
        signal.signal(signal.SIGINT, before)
    go_on.set()
    other.join()
    runtime.call(lambda julia: None)
    assert made == ["other, asked to stop: 0"]


def test_what_a_signals_handler_raises_is_raised_after_the_call(fresh: pytest.MonkeyPatch) -> None:
    """Julia keeps the exception where `Flags` says; here the test does."""
    begun(fresh)
    problem = TimeoutError("too long")

    def interrupted(julia: object) -> None:
        flags = runtime._state.flags
        for thing in (TimeoutError, problem):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
        (ctypes.c_int64 * 9).from_address(flags.address)[6:8] = [id(TimeoutError), id(problem)]
        raise runtime.JuliaFailure("InterruptException")

    with pytest.raises(TimeoutError) as caught:
        runtime.call(interrupted, waits=False)
    assert caught.value is problem
    assert runtime.call(lambda julia: 1, waits=False) == 1


def test_entries_are_called_with_numbers_and_text() -> None:
    """What Julia's `entries` tells of its functions, here of C functions that Python makes."""
    texts = [ctypes.create_string_buffer(text.encode()) for text in ("no method", "twice")]

    def answer(out: int, text: ctypes.Array[ctypes.c_char]) -> None:
        (ctypes.c_int64 * 2).from_address(out)[:] = ctypes.addressof(text), len(text.value)

    def fails(out: int) -> bool:
        answer(out, texts[0])
        return False

    def told(out: int, text: bytes, number: int, flag: bool) -> bool:
        assert (text, number, flag) == ("gleich ≈".encode(), -3, True)
        answer(out, texts[1])
        return True

    def half(out: int, x: float) -> bool:
        ctypes.c_double.from_address(out).value = x / 2
        return True

    def next_number(out: int, x: int) -> bool:
        ctypes.c_int64.from_address(out).value = x + 1
        return True

    boolean, place = ctypes.c_bool, ctypes.c_void_p
    functions = {
        "fails n": ctypes.CFUNCTYPE(boolean, place)(fails),
        "told sslb": ctypes.CFUNCTYPE(boolean, place, ctypes.c_char_p, ctypes.c_int64, boolean)(told),
        "half dd": ctypes.CFUNCTYPE(boolean, place, ctypes.c_double)(half),
        "next_number ll": ctypes.CFUNCTYPE(boolean, place, ctypes.c_int64)(next_number),
    }
    entries = Entries("\n".join(f"{x} {ctypes.cast(f, place).value}" for x, f in functions.items()))
    assert entries.told("gleich ≈", -3, True) == "twice"
    assert entries.half(3.0) == 1.5
    assert entries.next_number(1 << 40) == (1 << 40) + 1
    with pytest.raises(runtime.JuliaFailure, match=r"^no method$"):
        entries.fails()


def test_julia_tells_what_it_has() -> None:
    """Every function that Python asks for is an entry."""
    source = (ROOT / "julia" / "src" / "entries.jl").read_text()
    asked = {
        name
        for path in (ROOT / "python" / "regnde" / "_engines" / "julia").glob("*.py")
        for name in re.findall(r"\bbridge_\w+", path.read_text())
    }
    assert asked == set(re.findall(r":(bridge_\w+) =>", source)) - {"bridge_saved"}


EVENT = regnde.Event(lambda t, y: y[0, 0])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (dict(method="dopri8"), "no ODE method"),
        (dict(y0=torch.ones(2, dtype=torch.float16)), "float16"),
        (dict(y0=torch.ones(2, dtype=torch.complex64), method="rodas5p"), "complex Jacobian"),
        (dict(y0=torch.ones(2, dtype=torch.complex64), gradient="gauss"), "real states"),
        (dict(y0=torch.ones(2, dtype=torch.complex64), f=regnde.JuliaField("(t, y) -> y", [])), "JuliaField"),
        (dict(y0=torch.ones(2, device="meta")), "CPU"),
        (dict(y0=torch.ones(0, 2)), "one or more entries"),
        (dict(record="all", gradient="gauss"), "zero without a word"),
        (dict(f=regnde.SDE(lambda t, y: -y, lambda t, y: y), gradient="backsolve"), "for ODEs"),
        (dict(f=regnde.SDE(lambda t, y: -y, lambda t, y: y), method="em"), "fixed step"),
        (
            dict(f=regnde.SDE(lambda t, y: -y, lambda t, y: y), method="em", dt0=0.1, record=Local()),
            "estimates no error",
        ),
        (dict(batch="per-sample", gradient="gauss"), "their discrete gradient"),
        (dict(method="rk4", dt0=0.1, gradient="gauss"), "adapt their step"),
        (dict(controller=regnde.I(accepted_min_factor=1.0)), "accepted_min_factor"),
        (dict(controller=regnde.PI(), method="rodas5p"), "controller of its own"),
        (dict(f=regnde.SDE(lambda t, y: -y, lambda t, y: y), dt_min=0.1), "dt_min"),
        (dict(method="rosenbrock23", tolerances=(torch.ones(2, 2), 1e-3)), "one number as rtol"),
        (dict(gradient="gauss", tolerances=(1e-3, torch.ones(2, 2))), "tolerances of each entry"),
        (dict(gradient="gauss", stops=(0.5,)), "neither stops"),
        (dict(rules=StepRules(accept_smallest=True)), "rules"),
        (dict(events=(EVENT,), method="trbdf2"), "explicit and Rosenbrock methods"),
        (dict(events=(EVENT,), record=Local()), "Local record"),
        (dict(method="trbdf2", dense=True), "give the times as ts"),
        (dict(gradient="gauss", dense=True), "give the times as ts"),
        (dict(method="rodas5p", gradient="gauss", mass=torch.eye(2)), "without a mass matrix: use 'discrete'"),
        (dict(method="tsit5", mass=torch.eye(2)), "solved by 'rodas5p' or 'rodas4', not 'tsit5'"),
        (dict(atol=0.0, y0=torch.zeros(2)), "atol"),
    ],
)
def test_what_it_can_not_do_is_refused(what: dict, message: str) -> None:
    assert message in (engines()["julia"].why_unsupported(request(**what)) or "")


def test_transforms_of_torch_are_left_to_the_torch_engine() -> None:
    """Julia's solve is no operation that they know: what they say of it names nothing that a user has written."""
    found: list[str | None] = []

    def end(y: torch.Tensor) -> torch.Tensor:
        found.append(engines()["julia"].why_unsupported(request(y0=y)))
        return y.sum()

    torch.func.grad(end)(torch.ones(2))
    torch.func.vmap(end)(torch.ones(3, 2))
    with torch.autograd.forward_ad.dual_level():
        end(torch.ones(2))
    assert all("torch.func" in (why or "") for why in found)
    assert len(found) == 3
    end(torch.ones(2))
    assert found[-1] is None


def test_auto_costs_nothing_without_julia(fresh: pytest.MonkeyPatch) -> None:
    fresh.setenv("REGNDE_ENGINE", "auto")
    fresh.setattr(runtime, "why_not", lambda: "not here")
    assert regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0]).engine == "torch"
    assert "juliacall" not in sys.modules
    with pytest.raises(regnde.EngineUnavailable, match="not here"):
        regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], Solver(engine="julia"))


def test_julia_has_the_methods() -> None:
    from regnde._engines.julia.methods import EXPLICIT, FIXED, IMPLICIT, ROSENBROCK, SDIRK, STOCHASTIC

    folder = ROOT / "julia"
    files = "src/methods.jl", "ext/RegNDERosenbrockExt.jl", "ext/RegNDEStochasticExt.jl", "ext/RegNDESDIRKExt.jl"
    ours, rosenbrock, stochastic, sdirk = ((folder / file).read_text() for file in files)
    for name in (*EXPLICIT, *FIXED, *IMPLICIT):
        assert (f":{name} =>" in ours) == (name not in IMPLICIT)
        assert (f":{name} =>" in rosenbrock) == (name in ROSENBROCK)
        assert (f"METHODS[:{name}] =" in sdirk) == (name in SDIRK)
    for name in STOCHASTIC:
        assert f":{name} =>" in stochastic or f":{name}_stratonovich =>" in stochastic or name == "heun"


def test_juliapkg_names_our_package() -> None:
    spec = json.loads((ROOT / "python" / "regnde" / "juliapkg.json").read_text())["packages"]
    project = tomllib.loads((ROOT / "julia" / "Project.toml").read_text())
    assert spec["RegNDE"]["uuid"] == project["uuid"]
    assert (ROOT / "python" / "regnde" / spec["RegNDE"]["path"] / "Project.toml").is_file()
    known = {package.name: package.uuid for group in packages.GROUPS for package in group.packages}
    assert known == project["weakdeps"]
    assert not spec.keys() & known.keys(), "these come with options"
    for name in spec.keys() - {"RegNDE"}:
        assert spec[name]["preferences"] == {"precompile_workload": False}, "what it is named for"
        if name in project["deps"]:
            assert spec[name]["uuid"] == project["deps"][name]
            assert spec[name]["version"] == project["compat"][name]
    for group in packages.GROUPS:
        for package in group.packages:
            assert package.version is None or package.version in project["compat"][package.name].split(", ")
    for name, triggers in project["extensions"].items():
        assert (ROOT / "julia" / "ext" / f"{name}.jl").is_file()
        assert set([triggers] if isinstance(triggers, str) else triggers) <= set(project["weakdeps"])
    assert set(project["deps"]) | set(project["weakdeps"]) | {"julia"} <= set(project["compat"])


def built(kind: str, source: Path, out: Path) -> Path:
    """A wheel or sdist of a source tree, by hatchling itself: no network, no isolation."""
    code = f"from hatchling.build import build_{kind}; print(build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.strip().splitlines()[-1]


def test_wheels_hold_the_julia_package(tmp_path: Path) -> None:
    """From the tree, and from the sdist, which does not follow the link."""
    sdist = built("sdist", ROOT, tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "tree", filter="data")
    (tree,) = (tmp_path / "tree").iterdir()
    for source in (ROOT, tree):
        out = tmp_path / f"wheel-{source.name}"
        out.mkdir()
        with zipfile.ZipFile(built("wheel", source, out)) as archive:
            names = set(archive.namelist())
        assert {f"regnde/julia/{name}" for name in JULIA_FILES} <= names
        assert "regnde/juliapkg.json" in names
        assert "regnde/julia/test/runtests.jl" in names, "Pkg.test runs on what is installed"


def test_an_editable_install_leads_to_the_julia_package(tmp_path: Path) -> None:
    """Python finds the Julia package next to the module, and juliapkg its file, by the link that pip would write."""
    pytest.importorskip("juliapkg")
    site = tmp_path / "site"
    with zipfile.ZipFile(built("editable", ROOT, tmp_path)) as archive:
        archive.extractall(site)
    code = (
        f"import site; site.addsitedir({str(site)!r})\n"
        "import juliapkg.deps, regnde, pathlib\n"
        "from regnde._engines.julia import availability\n"
        "print(availability.folder().resolve(), *juliapkg.deps.deps_files(), sep='\\n')"
    )
    here = [path for path in sys.path if path and not Path(path).resolve().is_relative_to(ROOT / "python")]
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder, *found = done.stdout.splitlines()
    assert Path(folder) == ROOT / "julia"
    assert str(ROOT / "python" / "regnde" / "juliapkg.json") in found
