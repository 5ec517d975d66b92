"""The divergence of the law of an SDE's path from that of another drift, as one more channel of the state."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from regnde._equation import SDE

__all__ = ["Joint", "with_path_divergence"]

SMALL = 1e-7  # a diffusion below it is taken for it where the drifts' difference is divided by it, as in torchsde


class Joint:
    """A drift and a diffusion from one function of both: where they are asked at one point, it is called once.

    Args:
        both: drift and diffusion at (t, y).
        alone: the diffusion, if it costs less without the drift.
    """

    def __init__(
        self,
        both: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        alone: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.both = both
        self.alone = (lambda t, y: both(t, y)[1]) if alone is None else alone
        self._waiting: tuple[Tensor, Tensor, bool, Tensor] | None = None  # time, state, grad mode, diffusion

    def drift(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift; the diffusion waits to be asked for."""
        f, g = self.both(t, y)
        self._waiting = (t, y, torch.is_grad_enabled(), g)
        return f

    def diffusion(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            time, state, differentiable, g = waiting
            if state is y and differentiable == torch.is_grad_enabled() and torch.equal(time, t):
                return g
        return self.alone(t, y)


def with_path_divergence(sde: SDE, prior: Callable[[Tensor, Tensor], Tensor]) -> SDE:
    """The equation of the state and, as its last channel, of the divergence of the path from the prior's.

    Its slope is half the square of u, where diffusion u = drift - prior drift: the Kullback-Leibler divergence of the
    two laws on paths is the mean of it (Girsanov; X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, AISTATS 2020, 9).
    """
    joint = Joint(lambda t, y: _with_rate(sde, prior, t, y), lambda t, y: _with_zero(sde, sde.diffusion(t, y[:, :-1])))
    return SDE(joint.drift, joint.diffusion, sde.noise, sde.calculus)


def _with_zero(sde: SDE, g: Tensor) -> Tensor:
    """The diffusion, zero for the last channel."""
    return torch.cat([g, g.new_zeros((len(g), 1, *g.shape[2:]))], 1)


def _with_rate(sde: SDE, prior: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Drift and diffusion of all channels."""
    state = y[:, :-1]
    f, g = sde.drift(t, state), sde.diffusion(t, state)
    expected = prior(t, state)
    if expected.shape != state.shape:
        raise ValueError(
            f"the prior's drift returned shape {tuple(expected.shape)} for a state of shape {tuple(state.shape)}; the "
            "shapes must be equal (nothing is broadcast)."
        )
    gap = f - expected
    if sde.noise == "diagonal":
        u = gap / torch.where(g.detach().abs() > SMALL, g, SMALL * torch.sign(g))
    elif sde.noise == "scalar":  # the pseudo-inverse of one column
        u = (g * gap).sum(1, keepdim=True) / g.square().sum(1, keepdim=True).clamp(min=torch.finfo(g.dtype).tiny)
    else:
        u = torch.matmul(torch.linalg.pinv(g), gap.unsqueeze(-1)).squeeze(-1)
    return torch.cat([f, 0.5 * u.square().sum(1, keepdim=True)], 1), _with_zero(sde, g)
