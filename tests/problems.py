"""Problems with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde


def seeded(seed: int) -> torch.Generator:
    """Random numbers of their own, on torch's default device."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


SPIRAL = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)


def exp_decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def harmonic(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -y[0]])


def lotka_volterra(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([1.5 * y[0] - y[0] * y[1], -3 * y[1] + y[0] * y[1]])


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return SPIRAL @ y**3


def van_der_pol(mu: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def forced(t: Tensor, y: Tensor) -> Tensor:
    """y' = -2 (y - cos t): depends on time in every stage."""
    return -2 * (y - torch.cos(t))


def forced_exact(t: float, y0: float) -> float:
    particular = (4 * math.cos(t) + 2 * math.sin(t)) / 5
    return particular + (y0 - 4 / 5) * math.exp(-2 * t)


GOLDEN = {
    "exp_decay": exp_decay,
    "harmonic": harmonic,
    "lotka_volterra": lotka_volterra,
    "spiral": spiral,
    "vdp_mu1": van_der_pol(1.0),
    "vdp_mu100": van_der_pol(100.0),
}
"""The fields of tests/golden/ode_steps.json."""


@dataclass(frozen=True)
class Smooth:
    """A problem with an exact solution."""

    name: str
    f: Callable[[Tensor, Tensor], Tensor]
    y0: list[float]
    end: float
    exact: list[float]


SMOOTH = (
    Smooth("decay", exp_decay, [1.0], 2.0, [math.exp(-2)]),
    Smooth("harmonic", harmonic, [1.0, 0.0], 3.0, [math.cos(3), -math.sin(3)]),
    Smooth("forced", forced, [0.5], 2.0, [forced_exact(2.0, 0.5)]),
    Smooth("logistic", lambda t, y: y * (1 - y), [0.1], 4.0, [1 / (1 + 9 * math.exp(-4))]),
)


def cubic_net(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """u' = W2 tanh(W1 u^3 + b1) + b2 with 50 hidden units, p laid out as in tests/golden/neural_ode.json."""
    w1, b1, w2, b2 = p.split([100, 50, 100, 2])
    first, second = w1.reshape(2, 50), w2.reshape(50, 2)  # column-major in Julia, so transposed here
    return lambda t, y: torch.tanh(y**3 @ first + b1) @ second + b2


def small_net(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A time-dependent field of two components with six parameters, for finite differences."""
    return lambda t, y: torch.tanh(
        torch.stack([p[0] * y[..., 1] + p[1] * t, p[2] * y[..., 0] - p[3] * y[..., 1]], -1) * p[4] + p[5]
    )


SMALL_P = torch.tensor([1.3, 0.4, -2.1, 0.7, 1.6, 0.1], dtype=torch.float64)
SMALL_Y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64)


# --- SDEs ----------------------------------------------------------------------------------------


def golden_sde() -> regnde.SDE:
    """The problem of tests/golden/sde_steps.json."""
    return regnde.SDE(spiral, lambda t, y: 0.2 * y)


def geometric(mu: float = 0.4, sigma: float = 0.5) -> regnde.SDE:
    """Geometric Brownian motion, y = y0 exp((mu - sigma^2/2) t + sigma W)."""
    return regnde.SDE(lambda t, y: mu * y, lambda t, y: sigma * y)


def bounded(a: float = 0.6) -> regnde.SDE:
    """A nonlinear one with y = ((1 + y0) e^(2 a W) + y0 - 1) / ((1 + y0) e^(2 a W) + 1 - y0).

    P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential Equations, 4.4.
    """
    return regnde.SDE(lambda t, y: -(a**2) * y * (1 - y**2), lambda t, y: a * (1 - y**2))


def growing_noise(a: float = 0.3, b: float = 0.5) -> regnde.SDE:
    """Additive noise and time in both fields: y = y0 / (1 + t) + b (t + a W) / (1 + t).

    A. Roessler, SIAM J. Numer. Anal. 48 (2010), (6.5) has it with sqrt(1 + t).
    """
    return regnde.SDE(
        lambda t, y: (b - y) / (1 + t),
        lambda t, y: a * b / (1 + t) * torch.ones_like(y),
    )


def lagging(additive: bool = False) -> regnde.SDE:
    """Drift and diffusion that do not commute: the solution is no function of W(t), it takes its whole path."""
    return regnde.SDE(
        lambda t, y: 1.5 * (torch.cos(3 * t) - y),
        lambda t, y: torch.full_like(y, 0.7) if additive else 0.7 * torch.sqrt(1 + y**2),
    )


MIX = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]], dtype=torch.float64)


def exponentials(calculus: str = "ito", a: float = 0.3) -> regnde.SDE:
    """Each of two entries of a sample driven by three processes: dy_i = a y_i dt + y_i (MIX dW)_i; commutative.

    In Ito's sense y_i = y_i(0) exp((a - |MIX_i|^2 / 2) t + (MIX W)_i), in Stratonovich's without the square.
    """
    return regnde.SDE(lambda t, y: a * y, lambda t, y: y.unsqueeze(-1) * MIX, "general", calculus)


def turning(calculus: str = "ito", sigma: float = 0.8) -> regnde.SDE:
    """A rotation of the plane by the angle sigma W, one process for both entries of a sample."""

    def across(t: Tensor, y: Tensor) -> Tensor:
        return sigma * torch.stack([-y[..., 1], y[..., 0]], -1)

    half = sigma**2 / 2 if calculus == "ito" else 0.0
    return regnde.SDE(lambda t, y: -half * y, across, "scalar", calculus)


def turned(y0: Tensor, angle: Tensor) -> Tensor:
    """The plane's points turned by angles."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos * y0[..., 0] - sin * y0[..., 1], sin * y0[..., 0] + cos * y0[..., 1]], -1)


def area_process(calculus: str = "ito") -> regnde.SDE:
    """(W_1, int W_1 dW_2): two processes that do not commute; both senses of the integral are the same."""

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        zero = torch.zeros_like(y[..., 0])
        return torch.stack([torch.stack([zero + 1, zero], -1), torch.stack([zero, y[..., 0]], -1)], -2)

    return regnde.SDE(lambda t, y: torch.zeros_like(y), diffusion, "general", calculus)


def mixed_lagging(calculus: str = "ito") -> regnde.SDE:
    """Two entries of a sample with a nonlinear drift, driven by three processes whose matrix depends on time alone."""

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return (MIX * (1 + torch.sin(2 * t))).expand(*y.shape, 3)

    return regnde.SDE(lambda t, y: torch.cos(y.flip(-1)) - y, diffusion, "additive", calculus)


def small_sde(p: Tensor) -> regnde.SDE:
    """Time-dependent drift and diffusion of two components with ten parameters, for finite differences."""

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(torch.stack([p[6] * y[..., 0] + p[7] * t, p[8] * y[..., 1] * y[..., 0] + p[9]], -1))

    return regnde.SDE(small_net(p[:6]), diffusion)


SMALL_SDE_P = torch.cat([SMALL_P, torch.tensor([0.4, 0.3, 0.5, 0.2], dtype=torch.float64)])


def robertson(p: Tensor | Sequence[float] = (0.04, 1e4, 3e7)) -> Callable[[Tensor, Tensor], Tensor]:
    """Robertson's kinetics with three rate constants, of one system or of a batch; y0 = (1, 0, 0)."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        first, second, third = p[0] * a, p[1] * b * c, p[2] * b * b
        return torch.stack([second - first, first - second - third, third], -1)

    return field


def prothero_robinson(t: Tensor, y: Tensor) -> Tensor:
    """y' = -1000 (y - cos t) - sin t with the solution cos t."""
    return -1000 * (y - torch.cos(t)) - torch.sin(t)


STIFF = {
    "robertson": robertson(),
    "prothero_robinson": prothero_robinson,
    "vdp_mu10": van_der_pol(10.0),
    "vdp_mu1000": van_der_pol(1000.0),
}
"""The problems of tests/golden/stiff_steps.json."""


def forced_net(p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A small field that depends on the time, with two rates that differ by 200; p has 6 entries."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        a, b = y.unbind(-1)
        fast = p[0] * 40 * (torch.cos(p[1] * t) - a) + p[2] * b * b
        slow = torch.tanh(p[3] * a + p[4] * b) + p[5] * torch.sin(t) * b
        return torch.stack([fast, slow], -1)

    return field
