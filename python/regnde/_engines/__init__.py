"""Chooses the engine for a request."""

from __future__ import annotations

import os

from regnde._engines.base import Engine, Request, exporting
from regnde._engines.julia import JuliaEngine
from regnde._engines.torch import TorchEngine
from regnde._errors import EngineUnavailable, UnsupportedField
from regnde._solution import Solution

__all__ = ["choose", "engines"]

SET = "set Solver(engine='julia')."


def engines() -> dict[str, Engine]:
    """Every engine by name."""
    return {engine.name: engine for engine in (TorchEngine(), JuliaEngine())}


def choose(request: Request) -> Engine:
    """The engine that the request or `REGNDE_ENGINE` names; with "auto", Julia if it is ready, else torch.

    Raises:
        EngineUnavailable: if the engine asked for can not run on this machine.
        ValueError: if it can not run this request.
    """
    known = engines()
    name = request.solver.engine
    if name == "auto":
        name = "torch" if exporting() else os.environ.get("REGNDE_ENGINE", "auto")
    asked = name != "auto"
    if name not in ("auto", *known):
        raise EngineUnavailable(f"there is no engine {name!r}; choose 'auto', {', '.join(map(repr, known))}.")
    if name == "auto":
        engine: Engine = _Preferred(known["julia"], known["torch"])
        reasons = (
            engine.unavailable,
            lambda: engine.missing_packages(request),
            lambda: engine.why_unsupported(request),
        )
        if all(why() is None for why in reasons):
            return engine
        name = "torch"
    engine = known[name]
    if (why := engine.unavailable() or engine.missing_packages(request)) is not None:
        raise EngineUnavailable(why)
    if (why := engine.why_unsupported(request)) is not None:
        julia = known["julia"]
        if engine is julia or julia.why_unsupported(request) is not None:
            raise ValueError(why)
        missing = julia.unavailable() or julia.missing_packages(request)
        text = f"{why} This needs the Julia engine: {missing or SET}"
        raise ValueError(text) if asked else EngineUnavailable(text)
    return engine


class _Preferred(Engine):
    """The first engine, and the second one for a field that the first does not support."""

    def __init__(self, first: Engine, second: Engine) -> None:
        self.name = first.name
        self.first, self.second = first, second

    def unavailable(self) -> str | None:
        """Why the first engine can not run."""
        return self.first.unavailable()

    def missing_packages(self, request: Request) -> str | None:
        """What the first engine needs for it."""
        return self.first.missing_packages(request)

    def why_unsupported(self, request: Request) -> str | None:
        """Why the first engine can not run the request; `solve` finds out about the field."""
        return self.first.why_unsupported(request)

    def solve(self, request: Request) -> Solution:
        """Solves with the first engine, or with the second if the first does not support the field."""
        try:
            return self.first.solve(request)
        except UnsupportedField:
            if self.second.why_unsupported(request) is not None:
                raise
        return self.second.solve(request)
