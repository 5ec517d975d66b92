"""A Rosenbrock method applied to one ODE: the linearly implicit stepper of the loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.checkpoint import Checkpoint, step_end
from regnde._engines.torch.failure import Diagnosis, diagnosed
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.jacobian import Jacobian
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.recorder import StepRecorder
from regnde._engines.torch.rosenbrock_step import (
    RosenbrockStep,
    error_estimate,
    error_ratio,
    estimates,
    stiffness_estimate,
    take_step,
)
from regnde._engines.torch.step import Estimates, Tolerance, dense_output, stage_times, whole_rms
from regnde._engines.torch.stepper import Counts
from regnde._engines.torch.system import OneSystem
from regnde._mass import SMALL_START, Mass
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._solver import ResolvedSolver
from regnde._stops import Segment

__all__ = ["Rosenbrock"]

Outcome = tuple[RosenbrockStep, Estimates | None]


class Rosenbrock(OneSystem):
    """Steps one ODE with one Rosenbrock method.

    Args:
        field: the right-hand side.
        tableau: the method.
        solver: bounds of the step sizes, controller.
        tolerances: relative and absolute.
        segment: in which the solve begins.
        record: whether the estimates of accepted steps are recorded.
        mass: the mass matrix; None for the identity.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.

    Attributes:
        factorisations: matrices factorised so far.
    """

    def __init__(
        self,
        field: CountedField,
        tableau: RosenbrockTableau,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        segment: Segment,
        *,
        record: bool,
        mass: Mass | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(field, tableau, solver, tolerances, segment, checkpoint=checkpoint)
        self.tableau, self.mass = tableau, mass
        self.jacobian = Jacobian()
        self.factorisations = 0
        of_steps = functools.partial(estimates, tableau, rtol=self.rtol, atol=self.atol, norm=whole_rms, mass=mass)
        self.recorder = StepRecorder(lambda steps: steps[0], of_steps) if record else None
        self.last_attempt: tuple[float, float, Outcome]  # t, t1 and outcome
        self.uncounted = 0  # evaluations within a Jacobian where the step before had made one
        self.known_slope = False

    def counts(self) -> Counts:
        """Evaluations so far; as in OrdinaryDiffEq.jl, a Jacobian evaluates none where the slope is known."""
        calls = self.field.calls - self.uncounted
        return Counts(calls, njac=self.jacobian.calls, nfactorisations=self.factorisations)

    def _slope(self, t: float, y: Tensor) -> Tensor:
        """The derivative of the state at (t, y), for the size of the first step."""
        slope = super()._slope(t, y)
        return slope if self.mass is None else self.mass.slopes(slope)

    def initial_size(self, y: Tensor, t0: float, t1: float, known: Tensor | None = None) -> float:
        """The first-step heuristic (> 0); a small size where algebraic equations leave a derivative unknown."""
        if self.mass is not None and self.mass.singular:
            return min(SMALL_START, abs(t1 - t0), self.bounds.largest)
        return super().initial_size(y, t0, t1, known)

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The signed size of the first step."""
        if self.mass is not None and self.mass.singular:
            self.mass.check_start(*self._derivatives(t0, y0), y0, self.rtol, self.atol)
        if dt0 is None:
            known = self._slope(t0, y0) if self.tableau.fsal else None  # as OrdinaryDiffEq.jl counts it
            dt0 = self.initial_size(y0, t0, t1, known=known)
            self.known_slope = self.tableau.fsal
        return math.copysign(min(self.bounds.within(dt0), abs(t1 - t0)), t1 - t0)

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step; its error estimate is a number here, and has a graph where it is recorded."""
        run = self._run(t, h, t1)
        self.jacobian.begin_attempt()
        step, known = self._evaluated(run, y, ends=step_end)
        self.factorisations += 1
        self.uncounted += self.known_slope
        self.known_slope = self.tableau.fsal
        self.last_attempt = (t, t1, (step, known))
        if known is not None and known.error is not None:
            return Trial(step.y1, known.error.item())
        with torch.no_grad():
            return Trial(step.y1, error_estimate(self.tableau, step, self.rtol, self.atol, whole_rms).item())

    @torch.no_grad()
    def _derivatives(self, t: float, y: Tensor) -> tuple[Tensor, Tensor]:
        """The field and its derivative by the state, which are not counted."""
        slope, by_state, _ = Jacobian()(self.field.function, self._time(t, y), y)
        return slope, by_state

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """The next attempt starts from the stop (t, y), in that segment."""
        if self.mass is None or not self.mass.singular:
            return super().enter(segment, t, y)
        before, _ = self._derivatives(t, y)
        y = super().enter(segment, t, y)
        self.mass.check_stop(t, before, *self._derivatives(t, y), y, self.rtol, self.atol)
        return y

    def begin(self, t: float, y: Tensor) -> None:
        """The next attempt starts from (t, y), a stop, or where another method ended: the slope there is not known."""
        self.known_slope = False

    def _run(self, t: float, h: float, t1: float) -> Callable[[Tensor], Outcome]:
        """The step as a function that does not hold this object, which holds the graph."""
        field, jacobian, tableau, rtol, atol = self.field, self.jacobian, self.tableau, self.rtol, self.atol
        record, mass, within = self.recorder is not None, self.mass, self.segment.within

        def run(y: Tensor) -> Outcome:
            step = take_step(field, jacobian, tableau, y, h, stage_times(tableau.c, t, h, t1, y, within), mass)
            return step, estimates(tableau, step, rtol, atol, whole_rms, mass) if record else None

        return run

    def accepted(self) -> None:
        """Records the step."""
        step, known = self.last_attempt[2]
        if self.recorder is not None:
            self.recorder.add(step, known, step.y.numel())

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt."""
        step = self.last_attempt[2][0]
        return dense_output(self.tableau, step.y, 1.0, step.k, thetas)

    def interpolant(self) -> Interpolant:
        """The solution inside the last attempt, as a function of time."""
        t, _, (step, _) = self.last_attempt
        assert not isinstance(step.h, Tensor)
        return Interpolant(t, step.h, step.y, step.k, np.asarray(self.tableau.dense) / step.h)

    def start_is_finite(self) -> bool:
        """Whether the field is finite where the last attempt started."""
        return bool(torch.isfinite(self.last_attempt[2][0].slope).all())

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        step = self.last_attempt[2][0]
        ratio = error_ratio(self.tableau, step, self.rtol, self.atol)
        parts = ((step.slope, ""), (step.jacobian, " of the Jacobian"), *((k, "") for k in step.k))
        return diagnosed(step.y, step.y1, parts, ratio, stiffness_estimate(step, self.mass))

    def _estimates_of_step(self, t: float, h: float, t1: float, y: Tensor, *, freeze_first_stage: bool) -> Estimates:
        """Estimates of a step from (t, y) to t1, each of shape (1,)."""
        times = stage_times(self.tableau.c, t, h, t1, y, self.segment.within)
        step = take_step(self.field, self.jacobian, self.tableau, y, h, times, self.mass)
        return estimates(self.tableau, step, self.rtol, self.atol, whole_rms, self.mass)
