"""The Julia project that juliapkg keeps: a change is made whole or not at all, and is announced. Needs no Julia."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import regnde
from regnde import _doctor
from regnde._engines.julia import availability, installation, packages, project, runtime

juliapkg = pytest.importorskip("juliapkg")

BEFORE = {
    "Project.toml": "[deps]\nRegNDE = 'c7'\n",
    "Manifest.toml": "julia_version = '1.10.8'\n",
    "pyjuliapkg/meta.json": '{"meta_version": 8}',
    "pyjuliapkg/juliapkg.json": '{"packages": {}}',
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project that is installed, in an environment that names no other."""
    for name in ("EXE", "PROJECT"):
        monkeypatch.delenv(f"PYTHON_JULIACALL_{name}", raising=False)
    where = tmp_path / "julia_env"
    (where / "pyjuliapkg").mkdir(parents=True)
    for name, text in BEFORE.items():
        (where / name).write_text(text)
    point_at(monkeypatch, where)
    monkeypatch.setattr(runtime, "_state", runtime._State())
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)  # as if none of the tests before had started Julia
    monkeypatch.setattr(project, "reason", lambda problem: f"the reason of {type(problem).__name__}.")
    availability.forget()
    return where


def point_at(monkeypatch: pytest.MonkeyPatch, where: Path) -> None:
    beside = where / "pyjuliapkg"
    places = dict(project=where, prefix=beside, deps=beside / "juliapkg.json", meta=beside / "meta.json")
    for name, place in places.items():
        monkeypatch.setitem(juliapkg.deps.STATE, name, str(place))


def files(where: Path) -> dict[str, str]:
    """What is there but for locks."""
    return {
        str(path.relative_to(where).as_posix()): path.read_text()
        for path in where.rglob("*")
        if path.is_file() and path.suffix not in (".lock", ".compiled")
    }


def compiled(where: Path) -> None:
    """Our package is compiled as it is."""
    (where / "pyjuliapkg" / "regnde.compiled").write_text(project._sources())


def breaks_off(where: Path, problem: BaseException) -> Callable[..., bool]:
    """A `juliapkg.resolve` that fails in the middle of its work."""

    def resolve(*, dry_run: bool = False) -> bool:
        if not dry_run:
            assert "OrdinaryDiffEqSDIRK" in (where / "pyjuliapkg" / "juliapkg.json").read_text()
            (where / "Project.toml").write_text("[deps]\nRegNDE = 'c7'\nOrdinaryDiffEqSDIRK = '2d'\n")
            (where / "Manifest.toml").unlink()
            (where / "LocalPreferences.toml").write_text("")
            raise problem
        return True

    return resolve


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), subprocess.CalledProcessError(1, "julia"), OSError("full")])
def test_a_change_that_is_broken_off_is_undone(
    monkeypatch: pytest.MonkeyPatch, folder: Path, problem: BaseException
) -> None:
    monkeypatch.setattr(juliapkg, "resolve", breaks_off(folder, problem))
    expected = KeyboardInterrupt if isinstance(problem, KeyboardInterrupt) else regnde.EngineUnavailable
    with pytest.raises(expected) as caught:
        project.change(packages.STIFF.packages)
    assert files(folder) == BEFORE
    if expected is regnde.EngineUnavailable:
        assert str(caught.value) == f"Julia could not be installed: the reason of {type(problem).__name__}."


def test_a_first_installation_that_is_broken_off_leaves_no_wish(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the packages of an option would be installed later by a command that does not ask for them."""
    where = tmp_path / "new"
    point_at(monkeypatch, where)

    def resolve() -> None:
        (where / "Project.toml").write_text("[deps]\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(juliapkg, "resolve", resolve)
    with pytest.raises(KeyboardInterrupt):
        project.change(packages.FFT.packages)
    assert files(where) == {}


KILLED = """
import os, sys
from pathlib import Path
import juliapkg
from juliapkg.state import STATE
from regnde._engines.julia import packages, project

where = Path(sys.argv[1])
beside = where / "pyjuliapkg"
STATE.update(project=str(where), prefix=str(beside), deps=str(beside / "juliapkg.json"), meta=str(beside / "meta.json"))

def resolve():
    (where / "Project.toml").write_text("[deps]\\nOrdinaryDiffEqRosenbrock = '4'\\nOrdinaryDiffEqSDIRK = '2'\\n")
    (where / "Manifest.toml").unlink()
    os._exit(9)

juliapkg.resolve = resolve
project.change(packages.STIFF.packages)
"""


def test_the_next_process_undoes_the_change_of_one_that_was_killed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """So methods that need nothing more run at once."""
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], timeout=300, check=False)
    assert killed.returncode == 9
    assert files(folder) != BEFORE
    assert runtime.missing(*packages.STIFF.names) == list(packages.STIFF.names)
    assert runtime.why_not() is None
    compiled(folder)
    monkeypatch.setattr(juliapkg, "resolve", lambda *, dry_run: files(folder) == BEFORE)
    project.settle()
    assert files(folder) == BEFORE
    assert capfd.readouterr().err == ""


INSTALLING = KILLED.replace(
    "os._exit(9)",
    "import subprocess; subprocess.run([sys.executable, '-c', "
    "'import os, time; print(os.getpid(), flush=True); time.sleep(600)'])",
)


def test_sigterm_ends_the_julia_that_installs(folder: Path) -> None:
    """And nothing has changed."""
    process = subprocess.Popen([sys.executable, "-c", INSTALLING, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.terminate()
    try:
        assert process.wait(100) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stdout.close()
    assert files(folder) == BEFORE


def test_a_change_is_kept_once_it_is_through(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(juliapkg, "resolve", lambda **options: True)
    project.change(packages.FFT.packages)
    after = files(folder)
    assert "FFTW" in after["pyjuliapkg/juliapkg.json"]
    assert after.keys() == BEFORE.keys()
    project.settle()
    assert files(folder) == after


def test_what_other_packages_ask_for_is_announced(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before juliacall would do it without a word; a failure is one line."""
    asked: list[bool] = []

    def resolve(*, dry_run: bool = False) -> bool:
        asked.append(dry_run)
        return not dry_run

    monkeypatch.setattr(juliapkg, "resolve", resolve)
    project.settle()
    assert asked == [True, False]
    (line,) = capfd.readouterr().err.splitlines()
    assert "minutes" in line
    assert "Ctrl-C" in line
    monkeypatch.setattr(juliapkg, "resolve", lambda *, dry_run=False: False if dry_run else [][0])
    with pytest.raises(regnde.EngineUnavailable, match="the reason of IndexError") as caught:
        runtime.start()
    assert "\n" not in str(caught.value)
    assert runtime.why_not() is None, "the next solve tries again"


def test_our_package_is_compiled_before_the_start_where_it_has_changed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As after an upgrade by pip: in a process of its own, which Ctrl-C ends."""
    source = tmp_path / "julia" / "src" / "RegNDE.jl"
    for part in ("src", "ext"):
        (tmp_path / "julia" / part).mkdir(parents=True)
    source.write_text("module RegNDE end")
    ran: list[list[str]] = []
    monkeypatch.setattr(project, "folder", lambda: tmp_path / "julia")
    monkeypatch.setattr(project.subprocess, "run", lambda words, **options: ran.append(words))
    monkeypatch.setitem(juliapkg.deps.STATE, "executable", "julia")
    monkeypatch.setattr(juliapkg, "resolve", lambda **options: True)
    compiled(folder)
    project.settle()
    assert not ran
    os.utime(source, ns=(1, 1))
    for _ in range(2):
        project.settle()
    assert [words[-1] for words in ran] == ["import Pkg; Pkg.precompile()"]
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_two_changes_follow_each_other(
    monkeypatch: pytest.MonkeyPatch, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(project, "PATIENCE", 0.05)
    at_work, go_on = threading.Event(), threading.Event()
    inside: list[str] = []

    def resolve() -> None:
        inside.append("begins")
        at_work.set()
        assert go_on.wait(60)
        inside.append("ends")

    monkeypatch.setattr(juliapkg, "resolve", resolve)
    first = threading.Thread(target=project.change, args=(packages.FFT.packages,))
    second = threading.Thread(target=project.change, args=(packages.SDE.packages,))
    first.start()
    assert at_work.wait(60)
    second.start()
    deadline = time.monotonic() + 60
    while "another process installs" not in (said := capfd.readouterr().err):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(said.splitlines()) == 1
    assert inside == ["begins"]
    go_on.set()
    first.join(60)
    second.join(60)
    assert inside == ["begins", "ends"] * 2
    assert {"FFTW", "DiffEqNoiseProcess"} <= set(juliapkg.deps.load_cur_deps()["packages"])


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Julia and a project of the user's own, with our package and no other."""
    where = tmp_path / "my project"
    where.mkdir()
    (where / "Project.toml").write_text("[deps]\nRegNDE = 'c7'\n")
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", sys.executable)
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(where))
    monkeypatch.setattr(runtime, "_state", runtime._State())
    monkeypatch.delitem(sys.modules, "juliacall", raising=False)  # as if none of the tests before had started Julia
    availability.forget()
    return where


def expected_command(where: Path, code: str) -> str:
    return f"`{sys.executable} '--project={where}' -e 'using Pkg; {code}'`"


@pytest.mark.skipif(sys.platform == "win32", reason="another shell, other quotes")
def test_doctor_names_the_command_of_an_own_project(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    monkeypatch.setattr(_doctor, "_try", lambda name: (True, "works"))
    lines = "\n".join(_doctor.report()[0])
    for group in packages.GROUPS:
        names = ", ".join(f'"{name}"' for name in group.names)
        assert f"not installed ({group.takes}): {expected_command(own, f'Pkg.add([{names}])')}" in lines
    assert "regnde julia" not in lines


@pytest.mark.skipif(sys.platform == "win32", reason="another shell, other quotes")
def test_nothing_is_installed_into_an_own_project(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    """The command says at once what does it, without a start of Julia."""
    monkeypatch.setattr(runtime, "start", lambda: pytest.fail("Julia was started"))
    with pytest.raises(regnde.EngineUnavailable) as caught:
        installation.install([packages.SDE, packages.FFT])
    names = ", ".join(f'"{name}"' for name in (*packages.SDE.names, *packages.FFT.names))
    assert expected_command(own, f"Pkg.add([{names}])") in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="another shell, other quotes")
def test_the_command_that_adds_our_package_is_julia(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    """With Julia's quotes: 'a' is a character there."""
    monkeypatch.setattr(availability, "folder", lambda: Path('/a "b" $c'))
    (own / "Project.toml").write_text("[deps]\n")
    why = runtime.why_not()
    assert why is not None
    assert 'Pkg.develop(path="/a \\"b\\" \\$c"); Pkg.add("PythonCall")' in why
