"""The size of the first step, for one system and for samples with step sizes of their own.

E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4, as OrdinaryDiffEq.jl v7 has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.step import Tolerance, tolerance
from regnde._transforms import numbers

__all__ = ["NonFiniteStart", "first_step_sizes", "probe_size", "size_from_probe"]

Floats = NDArray[np.float64]


class NonFiniteStart(Exception):
    """The field is not finite at the initial state."""


def first_step_sizes(
    field: Callable[[Floats, Tensor], Tensor],
    order: float,
    y: Tensor,
    t0: float,
    span: float,
    rtol: Tolerance,
    atol: Tolerance,
    *,
    samples: bool,
) -> tuple[Floats, Tensor]:
    """The first-step heuristic: sizes (> 0), shape (B,), and the slope at the start.

    A size is NaN where the state or the slope over its tolerance is not finite.

    Args:
        field: of times, shape (B,), and of the state.
        order: of the method.
        y: state at t0.
        t0: initial time.
        span: signed bound of the sizes.
        rtol: relative tolerance.
        atol: absolute tolerance.
        samples: whether y is a batch of B samples with sizes of their own; else B is 1.
    """
    batch = len(y) if samples else 1

    def norms(x: Tensor) -> Floats:
        rows = x.reshape(batch, -1)
        values = torch.linalg.vector_norm(rows, dim=1) / math.sqrt(rows.shape[1])
        return numbers(values) if samples else np.array([values.item()])

    def slope_at(t: Floats, y: Tensor) -> Tensor:
        return field(t, y).detach()  # with its graph: the field may need it, or make what belongs to later calls

    sign, span = math.copysign(1.0, span), abs(span)
    slope = slope_at(np.full(batch, t0), y)
    with torch.no_grad():
        allowed = tolerance(y.abs(), rtol, atol)
        d0, d1 = norms(y / allowed), norms(slope / allowed)
    finite = np.isfinite(d0) & np.isfinite(d1)
    if not finite.any():
        return np.full(batch, math.nan), slope
    probe = np.where(finite, probe_size(d0, d1, t0=t0, span=span), span)
    if samples:
        size = torch.as_tensor(sign * probe).to(y.device, y.dtype.to_real())
        moved = torch.addcmul(y, size.view(-1, *[1] * (y.ndim - 1)), slope)
    else:
        moved = torch.add(y, slope, alpha=float(sign * probe[0]))
    change = slope_at(t0 + sign * probe, moved) - slope
    with torch.no_grad():
        d2 = np.where(norms((change != 0).to(allowed.dtype)) == 0, math.nan, norms(change / allowed) / probe)
    sizes = size_from_probe(probe, d1, d2, t0=t0, span=span, order=order)
    return np.where(finite, sizes, math.nan), slope


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


def _smallest(t0: float) -> float:
    return math.nextafter(math.ulp(t0), math.inf)
