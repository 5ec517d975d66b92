"""A batch of samples with step sizes of their own: each has its own clock, estimates and record.

One attempt evaluates the field once a stage for all samples that are not at the end time yet; the others
leave the batch, so that a stiff sample costs them nothing. The formulas are those of `step.py` with a
norm for each sample; clocks and control are those of `control.py` on float64 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.control import NON_FINITE_TRIALS, Controller, landed, ulp
from regnde._engines.torch.field import CountedField, takes_samples
from regnde._engines.torch.loop import IMPURE_TRIALS, Diagnosis, Failure, impure_reason
from regnde._engines.torch.ode import first_step_sizes, step_ends
from regnde._engines.torch.step import (
    Estimates,
    Step,
    all_finite,
    dense_weights,
    error_estimate,
    error_ratio,
    estimates,
    sample_rms,
    shifted,
    stiffness_estimate,
    take_step,
)
from regnde._solver import ResolvedSolver
from regnde._tableau import Tableau

__all__ = ["PerSample"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class _Attempt(NamedTuple):
    """One attempt of the running samples: clocks, outcome, and estimates if they are recorded."""

    t: Floats
    h: Floats
    t1: Floats
    step: Step
    error: Floats
    known: Estimates | None


class PerSample:
    """Steps every sample of one ODE on its own.

    Args:
        function: f(t, y), or f(t, y, samples): t has shape (b, 1, ..., 1) and broadcasts against the b
            running samples y; `samples`, shape (b,), are their indices in the batch.
        tableau: an adaptive method.
        solver: tolerances, first step size, limit of steps.
        y0: initial states, shape (B, ...).
        times: monotone save times, shared by the batch.
        record: whether to record the estimates.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.

    Attributes:
        accepted, rejected, evaluations: counts of each sample, shape (B,).
        calls: evaluations of the field for the batch as a whole.
        dt_first: first step size of each sample, signed, shape (B,).
        first_sizes, first_errors: of the first accepted step of each sample, shape (B,); NaN without one.
        failure: why the loop stopped early, at time `t` of the sample at fault.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        tableau: Tableau,
        solver: ResolvedSolver,
        y0: Tensor,
        times: tuple[float, ...],
        *,
        record: bool,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.function, self.with_samples = function, takes_samples(function)
        self.tableau, self.solver, self.y0, self.record = tableau, solver, y0, record
        self.checkpoint = checkpoint
        self.times = np.asarray(times)
        self.sign = math.copysign(1.0, times[-1] - times[0])
        batch = len(y0)
        self.accepted, self.rejected, self.evaluations, self._saved = (np.zeros(batch, np.int64) for _ in range(4))
        self.dt_first = np.zeros(batch)
        self.first_sizes, self.first_errors = np.full(batch, math.nan), np.full(batch, math.nan)
        self.calls = 0
        self.t = times[0]
        self.failure: Failure | None = None
        self._out: list[tuple[Ints, Ints, Tensor]] = []  # rows of `times`, samples, states
        self._records: list[tuple[Ints, Ints, Floats, Floats, Estimates]] = []  # steps, samples, ends, sizes

    # --- evaluating ------------------------------------------------------------------------------

    def _field(self, samples: Ints) -> CountedField:
        """The field at these samples."""
        function, index = self.function, torch.as_tensor(samples, device=self.y0.device)
        counted = CountedField((lambda t, y: function(t, y, index)) if self.with_samples else function)
        if self.checkpoint is not None:
            self.checkpoint.fields = (counted,)
        return counted

    def _count(self, counted: CountedField, samples: Ints) -> None:
        self.calls += counted.calls
        self.evaluations[samples] += counted.calls
        counted.calls = 0

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Steps until every sample has reached the end time."""
        controller = Controller.of(self.tableau.order, self.tableau.beta1, self.tableau.beta2)
        batch, t_end, y = len(self.y0), float(self.times[-1]), self.y0
        running, t = np.arange(batch), np.full(batch, self.times[0])
        place, rows = self._due(running, t)
        self._out.append((rows, place, y.index_select(0, torch.as_tensor(place, device=y.device))))
        if batch == 0 or self.times[0] == t_end:
            return
        if not all_finite(y):
            self.failure = Failure("non-finite", "y0 is not finite", 0.0)
            return

        previous = np.full(batch, controller.error_floor)
        non_finite, earliest = np.zeros(batch, np.int64), t
        counted = self._field(running)
        # Without a checkpoint: later calls may use what the field makes at its first call.
        first = counted(_column(t, y), y) if self.tableau.fsal else None
        h = self._first_sizes(counted, y, t_end, first)
        self._count(counted, running)
        self.dt_first = h.copy()

        while running.size:
            h, t1 = landed(t, h, t_end)
            tried = self._attempt(counted, y, first, t, h, t1)
            self._count(counted, running)
            small_error, strange = tried.error <= 1.0, ~np.isfinite(tried.error)
            # Rows that are not finite spoil the gradients of all in the graph of one attempt: the others try again.
            accepted = np.zeros_like(small_error) if torch.is_grad_enabled() and strange.any() else small_error
            with np.errstate(all="ignore"):
                factor = controller.factor(tried.error, previous, self.accepted[running] == 0)

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
                self._record(running, accepted, tried)
                self._save(running, accepted, tried, counted)
                self._count(counted, running)
                start = accepted & (self.accepted[running] == 0)
                self.first_sizes[running[start]], self.first_errors[running[start]] = h[start], tried.error[start]
                self.accepted[running[accepted]] += 1
                if first is not None:
                    first = self._chosen(accepted, tried.step.k[-1], first)
                y = self._chosen(accepted, tried.step.y1, y)
                previous = np.where(accepted, np.maximum(tried.error, controller.error_floor), previous)
                t = np.where(accepted, t1, t)
            h = self.sign * np.maximum(np.abs(h * factor), np.where(accepted, ulp(t), 0.0))
            stay = t != t_end
            if not stay.all():  # at once: a sample at the end time must not be evaluated again
                running, t, h, previous, non_finite, earliest = (
                    v[stay] for v in (running, t, h, previous, non_finite, earliest)
                )
                index = torch.as_tensor(np.flatnonzero(stay), device=y.device)
                y = y.index_select(0, index)
                first = None if first is None else first.index_select(0, index)
                counted = self._field(running)

    def _first_sizes(self, counted: CountedField, y: Tensor, t_end: float, known: Tensor | None) -> Floats:
        """The first-step heuristic of each sample, signed; two evaluations."""
        t0, solver = float(self.times[0]), self.solver
        span = abs(t_end - t0)
        if solver.dt0 is not None or y.numel() == 0:
            return np.full(len(y), self.sign * min(span if solver.dt0 is None else solver.dt0, span))

        def field(t: Floats, y: Tensor) -> Tensor:
            return counted(_column(t, y), y)

        order, rtol, atol = self.tableau.order, solver.rtol, solver.atol
        sizes, slope = first_step_sizes(field, order, y, t0, t_end, rtol, atol, samples=True)
        if known is not None:
            counted.check_pure(known, slope)
        # A slope that is not finite fails the sample's first attempt, whatever its size.
        signed: Floats = self.sign * np.where(np.isnan(sizes), min(1e-6, span), sizes)
        return signed

    def _attempt(
        self, counted: CountedField, y: Tensor, first: Tensor | None, t: Floats, h: Floats, t1: Floats
    ) -> _Attempt:
        tableau, rtol, atol, record = self.tableau, self.solver.rtol, self.solver.atol, self.record
        stage_clocks = [np.where(c == 1.0, t1, t + c * h) for c in tableau.c]

        def run(y: Tensor, first: Tensor | None) -> tuple[Step, Estimates | None]:  # without self: see `Checkpoint`
            step = take_step(counted, tableau, y, first, _column(h, y), [_column(s, y) for s in stage_clocks])
            return step, estimates(tableau, step, rtol, atol) if record else None

        step, known = run(y, first) if self.checkpoint is None else self.checkpoint(run, y, first, ends=step_ends)
        with torch.no_grad():
            error = known.error if known else error_estimate(tableau, step, rtol, atol, sample_rms)
        assert error is not None  # the method is adaptive
        return _Attempt(t, h, t1, step, error.detach().to("cpu", torch.float64).numpy(), known)

    def _chosen(self, accepted: Bools, new: Tensor, old: Tensor) -> Tensor:
        """The new rows of the accepted samples, the old ones of the others."""
        if accepted.all():
            return new
        mask = torch.as_tensor(accepted, device=old.device).reshape(-1, *[1] * (old.ndim - 1))
        return torch.where(mask, new, old)

    # --- outputs and records ---------------------------------------------------------------------

    def _due(self, running: Ints, t: Floats) -> tuple[Ints, Ints]:
        """Save times that the samples `running` pass by reaching `t`: places in `running`, and rows of `times`."""
        saved = self._saved[running]
        stop = np.maximum(saved, np.searchsorted(self.sign * self.times, self.sign * t, side="right"))
        self._saved[running] = stop
        place = np.repeat(np.arange(len(running)), stop - saved)
        rows = [np.arange(a, b) for a, b in zip(saved, stop, strict=True)]
        return place, np.concatenate([np.zeros(0, np.int64), *rows])

    def _save(self, running: Ints, accepted: Bools, tried: _Attempt, counted: CountedField) -> None:
        """States of the accepted samples at the save times that their steps passed, as pairs (row, sample)."""
        place, rows = self._due(running, np.where(accepted, tried.t1, -self.sign * math.inf))
        if not rows.size:
            return
        inside = self.times[rows] != tried.t1[place]
        if inside.any():
            p, r = place[inside], rows[inside]
            self._out.append((r, running[p], self._dense(tried, p, self.times[r], counted)))
        if not inside.all():
            p, r = place[~inside], rows[~inside]
            y1 = tried.step.y1
            self._out.append((r, running[p], y1.index_select(0, torch.as_tensor(p, device=y1.device))))

    def _dense(self, tried: _Attempt, place: Ints, at: Floats, counted: CountedField) -> Tensor:
        """The interpolant at pairs of sample and time, shape (pairs, ...)."""
        t, h, t1, step = tried.t, tried.h, tried.t1, tried.step
        k = list(step.k)
        for row, c in zip(self.tableau.extra_a, self.tableau.extra_c, strict=True):
            k.append(counted(_column(np.where(c == 1.0, t1, t + c * h), step.y), shifted(step.y, k, row, step.h)))
        weights = dense_weights(self.tableau, (at - t[place]) / h[place])
        index = torch.as_tensor(place, device=step.y.device)
        parts = (
            _column(weights[:, j], step.y) * k_j.index_select(0, index)
            for j, k_j in enumerate(k)
            if weights[:, j].any()
        )
        change = sum(parts, start=torch.zeros((), dtype=step.y.dtype, device=step.y.device))
        assert isinstance(step.h, Tensor)
        return torch.addcmul(step.y.index_select(0, index), step.h.index_select(0, index), change)

    def _record(self, running: Ints, accepted: Bools, tried: _Attempt) -> None:
        """Remembers the records of the accepted samples."""
        if tried.known is None:
            return
        samples = running[accepted]
        index = torch.as_tensor(np.flatnonzero(accepted), device=self.y0.device)
        chosen = Estimates(*(None if x is None else x.index_select(0, index) for x in tried.known))
        self._records.append((self.accepted[samples], samples, tried.t1[accepted], tried.h[accepted], chosen))

    def outputs(self) -> Tensor:
        """States at the save times that every sample has reached, shape (rows, B, ...)."""
        rows = int(self._saved.min(initial=len(self.times)))
        ys = self.y0.new_zeros((len(self.times), *self.y0.shape))
        if self._out:
            place = self._place(*(np.concatenate(x) for x in list(zip(*self._out, strict=True))[:2]))
            ys = ys.index_put(place, torch.cat([values for _, _, values in self._out]))
        return ys[:rows]

    def clocks(self) -> tuple[Floats, Floats, Bools]:
        """End and size of each step, and which entries are steps, shape (S, B)."""
        shape = (int(self.accepted.max(initial=0)), len(self.y0))
        ends, sizes, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
        for rows, samples, t, h, _ in self._records:
            ends[rows, samples], sizes[rows, samples], mask[rows, samples] = t, h, True
        return ends, sizes, mask

    def records(self) -> Estimates:
        """Errors and stiffnesses, shape (S, B), 0 where a sample took fewer steps."""
        shape = (int(self.accepted.max(initial=0)), len(self.y0))
        if not self._records:  # an empty record with a graph, so that a penalty has a gradient (0)
            empty = self.y0.reshape(-1)[:0].abs().reshape(0, 1).expand(0, shape[1])
            return Estimates(empty, empty)
        rows, samples, _, _, parts = zip(*self._records, strict=True)
        place = self._place(np.concatenate(rows), np.concatenate(samples))

        def laid_out(values: list[Tensor]) -> Tensor | None:
            flat = torch.cat(values) if values else None
            return None if flat is None else flat.new_zeros(shape).index_put(place, flat)

        errors, stiffnesses = zip(*parts, strict=True)
        return Estimates(*(laid_out([x for x in column if x is not None]) for column in (errors, stiffnesses)))

    def _place(self, rows: Ints, samples: Ints) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(rows, device=self.y0.device), torch.as_tensor(samples, device=self.y0.device)

    # --- failures --------------------------------------------------------------------------------

    def _look_for_failure(
        self, running: Ints, counted: CountedField, tried: _Attempt, h_next: Floats, accepted: Bools, non_finite: Ints
    ) -> None:
        """Sets the failure if some sample can not go on."""
        t, error, trials = tried.t, tried.error, self.accepted[running] + self.rejected[running]
        if trials.max() in (IMPURE_TRIALS, IMPURE_TRIALS + 1) and not counted.is_pure(
            _column(t, tried.step.y), tried.step.y
        ):
            self.t = float(t[trials.argmax()])
            self.failure = Failure("steps", impure_reason(IMPURE_TRIALS), float(h_next[trials.argmax()]))
            return
        for trouble, kind, text in (
            (non_finite >= NON_FINITE_TRIALS, "non-finite", "the dynamics are not finite"),
            (tried.t1 == t, "underflow", "the step size fell below the clock's resolution"),
            (
                ~accepted & (np.abs(h_next) <= ulp(t)),
                "underflow",
                "the error control asks for a step below the clock's resolution",
            ),
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
        tableau, solver, step = self.tableau, self.solver, tried.step
        size = step.y[place].numel()
        where = f"sample {sample} of {len(self.y0)}"
        if bad := int((~torch.isfinite(step.k[-1][place])).sum()):
            return Diagnosis(f"{where}, {bad} of its {size} components")
        component = int(error_ratio(tableau, step, solver.rtol, solver.atol)[place].abs().reshape(-1).argmax())
        where += f", worst component {component} of its {size}, |y| up to {float(step.y[place].abs().max()):.3g}"
        if not tableau.stiffness_pair:
            return Diagnosis(where, sample * size + component)
        stiffness = float(stiffness_estimate(step)[place])
        return Diagnosis(f"{where}, stiffness {stiffness:.3g}", sample * size + component, stiffness)


def _column(values: Floats, like: Tensor) -> Tensor:
    """One value a sample, as a column of the state's real dtype."""
    column = torch.as_tensor(values).to(like.device, like.dtype.to_real())
    return column.reshape(-1, *[1] * (like.ndim - 1))
