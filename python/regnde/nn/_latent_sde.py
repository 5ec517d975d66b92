"""Latent SDE for series: a posterior drift that reads an encoder's context, a prior drift, one diffusion, a decoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from regnde._arguments import check_arguments
from regnde._equation import SDE, Calculus
from regnde._noise import BrownianPath
from regnde._path_divergence import with_path_divergence
from regnde._sde_method import SDE_METHODS
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde._times import checked_times
from regnde.nn._series import check_series

__all__ = ["ContextGRU", "LatentSDE", "PathReconstruction"]

Drift = Callable[[Tensor, Tensor], Tensor]


class ContextGRU(nn.Module):
    """A recurrent encoder, from the last observation to the first, that leaves a context at every time.

    At a time t_i it reads [values, mask, t_{i+1} - t_i] (0 at the last time), so that the context there knows all that
    is observed from t_i on.

    Args:
        features: channels of the series.
        hidden: width of the recurrent state.
        context: width of the context.
        latent: width of the latent state.

    Examples:
        >>> encoder = ContextGRU(features=3, latent=4)
        >>> mean, log_variance, context = encoder(torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7))
        >>> mean.shape, context.shape
        (torch.Size([5, 4]), torch.Size([7, 5, 16]))
    """

    def __init__(self, features: int, *, hidden: int = 32, context: int = 16, latent: int = 4) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * features + 1, hidden)
        self.head, self.start = nn.Linear(hidden, context), nn.Linear(context, 2 * latent)

    def forward(self, values: Tensor, mask: Tensor, ts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of the latent state at ts[0], shape (batch, latent), and the context.

        Args:
            values: shape (batch, times, features); what the mask hides is not read.
            mask: 1 where observed, else 0, same shape.
            ts: times, shape (times,).

        Returns:
            Mean, log variance, and the context at every time, shape (times, batch, context).
        """
        check_series(values, mask, ts)
        batch, times, _ = values.shape
        gaps = torch.cat((ts[1:] - ts[:-1], ts.new_zeros(1))).to(values)
        shown = torch.where(mask.bool(), values, torch.zeros_like(values))  # a hidden nan stays hidden
        x = torch.cat((shown, mask.to(values), gaps[None, :, None].expand(batch, times, 1)), 2)
        states, _ = self.gru(x.transpose(0, 1).flip(0))
        context = self.head(states.flip(0))
        mean, log_variance = self.start(context[0]).chunk(2, 1)
        return mean, log_variance, context


class PathReconstruction(NamedTuple):
    """The reconstruction of a batch of series by a latent SDE. A pickle or a deep copy holds it without its gradients.

    Attributes:
        values: decoded series, shape (batch, times, features).
        latent: latent states, shape (times, batch, latent).
        initial_kl: divergence of the initial state's distribution from the prior's, shape (batch,).
        path_kl: divergence of the path's law from the prior's, one sample of its mean, shape (batch,).
        solution: of the posterior SDE; the last channel of its states is the divergence so far.
    """

    values: Tensor
    latent: Tensor
    initial_kl: Tensor
    path_kl: Tensor
    solution: Solution

    def kl(self) -> Tensor:
        """Divergence of initial state and path together, shape (batch,)."""
        return self.initial_kl + self.path_kl

    def __reduce__(self) -> tuple[Any, ...]:
        return PathReconstruction, (*(x.detach() for x in self[:4]), self.solution)

    def __copy__(self) -> PathReconstruction:
        return self


class LatentSDE(nn.Module):
    """A variational autoencoder of irregular series whose latent state moves along an SDE.

    The posterior's drift reads the context that the encoder left at the next time of the series; prior and posterior
    share the diffusion. The divergence of the path is a further channel of the state, whose error is not controlled.
    Source: X. Li, T.-K. L. Wong, R. T. Q. Chen, D. Duvenaud, Scalable Gradients for Stochastic Differential Equations,
    AISTATS 2020, section 5.

    Args:
        encoder: maps (values, mask, ts) to mean and log variance of the latent initial state and to the context, as
            `ContextGRU` does.
        posterior: drift f(t, z, context) on latent states of shape (batch, latent), context (batch, width).
        prior: drift h(t, z).
        diffusion: g(t, z), diagonal: each entry depends on its own entry of z alone. It must stay away from zero.
        decoder: maps latent states, shape (..., latent), to values, shape (..., features).
        latent: width of the latent state.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.
        calculus: `"ito"` or `"stratonovich"`.

    Examples:
        >>> drift = lambda t, z, context: context[:, :4] - z
        >>> model = LatentSDE(
        ...     ContextGRU(3, latent=4), drift, lambda t, z: -z, lambda t, z: 0.5 + 0 * z, nn.Linear(4, 3), latent=4
        ... )
        >>> made = model(torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7))
        >>> made.values.shape, made.kl().shape, model.sample(2, [0.0, 0.5, 1.0]).shape
        (torch.Size([5, 7, 3]), torch.Size([5]), torch.Size([2, 3, 3]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        posterior: Callable[[Tensor, Tensor, Tensor], Tensor],
        prior: Drift,
        diffusion: Drift,
        decoder: nn.Module,
        *,
        latent: int,
        solver: Solver | None = None,
        record: Record = "none",
        calculus: Calculus = "ito",
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        check_arguments("posterior", posterior, by="LatentSDE", most=3)
        check_arguments("prior", prior, by="LatentSDE")
        check_arguments("diffusion", diffusion, by="LatentSDE")
        self.posterior, self.prior, self.diffusion = posterior, prior, diffusion
        self.prior_mean, self.prior_log_variance = (nn.Parameter(torch.zeros(latent)) for _ in range(2))
        self.solver = Solver() if solver is None else solver
        self.record = record
        self.calculus = calculus

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        ts: Tensor | ArrayLike,
        *,
        noise: BrownianPath | None = None,
    ) -> PathReconstruction:
        """Encodes the series, solves the posterior SDE from the latent state at ts[0], decodes the states at `ts`.

        Args:
            values: shape (batch, times, features).
            mask: 1 where observed, else 0, same shape.
            ts: increasing times, shape (times,), shared by the batch; without a gradient. Adaptive steps end there,
                where the posterior's drift jumps from one context to the next.
            noise: the Brownian path, of shape (batch, latent + 1); by default a new one.
        """
        times, floats = checked_times(ts)
        check_series(values, mask, times)
        mean, log_variance, context = self.encoder(values, mask, times.to(values))
        start = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        clock = torch.tensor(floats[:-1], dtype=start.real.dtype, device=start.device)

        def drift(t: Tensor, z: Tensor) -> Tensor:
            after = torch.searchsorted(clock, t.to(clock).reshape(1), right=True)
            return self.posterior(t, z, context.index_select(0, after).squeeze(0))

        sde = with_path_divergence(SDE(drift, self.diffusion, "diagonal", self.calculus), self.prior)
        solution = solve(
            sde,
            torch.cat([start, start.new_zeros(len(start), 1)], 1),
            floats,
            self._uncontrolled(start.shape[1]),
            record=self.record if self.training else "none",
            noise=noise,
            stops=floats if self._adaptive() else (),
        )
        latent, divergence = solution.ys[..., :-1], solution.ys[-1, :, -1]
        gap = (mean - self.prior_mean).square() / self.prior_log_variance.exp()
        log_ratio = log_variance - self.prior_log_variance
        initial = 0.5 * (log_ratio.exp() + gap - 1 - log_ratio).sum(1)
        return PathReconstruction(self.decoder(latent.transpose(0, 1)), latent, initial, divergence, solution)

    def _adaptive(self) -> bool:
        """Whether steps adapt; those of a fixed size go through the times, which need not be multiples of it."""
        given = self.solver.resolve(sde=SDE(self.prior, self.diffusion, "diagonal", self.calculus))
        known = SDE_METHODS.get(given.method)
        return known is None or known.adaptive

    def _uncontrolled(self, latent: int) -> Solver:
        """The solver with no control of the last channel's error."""
        given = self.solver.resolve(sde=True)
        if not (isinstance(given.rtol, float) and isinstance(given.atol, float)):
            raise ValueError("LatentSDE: give the solver one number as rtol, and one as atol.")
        rtol, atol = (
            torch.tensor([tolerance] * latent + [last], dtype=torch.float64)
            for tolerance, last in ((given.rtol, 0.0), (given.atol, math.inf))
        )
        return dataclasses.replace(self.solver, rtol=rtol, atol=atol)

    @torch.no_grad()
    def sample(self, count: int, ts: Tensor | ArrayLike, *, noise: BrownianPath | None = None) -> Tensor:
        """Series from the prior, shape (count, times, features).

        Args:
            count: how many.
            ts: increasing times, shape (times,).
            noise: the Brownian path, of shape (count, latent); by default a new one.
        """
        scale = (self.prior_log_variance / 2).exp()
        start = self.prior_mean + scale * torch.randn(count, len(scale), dtype=scale.dtype, device=scale.device)
        sde = SDE(self.prior, self.diffusion, "diagonal", self.calculus)
        values: Tensor = self.decoder(solve(sde, start, ts, self.solver, noise=noise).ys.transpose(0, 1))
        return values
