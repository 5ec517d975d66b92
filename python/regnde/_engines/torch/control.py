"""Controllers of the step size after the first one. For one system (floats) and for samples (arrays) alike.

All follow OrdinaryDiffEq.jl v7 (`regnde._controller` has the sources), with exact powers where Julia uses
`fastpower`, which moves step sizes by about 1e-5 relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from regnde._controller import PI, PID
from regnde._controller import Controller as Constants
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._sde_method import StochasticMethod
from regnde._solver import ResolvedSolver
from regnde._tableau import Tableau

__all__ = [
    "LAST_STEP_SLACK",
    "NON_FINITE_TRIALS",
    "Bounds",
    "Controller",
    "controller_of",
    "landed",
    "ulp",
]

NON_FINITE_SHRINK = 0.2
NON_FINITE_TRIALS = 6  # before the dynamics, not the step size, are held to be at fault
LAST_STEP_SLACK = 100  # in units of the clock's resolution: a step this close to the end lands on it
DEFAULT = PI()
SMALLEST_ERROR = float(np.finfo(np.float64).eps)  # that a PID controller divides by

Value = Any  # a float for one system, an array for samples: the formulas are the same
Past = tuple[Value, ...]


class Controller(Protocol):
    """Decides on a step, and on the size of the next attempt, from its error estimate."""

    @property
    def past(self) -> Past:
        """Its memory of accepted steps at the start of a solve."""

    def accepts(self, error: Value, past: Past) -> Value:
        """Whether a step of that error is accepted; never if it is not finite."""

    def factor(self, error: Value, past: Past, first: Value) -> Value:
        """Factor from the size of a step to that of the next attempt.

        Args:
            error: error estimate of the step.
            past: its memory of the accepted steps before.
            first: whether no step was accepted before.
        """

    def updated(self, error: Value, past: Past) -> Past:
        """Its memory after an accepted step of that error."""


@dataclass(frozen=True)
class PIControl:
    """`PI`, with all its constants. A size that would shrink by no more than the steady factor is kept."""

    beta1: float
    beta2: float
    safety: float
    min_factor: float
    max_factor: float
    first_max_factor: float
    error_floor: float
    steady_factor: float = 1.0

    @property
    def past(self) -> tuple[float, ...]:
        """The error of the step before."""
        return (self.error_floor,)

    def accepts(self, error: Value, past: Past) -> Value:
        """Whether E <= 1."""
        return error <= 1.0

    def factor(self, error: Value, past: Past, first: Value) -> Value:
        """Of an accepted step safety E_previous^beta2 / E^beta1, of a rejected one safety / E^beta1."""
        power = error**self.beta1
        grown = power / past[0] ** self.beta2 / self.safety
        grown = _clipped(grown, _either(first, 1 / self.first_max_factor, 1 / self.max_factor), 1 / self.min_factor)
        if self.steady_factor > 1.0:
            grown = _either((grown >= 1.0) & (grown <= self.steady_factor), 1.0, grown)
        shrunk = _clipped(power / self.safety, 1.0, 1 / self.min_factor)
        return _finite_or_shrunk(error, 1.0 / _either(error <= 1.0, grown, shrunk))

    def updated(self, error: Value, past: Past) -> Past:
        """The error, if it is not too small."""
        return (_at_least(error, self.error_floor),)


@dataclass(frozen=True)
class IControl:
    """`I`, with all its constants, for a method of that order."""

    order: float
    safety: float
    min_factor: float
    max_factor: float
    first_max_factor: float
    accepted_min_factor: float
    past: tuple[float, ...] = ()

    def accepts(self, error: Value, past: Past) -> Value:
        """Whether E <= 1."""
        return error <= 1.0

    def factor(self, error: Value, past: Past, first: Value) -> Value:
        """Of any step safety / E^(1/order)."""
        longest = _either(error <= 1.0, 1 / self.accepted_min_factor, 1 / self.min_factor)
        shortest = _either(first, 1 / self.first_max_factor, 1 / self.max_factor)
        return _finite_or_shrunk(error, 1.0 / _clipped(error ** (1 / self.order) / self.safety, shortest, longest))

    def updated(self, error: Value, past: Past) -> Past:
        """Nothing."""
        return ()


@dataclass(frozen=True)
class PIDControl:
    """`PID`, for a method of that order."""

    order: float
    beta1: float
    beta2: float
    beta3: float
    accept_factor: float
    past: tuple[float, ...] = (1.0, 1.0)

    def accepts(self, error: Value, past: Past) -> Value:
        """Whether the step size need not shrink much."""
        return (error < math.inf) & (self.factor(error, past, False) >= self.accept_factor)

    def factor(self, error: Value, past: Past, first: Value) -> Value:
        """1 + atan(x - 1), x = E^(-beta1/order) E_1^(-beta2/order) E_2^(-beta3/order)."""
        powers = _at_least(error, SMALLEST_ERROR) ** (-self.beta1 / self.order)
        powers = powers * past[0] ** (-self.beta2 / self.order) * past[1] ** (-self.beta3 / self.order)
        limited = np.arctan(powers - 1.0) if isinstance(error, np.ndarray) else math.atan(powers - 1.0)
        return _finite_or_shrunk(error, 1.0 + limited)

    def updated(self, error: Value, past: Past) -> Past:
        """The errors of the last two steps."""
        return _at_least(error, SMALLEST_ERROR), past[0]


@dataclass(frozen=True)
class Bounds:
    """Bounds of step sizes; a step that ends at a stop or at the end time may be smaller.

    Args:
        smallest: least size; 0 for the clock's resolution.
        largest: largest size.
        forced: whether a step of the least size, or below it, is accepted whatever its error. Else it fails.
    """

    smallest: float = 0.0
    largest: float = math.inf
    forced: bool = False

    def within(self, size: Value) -> Value:
        """The size (> 0) within the bounds."""
        return _clipped(size, self.smallest, self.largest)


def controller_of(solver: ResolvedSolver, tableau: Tableau | StochasticMethod | RosenbrockTableau) -> Controller | None:
    """The controller that the solver asks for, with the method's constants where it gives none; None for a fixed step.

    Defaults: exponents 7/(10 p) and 2/(5 p) for a method of order p, unless the tableau has its own; a factor of at
    most 10, 9/8 for an SDE.
    """
    if not tableau.adaptive:
        return None
    constants: Constants = solver.controller or DEFAULT
    order = tableau.order
    if isinstance(constants, PID):
        return PIDControl(order, constants.beta1, constants.beta2, constants.beta3, constants.accept_factor)
    exponents = (tableau.beta1, tableau.beta2) if isinstance(tableau, Tableau) else (None, None)
    most = 10.0 if isinstance(tableau, (Tableau, RosenbrockTableau)) else tableau.qmax
    most = most if constants.max_factor is None else constants.max_factor
    if isinstance(constants, PI):
        return PIControl(
            beta1=_first(constants.beta1, exponents[0], 7 / (10 * order)),
            beta2=_first(constants.beta2, exponents[1], 2 / (5 * order)),
            safety=constants.safety,
            min_factor=constants.min_factor,
            max_factor=most,
            first_max_factor=constants.first_max_factor,
            error_floor=constants.error_floor,
            steady_factor=tableau.steady_factor if isinstance(tableau, RosenbrockTableau) else 1.0,
        )
    return IControl(
        order=order,
        safety=constants.safety,
        min_factor=constants.min_factor,
        max_factor=most,
        first_max_factor=constants.first_max_factor,
        accepted_min_factor=_first(constants.accepted_min_factor, constants.min_factor),
    )


def _first(*values: float | None) -> float:
    """The first one that is given."""
    return next(value for value in values if value is not None)


def landed(t: Value, h: Value, t_end: Value) -> tuple[Value, Value]:
    """The size and the end of a step of about h from t that may not pass `t_end`."""
    distance = t_end - t
    last = abs(h) + LAST_STEP_SLACK * ulp(_either(abs(t) > abs(t_end), t, t_end + 0 * t)) >= abs(distance)
    h = _either(last & (abs(h) > abs(distance)), distance, h)
    return h, _either(last, t_end, t + h)


def ulp(t: Value) -> Value:
    """The clock's resolution at t."""
    return np.spacing(np.abs(t)) if isinstance(t, np.ndarray) else math.ulp(t)


def _either(condition: Value, a: Value, b: Value) -> Value:
    if isinstance(condition, np.ndarray):
        return np.where(condition, a, b)
    return a if condition else b


def _clipped(x: Value, low: Value, high: Value) -> Value:
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else min(max(x, low), high)


def _at_least(x: Value, low: float) -> Value:
    return np.maximum(x, low) if isinstance(x, np.ndarray) else max(x, low)


def _finite_or_shrunk(error: Value, factor: Value) -> Value:
    """The factor, or a fixed one after a step that is not finite."""
    return _either(error < math.inf, factor, NON_FINITE_SHRINK)
