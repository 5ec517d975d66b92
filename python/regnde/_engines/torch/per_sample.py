"""A batch of samples with step sizes of their own: each has its own clock, estimates and record.

The formulas are those of `step.py` with a norm for each sample; clocks and control are those of `control.py` on float64
arrays.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._engines.torch.control import NON_FINITE_TRIALS, Bounds, controller_of, landed, ulp
from regnde._engines.torch.failure import IMPURE_TRIALS, Diagnosis, Failure, asked_below, diagnosed, impure_reason
from regnde._engines.torch.sample_event import SampleEvents
from regnde._engines.torch.sample_outputs import Bools, Floats, Ints, SampleOutputs
from regnde._engines.torch.sample_stepper import Attempt, SampleStepper
from regnde._engines.torch.step import all_finite
from regnde._event import Event
from regnde._event_locator import Hit
from regnde._solver import ResolvedSolver
from regnde._stops import Segment

__all__ = ["PerSample"]


class PerSample:
    """Steps every sample of one ODE on its own.

    Args:
        stepper: the method applied to the batch.
        solver: controller, bounds of the sizes, limit of steps.
        y0: initial states, shape (B, ...).
        times: monotone save times, shared by the batch.
        segments: of the span.
        events: what to look for.

    Attributes:
        accepted, rejected: numbers of steps of each sample, shape (B,).
        dt_first: first step size of each sample, signed, shape (B,).
        first_sizes, first_errors: of the first accepted step of each sample, shape (B,); NaN without one.
        outputs: states at the save times, and records; a sample that an event stopped stays where it was then.
        events: those that occurred, or None if none are looked for.
        failure: why the loop stopped early, at time `t` of the sample at fault.
    """

    def __init__(
        self,
        stepper: SampleStepper,
        solver: ResolvedSolver,
        y0: Tensor,
        times: tuple[float, ...],
        segments: Sequence[Segment],
        *,
        events: Sequence[Event] = (),
    ) -> None:
        self.events = SampleEvents(events, times[0], y0) if events else None
        self.stepper, self.solver, self.y0 = stepper, solver, y0
        self.times = np.asarray(times)
        self.ends = np.array([segment.end for segment in segments])
        self.sign = math.copysign(1.0, times[-1] - times[0])
        batch = len(y0)
        self.accepted, self.rejected = (np.zeros(batch, np.int64) for _ in range(2))
        self.dt_first = np.zeros(batch)
        self.first_sizes, self.first_errors = np.full(batch, math.nan), np.full(batch, math.nan)
        self.t = times[0]
        self.failure: Failure | None = None
        self.bounds = Bounds(solver.dt_min, solver.dt_max)
        self.outputs = SampleOutputs(y0, self.times)

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until every sample has reached the end time."""
        stepper = self.stepper
        controller = controller_of(self.solver, stepper.tableau)
        assert controller is not None  # the method is adaptive
        batch, t_end, y = len(self.y0), float(self.times[-1]), self.y0
        t = np.full(batch, self.times[0])
        place, rows = self.outputs.due(stepper.running, t)
        self.outputs.add_states(rows, place, y.index_select(0, torch.as_tensor(place, device=y.device)))
        if batch == 0 or self.times[0] == t_end:
            return
        if not all_finite(y):
            self.failure = Failure("non-finite", "y0 is not finite", 0.0)
            return

        past = tuple(np.full(batch, x) for x in controller.past)
        non_finite, earliest = np.zeros(batch, np.int64), t
        at = np.zeros(batch, np.int64)  # index of the segment of each running sample
        first, h = stepper.start(y, float(self.times[0]), float(self.ends[0]))
        self.dt_first = h.copy()
        fresh = np.ones(batch, bool)  # whether a sample starts anew: at the start of the span, behind a stop

        while stepper.running.size:
            running, wanted = stepper.running, np.abs(h)
            h, t1 = landed(t, h, self.ends[at])
            cut = np.abs(h) < wanted
            tried = stepper.attempt(y, first, t, h, t1, at, fresh)
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
            self._look_for_failure(running, tried, h * factor, small_error, non_finite)
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
                t, h, non_finite, earliest, at = (v[stay] for v in (t, h, non_finite, earliest, at))
                past = tuple(v[stay] for v in past)
                place = np.flatnonzero(stay)
                stepper.keep(place)
                index = torch.as_tensor(place, device=y.device)
                y = y.index_select(0, index)
                first = None if first is None else first.index_select(0, index)
            fresh = t == self.ends[at]
            if fresh.any():
                at, place = at + fresh, np.flatnonzero(fresh)
                stepper.check_stops(place, t, y, at)
                if first is not None:
                    first = stepper.entered(place, t, y, first, at)

    def _chosen(self, accepted: Bools, new: Tensor, old: Tensor) -> Tensor:
        """The new rows of the accepted samples, the old ones of the others."""
        if accepted.all():
            return new
        return torch.where(self._rows(accepted), new, old)

    def _rows(self, mask: Bools) -> Tensor:
        """A mask of samples that broadcasts against their states."""
        return torch.as_tensor(mask, device=self.y0.device).reshape(-1, *[1] * (self.y0.ndim - 1))

    # --- states at save times --------------------------------------------------------------------

    def _stopped(self, running: Ints, accepted: Bools, tried: Attempt) -> Mapping[int, Hit]:
        """The terminal events of the accepted steps, by the places of their samples."""
        if self.events is None:
            return {}
        stepper, step = self.stepper, tried.step
        return self.events.seen(
            running,
            accepted,
            tried.t,
            tried.t1,
            step.y1,
            functools.partial(stepper.states, tried),
            functools.partial(stepper.interpolants, tried),
        )

    def _stay(self, sample: Ints, y: Tensor) -> None:
        """A sample that stops at the state y has this at all save times that it has not reached."""
        _, rows = self.outputs.due(sample, self.times[-1:])
        self.outputs.add_states(rows, sample.repeat(len(rows)), y.expand(len(rows), *y.shape))

    def _save(self, running: Ints, reached: Floats, tried: Attempt) -> None:
        """States at the save times up to those that the running samples have reached, as pairs (row, sample)."""
        place, rows = self.outputs.due(running, reached)
        if not rows.size:
            return
        inside = self.times[rows] != tried.t1[place]
        if inside.any():
            p, r = place[inside], rows[inside]
            self.outputs.add_states(r, running[p], self.stepper.states(tried, p, self.times[r]))
        if not inside.all():
            p, r = place[~inside], rows[~inside]
            y1 = tried.step.y1
            self.outputs.add_states(r, running[p], y1.index_select(0, torch.as_tensor(p, device=y1.device)))

    # --- failures --------------------------------------------------------------------------------

    def _look_for_failure(
        self, running: Ints, tried: Attempt, h_next: Floats, accepted: Bools, non_finite: Ints
    ) -> None:
        """Sets the failure if some sample can not go on."""
        t, error, trials = tried.t, tried.error, self.accepted[running] + self.rejected[running]
        smallest = self.bounds.smallest
        below = ~accepted & (np.abs(h_next) <= ulp(t))
        cramped = ~accepted & (np.abs(tried.h) <= smallest)
        h_next = np.where(cramped, tried.h, h_next)
        stuck = below | cramped
        doubtful = stuck.any() or trials.max() in (IMPURE_TRIALS, IMPURE_TRIALS + 1)
        if doubtful and not self.stepper.is_pure(tried):
            worst = int(stuck.argmax() if stuck.any() else trials.argmax())
            self.t = float(t[worst])
            reason = impure_reason(int(trials[worst]))
            self.failure = Failure("steps", reason, float(h_next[worst]), float(error[worst]))
            return
        for trouble, kind, text in (
            (non_finite >= NON_FINITE_TRIALS, "non-finite", "the dynamics are not finite"),
            (tried.t1 == t, "underflow", "the step size fell below the clock's resolution"),
            (below, "underflow", "the clock's resolution"),
            (cramped, "underflow", f"dt_min={smallest:g}"),
            (trials >= self.solver.max_steps, "steps", f"{self.solver.max_steps} steps did not reach the end time"),
        ):
            if trouble.any():
                worst = int(np.flatnonzero(trouble)[0])
                self.t = float(t[worst])
                found = self._diagnosis(tried, worst, int(running[worst]))
                evidence = f" (error ratio {error[worst]:.3g}, {found.text})"
                asked = trouble is below or trouble is cramped
                reason = asked_below(text, evidence, float(error[worst])) if asked else f"{text}{evidence}"
                self.failure = Failure(kind, reason, float(h_next[worst]), float(error[worst]), found)
                return

    @torch.no_grad()
    def _diagnosis(self, tried: Attempt, place: int, sample: int) -> Diagnosis:
        """What the attempt shows of the sample at this place of the running ones."""
        step = tried.step
        ratio, stiffnesses = self.stepper.shown(tried)
        ratio, stiffness = ratio[place], None if stiffnesses is None else stiffnesses[place]
        y, y1 = step.y[place], step.y1[place]
        found = diagnosed(y, y1, ((k[place], "") for k in step.k), ratio, stiffness, of="of its")
        component = None if found.component is None else sample * y.numel() + found.component
        return found._replace(text=f"sample {sample} of {len(self.y0)}, {found.text}", component=component)
