"""The Julia project of this Python environment, as juliapkg keeps it. A change of it is made whole or not at all.

juliapkg writes down what is wanted before it installs, and goes on with that, without a word, when juliacall is next
imported. So the files as they were are kept beside it until a change is through. They are put back if it fails, or by
the next process if this one was killed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regnde._engines.julia.availability import folder, kept
from regnde._engines.julia.obstacles import reason
from regnde._engines.julia.packages import Package
from regnde._errors import EngineUnavailable

__all__ = ["alone", "change", "settle"]

PATIENCE = 10.0  # seconds in which processes that only look are done


def _say(line: str) -> None:
    sys.stderr.write(f"regnde: {line}\n")
    sys.stderr.flush()


def settle() -> None:
    """Does what would else be done, without a word, while juliacall is imported and our package is loaded.

    A change that was broken off is undone. Where other packages of this environment, or another version of Julia, ask
    for a change, or our package is not the one that was compiled, that is announced and done.

    Raises:
        EngineUnavailable: with the reason, if the change fails.
        KeyboardInterrupt: the change is undone.
    """
    import juliapkg

    with alone(), _terminable():
        resolved = juliapkg.resolve(dry_run=True)
        if resolved and _compiled().is_file() and _compiled().read_text() == _sources():
            return
        _say(
            "Julia packages of this environment are new or have changed: they are compiled, which takes some minutes, "
            "once. Ctrl-C stops it, and the next start goes on; Solver(engine='torch') needs no Julia."
        )
        if resolved:
            _compile()
        else:
            with _whole():
                juliapkg.resolve()
        _compiled().write_text(_sources())


def change(packages: Iterable[Package]) -> None:
    """Installs Julia, our own package, and these.

    Raises:
        EngineUnavailable: with the reason, if that fails.
        KeyboardInterrupt: nothing has changed; what is compiled is kept.
    """
    import juliapkg

    with alone(), _terminable(), _whole(), _versions_kept():
        for package in packages:
            quiet = None if package.workload else {"precompile_workload": False}
            juliapkg.add(package.name, package.uuid, version=package.version, preferences=quiet)
        juliapkg.resolve()
        _compiled().write_text(_sources())


@contextmanager
def alone() -> Iterator[None]:
    """One thread of one process at a time is inside; what a killed process left is undone."""
    from filelock import FileLock, Timeout

    try:
        _beside().mkdir(parents=True, exist_ok=True)
        lock = FileLock(_beside() / "regnde.lock", is_singleton=True)  # a thread may enter again
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            _say("another process installs Julia packages into this environment: waiting for it.")
            lock.acquire()
    except OSError as problem:
        raise EngineUnavailable(f"Julia's project can not be changed: {problem}") from None
    try:
        try:
            _put_back()
        except OSError as problem:
            raise EngineUnavailable(f"Julia's project can not be put back: {problem}") from None
        yield
    finally:
        lock.release()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the Julia that installs, too, which would else go on alone; the exit status is a shell's for it."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)  # `subprocess.run` kills its child

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _whole() -> Iterator[None]:
    """Keeps the project's files, and puts them back unless the block ends well."""
    try:
        _keep()
        yield
    except BaseException as problem:
        why = reason(problem) if isinstance(problem, Exception) else ""
        with suppress(OSError):  # else the next process puts them back
            _put_back()
        if why:
            raise EngineUnavailable(f"Julia could not be installed: {why}") from None
        raise
    _drop()


@contextmanager
def _versions_kept() -> Iterator[None]:
    """Lets juliapkg add to what is installed, where it would remove the manifest and choose every version anew.

    Else packages that are compiled would be compiled again, and a process that starts meanwhile would find none.
    """
    from juliapkg.state import STATE

    shared = STATE["project_is_shared"]
    STATE["project_is_shared"] = shared or (_folder() / "Manifest.toml").exists()
    try:
        yield
    finally:
        STATE["project_is_shared"] = shared


def _folder() -> Path:
    """Julia's project."""
    from juliapkg.state import STATE

    return Path(STATE["project"])


def _beside() -> Path:
    """Where juliapkg has its own files."""
    from juliapkg.state import STATE

    return Path(STATE["prefix"])


def _compiled() -> Path:
    """The file that says of which sources our package was compiled."""
    return _beside() / "regnde.compiled"


def _sources() -> str:
    """What Julia tells a changed source by: the time of its last change."""
    seen = hashlib.sha256()
    for part in ("src", "ext"):
        for file in sorted((folder() / part).iterdir()):
            seen.update(f"{file.name} {file.stat().st_mtime_ns}\n".encode())
    return seen.hexdigest()


def _compile() -> None:
    """Compiles what is not; if that fails, the start says why."""
    from juliapkg.state import STATE

    words = [STATE["executable"], f"--project={_folder()}", "--startup-file=no", "-e", "import Pkg; Pkg.precompile()"]
    environment = {"JULIA_PYTHONCALL_EXE": sys.executable, **os.environ}
    subprocess.run(words, env=environment, check=False)


def _files() -> list[Path]:
    """What says which packages are wanted and which are installed."""
    return [*_folder().glob("*.toml"), *_beside().glob("*.json")]


def _keep() -> None:
    """Copies the files; the copy is there once it is whole."""
    new = kept().with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for file in _files():
        shutil.copy2(file, new)
    new.rename(kept())


def _put_back() -> None:
    """Makes the files what they were, if a copy is there. Begun again, it does the same."""
    if not kept().is_dir():
        return
    for file in _files():
        if not (kept() / file.name).exists():
            file.unlink()
    for copy in kept().iterdir():
        where = (_folder() if copy.suffix == ".toml" else _beside()) / copy.name
        new = where.with_name(where.name + ".new")
        shutil.copy2(copy, new)
        os.replace(new, where)
    _drop()


def _drop() -> None:
    """Forgets the copy."""
    gone = kept().with_suffix(".gone")
    shutil.rmtree(gone, ignore_errors=True)
    kept().rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
