"""One ODE that a method steps: what explicit and Rosenbrock methods have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from regnde._engines.base import OWN_RULES, StepRules
from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.control import Bounds, controller_of
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import NonFiniteStart, first_step_sizes
from regnde._engines.torch.step import Tolerance, stage_times, take_step
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._solver import ResolvedSolver
from regnde._stops import Segment
from regnde._tableau import TABLEAUX, Tableau

__all__ = ["OneSystem", "moved"]


class OneSystem:
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

    latest_stage = 1.0

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
        self.field, self.order, self.rules = field, tableau.order, rules
        self.controller = controller_of(solver, tableau)
        self.bounds = Bounds(solver.dt_min, solver.dt_max, rules.accept_smallest)
        self.rtol, self.atol = tolerances
        self.segment, self.checkpoint = segment, checkpoint

    @property
    def evaluations(self) -> int:
        """Evaluations of the field so far, as they are reported."""
        return self.field.calls

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        """The size of the next attempt: what the controller proposes."""
        return h

    def _slope(self, t: float, y: Tensor) -> Tensor:
        """The field at (t, y)."""
        return self.field(self._time(t, y), y)

    def _time(self, t: float, y: Tensor) -> Tensor:
        """A time as the field gets it."""
        return stage_times((0.0,), t, 0.0, t, y, self.segment.within)[0]

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

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere, in that segment."""
        self.segment = segment

    def moved(self, y: Tensor, t: float, by: Tensor, sign: float) -> Tensor:
        """The state y, with its derivatives by a time whose value is t: exact up to the fourth.

        It is a step whose size is 0 and carries the gradient: for sign 1 from t to `by`, else back.
        """
        return moved(self.field, self._time(t, y), y, by - t, sign)

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether two evaluations of the field at (t, y) agree."""
        return self.field.is_pure(self._time(t, y), y)


def moved(field: CountedField, t: Tensor, y: Tensor, by: Tensor, sign: float) -> Tensor:
    """The state y at t, with its derivatives by a time that is `by`, a zero with a gradient, later than t.

    It is a step of this size: for sign 1 from t, else back to t.
    """
    size = by.to(y.device, y.dtype.to_real())
    origin = t if sign > 0 else t + size
    tableau = TABLEAUX["rk4"]
    return take_step(field, tableau, y, None, sign * size, [origin + (sign * c) * size for c in tableau.c]).y1
