"""torchdiffeq's adaptive methods, with its own first step and step control."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regnde._controller import I
from regnde._dropin_methods import ADAPTIVE_METHODS
from regnde._dropin_options import AdaptiveOptions, options_of
from regnde._dropin_problem import Problem, root_mean_square
from regnde._engines.base import StepRules
from regnde._event import Event
from regnde._solution import Solution
from regnde._solve import solve_by_rules
from regnde._solver import Solver
from regnde._times import checked_times
from regnde._transforms import has_derivative, transformed

__all__ = ["adaptive_until_event", "dense_output", "odeint_adaptive"]

Field = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]
FOREVER = 1e12  # span in which an event must come: the clock's resolution there is 1e-4


def odeint_adaptive(problem: Problem, given: Mapping[str, Any] | None) -> Tensor:
    """Flat states at the times of a problem, by a method that adapts its step.

    Their derivatives by the times are those of the interpolant, as in torchdiffeq, and cost no evaluation.

    Args:
        problem: what to solve.
        given: the user's options.
    """
    if not (has_derivative(problem.t) and (torch.is_grad_enabled() or transformed())):
        states: Tensor = _solved(problem, given, problem.field, dense=False).ys
        return states
    moved = problem.t[0] - problem.t[0].detach()  # zero: by how much the solve's clock lies before the user's

    def field(t: Tensor, y: Tensor) -> Tensor:
        return problem.field(t + moved.to(t), y)

    at_times: Tensor = _solved(problem, given, field, dense=True)(problem.t.double() - moved.double())
    return at_times


def dense_output(problem: Problem, given: Mapping[str, Any] | None) -> Solution:
    """A solution that can be called at any time between the first and the last of a problem.

    Args:
        problem: what to solve.
        given: the user's options.
    """
    return _solved(problem, given, problem.field, dense=True)


def _solved(problem: Problem, given: Mapping[str, Any] | None, field: Field, *, dense: bool) -> Solution:
    solver, rules, stops = _how(problem, given)
    return solve_by_rules(
        field, problem.y0, checked_times(problem.t.detach(), "odeint: t"), solver, rules, stops=stops, dense=dense
    )


def adaptive_until_event(problem: Problem, given: Mapping[str, Any] | None, event: Event) -> Solution:
    """The solve that stops at an event.

    Args:
        problem: what to solve, from its first time on; the second one tells the direction.
        given: the user's options.
        event: where to stop.
    """
    solver, rules, stops = _how(problem, given)
    times = checked_times(problem.times_until(FOREVER), "odeint: t")
    return solve_by_rules(problem.field, problem.y0, times, solver, rules, stops=stops, events=[event])


def _how(problem: Problem, given: Mapping[str, Any] | None) -> tuple[Solver, StepRules, tuple[float, ...]]:
    """The solver, the rules of its steps and the times at which they end."""
    options = options_of(AdaptiveOptions, problem.method, given)
    tableau = ADAPTIVE_METHODS[problem.method]
    allowed = problem.tolerances()
    first = options.first_step
    solver = Solver(
        method=tableau,
        rtol=allowed.rtol,
        atol=allowed.atol,
        dt0=None if first is None else min(max(first, options.min_step), options.max_step),
        # theirs counts from one time of the output to the next
        max_steps=options.max_num_steps * max(1, len(problem.t) - 1),
        gradient=problem.gradient,
        engine="torch",
        controller=I(
            safety=options.safety,
            min_factor=options.dfactor,
            max_factor=options.ifactor,
            first_max_factor=options.ifactor,
            accepted_min_factor=1.0,
        ),
        dt_min=options.min_step or None,
        dt_max=None if options.max_step == math.inf else options.max_step,
    )
    norm = problem.norm(options.norm)
    rules = StepRules(
        norm=norm,
        first_step=FirstStep(tableau.order, allowed.rtol, allowed.atol, root_mean_square if norm is None else norm),
        accept_smallest=True,
        callbacks=problem.callbacks,
    )
    return solver, rules, (*options.jump_t, *options.step_t)


@dataclass(frozen=True)
class FirstStep:
    """torchdiffeq's choice of the first step, which the end of the span does not bound.

    E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4, with the order p in place of
    p + 1.
    """

    order: float
    rtol: float | Tensor
    atol: float | Tensor
    norm: Norm

    @torch.no_grad()
    def __call__(self, field: Callable[[float, Tensor], Tensor], t0: float, t1: float, y0: Tensor, f0: Tensor) -> float:
        """The size (> 0); evaluates the field once."""
        scale = self.atol + y0.abs() * self.rtol
        d0, d1 = (self._size(x / scale) for x in (y0, f0))
        probe = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        signed = math.copysign(probe, t1 - t0)
        d2 = self._size((field(t0 + signed, y0 + signed * f0) - f0) / scale) / probe
        if d1 <= 1e-15 and d2 <= 1e-15:
            return min(100 * probe, max(1e-6, probe * 1e-3))
        size: float = (0.01 / max(d1, d2)) ** (1 / self.order)
        return min(100 * probe, size)

    def _size(self, x: Tensor) -> float:
        return abs(float(self.norm(x)))
