"""Step sizes: the first one, the PI controller after it, in Python floats throughout.

Both follow OrdinaryDiffEq.jl v7 (E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential
Equations I, II.4; II: K. Gustafsson's PI control), with exact powers where Julia uses `fastpower`,
which moves step sizes by about 1e-5 relative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Controller", "first_step_size", "size_from_trial", "trial_size"]

NON_FINITE_SHRINK = 5.0

D2 = Callable[[float], float | None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Controller:
    """PI control of the step size: q = E^beta1 / E_previous^beta2 / gamma, next step h / q.

    Args:
        beta1, beta2: exponents of the present and the previous error estimate.
        gamma: safety factor.
        qmin, qmax: a step changes at most by these factors.
        qmax_first_step: replaces `qmax` until the first step is accepted.
        error_floor: least value remembered as the previous error; also its initial value.
    """

    beta1: float
    beta2: float
    gamma: float = 0.9
    qmin: float = 0.2
    qmax: float = 10.0
    qmax_first_step: float = 10_000.0
    error_floor: float = 1e-4

    @staticmethod
    def for_order(order: float, qmax: float = 10.0) -> Controller:
        """The default exponents 7/(10 p) and 2/(5 p) for a method of order p."""
        return Controller(beta1=7 / (10 * order), beta2=2 / (5 * order), qmax=qmax)

    def accepted(self, error: float, previous: float, *, first: bool) -> float:
        """Factor by which the step grows after one with `error` <= 1 was accepted."""
        qmax = self.qmax_first_step if first else self.qmax
        if error == 0.0:
            return qmax
        q = math.pow(error, self.beta1) / math.pow(previous, self.beta2) / self.gamma
        return 1.0 / min(max(q, 1.0 / qmax), 1.0 / self.qmin)

    def rejected(self, error: float) -> float:
        """Factor (< 1) by which a step shrinks after one with `error` > 1 or not finite was rejected."""
        if not math.isfinite(error):
            return 1.0 / NON_FINITE_SHRINK
        return 1.0 / min(1.0 / self.qmin, math.pow(error, self.beta1) / self.gamma)

    def of_samples(self, error: Floats, previous: Floats, first: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
        """The same for a batch whose samples step apart: factors, and which of them are accepted."""
        accepted = error <= 1.0
        with np.errstate(all="ignore"):
            raw = np.power(error, self.beta1)
            q = raw / np.power(previous, self.beta2) / self.gamma
            q = np.clip(q, 1.0 / np.where(first, self.qmax_first_step, self.qmax), 1.0 / self.qmin)
            shrink = np.minimum(1.0 / self.qmin, raw / self.gamma)
        shrink = np.where(np.isfinite(error), shrink, NON_FINITE_SHRINK)
        return 1.0 / np.where(accepted, q, shrink), accepted


def first_step_size(d0: float, d1: float, d2_at: D2, *, t0: float, span: float, order: float) -> float:
    """Size (> 0) of the first step.

    Args:
        d0: norm of the scaled initial state.
        d1: norm of the scaled initial slope.
        d2_at: given a trial size (> 0), the norm of the scaled change of the slope over an Euler
            step of that size, divided by the size; None if the slope did not change at all.
        t0: initial time.
        span: length of the time span (> 0), an upper bound of the result.
        order: order of the method (3/2 + 1/2 for SOSRI).
    """
    trial = trial_size(d0, d1, t0=t0, span=span)
    return size_from_trial(trial, d1, d2_at(trial), t0=t0, span=span, order=order)


def trial_size(d0: float, d1: float, *, t0: float, span: float) -> float:
    """Size of the Euler step that probes the slope's change."""
    small = max(_smallest(t0), 1e-6)
    return min(small if d0 < 1e-5 or d1 < 1e-5 else d0 / d1 / 100, span)


def size_from_trial(trial: float, d1: float, d2: float | None, *, t0: float, span: float, order: float) -> float:
    """Size of the first step once the probe has told the slope's change."""
    smallest = _smallest(t0)
    if d2 is None:
        return min(max(smallest, 100 * trial), span)
    largest = max(d1, d2)
    small = max(smallest, 1e-6)
    size = max(small, trial * 1e-3) if largest <= 1e-15 else 10 ** (-(2 + math.log10(largest)) / order)
    return max(smallest, min(100 * trial, size, span))


def _smallest(t0: float) -> float:
    return math.nextafter(math.ulp(t0), math.inf)
