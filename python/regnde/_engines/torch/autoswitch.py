"""The method that switches between an explicit and a Rosenbrock method by the stiffness of the steps.

OrdinaryDiffEq.jl's `AutoSwitch` with its defaults: the explicit method after MAX_NONSTIFF non-stiff steps in turn, the
implicit one after MAX_STIFF stiff ones. The rule: L. F. Shampine, Math. Comp. 31 (1977); E. Hairer, G. Wanner, Solving
Ordinary Differential Equations II, IV.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.control import Controller, Past, Value
from regnde._engines.torch.failure import Diagnosis
from regnde._engines.torch.local import LocalStart
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.ode import RungeKutta
from regnde._engines.torch.rosenbrock import Rosenbrock
from regnde._engines.torch.rosenbrock_step import RosenbrockStep
from regnde._engines.torch.step import Estimates, Step
from regnde._engines.torch.stepper import Counts, MethodStepper
from regnde._solver import Local
from regnde._stops import Segment

__all__ = ["AutoSwitch"]

MAX_STIFF, MAX_NONSTIFF = 10, 3  # attempts in turn after which the method changes
STIFF_SHARE = 0.9  # of the explicit method's stability size
SWITCH_FACTOR = 2.0  # of the step size, when it changes to the implicit method; back, its inverse


class SwitchControl:
    """The controllers of two methods, each with its own past.

    Args:
        controllers: of the explicit and of the implicit method.

    Attributes:
        active: index of the one that decides.
    """

    def __init__(self, controllers: Sequence[Controller]) -> None:
        self.controllers, self.active = controllers, 0

    @property
    def past(self) -> tuple[Past, ...]:
        """What both remember as a solve begins."""
        return tuple(controller.past for controller in self.controllers)

    def accepts(self, error: Value, past: Past) -> Value:
        """Whether a step of that error is accepted."""
        return self.controllers[self.active].accepts(error, past[self.active])

    def factor(self, error: Value, past: Past, first: Value) -> Value:
        """Factor from the size of a step to that of the next attempt."""
        return self.controllers[self.active].factor(error, past[self.active], first)

    def updated(self, error: Value, past: Past) -> Past:
        """What both remember after an accepted step."""
        new = self.controllers[self.active].updated(error, past[self.active])
        return tuple(new if i == self.active else old for i, old in enumerate(past))


class AutoSwitch(MethodStepper):
    """Steps one ODE with an explicit or a Rosenbrock method, whichever suits the stiffness.

    Args:
        explicit: the one.
        implicit: the other, of the same field.

    Attributes:
        implicits: whether the implicit method made each of the accepted steps.
    """

    def __init__(self, explicit: RungeKutta, implicit: Rosenbrock) -> None:
        controllers = explicit.controller, implicit.controller
        assert controllers[0] is not None
        assert controllers[1] is not None
        super().__init__(explicit.field, explicit.order, explicit.segment, None)
        self.controller = self.control = SwitchControl([controllers[0], controllers[1]])
        self.methods = explicit, implicit
        self.bounds, self.tableau = explicit.bounds, explicit.tableau
        self.implicits: list[bool] = []
        self.ends: list[float] = []
        self.count = 0  # of attempts in turn that were stiff, or with a minus that were not
        self.stiffness = 1.0  # of the last attempt: 1 before the first, as in OrdinaryDiffEq.jl
        self.last_accepted = False

    @property
    def active(self) -> RungeKutta | Rosenbrock:
        """The method of the next attempt, and of the last one until `planned`."""
        return self.methods[self.control.active]

    def records(self) -> Estimates:
        """Of all steps so far, in their order."""
        parts = [method.records() for method in self.methods]
        places = torch.as_tensor(np.argsort(np.argsort(self.implicits, kind="stable")))

        def joined(values: Sequence[Tensor | None]) -> Tensor | None:
            known = [value for value in values if value is not None]
            return torch.cat(known).index_select(0, places.to(known[0].device)) if known else None

        errors, stiffnesses = zip(*parts, strict=True)
        return Estimates(joined(errors), joined(stiffnesses))

    def counts(self) -> Counts:
        """Evaluations so far: those of the field, which the methods share, and the implicit method's others."""
        return self.methods[1].counts()

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The signed size of the first step, that of the explicit method."""
        return self.methods[0].first_step(y0, t0, t1, dt0)

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        """Chooses the method of the next attempt; the size it starts with."""
        seen = min(abs(h), abs(t_end - t)) if self.last_accepted else abs(h)
        size = self.tableau.stability_size
        assert size is not None
        stiff = not self.stiffness * seen / size <= STIFF_SHARE
        self.count = max(self.count, 0) + 1 if stiff else min(self.count, 0) - 1
        if self.control.active == 0 and self.count > MAX_STIFF:
            self.control.active, h = 1, h * SWITCH_FACTOR
        elif self.control.active == 1 and self.count < -MAX_NONSTIFF:
            self.control.active, h = 0, math.copysign(seen, h) / SWITCH_FACTOR
        else:
            return h
        self.active.begin(t, y)
        return math.copysign(self.bounds.within(abs(h)), h)

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step."""
        trial = self.active.attempt(t, h, t1, y)
        self.stiffness, self.last_accepted, self.t1 = _largest(self.active.last_attempt[2][0]), False, t1
        return trial

    def accepted(self) -> None:
        """The last attempt is accepted."""
        self.active.accepted()
        self.last_accepted = True
        self.implicits.append(self.control.active == 1)
        self.ends.append(self.t1)

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """The next attempt starts from a stop."""
        y = self.active.enter(segment, t, y)
        self.methods[1 - self.control.active].restart(segment)
        return y

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere."""
        for method in self.methods:
            method.restart(segment)

    def moved(self, y: Tensor, t: float, by: Tensor, sign: float) -> Tensor:
        """The state y, with its derivatives by a time."""
        return self.active.moved(y, t, by, sign)

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt."""
        return self.active.outputs(thetas)

    def interpolant(self) -> Interpolant:
        """The solution inside the last attempt."""
        return self.active.interpolant()

    def start_is_finite(self) -> bool:
        """Whether the field is finite where the last attempt started."""
        return self.active.start_is_finite()

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether two evaluations of the field agree."""
        return self.active.is_pure(t, y)

    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        return self.active.diagnosis()

    def local_step(self, start: LocalStart, local: Local) -> tuple[float, float, Estimates]:
        """One step beside the trajectory, by the method that made the step there."""
        sign = math.copysign(1.0, start.h)
        place = next((i for i, end in enumerate(self.ends) if sign * (end - start.t) > 0), -1)
        return self.methods[self.implicits[place]].local_step(start, local)


@torch.no_grad()
def _largest(step: Step | RosenbrockStep) -> float:
    """The stiffness that is compared: max_i |dk_i / dg_i| over the two stages at t + h, or the norm of the Jacobian.

    Entries whose arguments do not differ, such as a constant part of the state, tell nothing.
    """
    if not step.y.numel():
        return 0.0
    if isinstance(step, RosenbrockStep):
        return float(step.jacobian.abs().sum(-1).max())
    of_argument = step.last_argument - step.previous_argument
    quotients = ((step.k[-1] - step.k[-2]) / of_argument).abs().masked_fill(of_argument == 0, 0.0)
    return float(quotients.max())
