"""One explicit Runge-Kutta step: its stages, its error estimate, its stiffness estimate, its interpolant.

The Julia twin is `julia/src/step.jl`. Formulas: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary
Differential Equations I, II.4-6; the stiffness quotient: L. F. Shampine, Math. Comp. 31 (1977), as in
Hairer, Wanner II, IV.2 and in Pal et al. (ICML 2021), section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.arrays import KINDS, array_error
from regnde._engines.torch.norm import MANY, Measured, error_scale, joinable, measured, norms, sample_rms, scaled_norm
from regnde._engines.torch.stages import ColumnStages, Stages
from regnde._engines.torch.sums import Terms, summed
from regnde._engines.torch.tableaux import Tableau

__all__ = [
    "Taken",
    "dense_rows",
    "error_estimate",
    "error_value",
    "measured_error",
    "sample_error_estimates",
    "scaled_error",
    "stiffness_estimate",
    "stiffness_quotient",
    "take_step",
]

NOTHING = nullcontext()

Field = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor], Tensor]


class Taken(NamedTuple):
    """The new state, and the arguments of the last two stages (for the stiffness)."""

    y1: Tensor
    last_argument: Tensor
    previous_argument: Tensor


def stage_times(tableau_c: Sequence[float], t: float, h: float, t_new: float, like: Tensor) -> tuple[Tensor, ...]:
    """Times of the stages as 0-dim tensors; a stage at the step's end gets exactly `t_new`."""
    times = [t_new if c == 1.0 else t + c * h for c in tableau_c]
    shared = len(times) > 1 and times[-1] == times[-2]  # the last two stages of most methods lie at the step's end
    if shared:
        times.pop()
    kind = KINDS.get(like.dtype) if like.device.type == "cpu" else None
    if kind is None:
        made = torch.tensor(times, dtype=like.real.dtype, device=like.device).unbind()
    else:  # the same in two thirds of the time
        made = torch.from_numpy(np.array(times, kind)).unbind()
    return (*made, made[-1]) if shared else made


def take_step(field: Field, tableau: Tableau, stages: Stages, y: Tensor, h: float, times: Sequence[Tensor]) -> Taken:
    """Fills `stages`, whose first one is there already, and returns the new state."""
    previous = argument = y
    for i in range(1, tableau.stages):
        previous, argument = argument, stages.shifted(y, tableau.a[i], h)
        stages.push(field(times[i], argument))
    y1 = argument if tableau.fsal else stages.shifted(y, tableau.b, h)
    return Taken(y1, argument, previous)


def scaled_error(
    tableau: Tableau, stages: Stages, y: Tensor, y1: Tensor, h: float, rtol: float, atol: float | Tensor
) -> Tensor:
    """The embedded error over the tolerance, r = (h sum btilde_j k_j) / (atol + rtol max(|y|, |y1|)), entrywise."""
    return summed(_embedded(tableau, stages, h)) / error_scale(y, y1, rtol, atol)


def error_estimate(
    tableau: Tableau, stages: Stages, y: Tensor, y1: Tensor, h: float, rtol: float, atol: float | Tensor
) -> Tensor:
    """Local error estimate E = rms(r), r as in `scaled_error`, 0-dim: the step is accepted if and only if E <= 1."""
    return scaled_norm(_mean(tableau, stages, y, h), y, y1, rtol, atol, stages.scratch)


@np.errstate(all="ignore")  # the loop looks for what is not finite
def error_value(
    tableau: Tableau, stages: Stages, y: Tensor, y1: Tensor, h: float, rtol: float, atol: float | Tensor
) -> float | Tensor:
    """The same without a graph, to decide by."""
    arrays = stages.arrays(tableau.btilde or (), h, y, y1)
    if arrays is not None:
        return array_error(*arrays, rtol, float(atol))
    with without_graph():
        return error_estimate(tableau, stages, y, y1, h, rtol, atol)


@np.errstate(all="ignore")
def measured_error(
    tableau: Tableau, stages: Stages, y: Tensor, y1: Tensor, h: float, rtol: float, atol: float | Tensor
) -> Measured:
    """The same, with what `norms` wants to hang it on a graph later."""
    terms = _mean(tableau, stages, y, h)
    arrays = stages.arrays(tableau.btilde or (), h, y, y1)
    if arrays is None:
        with without_graph():
            return measured(terms, y, y1, rtol, atol, stages.scratch)
    norm = array_error(*arrays, rtol, float(atol))
    ratio = torch.from_numpy(arrays[0].reshape(y.shape))
    return Measured(ratio.new_tensor(norm), ratio, terms, y, y1, rtol, atol)


def sample_error_estimates(
    tableau: Tableau, stages: ColumnStages, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor
) -> Tensor:
    """The same for each sample of the leading dimension, shape (batch,)."""
    if not torch.is_grad_enabled() or y.numel() < MANY or not joinable(y):
        return sample_rms(scaled_error(tableau, stages, y, y1, 1.0, rtol, atol))
    terms = stages.terms_apart(tableau.btilde or (), 1 / math.sqrt(y[0].numel()))
    with torch.no_grad():
        known = measured(terms, y, y1, rtol, atol, column=stages.h)
    return norms([known])


def without_graph() -> AbstractContextManager[object]:
    """No graph; to enter a mode takes longer than a sum of small states, so that it is entered from another only."""
    return torch.no_grad() if torch.is_grad_enabled() else NOTHING


def _mean(tableau: Tableau, stages: Stages, y: Tensor, h: float) -> Terms:
    """The embedded error by a factor that makes a 2-norm the root mean square."""
    return _embedded(tableau, stages, h / math.sqrt(max(y.numel(), 1)))


def _embedded(tableau: Tableau, stages: Stages, h: float) -> Terms:
    """What the embedded error h sum btilde_j k_j is the sum of."""
    if tableau.btilde is None:
        raise ValueError(f"{tableau.name} has no embedded error estimate")
    return stages.terms(tableau.btilde, h)


def stiffness_estimate(stages: Stages, last: int, taken: Taken, norm: Norm = torch.linalg.vector_norm) -> Tensor:
    """Stiffness estimate S = rms(k_s - k_{s-1}) / rms(g_s - g_{s-1}), 0-dim; 0 where the denominator is 0.

    Both stages lie at t + h, so that the quotient is the norm of the Jacobian applied to the
    difference of their arguments: about the dominant |eigenvalue|.
    """
    return stiffness_quotient(stages[last] - stages[last - 1], taken.last_argument - taken.previous_argument, norm)


def stiffness_quotient(slope_change: Tensor, state_change: Tensor, norm: Norm = torch.linalg.vector_norm) -> Tensor:
    """Rms of a change of the slope over that of the state that caused it, 0-dim; 0 where the state did not change.

    The numbers of entries cancel, so that any 2-norm serves.
    """
    size = norm(state_change)
    return norm(slope_change) / size.masked_fill(size == 0, math.inf)


def extra_stages(field: Field, tableau: Tableau, stages: Stages, y: Tensor, t: float, h: float, t_new: float) -> None:
    """Appends the stages that the interpolant needs beyond the step's own."""
    times = stage_times(tableau.extra_c, t, h, t_new, y)
    for row, time in zip(tableau.extra_a, times, strict=True):
        stages.push(field(time, stages.shifted(y, row, h)))


def dense_rows(tableau: Tableau, stages: Stages, y: Tensor, h: float, thetas: Sequence[float]) -> Tensor:
    """States at t + theta h for each theta in (0, 1), shape (len(thetas), *y.shape)."""
    weights = torch.as_tensor(h * dense_weights(tableau, thetas)).to(y.device, y.real.dtype)
    return stages.rows(y, weights)


def dense_weights(tableau: Tableau, thetas: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the stages at each theta, shape (len(thetas), stages)."""
    coefficients = np.asarray(tableau.dense)
    powers = np.asarray(thetas)[:, None] ** np.arange(1, coefficients.shape[1] + 1)
    weights: NDArray[np.float64] = powers @ coefficients.T
    return weights
