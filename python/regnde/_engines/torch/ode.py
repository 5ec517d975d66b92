"""An explicit Runge-Kutta method applied to one ODE: the loop's stepper, and the local step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.base import OWN_RULES, StepRules
from regnde._engines.torch.checkpoint import Checkpoint, last_size, step_end, step_ends
from regnde._engines.torch.compiled import compiled_step
from regnde._engines.torch.failure import Diagnosis, diagnosed
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.recorder import GROUP, StepRecorder
from regnde._engines.torch.step import (
    Estimates,
    Norm,
    Step,
    Tolerance,
    all_finite,
    dense_output,
    error_ratio,
    estimates,
    estimates_of_one,
    extra_stages,
    rms,
    stacked,
    stage_times,
    stiffness_estimate,
    take_step,
    whole_rms,
)
from regnde._engines.torch.system import OneSystem
from regnde._solver import ResolvedSolver
from regnde._stops import Segment
from regnde._tableau import Tableau

__all__ = ["Outcome", "RungeKutta"]


Outcome = tuple[Step, Estimates | None]


class RungeKutta(OneSystem):
    """Steps one ODE with one tableau.

    Args:
        field: the right-hand side.
        tableau: the method.
        solver: whether steps are compiled.
        tolerances: relative and absolute.
        y0: the initial state.
        segment: in which the solve begins.
        record: whether the estimates of accepted steps are recorded.
        rules: another package's rules for steps.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.
    """

    def __init__(
        self,
        field: CountedField,
        tableau: Tableau,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        y0: Tensor,
        segment: Segment,
        *,
        record: bool,
        rules: StepRules = OWN_RULES,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(field, tableau, solver, tolerances, segment, rules=rules, checkpoint=checkpoint)
        self.tableau = tableau
        self.norm = rms if rules.norm is None else functools.partial(_number, rules.norm)
        self.compiled = solver.compile
        self.carries = tableau.carries and tableau.adaptive  # the last stage to the next step
        norm = None if rules.norm is None else functools.partial(_norm_of_each, rules.norm)
        of_steps = functools.partial(estimates, tableau, rtol=self.rtol, atol=self.atol, error_norm=norm)
        record = record and tableau.adaptive  # else there is nothing to estimate
        self.recorder = StepRecorder(stacked, of_steps) if record else None
        self.at_once = record and (checkpoint is not None or y0.numel() >= GROUP)  # estimates are formed with the step
        self.first: Tensor | None = None  # the FSAL stage of the step before
        self.last_attempt: tuple[float, float, Outcome]  # t, t1 and outcome
        self.stages: list[Tensor] | None = None  # those of the last attempt that its dense output needs

    # --- the loop's side -------------------------------------------------------------------------

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The signed size of the first step, evaluating the FSAL stage and the heuristic's two slopes."""
        if self.carries:  # its graph is kept whole: what a field makes at its first call belongs to all others
            self.first = self._slope(t0, y0)
        if dt0 is None and self.controller is not None and self.rules.first_step is not None:
            slope = self.first if self.first is not None else self._slope(t0, y0)
            dt0 = self.rules.first_step(self._slope, t0, t1, y0, slope)
        elif dt0 is None:
            dt0 = self.initial_size(y0, t0, t1, known=self.first)
        dt0 = dt0 if self.controller is None else self.bounds.within(dt0)
        return math.copysign(min(dt0, abs(t1 - t0)), t1 - t0)

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step; its error estimate is a number here, and has a graph where it is recorded."""
        run = self._run(t, h, t1)
        step, known = self._evaluated(run, y, self.first, ends=step_ends if self.carries else step_end)
        self.last_attempt, self.stages = (t, t1, (step, known)), None
        if self.controller is None:
            return Trial(step.y1)
        if known is not None and known.error is not None:
            error = known.error.item()
        else:
            with torch.no_grad():
                error = self.norm(error_ratio(self.tableau, step, self.rtol, self.atol))
        if error < 0:  # the user's
            raise ValueError(f"the norm of the error of a step is {error:.3g}: a norm must not be negative.")
        return Trial(step.y1, error)

    def _run(self, t: float, h: float, t1: float) -> Callable[..., Outcome]:
        """The step as a function that does not hold this object, which holds the graph."""
        field, tableau, rtol, atol = self.field, self.tableau, self.rtol, self.atol
        at_once, norm, within = self.at_once, self.rules.norm, self.segment.within
        take = compiled_step if self.compiled else take_step

        def run(y: Tensor, first: Tensor | None) -> Outcome:
            step = take(field, tableau, y, first, h, stage_times(tableau.c, t, h, t1, y, within))
            return step, estimates_of_one(tableau, step, rtol, atol, norm) if at_once else None

        return run

    def accepted(self) -> None:
        """Records the step, and passes its last stage on where the method is FSAL."""
        step, known = self.last_attempt[2]
        if self.carries:
            self.first = step.k[-1]
        elif self.tableau.ends_with_slope:  # the interpolant's only further stage
            self.first = None if self.stages is None else self.stages[-1]
        if self.recorder is not None:
            self.recorder.add(step, known, step.y.numel())

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere, in that segment: no stage is carried over."""
        super().restart(segment)
        self.first = None

    def begin(self, t: float, y: Tensor) -> None:
        """The next attempt starts from (t, y), a stop, or where another method ended: evaluates the FSAL stage."""
        if self.carries:
            field, time = self.field, self._time(t, y)

            def slope(y: Tensor) -> Tensor:
                return field(time, y)

            self.first = self._evaluated(slope, y, ends=lambda k: (k,))

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt."""
        step = self.last_attempt[2][0]
        assert not isinstance(step.h, Tensor)
        return dense_output(self.tableau, step.y, step.h, self._stages(), thetas)

    def interpolant(self) -> Interpolant:
        """The solution inside the last attempt, as a function of time."""
        t, _, (step, _) = self.last_attempt
        return Interpolant(t, float(step.h), step.y, self._stages(), np.asarray(self.tableau.dense))

    def _stages(self) -> list[Tensor]:
        """The stages that the dense output needs; methods with extra ones evaluate these here, once a step."""
        t, t1, outcome = self.last_attempt
        within = self.segment.within
        field, tableau = self.field, self.tableau

        def run(outcome: Outcome) -> list[Tensor]:
            step = outcome[0]
            assert not isinstance(step.h, Tensor)
            times = stage_times(tableau.extra_c, t, step.h, t1, step.y, within) if tableau.extra_c else ()
            return extra_stages(field, tableau, step, times)

        if self.stages is None:
            self.stages = self._evaluated_further(run, outcome, last_size) if tableau.extra_a else run(outcome)
        return self.stages

    # --- diagnosis -------------------------------------------------------------------------------

    def start_is_finite(self) -> bool:
        """Whether the first stage of the last attempt is finite."""
        return all_finite(self.last_attempt[2][0].k[0])

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        tableau, step = self.tableau, self.last_attempt[2][0]
        ratio = error_ratio(tableau, step, self.rtol, self.atol) if tableau.adaptive else None
        stiffness = stiffness_estimate(step, whole_rms) if ratio is not None and tableau.stiffness_pair else None
        return diagnosed(step.y, step.y1, ((k, "") for k in step.k), ratio, stiffness)

    def _estimates_of_step(self, t: float, h: float, t1: float, y: Tensor, *, freeze_first_stage: bool) -> Estimates:
        """Estimates of a step from (t, y) to t1, each of shape (1,)."""
        times = stage_times(self.tableau.c, t, h, t1, y, self.segment.within)
        first = self.field(times[0], y)
        step = take_step(self.field, self.tableau, y, first.detach() if freeze_first_stage else first, h, times)
        return estimates_of_one(self.tableau, step, self.rtol, self.atol, self.rules.norm)


def _number(norm: Norm, x: Tensor) -> float:
    """A norm as a number."""
    return norm(x).item()


def _norm_of_each(norm: Norm, x: Tensor) -> Tensor:
    """A norm of each step of a batch."""
    return torch.stack([norm(of_step) for of_step in x])
