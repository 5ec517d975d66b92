"""Continuous normalising flows: an ODE maps data to a simple distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from regnde._arguments import check_arguments
from regnde._divergence import log_density_slope, signs
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde.nn._times import Times, as_floats, kept_times, shown

__all__ = ["CNF", "Density"]

Field = Callable[[Tensor, Tensor], Tensor]
Trace = Literal["exact", "hutchinson"]


class Density(NamedTuple):
    """Log densities of data under a flow. A pickle or a deep copy holds it without its gradients.

    Attributes:
        log_prob: log densities of the data, shape (...), in nats.
        z: states at the last time, shape (..., *event).
        solution: of the flow. Its states have shape (samples, d + 1): the flattened data, and minus the integral of the
            trace so far.
    """

    log_prob: Tensor
    z: Tensor
    solution: Solution

    def __reduce__(self) -> tuple[Any, ...]:
        return Density, (self.log_prob.detach(), self.z.detach(), self.solution)

    def __copy__(self) -> Density:
        return self


class CNF(nn.Module):
    """A continuous normalising flow, with the data at the first time and a base distribution at the last.

    log p(x) = log base(y(t1)) + integral of tr(df/dy) along the solution from y(t0) = x. The log density is part of the
    state, and of error control. The field must not couple the samples of a batch: no batch norm in training
    mode.

    Source: Chen, Rubanova, Bettencourt, Duvenaud (NeurIPS 2018); with the estimated trace, Grathwohl, Chen,
    Bettencourt, Sutskever, Duvenaud (ICLR 2019).

    Args:
        field: f(t, y) on states of shape (samples, *event), usually a module; its parameters are the layer's.
        event: shape of one sample; a number d for (d,).
        ts: times, the data's first, in units of time; as in `NeuralODE`.
        solver: method, tolerances, gradient, engine.
        record: what to record in training mode; nothing is recorded after `.eval()`.
        trace: `"exact"`, which takes as many products with the Jacobian as a sample has entries; or `"hutchinson"`,
            one product with a random vector of signs that is drawn for each solve: an unbiased estimate of the log
            density, but not of the density.
        base: a distribution with this event shape and no batch shape, such as `torch.distributions.Independent` makes;
            by default the standard normal one. Its parameters are not the layer's.

    Examples:
        >>> import torch
        >>> from regnde.nn import CNF, MLP
        >>> flow = CNF(MLP([2, 16, 2]), 2, record="all")
        >>> density = flow(torch.zeros(5, 2))
        >>> density.log_prob.shape, density.solution.steps is not None, flow.sample(3).shape
        (torch.Size([5]), True, torch.Size([3, 2]))
        >>> still = CNF(lambda t, y: 0 * y, 2)  # log density of the base
        >>> still.log_prob(torch.zeros(1, 2))
        tensor([-1.8379])
    """

    like: Tensor

    def __init__(
        self,
        field: Field,
        event: int | Sequence[int],
        ts: Times = (0.0, 1.0),
        solver: Solver | None = None,
        record: Record = "none",
        *,
        trace: Trace = "exact",
        base: Distribution | None = None,
    ) -> None:
        super().__init__()
        self.event = torch.Size((event,) if isinstance(event, int) else event)
        if trace not in ("exact", "hutchinson"):
            raise ValueError(f"CNF(trace={trace!r}): choose 'exact' or 'hutchinson'.")
        if base is not None and (base.event_shape != self.event or base.batch_shape):
            raise ValueError(
                f"CNF: base has event shape {tuple(base.event_shape)} and batch shape {tuple(base.batch_shape)}, a "
                f"sample the shape {tuple(self.event)}: give a distribution of that event shape and no batch shape, "
                f"such as torch.distributions.Independent(base, {len(self.event)})."
            )
        check_arguments("field", field, by="CNF")
        self.field = field
        self.ts = kept_times(ts)
        self.solver = Solver() if solver is None else solver
        self.record = record
        self.trace = trace
        self.base = base
        self.register_buffer(
            "like", torch.empty(0), persistent=False
        )  # device and dtype of samples, if the field has no parameters

    def forward(
        self,
        x: Tensor,
        ts: Times | None = None,
        *,
        generator: torch.Generator | None = None,
        integrate: Callable[[Field, Tensor, Any, Record], Solution] | None = None,
    ) -> Density:
        """Log densities of data.

        Args:
            x: real data, shape (..., *event).
            ts: times in place of the layer's.
            generator: to draw the random vectors from, by default torch's own.
            integrate: called as integrate(field, y0, ts, record) in place of `regnde.solve`: for comparators that
                integrate along the solution.
        """
        batch = self._batch(x)
        y = x.reshape(batch.numel(), self.event.numel())
        probe = signs(y, generator) if self.trace == "hutchinson" else None
        flow = (_SampledFlow if self.solver.batch == "per-sample" else _Flow)(self.field, self.event, probe)
        start = torch.cat((y, y.new_zeros(len(y), 1)), 1)
        record: Record = self.record if self.training else "none"
        times = self.ts if ts is None else ts
        if integrate is None:
            solution = solve(flow, start, times, self.solver, record=record)
        else:
            solution = integrate(flow, start, times, record)
        end = solution.y1
        z = end[:, :-1].reshape(x.shape)
        return Density(self._base_log_prob(z) - end[:, -1].reshape(batch), z, solution)

    def log_prob(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Log densities of real data of shape (..., *event), shape (...), in nats."""
        return self(x, generator=generator).log_prob  # type: ignore[no-any-return]  # a module's call is untyped

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws n samples, shape (n, *event), without gradients: solves back from samples of the base.

        Args:
            n: how many.
            generator: to draw from, by default torch's own; only for the standard normal base.
        """
        if not isinstance(n, Integral) or n < 0:
            raise ValueError(f"CNF.sample({n!r}): give the number of samples.")
        if self.base is None:
            like = next((p for p in self.parameters() if p.is_floating_point()), self.like)
            device = like.device if generator is None else generator.device
            z = torch.randn(n, *self.event, generator=generator, dtype=like.dtype, device=device).to(like.device)
        elif generator is None:
            z = self.base.sample(torch.Size((n,)))
        else:
            raise ValueError("CNF.sample: a torch distribution draws from torch's own generator: leave out generator.")
        times = as_floats(self.ts)
        return solve(self.field, z, (times[-1], times[0]), self.solver).y1

    def extra_repr(self) -> str:
        """Event, times, solver, record and trace, for the module's repr."""
        return (
            f"event={tuple(self.event)}, ts={shown(self.ts)}, solver={self.solver}, record={self.record!r}, "
            f"trace={self.trace!r}, base={self.base}"
        )

    def _batch(self, x: Tensor) -> torch.Size:
        """The batch dimensions of the data's shape."""
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            given = f"dtype {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"CNF: data must be a tensor of real floating-point numbers, got {given}.")
        cut = x.ndim - len(self.event)
        if cut < 0 or x.shape[cut:] != self.event:
            raise ValueError(f"CNF: data of shape {tuple(x.shape)} do not end in a sample's shape {tuple(self.event)}.")
        return x.shape[:cut]

    def _base_log_prob(self, z: Tensor) -> Tensor:
        if self.base is not None:
            return self.base.log_prob(z)
        squares = z.square().reshape(*z.shape[: z.ndim - len(self.event)], self.event.numel()).sum(-1)
        return -0.5 * (squares + self.event.numel() * math.log(2 * math.pi))


class _Flow(nn.Module):
    """The field of flattened samples with their log densities, shape (samples, d + 1)."""

    def __init__(self, field: Field, event: torch.Size, probe: Tensor | None = None) -> None:
        super().__init__()
        self.field, self.event, self.probe = field, event, probe

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at time t (0-dim) and z."""
        return self._slope(t, z, self.probe)

    def _slope(self, t: Tensor, z: Tensor, probe: Tensor | None) -> Tensor:
        return log_density_slope(self.field if len(self.event) == 1 else self._flat, t, z, probe)

    def _flat(self, t: Tensor, y: Tensor) -> Tensor:
        """The field on flattened samples."""
        if t.ndim:
            t = t.reshape(-1, *[1] * len(self.event))
        return self.field(t, y.reshape(-1, *self.event)).reshape(y.shape)


class _SampledFlow(_Flow):
    """`_Flow` for per-sample step sizes: it is also given the indices of the samples."""

    def forward(self, t: Tensor, z: Tensor, samples: Tensor) -> Tensor:  # type: ignore[override]  # by its arguments
        """The slope at times t, a column, and z."""
        return self._slope(t, z, None if self.probe is None else self.probe[samples])
