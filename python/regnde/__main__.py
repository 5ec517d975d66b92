"""The command line: `python -m regnde doctor | julia | demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from regnde import _demo, _doctor
from regnde._errors import EngineUnavailable


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m regnde", description="Neural ODEs and SDEs that are cheap to solve."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what works here, and where not, why and what to do")
    julia = commands.add_parser("julia", help="install and precompile the Julia engine, and time its first solve")
    julia.add_argument("--cuda", action="store_true", help="also the packages that tensors on CUDA devices need")
    demo = commands.add_parser("demo", help="train with and without regularisation on 5,000 MNIST images")
    demo.add_argument("--methods", default=",".join(_demo.METHODS), help="comma-separated (default: all)")
    demo.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, ... (default 1)")
    demo.add_argument("--iterations", type=int, default=_demo.Settings.iterations, help="optimiser steps a model")
    demo.add_argument("--engine", choices=["auto", "torch", "julia"], default="auto")
    demo.add_argument("--json", type=Path, help="write one row a model and seed")
    demo.add_argument("--png", type=Path, default=Path("demo.png"), help="where to draw (default demo.png)")
    options = parser.parse_args(arguments)

    if options.command == "doctor":
        lines, solved = _doctor.report()
        print("\n".join(lines))
        return 0 if solved else 1
    if options.command == "julia":
        try:
            print("\n".join(_doctor.install_julia(cuda=options.cuda)))
        except EngineUnavailable as problem:
            print(f"regnde: {problem}", file=sys.stderr)
            return 1
        return 0
    methods = options.methods.split(",")
    if unknown := set(methods) - set(_demo.METHODS):
        parser.error(f"unknown methods {', '.join(sorted(unknown))}; choose from {', '.join(_demo.METHODS)}")
    settings = _demo.Settings(iterations=options.iterations, engine=options.engine)
    _demo.run(methods, options.seeds, settings, json_path=options.json, png_path=options.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
