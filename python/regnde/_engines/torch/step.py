"""One explicit Runge-Kutta step: its stages, its error estimate, its stiffness estimate, its dense output.

The Julia twin is `julia/src/step.jl`. Formulas: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary
Differential Equations I, II.4-6; the stiffness quotient: L. F. Shampine, Math. Comp. 31 (1977), as in
Hairer, Wanner II, IV.2 and in Pal et al. (ICML 2021), section 3.2.

A step size h is a float for one system, or a tensor that broadcasts against the state: a column for a batch
of samples with step sizes of their own, 0-dim for a compiled step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._dense import product
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._tableau import Row, Tableau

__all__ = [
    "Estimates",
    "Field",
    "Norm",
    "Step",
    "StepSize",
    "Tolerance",
    "all_finite",
    "column",
    "columns",
    "dense_output",
    "dense_weights",
    "divided",
    "error_estimate",
    "error_ratio",
    "estimates",
    "estimates_of_one",
    "extra_stages",
    "larger",
    "rms",
    "sample_rms",
    "shifted",
    "stacked",
    "stage_times",
    "stiffness_estimate",
    "stiffness_quotient",
    "take_step",
    "tolerance",
    "weighted",
    "whole_rms",
]

Field = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]
StepSize = float | Tensor
Tolerance = float | Tensor  # for all entries, or one for each
ARRAYS = {torch.float32: np.float32, torch.float64: np.float64}
HALF = (torch.float16, torch.bfloat16)
FEW = 4  # stages whose times are made faster one by one than together


class Step(NamedTuple):
    """A step from y to y1: its stages k, and the arguments of the last two of them (for the stiffness)."""

    y: Tensor
    h: StepSize
    k: list[Tensor]
    y1: Tensor
    last_argument: Tensor
    previous_argument: Tensor


class Estimates(NamedTuple):
    """Estimates of a step, or of each step of a batch; None where the method has none."""

    error: Tensor | None
    stiffness: Tensor | None


def stage_times(
    c: Sequence[float], t: float, h: float, t1: float, like: Tensor, within: tuple[float, float] | None = None
) -> tuple[Tensor, ...]:
    """Times of the stages as 0-dim tensors; a stage at the step's end gets exactly `t1`, all lie `within` bounds."""
    times = [t1 if ci == 1.0 else t + ci * h for ci in c]
    if within is not None:
        low, high = within
        times = [min(max(time, low), high) for time in times]
    dtype, device = like.real.dtype, like.device
    if len(times) <= FEW:
        return tuple([torch.full((), time, dtype=dtype, device=device) for time in times])
    if device.type == "cpu" and dtype in ARRAYS:
        return torch.from_numpy(np.array(times, ARRAYS[dtype])).unbind()  # two thirds of the time
    return torch.tensor(times, dtype=dtype, device=device).unbind()


def weighted(k: Sequence[Tensor], weights: Row) -> Tensor:
    """The sum of weights_j k_j."""
    total = _sum(None, k, weights, 1.0)
    return torch.zeros_like(k[0]) if total is None else total


def shifted(y: Tensor, k: Sequence[Tensor], weights: Row, h: StepSize) -> Tensor:
    """The state y + h sum_j weights_j k_j. Graph nodes of `torch.add(y, k, alpha=float)` save no tensors."""
    if isinstance(h, Tensor):
        return torch.addcmul(y, h, weighted(k, weights))
    if y.dtype in HALF:
        return _rounded_once(y, k, weights, h)
    total = _sum(y, k, weights, h)
    return y if total is None else total


def _rounded_once(y: Tensor, k: Sequence[Tensor], weights: Row, h: float) -> Tensor:
    """The same, where the state's resolution rounds one sum and not one for each slope: one operation more."""
    several = len(weights) - weights.count(0.0) > 1
    total = _sum(None if several else y, k, weights, h)
    return y if total is None else y + total if several else total


def _sum(y: Tensor | None, k: Sequence[Tensor], weights: Row, h: float) -> Tensor | None:
    """The sum of y and h weights_j k_j, None if there is none; in place where no graph needs partial sums."""
    add = torch.add if torch.is_grad_enabled() else Tensor.add_
    total: Tensor | None = None
    for weight, k_j in zip(weights, k, strict=False):
        if not weight:
            continue
        if total is not None:
            total = add(total, k_j, alpha=h * weight)
        else:
            total = k_j * (h * weight) if y is None else torch.add(y, k_j, alpha=h * weight)
    return total


def take_step(
    field: Field, tableau: Tableau, y: Tensor, first: Tensor | None, h: StepSize, times: Sequence[Tensor]
) -> Step:
    """The step of size h from y; `first` is its first stage if that is known."""
    k = [field(times[0], y) if first is None else first]
    previous = argument = y
    for i in range(1, tableau.stages):
        previous, argument = argument, shifted(y, k, tableau.a[i], h)
        k.append(field(times[i], argument))
    if tableau.fsal:
        y1 = argument
    else:
        y1 = shifted(y, k, tableau.b, h) if isinstance(h, Tensor) else _rounded_once(y, k, tableau.b, h)
    return Step(y, h, k, y1, argument, previous)


def tolerance(size: Tensor, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The error that is allowed in entries of some size, atol + rtol size; without a graph it replaces the size."""
    if torch.is_grad_enabled():
        return size * rtol + atol
    return size.mul_(rtol).add_(atol)


def error_ratio(tableau: Tableau, step: Step, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The embedded error over the tolerance, r = (h sum btilde_j k_j) / (atol + rtol max(|y|, |y1|)), entrywise."""
    if tableau.btilde is None:
        raise ValueError(f"{tableau.name} has no embedded error estimate")
    error = weighted(step.k, tableau.btilde)
    error = step.h * error if torch.is_grad_enabled() else error.mul_(step.h)
    return divided(error, tolerance(larger(step.y, step.y1), rtol, atol))


def larger(y: Tensor, y1: Tensor) -> Tensor:
    """The entrywise max(|y|, |y1|); where they are equal, its gradient is that of |y1|."""
    if torch.is_grad_enabled():
        return torch.where(y.abs() <= y1.abs(), y1, y).abs()  # cheaper to differentiate than a maximum
    return torch.maximum(y.abs(), y1.abs())


def divided(x: Tensor, by: Tensor) -> Tensor:
    """The quotient x / by, in place where no graph needs x."""
    return x / by if torch.is_grad_enabled() else x.div_(by)


def all_finite(x: Tensor) -> bool:
    """Whether no entry is infinite or NaN. The sum tells at a tenth of the cost, unless it overflows."""
    total = x.detach().sum().item()
    return total - total == 0 or bool(torch.isfinite(x).all())


def rms(x: Tensor) -> float:
    """Root mean square over all entries. For the step size control; it overflows only where the entries do."""
    norm: Tensor = torch.linalg.vector_norm(x)
    value = (norm / math.sqrt(max(x.numel(), 1))).item()
    return value if math.isfinite(value) else whole_rms(x).item()


def sample_rms(x: Tensor) -> Tensor:
    """Root mean square of each sample of the leading dimension, shape (batch,). For the records.

    It neither overflows nor underflows, and derivatives of every order are 0 where x = 0.
    """
    rows = (torch.view_as_real(x) if x.is_complex() else x).reshape(len(x), -1)
    count = math.sqrt(max(x[0].numel(), 1)) if len(x) else 1.0
    if rows.numel() == 0:
        return rows.sum(1)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1)
    limits = torch.finfo(rows.dtype)
    if bool(((norm > 1e4 * limits.tiny**0.5) & (norm < 1e-4 * limits.max**0.5)).all()):
        return norm / count
    largest = rows.detach().abs().amax(1, keepdim=True)
    scale = largest.masked_fill((largest == 0) | ~torch.isfinite(largest), 1.0).clamp(min=limits.tiny)
    total = (rows / scale).square().sum(1)
    zero = total == 0
    return total.masked_fill(zero, 1.0).sqrt().masked_fill(zero, 0.0) * (scale.squeeze(1) / count)


def whole_rms(x: Tensor) -> Tensor:
    """`sample_rms` of all entries as one sample, shape (1,)."""
    return sample_rms(x.unsqueeze(0))


def error_estimate(tableau: Tableau, step: Step, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms) -> Tensor:
    """Local error estimate E = rms(r), r as in `error_ratio`: the step is accepted if and only if E <= 1."""
    return norm(error_ratio(tableau, step, rtol, atol))


def stiffness_quotient(slope_change: Tensor, state_change: Tensor, norm: Norm = sample_rms) -> Tensor:
    """Rms of a change of the slope over that of the state; 0 where the state did not change."""
    size = norm(state_change)
    return norm(slope_change) / size.masked_fill(size == 0, math.inf)


def stiffness_estimate(step: Step, norm: Norm = sample_rms) -> Tensor:
    """Stiffness estimate S = rms(k_s - k_{s-1}) / rms(g_s - g_{s-1}); 0 where the denominator is 0.

    Both stages lie at t + h, so that the quotient is the norm of the Jacobian applied to the
    difference of their arguments: about the dominant |eigenvalue|.
    """
    return stiffness_quotient(step.k[-1] - step.k[-2], step.last_argument - step.previous_argument, norm)


def estimates(
    tableau: Tableau,
    steps: Step,
    rtol: Tolerance,
    atol: Tolerance,
    norm: Norm = sample_rms,
    error_norm: Norm | None = None,
) -> Estimates:
    """What the method estimates of each step of a batch, shape (batch,); the error by its own norm if it has one."""
    error = error_estimate(tableau, steps, rtol, atol, error_norm or norm) if tableau.adaptive else None
    return Estimates(error, stiffness_estimate(steps, norm) if tableau.stiffness_pair else None)


def estimates_of_one(
    tableau: Tableau, step: Step, rtol: Tolerance, atol: Tolerance, error_norm: Norm | None = None
) -> Estimates:
    """The same for a single step that is no batch, shape (1,), to the last bit; the error's norm is 0-dim."""
    size = torch.full((), float(step.h), dtype=step.y.dtype.to_real(), device=step.y.device)
    own = None if error_norm is None else lambda x: error_norm(x).reshape(1)
    return estimates(tableau, step._replace(h=size), rtol, atol, whole_rms, own)


def columns(rows: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Tensors of one shape, a row of them for each step, as one batch of steps for each column.

    All are copied at once: one operation and its derivative cost less than many. A single row is not copied.
    """
    if len(rows) == 1:
        return [x.unsqueeze(0) for x in rows[0]]
    everything = torch.stack([x for row in rows for x in row])
    return everything.view(len(rows), len(rows[0]), *rows[0][0].shape).unbind(1)


def column(sizes: Sequence[float], like: Tensor) -> Tensor:
    """Step sizes as a tensor that broadcasts against a batch of states."""
    values = torch.tensor(sizes, dtype=like.dtype.to_real(), device=like.device)
    return values.view(-1, *[1] * like.ndim)


def stacked(steps: Sequence[Step]) -> Step:
    """Steps of one system as a batch of samples."""
    like = steps[0].y
    y, y1, *k = columns([(step.y, step.y1, *step.k) for step in steps])
    last, previous = columns([(step.last_argument, step.previous_argument) for step in steps])
    return Step(y, column([float(step.h) for step in steps], like), k, y1, last, previous)


def extra_stages(field: Field, tableau: Tableau, step: Step, times: Sequence[Tensor]) -> list[Tensor]:
    """All stages that the dense output needs: the step's own and further ones."""
    k = list(step.k)
    for row, time in zip(tableau.extra_a, times, strict=True):
        k.append(field(time, shifted(step.y, k, row, step.h)))
    return k


def dense_output(
    tableau: Tableau | RosenbrockTableau, y: Tensor, h: float, k: Sequence[Tensor], thetas: Sequence[float]
) -> Tensor:
    """States at t + theta h for each theta in (0, 1), shape (len(thetas), *y.shape).

    Args:
        tableau: the method.
        y: state at the start of the step.
        h: its size; 1 for the stages of a Rosenbrock method, which hold it.
        k: all stages that the dense output needs.
        thetas: shares of the step.
    """
    weights = torch.as_tensor(h * dense_weights(tableau, thetas)).to(y.device, y.dtype.to_real()).to(y.dtype)
    rows = torch.stack(list(k)).reshape(len(k), y.numel())
    return y + product(weights, rows).reshape(len(weights), *y.shape)


def dense_weights(
    tableau: Tableau | RosenbrockTableau, thetas: Sequence[float] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights of the stages at each theta, shape (len(thetas), stages)."""
    coefficients = np.asarray(tableau.dense)
    powers = np.asarray(thetas)[:, None] ** np.arange(1, coefficients.shape[1] + 1)
    weights: NDArray[np.float64] = powers @ coefficients.T
    return weights
