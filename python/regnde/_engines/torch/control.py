"""Step sizes: the first one, and the PI controller after it. For one system (floats) and for samples (arrays) alike.

Both follow OrdinaryDiffEq.jl v7 (E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential
Equations I, II.4; II: K. Gustafsson's PI control), with exact powers where Julia uses `fastpower`,
which moves step sizes by about 1e-5 relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAST_STEP_SLACK", "NON_FINITE_TRIALS", "Controller", "landed", "probe_size", "size_from_probe", "ulp"]

NON_FINITE_SHRINK = 5.0
NON_FINITE_TRIALS = 6  # before the dynamics, not the step size, are held to be at fault
LAST_STEP_SLACK = 100  # in units of the clock's resolution: a step this close to the end lands on it

Floats = NDArray[np.float64]
Value = Any  # a float for one system, an array for samples: the formulas are the same


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
    def of(order: float, beta1: float | None = None, beta2: float | None = None, qmax: float = 10.0) -> Controller:
        """With the given exponents, by default 7/(10 p) and 2/(5 p) for a method of order p."""
        return Controller(
            beta1=7 / (10 * order) if beta1 is None else beta1,
            beta2=2 / (5 * order) if beta2 is None else beta2,
            qmax=qmax,
        )

    def factor(self, error: Value, previous: Value, first: Value) -> Value:
        """Factor from the size of a step to that of the next attempt.

        Args:
            error: error estimate of the step: accepted if at most 1, else rejected.
            previous: that of the accepted step before.
            first: whether no step was accepted before.
        """
        power = error**self.beta1
        grown = power / previous**self.beta2 / self.gamma
        grown = _clipped(grown, _either(first, 1 / self.qmax_first_step, 1 / self.qmax), 1 / self.qmin)
        shrunk = _either(error < math.inf, _clipped(power / self.gamma, 1.0, 1 / self.qmin), NON_FINITE_SHRINK)
        return 1.0 / _either(error <= 1.0, grown, shrunk)


def landed(t: Value, h: Value, t_end: float) -> tuple[Value, Value]:
    """The size and the end of a step of about h from t that may not pass `t_end`."""
    distance = t_end - t
    last = abs(h) + LAST_STEP_SLACK * ulp(_either(abs(t) > abs(t_end), t, t_end + 0 * t)) >= abs(distance)
    h = _either(last & (abs(h) > abs(distance)), distance, h)
    return h, _either(last, t_end, t + h)


def probe_size(d0: Floats, d1: Floats, *, t0: float, span: float) -> Floats:
    """Size (> 0) of the Euler step that probes the change of the slope.

    Args:
        d0: norm of the scaled initial state, one for each system.
        d1: norm of the scaled initial slope.
        t0: initial time.
        span: length of the time span (> 0), an upper bound of the result.
    """
    small = max(_smallest(t0), 1e-6)
    with np.errstate(all="ignore"):
        return np.minimum(np.where((d0 < 1e-5) | (d1 < 1e-5), small, d0 / d1 / 100), span)


def size_from_probe(probe: Floats, d1: Floats, d2: Floats, *, t0: float, span: float, order: float) -> Floats:
    """Size (> 0) of the first step once the probe has told the change of the slope.

    Args:
        probe: from `probe_size`.
        d1: norm of the scaled initial slope.
        d2: norm of the scaled change of the slope over the probe, divided by its size; NaN if the slope did
            not change at all.
        t0: initial time.
        span: length of the time span (> 0), an upper bound of the result.
        order: order of the method (3/2 + 1/2 for SOSRI).
    """
    smallest = _smallest(t0)
    largest = np.maximum(d1, d2)
    with np.errstate(all="ignore"):
        size = np.where(
            largest <= 1e-15, np.maximum(max(smallest, 1e-6), probe * 1e-3), 10 ** (-(2 + np.log10(largest)) / order)
        )
    size = np.where(np.isnan(d2), 100 * probe, np.minimum(100 * probe, size))
    return np.minimum(np.maximum(smallest, size), span)


def ulp(t: Value) -> Value:
    """The clock's resolution at t."""
    return np.spacing(np.abs(t)) if isinstance(t, np.ndarray) else math.ulp(t)


def _smallest(t0: float) -> float:
    return math.nextafter(math.ulp(t0), math.inf)


def _either(condition: Value, a: Value, b: Value) -> Value:
    if isinstance(condition, np.ndarray):
        return np.where(condition, a, b)
    return a if condition else b


def _clipped(x: Value, low: Value, high: float) -> Value:
    return np.clip(x, low, high) if isinstance(x, np.ndarray) else min(max(x, low), high)
