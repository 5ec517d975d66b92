"""The solution between the save points: the interpolant of a step, and of a whole solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regnde._transforms import numbers

__all__ = ["DenseOutput", "Interpolant", "product"]

ROUNDING = 4.0  # in units of its resolution, the distance by which a time may lie outside the span


class Interpolant(NamedTuple):
    """The state within one step, y(t0 + theta h) = y + sum_i w_i(theta) k_i.

    Attributes:
        t0: where the step starts.
        h: its size, signed.
        y: the state there.
        k: the slopes, each of y's shape.
        weights: row i holds the coefficients of theta, theta^2, ... in w_i.
    """

    t0: float
    h: float
    y: Tensor
    k: Sequence[Tensor]
    weights: NDArray[np.float64]

    def __call__(self, t: Tensor) -> Tensor:
        """States at times in float64, shape (*t.shape, *y.shape), with their derivatives by the times."""
        y = self.y
        theta = ((t - self.t0) / self.h).reshape(-1, 1)
        powers = torch.cat([theta**n for n in range(1, self.weights.shape[1] + 1)], 1)
        weights = self.h * powers @ torch.as_tensor(self.weights.T, device=t.device)
        rows = torch.stack(list(self.k)).reshape(len(self.k), y.numel())
        change = product(weights.to(y.device, y.dtype.to_real()).to(y.dtype), rows)
        return y + change.reshape((*t.shape, *y.shape))

    def detached(self) -> Interpolant:
        """Without gradients."""
        return self._replace(y=self.y.detach(), k=[k.detach() for k in self.k])


class DenseOutput:
    """The solution at any time of its span: what `sol(t)` calls.

    Args:
        steps: the interpolants of the steps, in their order.
        ends: times at which these steps end.
        t0: initial time.
        t1: time at which the solution ends, within the last step.
        y0: state at the initial time.
    """

    def __init__(self, steps: Sequence[Interpolant], ends: Sequence[float], t0: float, t1: float, y0: Tensor) -> None:
        self.steps, self.ends = list(steps), np.asarray(ends, np.float64)
        self.t0, self.t1, self.y0 = t0, t1, y0

    def __call__(self, t: Tensor | ArrayLike) -> Tensor:
        """States at times t of any shape, shape (*t.shape, *y0.shape), with gradients.

        Raises:
            ValueError: for a time outside the span.
        """
        given = t if isinstance(t, Tensor) else torch.as_tensor(np.asarray(t, np.float64))
        times = given.reshape(-1).to(torch.float64)
        values = numbers(times)
        self._check(values, given)
        if not self.steps:
            return self.y0.expand(*given.shape, *self.y0.shape)
        sign = 1.0 if self.t1 >= self.t0 else -1.0
        place = np.searchsorted(sign * self.ends[:-1], sign * values)  # a time between two steps belongs to the first
        parts, order = [self.y0.new_zeros((0, *self.y0.shape))], []
        for step in np.unique(place):
            chosen = np.flatnonzero(place == step)
            parts.append(self.steps[step](times[torch.as_tensor(chosen, device=times.device)]))
            order.append(chosen)
        back = np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
        rows = torch.cat(parts).index_select(0, torch.as_tensor(back, device=self.y0.device))
        return rows.reshape((*given.shape, *self.y0.shape))

    def _check(self, values: NDArray[np.float64], given: Tensor) -> None:
        """Raises an error for a time outside the span, beyond its own rounding."""
        low, high = min(self.t0, self.t1), max(self.t0, self.t1)
        rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
        slack = ROUNDING * max(rounding, np.finfo(np.float64).eps) * max(abs(low), abs(high))
        outside = ~((values >= low - slack) & (values <= high + slack))
        if outside.any():
            raise ValueError(
                f"t={float(values[outside][0])!r} lies outside the span [{low!r}, {high!r}] of the solution."
            )

    def detached(self) -> DenseOutput:
        """Without gradients."""
        steps = [step.detached() for step in self.steps]
        return DenseOutput(steps, self.ends.tolist(), self.t0, self.t1, self.y0.detach())


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product; on a GPU in double precision, as one of float32 may be rounded to ten bits there (TF32)."""
    if a.device.type != "cuda":
        return a @ b
    wide = torch.promote_types(a.dtype, torch.float64)
    return (a.to(wide) @ b.to(wide)).to(a.dtype)
