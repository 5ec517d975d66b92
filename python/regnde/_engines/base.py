"""What every engine is given and must offer; the engines know this file and never each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from regnde._equation import Equation
from regnde._noise import BrownianPath
from regnde._solution import Solution
from regnde._solver import Record, ResolvedSolver

__all__ = ["Engine", "Request"]


@dataclass(frozen=True)
class Request:
    """One solve, with its arguments checked and normalised.

    Attributes:
        equation: an `f(t, y)`, an `SDE` or a `JuliaField`.
        y0: initial state, floating point or complex, any shape.
        ts: save times as a tensor, shape (T,), as given (it may carry a gradient).
        times: the same as Python floats, monotone.
        solver: method and tolerances, all defaults filled in.
        record: what to record.
        noise: the Brownian path of an SDE, or None to draw one.
        throw: whether a failed solve raises or returns what it has.
    """

    equation: Equation
    y0: Tensor
    ts: Tensor
    times: tuple[float, ...]
    solver: ResolvedSolver
    record: Record
    noise: BrownianPath | None
    throw: bool


class Engine(ABC):
    """Turns a request into a solution."""

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why the engine can not run on this machine and what to do, or None if it can."""

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Why the engine can not run this request, or None if it can."""

    @abstractmethod
    def solve(self, request: Request) -> Solution:
        """Runs a request that is not refused."""
