"""One ODE that a method steps: what explicit and Rosenbrock methods have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from regnde._engines.base import OWN_RULES, StepRules
from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.control import Bounds, controller_of
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import NonFiniteStart, first_step_sizes
from regnde._engines.torch.local import LocalStart
from regnde._engines.torch.step import Estimates, Tolerance
from regnde._engines.torch.stepper import MethodStepper
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._solver import Local, ResolvedSolver
from regnde._stops import Segment
from regnde._tableau import Tableau

__all__ = ["OneSystem"]


class OneSystem(MethodStepper):
    """One ODE, and how its steps are controlled.

    Args:
        field: the right-hand side.
        tableau: the method.
        solver: bounds of the step sizes, controller.
        tolerances: relative and absolute.
        segment: in which the solve begins.
        rules: another package's rules for steps.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.
    """

    def __init__(
        self,
        field: CountedField,
        tableau: Tableau | RosenbrockTableau,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        segment: Segment,
        *,
        rules: StepRules = OWN_RULES,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(field, tableau.order, segment, checkpoint)
        self.rules = rules
        self.controller = controller_of(solver, tableau)
        self.bounds = Bounds(solver.dt_min, solver.dt_max, rules.accept_smallest)
        self.rtol, self.atol = tolerances

    def initial_size(self, y: Tensor, t0: float, t1: float, known: Tensor | None = None) -> float:
        """The first-step heuristic (> 0) at (t0, y) towards t1; two evaluations.

        The slope is evaluated afresh even where it is `known`, as OrdinaryDiffEq.jl counts it; two
        values at one point then tell a field that is not a function.
        """
        span = min(abs(t1 - t0), self.bounds.largest)
        if y.numel() == 0:
            return span

        def field(t: Sequence[float], y: Tensor) -> Tensor:
            return self._slope(t[0], y)

        order, signed = self.order, math.copysign(span, t1 - t0)
        sizes, slope = first_step_sizes(field, order, y, t0, signed, self.rtol, self.atol, samples=False)
        if known is not None:
            self.field.check_pure(known, slope)
        if not math.isfinite(sizes[0]):
            bad = int((~torch.isfinite(slope)).sum())
            raise NonFiniteStart(
                f"the dynamics are not finite at the start: {bad} of {y.numel()} components of f(t0, y0)"
                if bad
                else "the initial state or slope over its tolerance overflows: scale the problem or raise atol"
            )
        return float(sizes[0])

    def local_step(self, start: LocalStart, local: Local) -> tuple[float, float, Estimates]:
        """One step beside the trajectory: its end, size and estimates, each of shape (1,).

        Pal, Edelman, Rackauckas (ICML 2023), section 3: the regulariser is this step's E |h|.
        """
        t, y, t1 = start.t, start.y, start.segment.end
        self.segment = start.segment
        size = self.initial_size(y, t, t1) if local.step_size == "initial" else abs(start.h)
        h = math.copysign(min(size, abs(t1 - t)), t1 - t)
        end = t1 if abs(h) == abs(t1 - t) else t + h
        return end, h, self._estimates_of_step(t, h, end, y, freeze_first_stage=local.freeze_first_stage)

    @abstractmethod
    def _estimates_of_step(self, t: float, h: float, t1: float, y: Tensor, *, freeze_first_stage: bool) -> Estimates:
        """Estimates of a step from (t, y) to t1, each of shape (1,)."""

    def begin(self, t: float, y: Tensor) -> None:
        """The next attempt starts from (t, y), a stop, or where another method ended."""

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """The next attempt starts from the stop (t, y), in that segment."""
        if segment.start is not None:
            y = self.moved(y, t, segment.start, 1.0)
        self.restart(segment)
        if segment.start is not None:
            y = self.moved(y, t, segment.start, -1.0)
        self.begin(t, y)
        return y
