"""Steps of the methods for SDEs that are no tableau, with their error estimates.

Sources: P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential Equations (1992), 10.3 (Milstein), 11.1
(without derivatives); K. Burrage, P. M. Burrage, T. Tian, Proc. R. Soc. Lond. A 460 (2004) 373-402 (Heun, midpoint);
H. Lamba, J. Comput. Appl. Math. 161 (2003) 417-430 (the estimates), in the forms of StochasticDiffEq.jl 7.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.jacobian import has_other_leaves
from regnde._engines.torch.sde_step import added, driven
from regnde._engines.torch.step import (
    Estimates,
    Field,
    Norm,
    StepSize,
    Tolerance,
    columns,
    divided,
    larger,
    sample_rms,
    shifted,
    tolerance,
)
from regnde._equation import SDE

__all__ = ["SCHEMES", "SchemeStep", "Stages", "scheme_error_ratio", "scheme_estimates", "scheme_stacked"]


class SchemeStep(NamedTuple):
    """A step from y to y1: its stages k_i (drift) and g_i (diffusion), and its estimated error of y's shape."""

    y: Tensor
    h: StepSize
    k: list[Tensor]
    g: list[Tensor]
    y1: Tensor
    error: Tensor | None


class Stages:
    """The evaluations of one step from (t, y) to t1 = t + h, in their order.

    Args:
        sde: kind of noise and calculus; its functions are not called.
        drift, diffusion: what is called in their place.
        time_at: time at a fraction of the step, as the fields get it.
        y: state at t.
        h: step size (> 0).
        dw: increment of the path, of its shape.
        estimated: whether the error is asked for.
        recorded: whether with a graph.
    """

    def __init__(
        self,
        sde: SDE,
        drift: Field,
        diffusion: Field,
        time_at: Callable[[float], Tensor],
        y: Tensor,
        h: float,
        dw: Tensor,
        *,
        estimated: bool,
        recorded: bool,
    ) -> None:
        self.sde, self.drift, self.diffusion = sde, drift, diffusion
        self.time_at = time_at
        self.y, self.h, self.dw = y, h, dw
        self.estimated, self.recorded = estimated, recorded
        self.k: list[Tensor] = []
        self.g: list[Tensor] = []

    @functools.cached_property
    def start(self) -> Tensor:
        """Time of the start."""
        return self.time_at(0.0)

    @functools.cached_property
    def middle(self) -> Tensor:
        """Time of the middle."""
        return self.time_at(0.5)

    @functools.cached_property
    def end(self) -> Tensor:
        """Time of the end."""
        return self.time_at(1.0)

    @property
    def ito(self) -> bool:
        """Whether the integral by dW is Ito's."""
        return self.sde.calculus == "ito"

    @property
    def double(self) -> Tensor:
        """Twice the double integral of dW by itself, entry by entry."""
        return self.dw * self.dw - self.h if self.ito else self.dw * self.dw

    def f(self, time: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        self.k.append(self.drift(time, y))
        return self.k[-1]

    def diffusion_at(self, time: Tensor, y: Tensor) -> Tensor:
        """The diffusion."""
        self.g.append(self.diffusion(time, y))
        return self.g[-1]

    def estimating(self) -> AbstractContextManager[object]:
        """Where the error is estimated: without a graph unless it is recorded."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.recorded)

    def diffusion_and_slope(self, time: Tensor, y: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """The diffusion g, and its derivative by the state in the direction g * along."""
        differentiable = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if along.is_inference():
                time, along = time.clone(), along.clone()
            # A view, as the diffusion may read what y was made of: the derivative is by its argument alone.
            x = y.view_as(y) if y.requires_grad else y.detach().clone().requires_grad_()
            g = self.diffusion_at(time, x)
            differentiable = differentiable and (y.requires_grad or has_other_leaves(g, [x]))
            slope = torch.zeros_like(g)
            if g.requires_grad and self.sde.noise == "diagonal":  # its Jacobian is diagonal
                slope = _gradient(g, x, g * along, differentiable)
            elif g.requires_grad:  # the derivative of the vector-Jacobian product by its vector
                vector = torch.zeros_like(g, requires_grad=True)
                products = _gradient(g, x, vector, True)
                if products.requires_grad:
                    slope = _gradient(products, vector, g * along, differentiable)
        if not differentiable:
            g, slope = g.detach(), slope.detach()
        self.g[-1] = g
        return g, slope


def _gradient(value: Tensor, by: Tensor, along: Tensor, differentiable: bool) -> Tensor:
    """The vector-Jacobian product along^T d value / d by; zeros where it does not depend on it."""
    found = torch.autograd.grad(value, by, along, retain_graph=True, create_graph=differentiable, allow_unused=True)
    return torch.zeros_like(by) if found[0] is None else found[0]


Scheme = Callable[[Stages], tuple[Tensor, Tensor | None]]


def _em(s: Stages) -> tuple[Tensor, Tensor | None]:
    moved = shifted(s.y, [s.f(s.start, s.y)], (1.0,), s.h)
    return added(moved, s.diffusion_at(s.start, s.y), s.dw), None


def _milstein(s: Stages) -> tuple[Tensor, Tensor | None]:
    f = s.f(s.start, s.y)
    if s.sde.noise == "additive":
        return added(torch.add(s.y, f, alpha=s.h), s.diffusion_at(s.start, s.y), s.dw), None
    g, slope = s.diffusion_and_slope(s.start, s.y, 0.5 * s.double)
    return added(torch.add(s.y, f, alpha=s.h), g, s.dw) + slope, None


def _rkmil(s: Stages) -> tuple[Tensor, Tensor | None]:
    """Milstein's step with a difference quotient.

    The estimate is the one of StochasticDiffEq.jl's in-place code, which adds the sizes of both parts, entry by entry;
    its out-of-place code has the drift in the place of the diffusion's second value.
    """
    f, g, root = s.f(s.start, s.y), s.diffusion_at(s.start, s.y), math.sqrt(s.h)
    moved = torch.add(s.y, f, alpha=s.h)
    slope = (s.diffusion_at(s.start, torch.add(moved if s.ito else s.y, g, alpha=root)) - g) / root
    y1 = moved + driven(g, s.dw) + slope * s.double * 0.5
    if not s.estimated:
        return y1, None
    with s.estimating():
        of_drift = ((s.f(s.end, moved) - f) * (0.5 * s.h)).abs()
        return y1, of_drift + slope.square() * (s.dw**3).abs() / 6


def _lambaem(s: Stages) -> tuple[Tensor, Tensor | None]:
    """Euler-Maruyama with Lamba's estimate, as in StochasticDiffEq.jl's out-of-place code with `split=true`."""
    f, g = s.f(s.start, s.y), s.diffusion_at(s.end, s.y)
    moved, noise = torch.add(s.y, f, alpha=s.h), driven(g, s.dw)
    y1 = moved + noise
    if not s.estimated:
        return y1, None
    with s.estimating():
        root = math.sqrt(s.h)
        of_drift = (s.f(s.end, moved) - f) * (0.5 * s.h)
        change = (s.diffusion_at(s.start, torch.add(moved, noise, alpha=root)) - g) / root
        return y1, of_drift + driven(change, (s.dw * s.dw - s.h) * 0.5)


def _lambaeulerheun(s: Stages) -> tuple[Tensor, Tensor | None]:
    """Heun's step with Lamba's estimate.

    StochasticDiffEq.jl's code fails for a diffusion matrix, which it adds to the state. There the diffusion's part is
    (g(y + g dW) - g(y)) dW / 2: for one process and in the limit of small steps it is the same.
    """
    y1, f, g, noise = _heun_step(s)
    if not s.estimated:
        return y1, None
    with s.estimating():
        of_drift = (s.f(s.end, torch.add(s.y, f, alpha=s.h)) - f) * (0.5 * s.h)
        if s.sde.has_matrix:
            of_noise = driven(s.diffusion_at(s.start, s.y + noise) - g, s.dw * 0.5)
        else:
            root = math.sqrt(s.h)
            change = (s.diffusion_at(s.start, torch.add(s.y, g, alpha=root)) - g) / root
            of_noise = change * (s.dw * s.dw * 0.5)
        return y1, of_drift + of_noise


def _heun_step(s: Stages) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The new state, the drift and the diffusion at the start, and the noise g dW there."""
    f, g = s.f(s.start, s.y), s.diffusion_at(s.start, s.y)
    noise = driven(g, s.dw)
    reached = torch.add(s.y, f, alpha=s.h) + noise
    f1, g1 = s.f(s.end, reached), s.diffusion_at(s.end, reached)
    y1 = torch.add(torch.add(s.y, f + f1, alpha=0.5 * s.h), noise + driven(g1, s.dw), alpha=0.5)
    return y1, f, g, noise


def _heun(s: Stages) -> tuple[Tensor, Tensor | None]:
    return _heun_step(s)[0], None


def _diffusionheun(s: Stages) -> tuple[Tensor, Tensor | None]:
    """Heun's step for the diffusion, Euler's for the drift."""
    f, g = s.f(s.start, s.y), s.diffusion_at(s.start, s.y)
    noise = driven(g, s.dw)
    both = noise + driven(s.diffusion_at(s.end, s.y + noise), s.dw)
    return torch.add(torch.add(s.y, f, alpha=s.h), both, alpha=0.5), None


def _midpoint(s: Stages) -> tuple[Tensor, Tensor | None]:
    f, g = s.f(s.start, s.y), s.diffusion_at(s.start, s.y)
    middle = added(torch.add(s.y, f, alpha=0.5 * s.h), g, s.dw, 0.5)
    f, g = s.f(s.middle, middle), s.diffusion_at(s.middle, middle)
    return added(torch.add(s.y, f, alpha=s.h), g, s.dw), None


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        "em": _em,
        "milstein": _milstein,
        "rkmil": _rkmil,
        "lambaem": _lambaem,
        "lambaeulerheun": _lambaeulerheun,
        "eulerheun": _heun,
        "heun": _heun,
        "diffusionheun": _diffusionheun,
        "midpoint": _midpoint,
    }
)
"""The step of each method by its name: the new state, and the error if it is asked for."""


def scheme_error_ratio(step: SchemeStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The error over the tolerance, entrywise."""
    assert step.error is not None
    error = step.error if torch.is_grad_enabled() else step.error.clone()
    return divided(error, tolerance(larger(step.y, step.y1), rtol, atol))


def scheme_estimates(steps: SchemeStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms) -> Estimates:
    """The error estimate of each step of a batch, shape (batch,)."""
    return Estimates(norm(scheme_error_ratio(steps, rtol, atol)), None)


def scheme_stacked(steps: Sequence[SchemeStep]) -> SchemeStep:
    """Steps of one system as a batch of samples, without their stages."""
    y, y1, error = columns([(s.y, s.y1, s.error) for s in steps if s.error is not None])
    return SchemeStep(y, 0.0, [], [], y1, error)
