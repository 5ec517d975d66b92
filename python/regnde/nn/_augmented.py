"""Augmented states: entries of zeros are appended, which the field may use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regnde.nn._times import Times

__all__ = ["Augmented"]


class Augmented(nn.Module):
    """A layer whose state gets further entries, zero at the start, so that trajectories need not cross.

    Source: Dupont, Doucet, Teh, "Augmented neural ODEs" (NeurIPS 2019).

    Args:
        layer: a layer such as `NeuralODE`, whose field has the larger state.
        extra: how many entries (>= 1).
        dim: along which dimension of the state: -1 for features, 1 for the channels of images.

    Examples:
        >>> from regnde.nn import MLP, Augmented, NeuralODE
        >>> layer = Augmented(NeuralODE(MLP([5, 16, 5]), output="state"), extra=3)
        >>> layer(torch.ones(4, 2)).shape
        torch.Size([4, 5])
    """

    def __init__(self, layer: nn.Module, extra: int, dim: int = -1) -> None:
        super().__init__()
        if extra < 1:
            raise ValueError(f"Augmented(extra={extra}): give the number of further entries, 1 or more.")
        self.layer = layer
        self.extra = extra
        self.dim = dim

    def forward(self, y0: Tensor, ts: Times | None = None) -> Any:
        """The layer's output for the larger state, at the layer's times or at `ts`."""
        shape = list(y0.shape)
        if not -y0.ndim <= self.dim < y0.ndim:
            raise ValueError(f"Augmented(dim={self.dim}): a state of shape {tuple(y0.shape)} has no such dimension.")
        shape[self.dim] = self.extra
        larger = torch.cat((y0, y0.new_zeros(shape)), self.dim)
        return self.layer(larger) if ts is None else self.layer(larger, ts)

    def extra_repr(self) -> str:
        """The number of entries and their dimension, for the module's repr."""
        return f"extra={self.extra}, dim={self.dim}"
