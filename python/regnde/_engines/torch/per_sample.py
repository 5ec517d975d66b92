"""A batch of samples with step sizes of their own: each has its own clock, estimates and record.

One attempt evaluates the field once a stage for all samples that are not at the end time yet; the others
leave the batch, so that a stiff sample costs them nothing. The formulas are those of `step.py` with a
norm for each sample; clocks and control are those of `control.py` on float64 arrays.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.checkpoint import Checkpoint, last_size, step_ends
from regnde._engines.torch.control import NON_FINITE_TRIALS, Bounds, controller_of, landed, ulp
from regnde._engines.torch.failure import IMPURE_TRIALS, Diagnosis, Failure, diagnosed, impure_reason
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import first_step_sizes
from regnde._engines.torch.mass import SMALL_START
from regnde._engines.torch.sample_event import SampleEvents
from regnde._engines.torch.sample_method import AnyStep, SampleMethod
from regnde._engines.torch.sample_outputs import Bools, Floats, Ints, SampleOutputs, Within, of_samples
from regnde._engines.torch.step import (
    Estimates,
    Step,
    Tolerance,
    all_finite,
    dense_weights,
    extra_stages,
)
from regnde._equation import takes_samples
from regnde._event import Event
from regnde._event_locator import Hit
from regnde._solver import ResolvedSolver
from regnde._stops import Segment
from regnde._tableau import Tableau
from regnde._transforms import numbers, transformed

__all__ = ["PerSample"]

T = TypeVar("T")


class _Attempt(NamedTuple):
    """One attempt of the running samples: clocks, outcome, and estimates if they are recorded."""

    t: Floats
    h: Floats
    t1: Floats
    within: Within
    step: AnyStep
    error: Floats
    known: Estimates | None
    rejected: _Rejected


class _Rejected:
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


class PerSample:
    """Steps every sample of one ODE on its own.

    Args:
        function: f(t, y), or f(t, y, samples): t has shape (b, 1, ..., 1) and broadcasts against the b
            running samples y; `samples`, shape (b,), are their indices in the batch.
        method: an adaptive method.
        solver: first step size, limit of steps.
        tolerances: relative and absolute.
        y0: initial states, shape (B, ...).
        times: monotone save times, shared by the batch.
        segments: of the span.
        record: whether to record the estimates.
        events: what to look for.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.

    Attributes:
        accepted, rejected, evaluations: counts of each sample, shape (B,).
        calls: evaluations of the field for the batch as a whole.
        factorisations: matrices factorised, of all samples together.
        dt_first: first step size of each sample, signed, shape (B,).
        first_sizes, first_errors: of the first accepted step of each sample, shape (B,); NaN without one.
        outputs: states at the save times, and records; a sample that an event stopped stays where it was then.
        events: those that occurred, or None if none are looked for.
        failure: why the loop stopped early, at time `t` of the sample at fault.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        method: SampleMethod,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        y0: Tensor,
        times: tuple[float, ...],
        segments: Sequence[Segment],
        *,
        record: bool,
        events: Sequence[Event] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.events = SampleEvents(events, times[0], y0) if events else None
        self.function, self.with_samples = function, takes_samples(function)
        self.method, self.tableau, self.solver, self.y0, self.record = method, method.tableau, solver, y0, record
        self.rtol, self.atol = tolerances  # of the running samples
        self.checkpoint = checkpoint
        self.times = np.asarray(times)
        self.ends = np.array([segment.end for segment in segments])
        bounds = [segment.within or (-math.inf, math.inf) for segment in segments]
        self.lows, self.highs = np.array(bounds).T
        self.stops = len(segments) > 1 or segments[0].within is not None
        self.sign = math.copysign(1.0, times[-1] - times[0])
        batch = len(y0)
        self.accepted, self.rejected, self.evaluations = (np.zeros(batch, np.int64) for _ in range(3))
        self.dt_first = np.zeros(batch)
        self.first_sizes, self.first_errors = np.full(batch, math.nan), np.full(batch, math.nan)
        self.calls, self.factorisations = 0, 0
        self.t = times[0]
        self.failure: Failure | None = None
        self.bounds = Bounds(solver.dt_min, solver.dt_max)
        self.outputs = SampleOutputs(y0, self.times)

    # --- evaluating ------------------------------------------------------------------------------

    def _field(self, samples: Ints) -> CountedField:
        """The field at these samples."""
        function, index = self.function, torch.as_tensor(samples, device=self.y0.device)
        return CountedField((lambda t, y: function(t, y, index)) if self.with_samples else function)

    def _count(self, counted: CountedField, samples: Ints) -> None:
        self.calls += counted.calls
        self.evaluations[samples] += counted.calls
        counted.calls = 0

    def _uncount(self, running: Ints, fresh: Bools) -> None:
        """Takes back the evaluation within a Jacobian of the samples whose slope there was known before."""
        if self.method.knows_slope:
            self.calls -= not fresh.any()
            self.evaluations[running[~fresh]] -= 1

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

    def _within(self, place: Ints) -> Within:
        """Bounds of the times of samples in these segments."""
        return (self.lows[place], self.highs[place]) if self.stops else None

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until every sample has reached the end time."""
        controller = controller_of(self.solver, self.tableau)
        assert controller is not None  # the method is adaptive
        batch, t_end, y = len(self.y0), float(self.times[-1]), self.y0
        running, t = np.arange(batch), np.full(batch, self.times[0])
        place, rows = self.outputs.due(running, t)
        self.outputs.add_states(rows, place, y.index_select(0, torch.as_tensor(place, device=y.device)))
        if batch == 0 or self.times[0] == t_end:
            return
        if not all_finite(y):
            self.failure = Failure("non-finite", "y0 is not finite", 0.0)
            return

        past = tuple(np.full(batch, x) for x in controller.past)
        non_finite, earliest = np.zeros(batch, np.int64), t
        counted = self._field(running)
        if self.method.mass is not None:
            column = of_samples(t, y, self._within(np.zeros(batch, np.int64)))
            self.method.mass.check_start(counted.function, column, y, self.rtol, self.atol, samples=True)
        # Without a checkpoint: later calls may use what the field makes at its first call.
        at = np.zeros(batch, np.int64)  # index of the segment of each running sample
        first = counted(of_samples(t, y, self._within(at)), y) if self.tableau.carries else None
        h = self._first_sizes(counted, y, first)
        self._count(counted, running)
        self.dt_first = h.copy()
        fresh = np.ones(batch, bool)  # whether a sample starts anew: at the start of the span, behind a stop

        while running.size:
            wanted = np.abs(h)
            h, t1 = landed(t, h, self.ends[at])
            cut = np.abs(h) < wanted
            tried = self._attempt(counted, y, first, t, h, t1, self._within(at))
            self._count(counted, running)
            self.factorisations += self.method.implicit * len(running)
            self._uncount(running, fresh)
            with np.errstate(all="ignore"):
                small_error, strange = controller.accepts(tried.error, past), ~np.isfinite(tried.error)
            # Rows that are not finite spoil the gradients of all in the graph of one attempt: the others try again.
            accepted = np.zeros_like(small_error) if torch.is_grad_enabled() and strange.any() else small_error
            with np.errstate(all="ignore"):
                factor = controller.factor(tried.error, past, self.accepted[running] == 0)
                updated = controller.updated(tried.error, past)

            factor = np.where(small_error & ~accepted, 1.0, factor)
            self.rejected[running[~small_error]] += 1
            nearer = strange & ((non_finite == 0) | (self.sign * (t1 - earliest) < 0))
            earliest = np.where(nearer, t1, earliest)
            passed = accepted & (self.sign * (t1 - earliest) >= 0)
            non_finite = np.where(strange, non_finite + 1, np.where(passed, 0, non_finite))
            self._look_for_failure(running, counted, tried, h * factor, small_error, non_finite)
            if self.failure is not None:
                break

            if accepted.any():
                if not accepted.all():
                    tried.rejected.rows = self._rows(~accepted)
                if tried.known is not None:
                    steps = self.accepted[running]
                    self.outputs.add_records(steps, running, tried.t1, tried.h, tried.known, accepted)
                reached = np.where(accepted, t1, -self.sign * math.inf)
                stopped = self._stopped(running, accepted, tried)
                reached[list(stopped)] = [hit.at for hit in stopped.values()]
                self._save(running, reached, tried)
                for stop, hit in stopped.items():
                    self._stay(running[[stop]], hit.y)
                start = accepted & (self.accepted[running] == 0)
                self.first_sizes[running[start]], self.first_errors[running[start]] = h[start], tried.error[start]
                self.accepted[running[accepted]] += 1
                if first is not None:
                    first = self._chosen(accepted, tried.step.k[-1], first)
                y = self._chosen(accepted, tried.step.y1, y)
                whole = accepted & ~cut  # a stop cut the others: their error says little of the steps to come
                past = tuple(np.where(whole, new, old) for new, old in zip(updated, past, strict=True))
                t = np.where(accepted, t1, t)
                t[list(stopped)] = t_end
            size = np.abs(h * factor)
            size = np.where(accepted & cut, np.maximum(size, wanted), size)
            size = np.where(
                accepted, np.maximum(self.bounds.within(size), ulp(t)), np.maximum(size, self.bounds.smallest)
            )
            h = self.sign * size
            stay = t != t_end
            if not stay.all():  # at once: a sample at the end time must not be evaluated again
                running, t, h, non_finite, earliest, at = (v[stay] for v in (running, t, h, non_finite, earliest, at))
                past = tuple(v[stay] for v in past)
                index = torch.as_tensor(np.flatnonzero(stay), device=y.device)
                y = y.index_select(0, index)
                self.rtol, self.atol = (
                    x.index_select(0, index) if isinstance(x, Tensor) else x for x in (self.rtol, self.atol)
                )
                first = None if first is None else first.index_select(0, index)
                counted = self._field(running)
            fresh = crossed = t == self.ends[at]
            if crossed.any():
                at = at + crossed
                if first is not None:
                    first = self._entered(running, crossed, t, y, first, self._within(at))

    def _entered(self, running: Ints, crossed: Bools, t: Floats, y: Tensor, first: Tensor, within: Within) -> Tensor:
        """The FSAL stages, evaluated anew for the samples that are at a stop."""
        place = np.flatnonzero(crossed)
        counted, index = self._field(running[place]), torch.as_tensor(place, device=y.device)
        times = of_samples(t, y, within).index_select(0, index)

        def slope(y: Tensor) -> Tensor:
            return counted(times, y.index_select(0, index))

        slopes = self._evaluated(counted, slope, y, ends=lambda k: (k,))
        self._count(counted, running[place])
        return first.index_copy(0, index, slopes)

    def _first_sizes(self, counted: CountedField, y: Tensor, known: Tensor | None) -> Floats:
        """The first-step heuristic of each sample, signed; two evaluations."""
        t0, solver = float(self.times[0]), self.solver
        distance = abs(self.ends[0] - t0)
        span = min(distance, self.bounds.largest)
        if solver.dt0 is not None or y.numel() == 0:
            size = span if solver.dt0 is None else self.bounds.within(solver.dt0)
            return np.full(len(y), self.sign * min(size, span))

        def field(t: Sequence[float], y: Tensor) -> Tensor:
            slope = counted(of_samples(np.asarray(t), y, within), y)
            return slope if mass is None else mass.slopes(slope, samples=True)

        within, mass = self._within(np.zeros(len(y), np.int64)), self.method.mass
        if mass is not None and mass.singular:
            return np.full(len(y), self.sign * min(SMALL_START, span))
        order, rtol, atol = self.tableau.order, self.rtol, self.atol
        sizes, slope = first_step_sizes(field, order, y, t0, self.sign * span, rtol, atol, samples=True)
        if known is not None:
            counted.check_pure(known, slope)
        # A slope that is not finite fails the sample's first attempt, whatever its size.
        sizes = self.bounds.within(np.nan_to_num(sizes, nan=1e-6))
        signed: Floats = self.sign * np.minimum(sizes, distance)
        return signed

    def _attempt(
        self,
        counted: CountedField,
        y: Tensor,
        first: Tensor | None,
        t: Floats,
        h: Floats,
        t1: Floats,
        within: Within,
    ) -> _Attempt:
        method, rtol, atol, record = self.method, self.rtol, self.atol, self.record
        rejected = _Rejected()

        def run(y: Tensor, first: Tensor | None) -> tuple[AnyStep, Estimates | None]:  # without self: see `Checkpoint`
            times = _stage_times(method.tableau.c, t, h, t1, y, within)
            step = method.take(counted, rejected.guarded, y, first, of_samples(h, y), times)
            return step, method.estimates(step, rtol, atol) if record else None

        step, known = self._evaluated(counted, run, y, first, ends=step_ends)
        with torch.no_grad():
            error = known.error if known else method.error(step, rtol, atol)
        assert error is not None  # the method is adaptive
        return _Attempt(t, h, t1, within, step, numbers(error), known, rejected)

    def _chosen(self, accepted: Bools, new: Tensor, old: Tensor) -> Tensor:
        """The new rows of the accepted samples, the old ones of the others."""
        if accepted.all():
            return new
        return torch.where(self._rows(accepted), new, old)

    def _rows(self, mask: Bools) -> Tensor:
        """A mask of samples that broadcasts against their states."""
        return torch.as_tensor(mask, device=self.y0.device).reshape(-1, *[1] * (self.y0.ndim - 1))

    # --- states at save times --------------------------------------------------------------------

    def _stopped(self, running: Ints, accepted: Bools, tried: _Attempt) -> Mapping[int, Hit]:
        """The terminal events of the accepted steps, by the places of their samples."""
        if self.events is None:
            return {}

        def states(place: Ints, times: Floats) -> Tensor:
            return self._dense(running, tried, place, times)

        def interpolants(place: Ints) -> Sequence[Interpolant]:
            t, h, step = tried.t[place].tolist(), tried.h[place].tolist(), tried.step
            index = torch.as_tensor(place, device=step.y.device)
            y, *k = (x.index_select(0, index).unbind() for x in (step.y, *step.k))
            k += [x.unbind() for x in self._extra_stages(running, tried, place)] if self.tableau.extra_a else []
            weights = [np.asarray(self.tableau.dense) / (size if self.method.implicit else 1.0) for size in h]
            return [Interpolant(*each) for each in zip(t, h, y, zip(*k, strict=True), weights, strict=True)]

        return self.events.seen(running, accepted, tried.t, tried.t1, tried.step.y1, states, interpolants)

    def _stay(self, sample: Ints, y: Tensor) -> None:
        """A sample that stops at the state y has this at all save times that it has not reached."""
        _, rows = self.outputs.due(sample, self.times[-1:])
        self.outputs.add_states(rows, sample.repeat(len(rows)), y.expand(len(rows), *y.shape))

    def _save(self, running: Ints, reached: Floats, tried: _Attempt) -> None:
        """States at the save times up to those that the running samples have reached, as pairs (row, sample)."""
        place, rows = self.outputs.due(running, reached)
        if not rows.size:
            return
        inside = self.times[rows] != tried.t1[place]
        if inside.any():
            p, r = place[inside], rows[inside]
            self.outputs.add_states(r, running[p], self._dense(running, tried, p, self.times[r]))
        if not inside.all():
            p, r = place[~inside], rows[~inside]
            y1 = tried.step.y1
            self.outputs.add_states(r, running[p], y1.index_select(0, torch.as_tensor(p, device=y1.device)))

    def _dense(self, running: Ints, tried: _Attempt, place: Ints, times: Floats) -> Tensor:
        """The interpolant at pairs of sample and time, shape (pairs, ...)."""
        t, h, step = tried.t, tried.h, tried.step
        index = torch.as_tensor(place, device=step.y.device)
        k = [k_j.index_select(0, index) for k_j in step.k]
        if self.tableau.extra_a:  # evaluated for the samples that need them
            needed, of_pair = np.unique(place, return_inverse=True)
            further = self._extra_stages(running, tried, needed)
            k += [k_j.index_select(0, torch.as_tensor(of_pair, device=step.y.device)) for k_j in further]
        weights = dense_weights(self.tableau, (times - t[place]) / h[place])
        parts = (of_samples(weights[:, j], step.y) * k_j for j, k_j in enumerate(k) if weights[:, j].any())
        change = sum(parts, start=torch.zeros((), dtype=step.y.dtype, device=step.y.device))
        return self.method.inside(step, index, change)

    def _extra_stages(self, running: Ints, tried: _Attempt, needed: Ints) -> list[Tensor]:
        """The stages beyond the step's own at these places of the running samples."""
        tableau = self.tableau
        assert isinstance(tableau, Tableau)  # a Rosenbrock method has no further stages
        clocks = (tried.t[needed], tried.h[needed], tried.t1[needed])
        within = None if tried.within is None else (tried.within[0][needed], tried.within[1][needed])
        counted, index = self._field(running[needed]), torch.as_tensor(needed, device=self.y0.device)

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
        self._count(counted, running[needed])
        return k

    # --- failures --------------------------------------------------------------------------------

    def _look_for_failure(
        self, running: Ints, counted: CountedField, tried: _Attempt, h_next: Floats, accepted: Bools, non_finite: Ints
    ) -> None:
        """Sets the failure if some sample can not go on."""
        t, error, trials = tried.t, tried.error, self.accepted[running] + self.rejected[running]
        smallest = self.bounds.smallest
        below = ~accepted & (np.abs(h_next) <= ulp(t))
        cramped = ~accepted & (np.abs(tried.h) <= smallest)
        h_next = np.where(cramped, tried.h, h_next)
        stuck = below | cramped
        asked = stuck.any() or trials.max() in (IMPURE_TRIALS, IMPURE_TRIALS + 1)
        if asked and not counted.is_pure(of_samples(t, tried.step.y, tried.within), tried.step.y):
            worst = int(stuck.argmax() if stuck.any() else trials.argmax())
            self.t = float(t[worst])
            reason = impure_reason(int(trials[worst]))
            self.failure = Failure("steps", reason, float(h_next[worst]), float(error[worst]))
            return
        for trouble, kind, text in (
            (non_finite >= NON_FINITE_TRIALS, "non-finite", "the dynamics are not finite"),
            (tried.t1 == t, "underflow", "the step size fell below the clock's resolution"),
            (below, "underflow", "the error control asks for a step below the clock's resolution"),
            (cramped, "underflow", f"the error control asks for a step below dt_min={smallest:g}"),
            (trials >= self.solver.max_steps, "steps", f"{self.solver.max_steps} steps did not reach the end time"),
        ):
            if trouble.any():
                worst = int(np.flatnonzero(trouble)[0])
                self.t = float(t[worst])
                found = self._diagnosis(tried, worst, int(running[worst]))
                reason = f"{text} (error ratio {error[worst]:.3g}, {found.text})"
                self.failure = Failure(kind, reason, float(h_next[worst]), float(error[worst]), found)
                return

    @torch.no_grad()
    def _diagnosis(self, tried: _Attempt, place: int, sample: int) -> Diagnosis:
        """What the attempt shows of the sample at this place of the running ones."""
        step = tried.step
        ratio, stiffnesses = self.method.shown(step, self.rtol, self.atol)
        ratio, stiffness = ratio[place], None if stiffnesses is None else stiffnesses[place]
        y, y1 = step.y[place], step.y1[place]
        found = diagnosed(y, y1, ((k[place], "") for k in step.k), ratio, stiffness, of="of its")
        component = None if found.component is None else sample * y.numel() + found.component
        return found._replace(text=f"sample {sample} of {len(self.y0)}, {found.text}", component=component)


def _stage_times(
    c: Sequence[float], t: Floats, h: Floats, t1: Floats, like: Tensor, within: Within = None
) -> list[Tensor]:
    """Times of the stages, as `stage_times`."""
    return [of_samples(np.where(ci == 1.0, t1, t + ci * h), like, within) for ci in c]
