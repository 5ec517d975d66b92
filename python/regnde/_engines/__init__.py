"""Chooses the engine for a request."""

from __future__ import annotations

import os

from regnde._engines.base import Engine, Request
from regnde._engines.torch import TorchEngine
from regnde._errors import EngineUnavailable

__all__ = ["choose", "engines"]


def engines() -> dict[str, Engine]:
    """Every engine by name."""
    return {engine.name: engine for engine in (TorchEngine(),)}


def choose(request: Request) -> Engine:
    """The engine that the request or `REGNDE_ENGINE` names; with "auto", Julia if it is ready, else torch.

    Raises:
        EngineUnavailable: if the engine asked for can not run on this machine.
        ValueError: if it can not run this request.
    """
    known = engines()
    name = request.solver.engine
    if name == "auto":
        name = os.environ.get("REGNDE_ENGINE", "auto")
    if name not in ("auto", *known):
        raise EngineUnavailable(f"there is no engine {name!r}; choose 'auto', {', '.join(map(repr, known))}.")
    engine = known["torch" if name == "auto" else name]
    if (why := engine.unavailable()) is not None:
        raise EngineUnavailable(why)
    if (why := engine.refuses(request)) is not None:
        raise ValueError(why)
    return engine
