"""Latent ODE for irregular series: an encoder that reads them backwards in time, a field, a decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde._times import checked_times
from regnde.nn._series import check_series

__all__ = ["BackwardGRU", "LatentODE", "Reconstruction"]


class BackwardGRU(nn.Module):
    """A recurrent encoder whose state is a mean and a deviation, run from the last observation to the first.

    Source: Rubanova, Chen, Duvenaud (NeurIPS 2019); widths as in Pal et al. (ICML 2021). At a time t_i it reads
    [values, mask, t_{i+1} - t_i] (0 at the last time) and blends both halves of the state with both halves of the
    candidate, m <- u m + (1 - u) m', s <- u s + (1 - u) |s'|; the code of Pal et al. blends the mean with the
    candidate's deviation, its mean unused. A sample without data at a time keeps its state there.

    Args:
        features: channels of the series.
        hidden: width of the mean, and of the deviation.
        units: width of the gates' hidden layers.
        latent: width of the latent state.

    Examples:
        >>> encoder = BackwardGRU(features=3, latent=4)
        >>> mean, log_variance = encoder(torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7))
        >>> mean.shape, log_variance.shape
        (torch.Size([5, 4]), torch.Size([5, 4]))
    """

    def __init__(self, features: int, *, hidden: int = 50, units: int = 40, latent: int = 20) -> None:
        super().__init__()
        width = 2 * hidden + 2 * features + 1
        self.hidden = hidden
        # One linear map reads the input for both gates: their first layers side by side.
        self.gates_in = nn.Linear(width, 2 * units)
        self.update_out, self.reset_out = nn.Linear(units, hidden), nn.Linear(units, hidden)
        self.candidate = nn.Sequential(nn.Linear(width, units), nn.Tanh(), nn.Linear(units, 2 * hidden))
        self.head = nn.Sequential(nn.Linear(2 * hidden, 50), nn.Tanh(), nn.Linear(50, 2 * latent))

    def step(self, mean: Tensor, deviation: Tensor, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The state after one time.

        Args:
            mean: shape (batch, hidden). The new state keeps its dtype, under autocast too.
            deviation: shape (batch, hidden).
            x: values, mask and gap, shape (batch, 2 * features + 1).
            seen: whether a sample has data at this time, shape (batch, 1), bool.
        """
        u, r = torch.tanh(self.gates_in(torch.cat((mean, deviation, x), 1))).chunk(2, 1)
        update, reset = (torch.sigmoid(gate).to(mean.dtype) for gate in (self.update_out(u), self.reset_out(r)))
        candidate = self.candidate(torch.cat((mean * reset, deviation * reset, x), 1)).to(mean.dtype)
        new_mean, new_deviation = candidate.chunk(2, 1)
        new_mean = torch.lerp(new_mean, mean, update)
        new_deviation = torch.lerp(new_deviation.abs(), deviation, update)
        return torch.where(seen, new_mean, mean), torch.where(seen, new_deviation, deviation)

    def forward(self, values: Tensor, mask: Tensor, ts: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent state at ts[0], each of shape (batch, latent).

        Args:
            values: shape (batch, times, features); what the mask hides is not read.
            mask: 1 where observed, else 0, same shape.
            ts: times, shape (times,), of any dtype: only the gaps between them are rounded to that of the values.
        """
        check_series(values, mask, ts)
        batch, times, _ = values.shape
        gaps = torch.cat((ts[1:] - ts[:-1], ts.new_zeros(1))).to(values)
        shown = torch.where(mask.bool(), values, torch.zeros_like(values))  # a hidden nan stays hidden
        x = torch.cat((shown, mask.to(values), gaps[None, :, None].expand(batch, times, 1)), 2)
        seen = mask.any(2, keepdim=True)
        mean = values.new_zeros(batch, self.hidden)
        deviation = values.new_ones(batch, self.hidden)
        for i in reversed(range(times)):
            mean, deviation = self.step(mean, deviation, x[:, i], seen[:, i])
        latent, log_variance = self.head(torch.cat((mean, deviation), 1)).to(mean.dtype).chunk(2, 1)
        return latent, log_variance


class Reconstruction(NamedTuple):
    """The reconstruction of a batch of series by a latent ODE. A pickle or a deep copy holds it without its gradients.

    Attributes:
        values: decoded series, shape (batch, times, features).
        mean: of the latent initial state's distribution, shape (batch, latent).
        log_variance: likewise.
        solution: of the latent ODE.
    """

    values: Tensor
    mean: Tensor
    log_variance: Tensor
    solution: Solution

    def kl(self) -> Tensor:
        """Divergence from the standard normal distribution, averaged over the latent entries, shape (batch,)."""
        term = self.log_variance.exp() + self.mean.square() - 1 - self.log_variance
        return term.mean(1) / 2

    def __reduce__(self) -> tuple[Any, ...]:
        return Reconstruction, (*(x.detach() for x in self[:3]), self.solution)

    def __copy__(self) -> Reconstruction:
        return self


class LatentODE(nn.Module):
    """A variational autoencoder of irregular series whose latent state moves along an ODE.

    Args:
        encoder: maps (values, mask, ts) to mean and log variance of the latent initial state. It gets the times in
            the dtype of the values, `BackwardGRU` in their own.
        field: f(t, z) on latent states of shape (batch, latent).
        decoder: maps latent states, shape (..., latent), to values, shape (..., features).
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.

    Examples:
        >>> field = lambda t, z: -z
        >>> model = LatentODE(BackwardGRU(3, latent=4), field, nn.Linear(4, 3), record="all")
        >>> made = model(torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7))
        >>> made.values.shape, made.kl().shape, made.solution.steps is not None
        (torch.Size([5, 7, 3]), torch.Size([5]), True)
    """

    def __init__(
        self,
        encoder: nn.Module,
        field: Callable[[Tensor, Tensor], Tensor],
        decoder: nn.Module,
        *,
        solver: Solver | None = None,
        record: Record = "none",
    ) -> None:
        super().__init__()
        self.encoder, self.field, self.decoder = encoder, field, decoder
        self.solver = Solver() if solver is None else solver
        self.record = record

    def forward(
        self,
        values: Tensor,
        mask: Tensor,
        ts: Tensor | ArrayLike,
        *,
        sample: bool = True,
        integrate: Callable[[Tensor, Any, Record], Solution] | None = None,
    ) -> Reconstruction:
        """Encodes the series, solves from the latent state at ts[0], decodes the states at `ts`.

        Args:
            values: shape (batch, times, features).
            mask: 1 where observed, else 0, same shape.
            ts: increasing times, shape (times,), shared by the batch. Their gradient goes through the encoder, the
                solve and `integrate`.
            sample: draw the initial state; False takes its mean.
            integrate: called as integrate(y0, ts, record) in place of `regnde.solve` on the field: for comparators
                that integrate along the solution. The times are a tuple of floats, or a tensor if they carry a
                gradient.
        """
        times, floats = checked_times(ts)
        check_series(values, mask, times)
        read = times.to(values.device) if isinstance(self.encoder, BackwardGRU) else times.to(values)
        mean, log_variance = (_single(x) for x in self.encoder(values, mask, read))
        start = mean + (log_variance / 2).exp() * torch.randn_like(mean) if sample else mean
        record: Record = self.record if self.training else "none"
        clock = times if times.requires_grad else floats
        if integrate is None:
            solution = solve(self.field, start, clock, self.solver, record=record)
        else:
            solution = integrate(start, clock, record)
        return Reconstruction(self.decoder(solution.ys.transpose(0, 1)), mean, log_variance, solution)


def _single(x: Tensor) -> Tensor:
    """The tensor in float32 at least: under autocast an encoder returns half precision, and a state needs more."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
