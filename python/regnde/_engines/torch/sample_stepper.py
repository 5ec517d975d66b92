"""A method applied to the samples of a batch that have not reached the end time: attempts, stops, interpolants.

One attempt evaluates the field once a stage for all of them; the others leave the batch, so that a stiff sample costs
them nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.checkpoint import Checkpoint, last_size, step_ends
from regnde._engines.torch.control import Bounds
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import first_step_sizes
from regnde._engines.torch.jacobian import Jacobian
from regnde._engines.torch.sample_method import AnyStep, SampleMethod
from regnde._engines.torch.sample_outputs import Bools, Floats, Ints, Within, of_samples
from regnde._engines.torch.step import Estimates, Step, Tolerance, all_finite, dense_weights, extra_stages
from regnde._equation import takes_samples
from regnde._mass import SMALL_START
from regnde._solver import ResolvedSolver
from regnde._stops import Segment
from regnde._tableau import Tableau
from regnde._transforms import numbers, transformed

__all__ = ["Attempt", "SampleStepper"]

T = TypeVar("T")


class Attempt(NamedTuple):
    """One attempt of the running samples: clocks, outcome, and estimates if they are recorded."""

    t: Floats
    h: Floats
    t1: Floats
    within: Within
    step: AnyStep
    error: Floats
    known: Estimates | None
    rejected: Rejected


class Rejected:
    """Samples that one attempt rejected: no gradient passes through their rows.

    Their gradient is 0, but 0 times an infinite derivative is NaN, which earlier stages and the step before would
    carry on. It is stopped where it leaves the field. A tensor that the field reads has a gradient for all
    rows together: of that, no row can be taken out.
    """

    rows: Tensor | None = None  # None while all are accepted

    def guarded(self, y: Tensor) -> Tensor:
        """The argument of a field, through which nothing passes back in these rows."""
        if not torch.is_grad_enabled() or transformed() or not y.requires_grad:
            return y
        y = y.view_as(y)  # the state itself has a gradient by other ways, too
        y.register_hook(self._without)  # type: ignore[no-untyped-call]  # torch does not type it
        return y

    def _without(self, gradient: Tensor) -> Tensor:
        if self.rows is None:
            return gradient
        stopped = gradient.masked_fill(self.rows, 0.0)
        if not all_finite(gradient) and all_finite(stopped):
            warnings.warn(
                "batch='per-sample': the field has a value but no finite derivative in a trial step that a sample "
                "rejected. The gradients of states do not see it; those of tensors that the field reads may be NaN: "
                "use batch='joint', or a field whose derivative is finite there.",
                stacklevel=2,
            )
        return stopped


class SampleStepper:
    """Tries steps of the running samples of one ODE, each of a size of its own.

    Args:
        function: f(t, y), or f(t, y, samples): t has shape (b, 1, ..., 1) and broadcasts against the b
            running samples y; `samples`, shape (b,), are their indices in the batch.
        method: an adaptive method.
        solver: first step size and bounds of the sizes.
        tolerances: relative and absolute.
        y0: initial states, shape (B, ...).
        segments: of the span.
        record: whether to record the estimates.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.

    Attributes:
        running: indices of the running samples in the batch; at first all.
        evaluations: of the field for each sample, shape (B,).
        calls: of the field for the batch as a whole.
        factorisations: matrices factorised, of all samples together.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        method: SampleMethod,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        y0: Tensor,
        segments: Sequence[Segment],
        *,
        record: bool,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.function, self.with_samples = function, takes_samples(function)
        self.method, self.tableau, self.record, self.checkpoint = method, method.tableau, record, checkpoint
        self.rtol, self.atol = tolerances  # of the running samples
        self.device = y0.device
        self.dt0, self.bounds = solver.dt0, Bounds(solver.dt_min, solver.dt_max)
        bounds = [segment.within or (-math.inf, math.inf) for segment in segments]
        self.lows, self.highs = np.array(bounds).T
        self.stops = len(segments) > 1 or segments[0].within is not None
        self.running = np.arange(len(y0))
        self.field = self._field(self.running)
        self.evaluations = np.zeros(len(y0), np.int64)
        self.calls, self.factorisations = 0, 0

    # --- evaluating ------------------------------------------------------------------------------

    def _field(self, samples: Ints) -> CountedField:
        """The field at these samples."""
        function, index = self.function, self._index(samples)
        return CountedField((lambda t, y: function(t, y, index)) if self.with_samples else function)

    def _index(self, place: Ints) -> Tensor:
        return torch.as_tensor(place, device=self.device)

    def _count(self, counted: CountedField, samples: Ints) -> None:
        self.calls += counted.calls
        self.evaluations[samples] += counted.calls
        counted.calls = 0

    def _evaluated(
        self,
        counted: CountedField,
        function: Callable[..., T],
        *inputs: Tensor | None,
        ends: Callable[[T], Sequence[Tensor]],
    ) -> T:
        """The value function(*inputs), which evaluates that field, by the checkpoint if there is one."""
        if self.checkpoint is None:
            return function(*inputs)
        self.checkpoint.fields = (counted,)
        return self.checkpoint(function, *inputs, ends=ends)

    def _within(self, at: Ints) -> Within:
        """Bounds of the times of samples in these segments."""
        return (self.lows[at], self.highs[at]) if self.stops else None

    # --- the loop's side -------------------------------------------------------------------------

    def start(self, y: Tensor, t0: float, t1: float) -> tuple[Tensor | None, Floats]:
        """The FSAL stages at (t0, y), or None, and the signed sizes of the first steps, which do not pass t1."""
        at, t = np.zeros(len(y), np.int64), np.full(len(y), t0)
        within = self._within(at)
        column = of_samples(t, y, within)
        if self.method.mass is not None and self.method.mass.singular:
            with torch.no_grad():
                slope, by_state, _ = Jacobian(samples=True)(self.field.function, column, y)
            self.method.mass.check_start(slope, by_state, y, self.rtol, self.atol)
        # Without a checkpoint: later calls may use what the field makes at its first call.
        first = self.field(column, y) if self.tableau.carries else None
        sizes = self._first_sizes(y, first, t0, t1, within)
        self._count(self.field, self.running)
        return first, math.copysign(1.0, t1 - t0) * sizes

    def _first_sizes(self, y: Tensor, known: Tensor | None, t0: float, t1: float, within: Within) -> Floats:
        """The first-step heuristic of each sample (> 0); two evaluations."""
        distance, counted, mass = abs(t1 - t0), self.field, self.method.mass
        span = min(distance, self.bounds.largest)
        if self.dt0 is not None or y.numel() == 0:
            size = span if self.dt0 is None else self.bounds.within(self.dt0)
            return np.full(len(y), min(size, span))
        if mass is not None and mass.singular:
            return np.full(len(y), min(SMALL_START, span))

        def field(t: Sequence[float], y: Tensor) -> Tensor:
            slope = counted(of_samples(np.asarray(t), y, within), y)
            return slope if mass is None else mass.slopes(slope)

        signed = math.copysign(span, t1 - t0)
        sizes, slope = first_step_sizes(field, self.tableau.order, y, t0, signed, self.rtol, self.atol, samples=True)
        if known is not None:
            counted.check_pure(known, slope)
        # A slope that is not finite fails the sample's first attempt, whatever its size.
        bounded: Floats = np.minimum(self.bounds.within(np.nan_to_num(sizes, nan=1e-6)), distance)
        return bounded

    def attempt(
        self, y: Tensor, first: Tensor | None, t: Floats, h: Floats, t1: Floats, at: Ints, fresh: Bools
    ) -> Attempt:
        """Tries a step of each running sample.

        Args:
            y: states.
            first: FSAL stages, or None.
            t: where the steps start.
            h: their signed sizes.
            t1: where they end.
            at: indices of their segments.
            fresh: which samples start anew, so that no step before has evaluated the field where this one starts.
        """
        method, rtol, atol, record, counted = self.method, self.rtol, self.atol, self.record, self.field
        rejected, within = Rejected(), self._within(at)
        method.begin_attempt()

        def run(y: Tensor, first: Tensor | None) -> tuple[AnyStep, Estimates | None]:  # without self: see `Checkpoint`
            times = _stage_times(method.tableau.c, t, h, t1, y, within)
            step = method.take(counted, rejected.guarded, y, first, of_samples(h, y), times)
            return step, method.estimates(step, rtol, atol) if record else None

        step, known = self._evaluated(counted, run, y, first, ends=step_ends)
        with torch.no_grad():
            error = known.error if known else method.error(step, rtol, atol)
        assert error is not None  # the method is adaptive
        self._count(counted, self.running)
        self.factorisations += method.implicit * len(self.running)
        if method.knows_slope:  # as OrdinaryDiffEq.jl counts it, the Jacobian evaluates none there
            self.calls -= not fresh.any()
            self.evaluations[self.running[~fresh]] -= 1
        return Attempt(t, h, t1, within, step, numbers(error), known, rejected)

    def keep(self, place: Ints) -> None:
        """The samples at these places go on running, the others leave."""
        index = self._index(place)
        self.running = self.running[place]
        self.rtol, self.atol = (
            x.index_select(0, index) if isinstance(x, Tensor) else x for x in (self.rtol, self.atol)
        )
        self.field = self._field(self.running)

    def entered(self, place: Ints, t: Floats, y: Tensor, first: Tensor, at: Ints) -> Tensor:
        """The FSAL stages, evaluated anew for the samples at these places, which are at a stop."""
        counted, index = self._field(self.running[place]), self._index(place)
        times = of_samples(t, y, self._within(at)).index_select(0, index)

        def slope(y: Tensor) -> Tensor:
            return counted(times, y.index_select(0, index))

        slopes = self._evaluated(counted, slope, y, ends=lambda k: (k,))
        self._count(counted, self.running[place])
        return first.index_copy(0, index, slopes)

    @torch.no_grad()
    def check_stops(self, place: Ints, t: Floats, y: Tensor, at: Ints) -> None:
        """Refuses stops, of the samples at these places, at which algebraic equations jump."""
        mass = self.method.mass
        if mass is None or not mass.singular:
            return
        function, index = self._field(self.running[place]).function, self._index(place)
        rtol, atol = (x.index_select(0, index) if isinstance(x, Tensor) else x for x in (self.rtol, self.atol))
        y = y.index_select(0, index)
        before, after = (of_samples(t[place], y, self._within(of[place])) for of in (at - 1, at))
        slope, by_state, _ = Jacobian(samples=True)(function, after, y)
        mass.check_stop(float(t[place[0]]), function(before, y), slope, by_state, y, rtol, atol)

    def is_pure(self, tried: Attempt) -> bool:
        """Whether two evaluations of the field where an attempt started agree."""
        y = tried.step.y
        return self.field.is_pure(of_samples(tried.t, y, tried.within), y)

    def shown(self, tried: Attempt) -> tuple[Tensor, Tensor | None]:
        """The error of an attempt over the tolerance, entrywise, and the stiffness of each sample, for a message."""
        return self.method.shown(tried.step, self.rtol, self.atol)

    # --- inside a step ---------------------------------------------------------------------------

    def interpolants(self, tried: Attempt, place: Ints) -> Sequence[Interpolant]:
        """The solutions inside an attempt of the samples at these places, as functions of time."""
        t, h, step = tried.t[place].tolist(), tried.h[place].tolist(), tried.step
        index = self._index(place)
        y, *k = (x.index_select(0, index).unbind() for x in (step.y, *step.k))
        k += [x.unbind() for x in self._extra_stages(tried, place)] if self.tableau.extra_a else []
        weights = [np.asarray(self.tableau.dense) / (size if self.method.implicit else 1.0) for size in h]
        return [Interpolant(*each) for each in zip(t, h, y, zip(*k, strict=True), weights, strict=True)]

    def states(self, tried: Attempt, place: Ints, times: Floats) -> Tensor:
        """The states inside an attempt at pairs of place and time, shape (pairs, ...)."""
        t, h, step = tried.t, tried.h, tried.step
        index = self._index(place)
        k = [k_j.index_select(0, index) for k_j in step.k]
        if self.tableau.extra_a:  # evaluated for the samples that need them
            needed, of_pair = np.unique(place, return_inverse=True)
            further = self._extra_stages(tried, needed)
            k += [k_j.index_select(0, self._index(of_pair)) for k_j in further]
        weights = dense_weights(self.tableau, (times - t[place]) / h[place])
        parts = (of_samples(weights[:, j], step.y) * k_j for j, k_j in enumerate(k) if weights[:, j].any())
        change = sum(parts, start=torch.zeros((), dtype=step.y.dtype, device=step.y.device))
        return self.method.inside(step, index, change)

    def _extra_stages(self, tried: Attempt, needed: Ints) -> list[Tensor]:
        """The stages beyond the step's own at these places."""
        tableau = self.tableau
        assert isinstance(tableau, Tableau)  # a Rosenbrock method has no further stages
        clocks = (tried.t[needed], tried.h[needed], tried.t1[needed])
        within = None if tried.within is None else (tried.within[0][needed], tried.within[1][needed])
        counted, index = self._field(self.running[needed]), self._index(needed)

        def run(outcome: tuple[AnyStep, Estimates | None]) -> list[Tensor]:
            y, *k = (x.index_select(0, index) for x in (outcome[0].y, *outcome[0].k))
            step = Step(y, of_samples(clocks[1], y), k, y, y, y)
            return extra_stages(counted, tableau, step, _stage_times(tableau.extra_c, *clocks, y, within))[len(k) :]

        outcome = tried.step, tried.known
        if self.checkpoint is None:
            k = run(outcome)
        else:
            self.checkpoint.fields = (counted,)
            k = self.checkpoint.further(run, outcome, ends=last_size)
        self._count(counted, self.running[needed])
        return k


def _stage_times(
    c: Sequence[float], t: Floats, h: Floats, t1: Floats, like: Tensor, within: Within = None
) -> list[Tensor]:
    """Times of the stages, as `stage_times`."""
    return [of_samples(np.where(ci == 1.0, t1, t + ci * h), like, within) for ci in c]
