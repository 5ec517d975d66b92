"""The command line: `python -m regnde doctor | julia | demo`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from regnde import __version__, _demo, _demo_report, _doctor
from regnde._engines import engines
from regnde._engines.julia.packages import CUDA, GROUPS
from regnde._errors import EngineUnavailable

INTERRUPTED = 130  # exit code after Ctrl-C


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m regnde", description="Neural ODEs and SDEs that are cheap to solve."
    )
    parser.add_argument("--version", action="version", version=f"regnde {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands")
    commands.add_parser("doctor", help="what works here, and where not, why and what to do")
    julia = commands.add_parser("julia", help="install and precompile the Julia engine, and time its first solve")
    julia.description = (
        "Installs what explicit methods for ODEs and their discrete gradient need, which takes a few minutes, and "
        "times the first solve. Options install more, now or later; the times in brackets are theirs alone."
    )
    for group in GROUPS:
        julia.add_argument(f"--{group.option}", action="store_true", help=f"also {group.content} ({group.takes})")
    julia.add_argument("--all", action="store_true", help="all of these but --cuda")
    demo = commands.add_parser("demo", help="make a classifier of 5,000 MNIST images cheap to solve, and compare")
    demo.add_argument(
        "--methods",
        default=",".join(_demo.DEFAULT),
        help=f"comma-separated, out of {', '.join(_demo.METHODS)} (default: {','.join(_demo.DEFAULT)})",
    )
    demo.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... (default 1)")
    demo.add_argument(
        "--iterations",
        type=int,
        default=_demo.Settings.iterations,
        help="training steps of a model (default %(default)s)",
    )
    demo.add_argument(
        "--engine", choices=["auto", "torch", "julia"], default="auto", help="which engine solves (default auto)"
    )
    demo.add_argument("--json", type=Path, help="where to write a row for each model and seed")
    demo.add_argument("--png", type=Path, default=Path("demo.png"), help="where to draw (default demo.png)")
    options = parser.parse_args(arguments)

    if options.command is None:
        parser.print_help()
        return 0
    if options.command == "doctor":
        lines, solved = _doctor.report()
        print("\n".join(lines))
        return 0 if solved else 1
    if options.command == "julia":
        try:
            wanted = [g for g in GROUPS if getattr(options, g.option) or (options.all and g is not CUDA)]
            print("\n".join(_doctor.install_julia(wanted)))
        except EngineUnavailable as problem:
            print(f"regnde: {problem}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("regnde: interrupted; run the same command again, it goes on where it stopped", file=sys.stderr)
            return INTERRUPTED
        return 0
    return _run_demo(options, demo)


def _run_demo(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Checks what the demo needs, before it trains, and runs it."""
    methods = [name.strip() for name in options.methods.split(",")]
    if unknown := set(methods) - set(_demo.METHODS):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; choose from {', '.join(_demo.METHODS)}")
    if "vanilla" not in methods and any(_demo.METHODS[name].diagnosed for name in methods):
        parser.error("free and budget follow from the diagnosis of vanilla: add it to --methods")
    for name, smallest in (("seeds", 1), ("iterations", 1)):
        if getattr(options, name) < smallest:
            parser.error(f"--{name} {getattr(options, name)}: give at least {smallest}")
    for name in ("mlxtend", "tqdm", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            print(f"regnde: the demo needs {name}: pip install 'regnde[examples]'", file=sys.stderr)
            return 1
    for name in ("json", "png"):
        if (path := getattr(options, name)) is not None and (problem := _why_not_writable(path)):
            parser.error(f"--{name} {path}: {problem}")
    if problem := _why_no_picture(options.png):
        parser.error(f"--png {options.png}: {problem}")
    if options.engine == "julia" and (why := engines()["julia"].unavailable()) is not None:
        print(f"regnde: {why}", file=sys.stderr)
        return 1
    settings = _demo.Settings(iterations=options.iterations, engine=options.engine)
    try:
        _, finished = _demo.run(methods, options.seeds, settings, json_path=options.json, png_path=options.png)
    except EngineUnavailable as problem:
        print(f"regnde: {problem}", file=sys.stderr)
        return 1
    return 0 if finished else INTERRUPTED


def _why_not_writable(path: Path) -> str:
    """Why a file can not be written, or ""."""
    if path.is_dir():
        return "is a folder, give a file"
    if not path.parent.is_dir():
        return "its folder does not exist"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "can not be written"
    return ""


def _why_no_picture(path: Path) -> str:
    """Why matplotlib can not write a file of this kind, or ""."""
    kinds = _demo_report.picture_types()
    return "" if path.suffix[1:].lower() in kinds else f"ends in none of {', '.join(kinds)}"


if __name__ == "__main__":
    sys.exit(main())
