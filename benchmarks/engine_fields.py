"""The fields that both engines are timed on: networks of one hidden layer, and the ordinary layers of larger models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["PROBLEMS", "Network", "Problem"]


class Network(nn.Module):
    """A network of one hidden layer, turned so that trajectories stay bounded and keep moving."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return 2 * self.net(y) - 0.1 * y


class Convolution(nn.Module):
    """Two convolutions with the time as a channel, normalised in groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels + 1, channels, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for _ in range(2))
        self.second = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        time = torch.ones_like(y[:, :1]) * t
        z = nn.functional.silu(self.norms[0](self.first(torch.cat([y, time], 1))))
        return self.norms[1](self.second(torch.cat([z, time], 1)))


class Attention(nn.Module):
    """Softmax attention over the second axis, one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.width = width

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        scores = self.query(y) @ self.key(y).transpose(1, 2) / self.width**0.5
        return torch.softmax(scores, -1) @ self.value(y) - y


class Gated(nn.Module):
    """A GRU cell on a fixed input, as the drift of a GRU-ODE."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, width)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.cell(torch.ones_like(y[:, :1]) * t, y) - y


class HyperNetwork(nn.Module):
    """A network whose weights follow from the time, as in the examples of FFJORD."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.weights = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2 * width * hidden + hidden))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        size = self.width * self.hidden
        w = self.weights(t.reshape(1))
        first, second = w[:size].reshape(self.hidden, self.width), w[size : 2 * size].reshape(self.width, self.hidden)
        return torch.tanh(y @ first.T + w[2 * size :]) @ second.T


@dataclass(frozen=True)
class Problem:
    """A field, its initial states, span and tolerance.

    Attributes:
        name: of the row.
        make: the field.
        shape: of the initial state.
        dtype: of state and parameters.
        tolerance: relative and absolute.
        end: of the span, from 0.
        batch: whether samples share their steps.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dtype: torch.dtype
    tolerance: float
    end: float
    batch: Literal["joint", "per-sample"] = "joint"

    def start(self) -> tuple[nn.Module, Tensor]:
        """The field and the initial state, the same at each call."""
        torch.manual_seed(0)
        return self.make().to(self.dtype), torch.randn(self.shape, dtype=self.dtype)


def _network(batch: int, width: int, hidden: int, dtype: torch.dtype, tolerance: float, end: float) -> Problem:
    name = f"{width}-{hidden}-{width}, {batch}, {str(dtype)[6:]}"
    return Problem(name, partial(Network, width, hidden), (batch, width), dtype, tolerance, end)


SINGLE, DOUBLE = torch.float32, torch.float64
PROBLEMS = (
    _network(1, 2, 50, DOUBLE, 1e-6, 60.0),
    _network(20, 2, 50, DOUBLE, 1e-6, 60.0),
    _network(64, 4, 32, DOUBLE, 1e-6, 20.0),
    _network(128, 64, 128, DOUBLE, 1e-6, 10.0),
    _network(200, 196, 64, SINGLE, 1e-4, 4.0),
    _network(512, 784, 100, SINGLE, 1e-4, 2.0),
    Problem("convolution 8 x 16 x 16, 32, float32", partial(Convolution, 8), (32, 8, 16, 16), SINGLE, 1e-4, 1.0),
    Problem("attention 16 x 32, 16, float32", partial(Attention, 32), (16, 16, 32), SINGLE, 1e-4, 2.0),
    Problem("GRU cell 64, 64, float32", partial(Gated, 64), (64, 64), SINGLE, 1e-5, 5.0),
    Problem("hypernetwork 2-64-2, 128, float32", partial(HyperNetwork, 2, 64), (128, 2), SINGLE, 1e-5, 4.0),
    Problem("16-64-16, 512, float32, per sample", partial(Network, 16, 64), (512, 16), SINGLE, 1e-4, 2.0, "per-sample"),
)
