"""The solution between the save points: the interpolant of a step, and of a whole solve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Interpolant", "product"]

RESOLUTIONS = 4  # by so many units of a time's own resolution it may lie outside the span


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
        return y + change.reshape(*t.shape, *y.shape)

    def detached(self) -> Interpolant:
        """Without gradients."""
        return self._replace(y=self.y.detach(), k=[k.detach() for k in self.k])


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product; on a GPU in double precision, as one of float32 may be rounded to ten bits there (TF32)."""
    if a.device.type != "cuda":
        return a @ b
    wide = torch.promote_types(a.dtype, torch.float64)
    return (a.to(wide) @ b.to(wide)).to(a.dtype)
