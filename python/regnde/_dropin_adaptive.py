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
from regnde._engines.base import StepRules
from regnde._solve import solve_by_rules
from regnde._solver import Gradient, Solver

__all__ = ["ADAPTIVE_METHODS", "odeint_adaptive"]

Field = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]


def odeint_adaptive(
    field: Field,
    y0: Tensor,
    t: Tensor,
    name: str,
    given: Mapping[str, Any] | None,
    rtol: float,
    atol: float,
    norm: Norm | None,
    gradient: Gradient,
) -> Tensor:
    """States at `t`, by a method that adapts its step.

    Args:
        field: the right-hand side.
        y0: the state at t[0].
        t: times, shape (T,).
        name: of the method.
        given: the user's options.
        rtol: relative tolerance.
        atol: absolute tolerance.
        norm: of the error, unless the options have one; None for the root mean square.
        gradient: how it is computed.
    """
    options = options_of(AdaptiveOptions, name, given)
    tableau = ADAPTIVE_METHODS[name]
    solver = Solver(
        method=tableau,
        rtol=rtol,
        atol=atol,
        dt0=options.first_step,
        max_steps=options.max_num_steps * max(1, len(t) - 1),  # theirs counts from one time of the output to the next
        gradient=gradient,
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
    rules = StepRules(
        norm=norm,
        first_step=FirstStep(tableau.order, rtol, atol, root_mean_square if norm is None else norm),
        accept_smallest=True,
    )
    return solve_by_rules(field, y0, t, solver, rules).ys


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


def root_mean_square(x: Tensor) -> Tensor:
    """Over all entries; 0 where there are none, with gradient 0 where it is 0."""
    size: Tensor = torch.linalg.vector_norm(x)
    return size / math.sqrt(max(x.numel(), 1))
