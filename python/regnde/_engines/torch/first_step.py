"""The size of the first step, for one system and for samples with step sizes of their own.

E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4, as OrdinaryDiffEq.jl v7 has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regnde._engines.torch.step import Tolerance, tolerance

__all__ = ["NonFiniteStart", "first_step_sizes", "probe_size", "size_from_probe"]


class NonFiniteStart(Exception):
    """The field is not finite at the initial state."""


def first_step_sizes(
    field: Callable[[Sequence[float], Tensor], Tensor],
    order: float,
    y: Tensor,
    t0: float,
    span: float,
    rtol: Tolerance,
    atol: Tolerance,
    *,
    samples: bool,
) -> tuple[list[float], Tensor]:
    """The first-step heuristic: B sizes (> 0), and the slope at the start.

    A size is NaN where the state or the slope over its tolerance is not finite.

    Args:
        field: of B times and of the state.
        order: of the method.
        y: state at t0.
        t0: initial time.
        span: signed bound of the sizes.
        rtol: relative tolerance.
        atol: absolute tolerance.
        samples: whether y is a batch of B samples with sizes of their own; else B is 1.
    """
    batch = len(y) if samples else 1

    def norms(x: Tensor) -> list[float]:
        rows = x.reshape(batch, -1)
        values: list[float] = torch.linalg.vector_norm(rows, dim=1).tolist()
        return [value / math.sqrt(rows.shape[1]) for value in values]

    def slope_at(t: Sequence[float], y: Tensor) -> Tensor:
        return field(t, y).detach()  # with its graph: the field may need it, or make what belongs to later calls

    sign, span = math.copysign(1.0, span), abs(span)
    slope = slope_at([t0] * batch, y)
    with torch.no_grad():
        allowed = tolerance(y.abs(), rtol, atol)
        d0, d1 = norms(y / allowed), norms(slope / allowed)
    finite = [math.isfinite(a) and math.isfinite(b) for a, b in zip(d0, d1, strict=True)]
    if not any(finite):
        return [math.nan] * batch, slope
    probes = [probe_size(a, b, t0=t0, span=span) if known else span for a, b, known in zip(d0, d1, finite, strict=True)]
    if samples:
        size = torch.tensor(probes, dtype=y.dtype.to_real(), device=y.device) * sign
        moved = torch.addcmul(y, size.view(-1, *[1] * (y.ndim - 1)), slope)
    else:
        moved = torch.add(y, slope, alpha=sign * probes[0])
    change = slope_at([t0 + sign * probe for probe in probes], moved) - slope
    with torch.no_grad():
        changed = change.reshape(batch, -1).any(1).tolist()
        d2 = [
            d / probe if some else math.nan
            for d, probe, some in zip(norms(change / allowed), probes, changed, strict=True)
        ]
    sizes = [size_from_probe(*each, t0=t0, span=span, order=order) for each in zip(probes, d1, d2, strict=True)]
    return [size if known else math.nan for size, known in zip(sizes, finite, strict=True)], slope


def probe_size(d0: float, d1: float, *, t0: float, span: float) -> float:
    """Size (> 0) of the Euler step that probes the change of the slope.

    Args:
        d0: norm of the scaled initial state.
        d1: norm of the scaled initial slope.
        t0: initial time.
        span: length of the time span (> 0), an upper bound of the result.
    """
    small = max(_smallest(t0), 1e-6)
    return min(small if d0 < 1e-5 or d1 < 1e-5 else d0 / d1 / 100, span)


def size_from_probe(probe: float, d1: float, d2: float, *, t0: float, span: float, order: float) -> float:
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
    smallest, size, largest = _smallest(t0), 100 * probe, max(d1, d2)
    if not math.isnan(d2):
        small = max(smallest, 1e-6, probe * 1e-3)
        size = min(size, small if largest <= 1e-15 else 10 ** (-(2 + math.log10(largest)) / order))
    return min(max(smallest, size), span)


def _smallest(t0: float) -> float:
    return math.nextafter(math.ulp(t0), math.inf)
