"""The interface of an engine and its request. Engines import this file and never each other."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regnde._equation import SDE, Equation
from regnde._errors import MaxStepsReached, NonFiniteDynamics, SolveError, StepSizeUnderflow
from regnde._event import Event
from regnde._mass import MASS_METHODS
from regnde._noise import BrownianPath
from regnde._solution import Solution
from regnde._solver import Local, Record, ResolvedSolver
from regnde._stops import Segment, segments, uniform
from regnde._transforms import has_derivative

__all__ = [
    "FAILURES",
    "OWN_RULES",
    "Engine",
    "FirstStepRule",
    "Request",
    "StepCallbacks",
    "StepRules",
    "exporting",
    "unsupported_everywhere",
]

FAILURES: dict[str, type[SolveError]] = {
    "non-finite": NonFiniteDynamics,
    "underflow": StepSizeUnderflow,
    "steps": MaxStepsReached,
}
"""The kinds of failure as the engines name them, and their exceptions."""


FirstStepRule = Callable[[Callable[[float, Tensor], Tensor], float, float, Tensor, Tensor], float]
"""Size (> 0) of a first step, from the field (of a time and a state), t0, t1, y0 and the slope there."""


@dataclass(frozen=True)
class StepCallbacks:
    """Functions that a solve calls with the time and state where a step starts, and its signed size.

    Attributes:
        step: as an attempt begins.
        accept: when one is accepted.
        reject: when one was rejected.
        back: in the backward pass, when it has come to the end of an accepted step: time and state there, the gradient
            of the state, and the step's size.
    """

    step: Callable[[float, Tensor, float], object] | None = None
    accept: Callable[[float, Tensor, float], object] | None = None
    reject: Callable[[float, Tensor, float], object] | None = None
    back: Callable[[float, Tensor, Tensor, float], None] | None = None


@dataclass(frozen=True)
class StepRules:
    """Another package's rules for steps, where they differ from ours; for ODEs that are one system.

    Attributes:
        norm: of the error over the tolerance, a tensor of the state's shape, as a 0-dim tensor: 1 is accepted, and it
            is the error that is recorded. None for the root mean square.
        first_step: the size of the first step, for adaptive methods without a `dt0`. None for our own heuristic.
        accept_smallest: whether a step of the size `dt_min`, or below it, is accepted whatever its error.
        callbacks: what is called at each step.
    """

    norm: Callable[[Tensor], Tensor] | None = None
    first_step: FirstStepRule | None = None
    accept_smallest: bool = False
    callbacks: StepCallbacks | None = None


OWN_RULES = StepRules()


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
        stops: times at which the field may jump or bend, as floats, in any order.
        moving_stops: the same as a tensor, shape (S,), if their gradient is asked for.
        events: conditions whose zeros are looked for.
        dense: whether the solution is asked for at any time.
        rules: another package's rules for steps.
        tolerances: relative and absolute: numbers, or real tensors of y0's shape on its device, where an entry
            without control has an infinite absolute tolerance and the relative one 0. None: the solver's numbers.
        mass: the mass matrix of an `ODE`, shape (n, n), in y0's real dtype and on its device; None for the identity.
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
    stops: tuple[float, ...] = ()
    moving_stops: Tensor | None = None
    events: tuple[Event, ...] = ()
    dense: bool = False
    rules: StepRules = OWN_RULES
    tolerances: tuple[float | Tensor, float | Tensor] | None = None
    mass: Tensor | None = None

    @property
    def rtol(self) -> float | Tensor:
        """Relative tolerance."""
        if self.tolerances is not None:
            return self.tolerances[0]
        assert isinstance(self.solver.rtol, float)
        return self.solver.rtol

    @property
    def atol(self) -> float | Tensor:
        """Absolute tolerance."""
        if self.tolerances is not None:
            return self.tolerances[1]
        assert isinstance(self.solver.atol, float)
        return self.solver.atol

    def segments(self) -> tuple[Segment, ...]:
        """The segments of the span between the stops, in the order in which they are passed."""
        times, dtype = self.times, self.y0.dtype.to_real()
        return segments(times[0], times[-1], self.stops, dtype, self.moving_stops)

    def step_ends(self, segments: Sequence[Segment], h: float) -> Iterator[float]:
        """Ends of the steps of a fixed-step method, of signed size h where the request has no grid."""
        if self.grid is not None:
            ends = {*self.grid[1:], *(segment.end for segment in segments)}  # steps end at stops, too
            return iter(sorted(ends, reverse=self.times[-1] < self.times[0]))
        starts = (self.times[0], *(segment.end for segment in segments))
        return itertools.chain.from_iterable(uniform(a, b, h) for a, b in itertools.pairwise(starts))


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


def exporting() -> bool:
    """Whether torch.export or torch.onnx.export traces this code: its tensors have no numbers to decide by."""
    told = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch before 2.7 tells both alike
    return bool(told())


def unsupported_everywhere(request: Request, *, adaptive: bool) -> str | None:
    """What no engine can solve or differentiate, or None; `adaptive` says whether the method adapts its step."""
    solver = request.solver
    if request.mass is not None and (why := _unsupported_mass(request)) is not None:
        return why
    if solver.batch == "per-sample" and (why := _unsupported_per_sample(request, adaptive)) is not None:
        return why
    relative = request.atol == 0  # of a number, or entrywise
    if adaptive and relative is not False and bool(((request.y0 == 0) & relative).any()):
        return "atol=0 leaves entries of y0 that are 0 without a tolerance: give an atol above zero."
    if not adaptive:
        if solver.last_step is not None:
            return f"{solver.method!r} has a fixed step, and a LastStep chooses one: give a number, Solver(dt0=...)."
        if solver.dt0 is None and request.grid is None:
            return f"{solver.method!r} has a fixed step: give its size, Solver(dt0=...)."
        for name, given in (
            ("controller", solver.controller is not None),
            ("dt_min", solver.dt_min > 0),
            ("dt_max", solver.dt_max < math.inf),
        ):
            if given:
                return f"{solver.method!r} has a fixed step, which a {name} can not change: leave it out."
        if isinstance(request.record, Local):
            return f"{solver.method!r} estimates no error, so there is nothing for a local record."
    if isinstance(request.equation, SDE):
        if request.times[-1] < request.times[0]:
            return "an SDE runs forward in time: give increasing times, or write it in the time s = -t."
        if request.ts.requires_grad or request.moving_stops is not None:
            return "the states of an SDE have no derivative with respect to the times: detach ts and the stops."
    return None


def _unsupported_mass(request: Request) -> str | None:
    """What no engine can do with a mass matrix, or None."""
    solver = request.solver
    if solver.tableau is not None or solver.grid_method is not None or solver.method not in MASS_METHODS:
        able = " or ".join(map(repr, MASS_METHODS))
        return f"an ODE with a mass matrix is solved by {able}, not {solver.method!r}."
    if has_derivative(request.ts) or request.moving_stops is not None:
        return "an ODE with a mass matrix gives no gradient with respect to the times: detach ts and the stops."
    return None


def _unsupported_per_sample(request: Request, adaptive: bool) -> str | None:
    """What no engine can do with a step size for each sample, or None."""
    if isinstance(request.equation, SDE):
        return "batch='per-sample' is for ODEs: the samples of an SDE share one Brownian path's clock."
    if request.y0.ndim == 0:
        return "batch='per-sample' needs a leading dimension of samples, but y0 has no dimension."
    if not adaptive:
        return f"batch='per-sample' needs an adaptive method; {request.solver.method!r} has a fixed step."
    if request.dense:
        return "batch='per-sample' has no dense output: give the times as ts."
    if isinstance(request.record, Local):
        return "batch='per-sample' records 'none' or 'all': a Local step belongs to one system with one clock."
    if has_derivative(request.ts) or request.moving_stops is not None:
        return "batch='per-sample' gives no gradient with respect to the times: detach ts and the stops."
    return None
