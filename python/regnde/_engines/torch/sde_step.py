"""One step of a stochastic Runge-Kutta method: its noise, its stages, its error and stiffness estimates.

The Julia twin is `julia/src/sde_step.jl`. Formulas: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922-952;
the error estimate: C. Rackauckas, Q. Nie, Discrete Contin. Dyn. Syst. B 22 (2017) 2731-2761, as
StochasticDiffEq.jl computes it: both of its parts keep their sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._dense import product
from regnde._engines.torch.step import (
    Estimates,
    Field,
    Norm,
    StepSize,
    Tolerance,
    column,
    columns,
    divided,
    larger,
    sample_rms,
    shifted,
    stage_times,
    stiffness_quotient,
    tolerance,
)
from regnde._tableau import Row, StochasticTableau

__all__ = [
    "Interval",
    "SDEStep",
    "StepNoise",
    "added",
    "driven",
    "noise_weights",
    "sde_error_estimate",
    "sde_error_ratio",
    "sde_estimates",
    "sde_stacked",
    "sde_stiffness_estimate",
    "step_noise",
    "take_sde_step",
]


class Interval(NamedTuple):
    """The interval of a step from t to t1 = t + h.

    Attributes:
        within: bounds of the times that the fields get; None for no bounds.
    """

    t: float
    h: float
    t1: float
    within: tuple[float, float] | None = None

    def times(self, c: Sequence[float], like: Tensor) -> tuple[Tensor, ...]:
        """The times at fractions c of the step, as the fields of a state like the given one get them."""
        return stage_times(c, self.t, self.h, self.t1, like, self.within)


class StepNoise(NamedTuple):
    """The noise of one step, weighted for its stages; each tensor has the shape of the path.

    Attributes:
        mixed: J_2 = I_(1,0)/h, which enters the drift's stages.
        update: weights of the g_i in the new state.
        error: weights of the g_i in the error estimate.
    """

    mixed: Tensor
    update: Sequence[Tensor]
    error: Sequence[Tensor]


class SDEStep(NamedTuple):
    """A step from y to y1: its noise, its stages k_i (drift) and g_i (diffusion), and two of their arguments.

    Attributes:
        last_argument, previous_argument: the states of the drift's last two stages.
    """

    y: Tensor
    h: StepSize
    noise: StepNoise
    k: list[Tensor]
    g: list[Tensor]
    y1: Tensor
    last_argument: Tensor
    previous_argument: Tensor


def driven(g: Tensor, w: Tensor) -> Tensor:
    """The diffusion g applied to a vector w of the path's shape: entrywise, or a matrix times a vector."""
    return torch.matmul(g, w.unsqueeze(-1)).squeeze(-1) if g.ndim > w.ndim else g * w


def added(y: Tensor, g: Tensor, w: Tensor, weight: float = 1.0) -> Tensor:
    """The state y + weight g w."""
    if g.ndim > w.ndim:
        return torch.add(y, driven(g, w), alpha=weight)
    return torch.addcmul(y, w, g, value=weight)


def noise_weights(tableau: StochasticTableau, like: Tensor) -> Tensor:
    """The tableau's weights of dW, J_1, J_2, J_3 as a tensor of shape (2 stages, 4)."""
    return torch.tensor(tableau.noise_weights, dtype=like.dtype, device=like.device)


def step_noise(weights: Tensor, h: float, dw: Tensor, area: Tensor) -> StepNoise:
    """The iterated integrals of a step and their weighted sums.

    J_1 = I_(1,1)/sqrt(h) = (dW^2 - h)/(2 sqrt(h)), J_2 = I_(1,0)/h = dW/2 + H and
    J_3 = I_(1,1,1)/h = (dW^3 - 3 h dW)/(6 h), with the space-time Levy area H.

    Args:
        weights: from `noise_weights`.
        h: step size (> 0).
        dw: increment over the step, in the state's dtype and on its device.
        area: its space-time Levy area, likewise.
    """
    square = dw * dw
    mixed = torch.add(area, dw, alpha=0.5)
    double = (square - h) * (0.5 / math.sqrt(h))
    triple = (square - 3 * h) * dw * (1 / (6 * h))
    integrals = torch.stack((dw, double, mixed, triple)).reshape(4, -1)
    update, error = product(weights, integrals).reshape(2, len(weights) // 2, *dw.shape)
    return StepNoise(mixed, update.unbind(), error.unbind())


def take_sde_step(
    drift: Field,
    diffusion: Field,
    tableau: StochasticTableau,
    y: Tensor,
    interval: Interval,
    noise: StepNoise,
) -> SDEStep:
    """The step from y over an interval."""
    drift_times, diffusion_times = interval.times(tableau.c0, y), interval.times(tableau.c1, y)
    h, root = interval.h, math.sqrt(interval.h)
    k: list[Tensor] = []
    g: list[Tensor] = []
    previous = argument = y
    for i, diffusion_time in enumerate(diffusion_times):
        if i < len(drift_times):
            previous, argument = argument, _with_noise(shifted(y, k, tableau.a0[i], h), noise.mixed, g, tableau.b0[i])
        state = shifted(shifted(y, k, tableau.a1[i], h), g, tableau.b1[i], root) if tableau.a1 else argument
        if i < len(drift_times):
            k.append(drift(drift_times[i], argument))
        g.append(diffusion(diffusion_time, state))
    y1 = shifted(y, k, tableau.alpha, h)
    for weight, g_i in zip(noise.update, g, strict=True):
        y1 = added(y1, g_i, weight)
    return SDEStep(y, h, noise, k, g, y1, argument, previous)


def _with_noise(y: Tensor, mixed: Tensor, g: Sequence[Tensor], weights: Row) -> Tensor:
    """The sum y + J_2 sum_j weights_j g_j."""
    for weight, g_j in zip(weights, g, strict=False):
        y = added(y, g_j, mixed, weight)
    return y


def sde_error_ratio(tableau: StochasticTableau, step: SDEStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The error over the tolerance, (delta E_1 + E_2) / (atol + rtol max(|y|, |y1|)), entrywise.

    E_1 = h sum k_i stands for the drift's part; E_2 = sum (beta3_i J_2 +
    beta4_i J_3) g_i is what the diffusion's part of order 1.5 adds.
    """
    if tableau.delta is None:
        raise ValueError(f"{tableau.name} has no error estimate")
    first, *others = zip(step.noise.error, step.g, strict=True)
    error = driven(first[1], first[0])
    for weight, g_i in others:
        error = added(error, g_i, weight)
    error = shifted(error, step.k, (tableau.delta,) * len(step.k), step.h)
    return divided(error, tolerance(larger(step.y, step.y1), rtol, atol))


def sde_error_estimate(
    tableau: StochasticTableau, step: SDEStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms
) -> Tensor:
    """Local error estimate E = rms of `sde_error_ratio`: the step is accepted if and only if E <= 1."""
    return norm(sde_error_ratio(tableau, step, rtol, atol))


def sde_stiffness_estimate(step: SDEStep, norm: Norm = sample_rms) -> Tensor:
    """Stiffness estimate S = rms(k_s - k_{s-1}) / rms(H_s - H_{s-1}) of the drift; 0 where the denominator is 0.

    The last two drift stages lie at t + h, so that S is about the dominant |eigenvalue| of its
    Jacobian. C. Rackauckas, Q. Nie, arXiv 1804.04344, section 4.
    """
    return stiffness_quotient(step.k[-1] - step.k[-2], step.last_argument - step.previous_argument, norm)


def sde_estimates(
    tableau: StochasticTableau, steps: SDEStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms
) -> Estimates:
    """What the method estimates of each step of a batch, shape (batch,)."""
    error = sde_error_estimate(tableau, steps, rtol, atol, norm) if tableau.adaptive else None
    return Estimates(error, sde_stiffness_estimate(steps, norm) if tableau.stiffness_pair else None)


def sde_stacked(steps: Sequence[SDEStep]) -> SDEStep:
    """Steps of one system as a batch of samples."""
    first = steps[0]
    stages, drifts = len(first.g), len(first.k)
    of_state = [(s.y, s.y1, s.last_argument, s.previous_argument, *s.k) for s in steps]
    if first.g[0].shape == first.y.shape:
        y, y1, last, previous, *slopes = columns([(*row, *s.g) for row, s in zip(of_state, steps, strict=True)])
    else:
        y, y1, last, previous, *slopes = [*columns(of_state), *columns([s.g for s in steps])]
    mixed, *weights = columns([(s.noise.mixed, *s.noise.update, *s.noise.error) for s in steps])
    noise = StepNoise(mixed, weights[:stages], weights[stages:])
    size = column([float(s.h) for s in steps], first.y)
    return SDEStep(y, size, noise, slopes[:drifts], slopes[drifts:], y1, last, previous)
