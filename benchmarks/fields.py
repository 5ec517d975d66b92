"""The fields that the per-step benchmarks solve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FIELDS", "Setup"]


@dataclass(frozen=True)
class Setup:
    """A field y' = f(y), its batch, span and tolerance; without sizes of layers the van der Pol oscillator."""

    name: str
    sizes: tuple[int, ...]
    batch: int
    end: float
    tolerance: float
    repeats: int

    def make(self) -> tuple[nn.Module, Tensor, Tensor]:
        """The field, y0 and the save times."""
        torch.manual_seed(0)
        span = torch.tensor([0.0, self.end])
        if not self.sizes:
            return VanDerPol(), torch.randn(self.batch, 2), span
        layers: list[nn.Module] = []
        for a, b in zip(self.sizes[:-1], self.sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.Tanh()]
        net = nn.Sequential(*layers[:-1])
        return Autonomous(net), torch.randn(self.batch, self.sizes[0]), span


class Autonomous(nn.Module):
    """A network of the state alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        return self.net(y)


class VanDerPol(nn.Module):
    """The oscillator of the torchode paper, a batch of it: cheap to evaluate, so that the solver is what is timed."""

    def __init__(self) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(1.0))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        x, v = y.unbind(1)
        return torch.stack([v, self.mu * (1 - x * x) * v - x], 1)


FIELDS = (
    Setup("2-50-2, B=20", (2, 50, 2), 20, 40.0, 1e-6, 9),
    Setup("4-32-4, B=64", (4, 32, 4), 64, 40.0, 1e-6, 9),
    Setup("van der Pol, B=256", (), 256, 10.0, 1e-6, 9),
    Setup("64-128-64, B=128", (64, 128, 64), 128, 8.0, 1e-5, 7),
    Setup("784-100-784, B=512", (784, 100, 784), 512, 2.0, 1e-4, 3),
)
