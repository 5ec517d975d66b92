"""What every engine is given and must offer; the engines know this file and never each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from regnde._equation import SDE, Equation
from regnde._errors import MaxStepsReached, NonFiniteDynamics, SolveError, StepSizeUnderflow
from regnde._noise import BrownianPath
from regnde._solution import Solution
from regnde._solver import Local, Record, ResolvedSolver

__all__ = ["FAILURES", "Engine", "Request", "unsupported_everywhere"]

FAILURES: dict[str, type[SolveError]] = {
    "non-finite": NonFiniteDynamics,
    "underflow": StepSizeUnderflow,
    "steps": MaxStepsReached,
}
"""What an engine calls the ways in which a solve fails, and the exceptions for them."""


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
        grid: for a method of fixed step size, the ends of its steps, the initial time first; None for equal steps.
    """

    equation: Equation
    y0: Tensor
    ts: Tensor
    times: tuple[float, ...]
    solver: ResolvedSolver
    record: Record
    noise: BrownianPath | None
    throw: bool
    grid: tuple[float, ...] | None = None


class Engine(ABC):
    """Turns a request into a solution."""

    name: str

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why the engine can not run on this machine and what to do, or None if it can."""

    def missing_packages(self, request: Request) -> str | None:
        """What has to be installed before the engine can run this request, and how, or None."""
        return None

    @abstractmethod
    def why_unsupported(self, request: Request) -> str | None:
        """Why the engine can not run this request, or None if it can."""

    @abstractmethod
    def solve(self, request: Request) -> Solution:
        """Runs a supported request."""


def unsupported_everywhere(request: Request, *, adaptive: bool) -> str | None:
    """What no engine can solve or differentiate, or None; `adaptive` says whether the method adapts its step."""
    solver = request.solver
    if adaptive and solver.atol == 0 and bool((request.y0 == 0).any()):
        return "atol=0 leaves entries of y0 that are 0 without a tolerance: give an atol above zero."
    if not adaptive:
        if solver.last_step is not None:
            return f"{solver.method!r} has a fixed step, and a LastStep chooses one: give a number, Solver(dt0=...)."
        if solver.dt0 is None and request.grid is None:
            return f"{solver.method!r} has a fixed step: give its size, Solver(dt0=...)."
        if isinstance(request.record, Local):
            return f"{solver.method!r} estimates no error, so there is nothing for a local record."
    if isinstance(request.equation, SDE):
        if request.times[-1] < request.times[0]:
            return "an Ito SDE runs forward in time: give increasing times, or write it in the time s = -t."
        if request.ts.requires_grad:
            return "the states of an SDE have no derivative with respect to the times: detach ts."
    return None
