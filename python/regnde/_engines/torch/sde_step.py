"""One step of a stochastic Runge-Kutta method: its noise, its stages, its error and stiffness estimates.

The Julia twin is in `julia/src`. Formulas: A. Roessler, SIAM J. Numer. Anal. 48 (2010) 922-952;
the error estimate: C. Rackauckas, Q. Nie, Discrete Contin. Dyn. Syst. B 22 (2017) 2731-2761, as
StochasticDiffEq.jl computes it: both of its parts keep their sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.norm import error_scale, scaled_norm
from regnde._engines.torch.sde_tableaux import Row, StochasticTableau
from regnde._engines.torch.step import stage_times, stiffness_quotient
from regnde._engines.torch.sums import product

__all__ = [
    "SDEStep",
    "StepNoise",
    "noise_weights",
    "scaled_error",
    "sde_error_estimate",
    "sde_stiffness_estimate",
    "step_noise",
    "take_sde_step",
]

Field = Callable[[Tensor, Tensor], Tensor]


class StepNoise(NamedTuple):
    """The noise of one step, weighted for its stages.

    Attributes:
        mixed: J_2 = I_(1,0)/h, which enters the drift's stages.
        update: weights of the g_i in the new state, shape (stages, *y.shape).
        error: weights of the g_i in the error estimate, shape (stages, *y.shape).
    """

    mixed: Tensor
    update: Tensor
    error: Tensor


class SDEStep(NamedTuple):
    """A step's outcome.

    Attributes:
        y1: the new state.
        drifts, diffusions: the stages k_i and g_i.
        last_argument, previous_argument: the states of the drift's last two stages.
    """

    y1: Tensor
    drifts: list[Tensor]
    diffusions: list[Tensor]
    last_argument: Tensor
    previous_argument: Tensor


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
    return StepNoise(mixed, update, error)


def take_sde_step(
    drift: Field,
    diffusion: Field,
    tableau: StochasticTableau,
    y: Tensor,
    t: float,
    h: float,
    t_new: float,
    noise: StepNoise,
) -> SDEStep:
    """The stages and the new state of a step from (t, y) to t_new = t + h."""
    drift_times = stage_times(tableau.c0, t, h, t_new, y)
    diffusion_times = stage_times(tableau.c1, t, h, t_new, y)
    root = math.sqrt(h)
    ks: list[Tensor] = []
    gs: list[Tensor] = []
    previous = argument = y
    for i, diffusion_time in enumerate(diffusion_times):
        if i < len(drift_times):
            previous, argument = argument, _plus(y, ks, tableau.a0[i], h)
            for weight, g in zip(tableau.b0[i], gs, strict=True):
                argument = torch.addcmul(argument, noise.mixed, g, value=weight)
        state = _plus(_plus(y, ks, tableau.a1[i], h), gs, tableau.b1[i], root) if tableau.a1 else argument
        if i < len(drift_times):
            ks.append(drift(drift_times[i], argument))
        gs.append(diffusion(diffusion_time, state))
    y1 = _plus(y, ks, tableau.alpha, h)
    for weights, g in zip(noise.update.unbind(), gs, strict=True):
        y1 = torch.addcmul(y1, weights, g)
    return SDEStep(y1, ks, gs, argument, previous)


def _plus(y: Tensor, terms: list[Tensor], weights: Row, scale: float) -> Tensor:
    """Y + scale sum_j weights_j terms_j."""
    for weight, term in zip(weights, terms, strict=False):
        if weight:
            y = torch.add(y, term, alpha=scale * weight)
    return y


def scaled_error(
    tableau: StochasticTableau, y: Tensor, h: float, noise: StepNoise, step: SDEStep, rtol: float, atol: float
) -> Tensor:
    """The error over the tolerance, (delta E_1 + E_2) / (atol + rtol max(|y|, |y1|)), entrywise.

    E_1 = h sum k_i bounds the drift's part from above by its size; E_2 = sum (beta3_i J_2 +
    beta4_i J_3) g_i is what the diffusion's part of order 1.5 adds.
    """
    return _embedded(tableau, h, noise, step) / error_scale(y, step.y1, rtol, atol)


def sde_error_estimate(
    tableau: StochasticTableau, y: Tensor, h: float, noise: StepNoise, step: SDEStep, rtol: float, atol: float
) -> Tensor:
    """Local error estimate E = rms(`scaled_error`), 0-dim: the step is accepted if and only if E <= 1."""
    error = _embedded(tableau, h, noise, step)
    return scaled_norm([(1.0, error)], y, step.y1, rtol, atol) / math.sqrt(max(y.numel(), 1))


def _embedded(tableau: StochasticTableau, h: float, noise: StepNoise, step: SDEStep) -> Tensor:
    if tableau.delta is None:
        raise ValueError(f"{tableau.name} has no error estimate")
    weights, gs = noise.error.unbind(), step.diffusions
    error = weights[0] * gs[0]
    for weight, g in zip(weights[1:], gs[1:], strict=True):
        error = torch.addcmul(error, weight, g)
    return _plus(error, step.drifts, (1.0,) * len(step.drifts), h * tableau.delta)


def sde_stiffness_estimate(step: SDEStep) -> Tensor:
    """Stiffness estimate S = rms(k_s - k_{s-1}) / rms(H_s - H_{s-1}) of the drift, 0-dim; 0 where that is 0/0.

    The last two drift stages lie at t + h, so that S is about the dominant |eigenvalue| of its
    Jacobian. C. Rackauckas, Q. Nie, arXiv 1804.04344, section 4.
    """
    return stiffness_quotient(step.drifts[-1] - step.drifts[-2], step.last_argument - step.previous_argument)
