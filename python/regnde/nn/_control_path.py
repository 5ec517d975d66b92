"""Paths through data that a controlled differential equation follows."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["ControlPath", "CubicPath", "LinearPath", "RectilinearPath"]


class ControlPath(ABC):
    """A path X(t) through values at times, the knots; its pieces between them are polynomials.

    Attributes:
        values: at the knots, shape (..., T, channels), with every NaN filled in.
        knots: their times, increasing.
        stops: times inside the span where dX/dt jumps: `solve` ends steps there.
    """

    values: Tensor
    knots: tuple[float, ...]

    def __init__(self, values: Tensor, knots: Sequence[float] | Tensor | None = None) -> None:
        self.knots = _checked_knots(values, knots)
        self._set(_filled(values, self.knots))

    def _set(self, values: Tensor) -> None:
        """Keeps the filled values, and the slopes between them."""
        self.values = values
        times = torch.tensor(self.knots, dtype=torch.float64)
        self._times = times.to(values.device, values.dtype)
        self._sizes = times.diff().to(values.device, values.dtype)
        self._secants = values.diff(dim=-2) / self._sizes.unsqueeze(-1)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.values.shape[-1]

    @property
    def span(self) -> tuple[float, float]:
        """First and last knot."""
        return self.knots[0], self.knots[-1]

    @property
    def stops(self) -> tuple[float, ...]:
        """The knots inside the span."""
        return self.knots[1:-1]

    def __getitem__(self, index: Any) -> Self:
        """The paths of chosen samples, by an index of the leading dimensions."""
        twin = object.__new__(type(self))
        twin.knots = self.knots
        values = self.values[index]
        if values.ndim < 2 or values.shape[-2:] != self.values.shape[-2:]:
            raise IndexError(f"{type(self).__name__}: the index must leave times and channels as they are.")
        twin._set(values)
        return twin

    def __len__(self) -> int:
        """Number of paths."""
        if self.values.ndim < 3:
            raise TypeError("a single path has no length; len(path.knots) is the number of its knots.")
        return len(self.values)

    def __bool__(self) -> bool:
        """Always true: whether there is a path does not depend on how many there are."""
        return True

    def __repr__(self) -> str:
        batch, first, last = tuple(self.values.shape[:-2]), *self.span
        return (
            f"{type(self).__name__}(batch: {batch}, {len(self.knots)} knots in [{first:g}, {last:g}], "
            f"channels: {self.channels})"
        )

    @abstractmethod
    def __call__(self, t: Tensor | float) -> Tensor:
        """X(t) at a 0-dim time, shape (..., channels). Outside the span the first or the last polynomial is used."""

    @abstractmethod
    def derivative(self, t: Tensor, samples: Tensor | None = None) -> Tensor:
        """dX/dt, shape (..., channels); at a knot the derivative of the polynomial after it.

        Args:
            t: time, 0-dim; or shape (b, 1), one for each sample.
            samples: which samples of a batch (B, T, channels) these times are for, shape (b,).
        """

    def _place(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Indices of the polynomials at the times, shape (b,) or (1,), and the times within them, scaled to [0, 1]."""
        times = torch.as_tensor(t, dtype=self._times.dtype, device=self._times.device).reshape(-1)
        piece = torch.searchsorted(self._times[1:-1], times, right=True)
        return piece, (times - self._times[piece]) / self._sizes[piece]

    def _picked(self, rows: Tensor, piece: Tensor, samples: Tensor | None) -> Tensor:
        """Rows of the coefficients: one row for all samples, or one for each given sample, shape (..., channels)."""
        if samples is None:
            return rows.index_select(-2, piece).squeeze(-2)
        return rows[samples, piece]


class LinearPath(ControlPath):
    """Straight lines from value to value: dX/dt is constant between knots and jumps at them.

    Args:
        values: shape (..., T, channels), real; T >= 2. A NaN is a value that is missing: it is filled in along the line
            between the values of its channel around it, or with the nearest of them at an end. A channel of a sample
            without any value is 0.
        knots: times of the values, shape (T,), increasing, shared by the batch; by default 0, 1, ..., T - 1. Times that
            differ from sample to sample are a channel of the values.

    Examples:
        >>> path = LinearPath(torch.tensor([[0.0, 5.0], [1.0, float("nan")], [3.0, 9.0]]))
        >>> path(0.5), path.derivative(torch.tensor(1.5))
        (tensor([0.5000, 6.0000]), tensor([2., 2.]))
    """

    def __call__(self, t: Tensor | float) -> Tensor:
        """X(t) at a 0-dim time, shape (..., channels)."""
        piece, theta = self._place(t)
        return torch.lerp(self._picked(self.values, piece, None), self._picked(self.values, piece + 1, None), theta)

    def derivative(self, t: Tensor, samples: Tensor | None = None) -> Tensor:
        """The slope of the line."""
        return self._picked(self._secants, self._place(t)[0], samples)


class CubicPath(ControlPath):
    """Cubic Hermite pieces whose slope at a knot is that of the line from the knot before: dX/dt is continuous.

    X(t) depends only on values up to the next knot.

    Source: Morrill, Kidger, Yang, Lyons, "Neural controlled differential equations for online prediction tasks" (2021),
    Hermite splines with backward differences.

    Args:
        values: as in `LinearPath`, and so are missing ones.
        knots: as in `LinearPath`.

    Examples:
        >>> path = CubicPath(torch.tensor([[0.0], [1.0], [1.0]]))
        >>> path.derivative(torch.tensor(0.5)), path.derivative(torch.tensor(1.0)), path(2.0)
        (tensor([1.]), tensor([1.]), tensor([1.]))
    """

    def __call__(self, t: Tensor | float) -> Tensor:
        """X(t) at a 0-dim time, shape (..., channels)."""
        piece, theta = self._place(t)
        before, after = self._slopes(piece, None)
        moved = before * theta + (after - before) * (2 - theta) * theta.square()
        return self._picked(self.values, piece, None) + self._sizes[piece] * moved

    def derivative(self, t: Tensor, samples: Tensor | None = None) -> Tensor:
        """The slope of the cubic."""
        piece, theta = self._place(t)
        weight = (4 - 3 * theta) * theta
        return torch.lerp(*self._slopes(piece, samples), weight if samples is None else weight.unsqueeze(-1))

    def _slopes(self, piece: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        """The slopes at both ends of a polynomial; the first one is a line."""
        before = self._picked(self._secants, (piece - 1).clamp(min=0), samples)
        return before, self._picked(self._secants, piece, samples)


class RectilinearPath(LinearPath):
    """Lines along the axes: first the time of the next observation, then its values. X(t) is causal.

    Its parameter counts: from 2 i to 2 i + 1 the time channel goes from observation i to the next one, and from there
    to 2 i + 2 the others do. A value that is missing is that of the observation before.

    Source: Morrill, Kidger, Yang, Lyons (2021), as in `CubicPath`.

    Args:
        values: shape (..., T, channels), T >= 2. NaN is a missing value; the first observation has none.
        time_channel: which channel is the time.

    Examples:
        >>> path = RectilinearPath(torch.tensor([[0.0, 5.0], [0.3, 7.0]]))
        >>> path.knots, path(1.0), path(2.0)
        ((0.0, 1.0, 2.0), tensor([0.3000, 5.0000]), tensor([0.3000, 7.0000]))
    """

    def __init__(self, values: Tensor, time_channel: int = 0) -> None:
        _checked_knots(values, None)
        channels = values.shape[-1]
        if not -channels <= time_channel < channels:
            raise ValueError(f"RectilinearPath(time_channel={time_channel}): the values have {channels} channels.")
        missing = torch.isnan(values)
        if bool(missing[..., 0, :].any()) or bool(missing[..., time_channel].any()):
            raise ValueError(
                "RectilinearPath: the first observation and the time channel must have no NaN: put a value there, such "
                "as the channel's mean over the training data."
            )
        last = torch.where(missing, 0, torch.arange(values.shape[-2], device=values.device)[:, None]).cummax(-2)[0]
        rows = torch.where(missing, torch.zeros_like(values), values).gather(-2, last).repeat_interleave(2, -2)
        is_time = torch.arange(channels, device=values.device) == time_channel % channels
        rows = torch.where(is_time, rows[..., 1:, :], rows[..., :-1, :])
        self.knots = tuple(map(float, range(rows.shape[-2])))
        self._set(rows)


def _checked_knots(values: Tensor, knots: Sequence[float] | Tensor | None) -> tuple[float, ...]:
    """The knots as floats, if they and the values can be a path."""
    if not (isinstance(values, Tensor) and values.is_floating_point()):
        given = f"dtype {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"a control path goes through a tensor of real floating-point values, got {given}.")
    if values.ndim < 2 or values.shape[-2] < 2 or not values.shape[-1]:
        raise ValueError(
            f"a control path needs values of shape (..., T, channels), T >= 2, got shape {tuple(values.shape)}."
        )
    if not torch.compiler.is_compiling() and bool(values.isinf().any()):
        raise ValueError("a control path needs finite values, and some are infinite: a missing one is NaN.")
    if knots is None:
        return tuple(map(float, range(values.shape[-2])))
    if isinstance(knots, Tensor) and knots.requires_grad:
        raise ValueError("a control path has no gradient with respect to its knots: detach them.")
    times = tuple(map(float, knots.tolist() if isinstance(knots, Tensor) else knots))
    if len(times) != values.shape[-2]:
        raise ValueError(f"a control path has {values.shape[-2]} values and {len(times)} knots: give one for each.")
    if not all(a < b for a, b in itertools.pairwise(times)) or times[-1] - times[0] == float("inf"):
        raise ValueError(f"the knots of a control path must increase, got {str(list(times))[:80]}.")
    return times


def _filled(values: Tensor, knots: Sequence[float]) -> Tensor:
    """The values with each NaN on the line between its neighbours in time, or like the nearest at an end."""
    missing = torch.isnan(values)
    if not torch.compiler.is_compiling() and not bool(missing.any()):
        return values
    count = values.shape[-2]
    place = torch.arange(count, device=values.device)[:, None]
    before = torch.where(missing, -1, place).cummax(-2)[0]
    after = torch.where(missing, count, place).flip(-2).cummin(-2)[0].flip(-2)
    left = torch.where(before < 0, after, before).clamp(max=count - 1)
    right = torch.where(after == count, before, after).clamp(min=0)
    times = torch.tensor(knots, dtype=torch.float64, device=values.device)
    gap = times[right] - times[left]
    share = torch.where(gap > 0, (times[:, None] - times[left]) / gap, 0.0).to(values.dtype)
    known = torch.where(missing, torch.zeros_like(values), values)
    return torch.where(missing, torch.lerp(known.gather(-2, left), known.gather(-2, right), share), values)
