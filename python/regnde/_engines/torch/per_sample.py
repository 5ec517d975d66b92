"""A batch whose samples step apart: each has its own clock, step size, estimates and record.

One attempt evaluates the field once a stage for all samples that are still under way; those that reached
the end time leave the batch at once, so that a stiff sample costs the others nothing. The formulas are
the ones of `step.py` with a norm for each sample; clocks and control are float64 arrays on the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regnde._engines.torch.batch_path import BatchPath
from regnde._engines.torch.control import size_from_trial, trial_size
from regnde._engines.torch.field import CountedField, takes_samples
from regnde._engines.torch.loop import LAST_STEP_SLACK, NON_FINITE_TRIALS, Diagnosis, Failure
from regnde._engines.torch.norm import sample_rms, tolerated
from regnde._engines.torch.stages import ColumnStages
from regnde._engines.torch.step import (
    Taken,
    dense_weights,
    sample_error_estimates,
    scaled_error,
    stiffness_estimate,
    take_step,
)
from regnde._engines.torch.tableaux import Tableau
from regnde._solver import ResolvedSolver

__all__ = ["PerSample"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Attempt:
    """One attempt of the samples under way: clocks, states and outcome."""

    t: Floats
    h: Floats
    t_new: Floats
    y: Tensor
    taken: Taken
    stages: ColumnStages
    error: Tensor
    stiffness: Tensor | None


class PerSample:
    """Steps every sample of one ODE on its own.

    Args:
        function: f(t, y), or f(t, y, samples): t has shape (b, 1, ..., 1) and broadcasts against the b
            samples y that are under way; `samples`, shape (b,), are their indices in the batch.
        tableau: an adaptive method.
        solver: tolerances and the way of differentiating.
        y0: initial states, shape (B, ...).
        times: monotone save times, shared by the batch.
        record: whether to record the estimates.
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
    ) -> None:
        self.function, self.with_samples = function, takes_samples(function)
        self.tableau, self.solver, self.times, self.record = tableau, solver, np.asarray(times), record
        self.graph = torch.is_grad_enabled()
        self.y0 = y0
        self.path = BatchPath(y0, self.times)
        self.sign = self.path.sign

    # --- evaluating ------------------------------------------------------------------------------

    def _field(self, samples: Ints) -> CountedField:
        """The field at these samples, counted for each of them."""
        function, index = self.function, torch.as_tensor(samples, device=self.y0.device)

        if not self.with_samples:
            return CountedField(function)
        return CountedField(lambda t, y: function(t, y, index))

    def _count(self, counted: CountedField, samples: Ints) -> None:
        self.path.calls += counted.calls
        self.path.evaluations[samples] += counted.calls
        counted.calls = 0

    def _column(self, values: Floats) -> Tensor:
        """One value a sample, as a column of the state's real dtype."""
        column = torch.as_tensor(values).to(self.y0.device, self.y0.real.dtype)
        return column.reshape(-1, *[1] * (self.y0.ndim - 1))

    # --- the loop --------------------------------------------------------------------------------

    def run(self) -> BatchPath:
        """Steps until every sample has reached the end time."""
        path, times, controller = self.path, self.times, self.tableau.controller
        assert controller is not None  # fixed-step methods are refused
        batch, t_end, y = len(self.y0), float(times[-1]), self.y0
        running = np.arange(batch)
        place, rows = path.due(running, np.full(batch, times[0]))
        path.out.append((rows, place, y.index_select(0, torch.as_tensor(place, device=y.device))))
        if batch == 0 or times[0] == t_end:
            return path
        if not bool(torch.isfinite(y).all()):
            path.failure = Failure("non-finite", "y0 is not finite", 0.0)
            return path

        t, errold = np.full(batch, times[0]), np.full(batch, controller.error_floor)
        bad, horizon = np.zeros(batch, np.int64), np.full(batch, times[0])
        counted = self._field(running)
        first = counted(self._column(t), y) if self.tableau.fsal else None
        h = self._first_sizes(counted, y, t_end)
        self._count(counted, running)
        path.dt_first = h.copy()

        while running.size:
            distance = t_end - t
            slack = LAST_STEP_SLACK * np.spacing(np.maximum(np.abs(t), abs(t_end)))
            last = np.abs(h) + slack >= np.abs(distance)
            h = np.where(last, distance, h)
            tried = self._attempt(counted, y, first, t, h, np.where(last, t_end, t + h))
            self._count(counted, running)
            value = tried.error.detach().to("cpu", torch.float64).numpy()
            factor, accepted = controller.of_samples(value, errold, path.accepted[running] == 0)

            path.rejected[running[~accepted]] += 1
            strange = ~accepted & ~np.isfinite(value)
            nearer = strange & ((bad == 0) | (self.sign * (tried.t_new - horizon) < 0))
            horizon = np.where(nearer, tried.t_new, horizon)
            passed = accepted & (self.sign * (tried.t_new - horizon) >= 0)
            bad = np.where(strange, bad + 1, np.where(passed, 0, bad))
            self._look_for_failure(running, tried, h * factor, accepted, bad, value)
            if path.failure is not None:
                break

            if accepted.any():
                if self.record:
                    path.keep(running, accepted, tried.t_new, tried.h, tried.error, tried.stiffness)
                self._save(running, accepted, tried, counted)
                self._count(counted, running)
                path.accepted[running[accepted]] += 1
                if first is not None:
                    first = self._chosen(accepted, tried.stages[self.tableau.stages - 1], first)
                y = self._chosen(accepted, tried.taken.y1, y)
                errold = np.where(accepted, np.maximum(value, controller.error_floor), errold)
                t = np.where(accepted, tried.t_new, t)
            h = self.sign * np.maximum(np.abs(h * factor), np.where(accepted, np.spacing(np.abs(t)), 0.0))
            stay = t != t_end
            if not stay.all():  # compact at once: what is finished must not be evaluated again
                running, t, h, errold, bad, horizon = (v[stay] for v in (running, t, h, errold, bad, horizon))
                index = torch.as_tensor(np.flatnonzero(stay), device=y.device)
                y = y.index_select(0, index)
                first = None if first is None else first.index_select(0, index)
                counted = self._field(running)
        return path

    def _first_sizes(self, counted: CountedField, y: Tensor, t_end: float) -> Floats:
        """The first-step heuristic of each sample, signed; two evaluations."""
        t0, span, order = float(self.times[0]), abs(t_end - float(self.times[0])), self.tableau.order
        batch = len(y)
        if self.solver.dt0 is not None:
            return np.full(batch, self.sign * min(self.solver.dt0, span))
        with torch.no_grad():
            tolerance = tolerated(y.abs(), self.solver.rtol, self.solver.atol)
            start = self._column(np.full(batch, t0))
            slope = counted(start, y)
            d0, d1 = (sample_rms(x / tolerance).tolist() for x in (y, slope))
            trial = [trial_size(a, b, t0=t0, span=span) for a, b in zip(d0, d1, strict=True)]
            size = self._column(self.sign * np.asarray(trial))
            change = counted(start + size, torch.addcmul(y, size, slope)) - slope
            moved = sample_rms(change / tolerance).tolist()
        flat = (change.reshape(batch, -1) == 0).all(1).tolist()
        d2 = [None if still else m / s for still, m, s in zip(flat, moved, trial, strict=True)]
        # A slope that is not finite fails the sample's first attempt, whatever its size.
        sizes = [
            size_from_trial(s, b, c, t0=t0, span=span, order=order) if math.isfinite(b) else min(1e-6, span)
            for s, b, c in zip(trial, d1, d2, strict=True)
        ]
        signed: Floats = self.sign * np.asarray(sizes)
        return signed

    def _attempt(
        self, counted: CountedField, y: Tensor, first: Tensor | None, t: Floats, h: Floats, t_new: Floats
    ) -> _Attempt:
        clocks = [self._column(t_new if c == 1.0 else t + c * h) for c in self.tableau.c]
        column, tableau, solver = self._column(h), self.tableau, self.solver
        recorded, graph = self.record, self.graph

        def run(y: Tensor, first: Tensor | None) -> tuple[Taken, list[Tensor], Tensor, Tensor | None]:
            stages = ColumnStages(column)
            stages.start(counted(clocks[0], y) if first is None else first)
            taken = take_step(counted, tableau, stages, y, 1.0, clocks)
            with torch.set_grad_enabled(graph and recorded):
                error = sample_error_estimates(tableau, stages, y, taken.y1, solver.rtol, solver.atol)
            stiff = recorded and tableau.stiffness_pair
            stiffness = stiffness_estimate(stages, tableau.stages - 1, taken, sample_rms) if stiff else None
            return taken, stages.stages, error, stiffness

        if graph and solver.gradient == "checkpoint":
            taken, kept, error, stiffness = checkpoint(run, y, first, use_reentrant=False)
        else:
            taken, kept, error, stiffness = run(y, first)
        stages = ColumnStages(column, kept)
        return _Attempt(t, h, t_new, y, taken, stages, error, stiffness)

    def _chosen(self, accepted: NDArray[np.bool_], new: Tensor, old: Tensor) -> Tensor:
        """The new rows of the accepted samples, the old ones of the others."""
        if accepted.all():
            return new
        mask = torch.as_tensor(accepted, device=old.device).reshape(-1, *[1] * (old.ndim - 1))
        return torch.where(mask, new, old)

    def _save(self, running: Ints, accepted: NDArray[np.bool_], tried: _Attempt, counted: CountedField) -> None:
        """States of the accepted samples at the save times that their steps passed, as pairs (row, sample)."""
        path = self.path
        place, rows = path.due(running, np.where(accepted, tried.t_new, -self.sign * math.inf))
        if not rows.size:
            return
        inside = self.times[rows] != tried.t_new[place]
        if inside.any():
            p, r = place[inside], rows[inside]
            path.out.append((r, running[p], self._dense(tried, p, self.times[r], counted)))
        if not inside.all():
            p, r = place[~inside], rows[~inside]
            path.out.append((r, running[p], tried.taken.y1.index_select(0, torch.as_tensor(p, device=tried.y.device))))

    def _dense(self, tried: _Attempt, place: Ints, at: Floats, counted: CountedField) -> Tensor:
        """The interpolant at pairs of sample and time, shape (pairs, ...)."""
        t, h, t_new = tried.t, tried.h, tried.t_new
        stages = ColumnStages(tried.stages.h, tried.stages.stages)
        for row, c in zip(self.tableau.extra_a, self.tableau.extra_c, strict=True):
            clock = self._column(t_new if c == 1.0 else t + c * h)
            stages.push(counted(clock, stages.shifted(tried.y, row, 1.0)))
        weights = dense_weights(self.tableau, (at - t[place]) / h[place])
        index = torch.as_tensor(place, device=tried.y.device)
        parts = (
            self._column(weights[:, j]) * k.index_select(0, index)
            for j, k in enumerate(stages.stages)
            if weights[:, j].any()
        )
        change = sum(parts, start=torch.zeros((), dtype=tried.y.dtype, device=tried.y.device))
        return torch.addcmul(tried.y.index_select(0, index), stages.h.index_select(0, index), change)

    def _look_for_failure(
        self, running: Ints, tried: _Attempt, h_next: Floats, accepted: NDArray[np.bool_], bad: Ints, error: Floats
    ) -> None:
        """Sets the path's failure if some sample can not go on."""
        t, attempts = tried.t, self.path.accepted[running] + self.path.rejected[running]
        for trouble, kind, text in (
            (bad >= NON_FINITE_TRIALS, "non-finite", "the dynamics are not finite"),
            (tried.t_new == t, "underflow", "the step size fell below the clock's resolution"),
            (
                ~accepted & (np.abs(h_next) <= np.spacing(np.abs(t))),
                "underflow",
                "the error control asks for a step below the clock's resolution",
            ),
            (attempts >= self.solver.max_steps, "steps", f"{self.solver.max_steps} steps did not reach the end time"),
        ):
            if trouble.any():
                worst = int(np.flatnonzero(trouble)[0])
                self.path.t = float(t[worst])
                found = self._diagnosis(tried, worst, int(running[worst]))
                reason = f"{text} (error ratio {error[worst]:.3g}, {found.text})"
                self.path.failure = Failure(kind, reason, float(h_next[worst]), float(error[worst]), found)
                return

    @torch.no_grad()
    def _diagnosis(self, tried: _Attempt, place: int, sample: int) -> Diagnosis:
        """What the attempt shows of the sample at this place of the running ones."""
        tableau, solver, stages, y = self.tableau, self.solver, tried.stages, tried.y
        size = y[place].numel()
        where = f"sample {sample} of {len(self.y0)}"
        slopes = stages[tableau.stages - 1][place]
        if bad := int((~torch.isfinite(slopes)).sum()):
            return Diagnosis(f"{where}, {bad} of its {size} components")
        scaled = scaled_error(tableau, stages, y, tried.taken.y1, 1.0, solver.rtol, solver.atol)[place]
        component = int(scaled.abs().reshape(-1).argmax())
        where += f", worst component {component} of its {size}, |y| up to {float(y[place].abs().max()):.3g}"
        if not tableau.stiffness_pair:
            return Diagnosis(where, sample * size + component)
        stiffness = float(stiffness_estimate(stages, tableau.stages - 1, tried.taken, sample_rms)[place])
        return Diagnosis(f"{where}, stiffness {stiffness:.3g}", sample * size + component, stiffness)
