"""Clients on snapshots of populations: transport between them, and a variational autoencoder with a latent ODE."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from paper_experiments.public_model import (
    Client,
    Field,
    Model,
    Problem,
    generator,
    perceptron,
    sinkhorn,
    some,
    transport,
)
from regnde import Solution

SNAPSHOTS = 5
TIMES = tuple(float(i) for i in range(SNAPSHOTS))


def branches(count: int, seed: int) -> Tensor:
    """Snapshots of a population of the plane that runs along a bend and parts in two, shape (times, count, 2)."""
    draws = generator(seed)
    made = []
    for t in TIMES:
        side = 1 - 2 * torch.randint(2, (count,), generator=draws)
        spread = torch.randn(count, 2, generator=draws)
        centre = torch.stack((t - 0.1 * t * t + 0 * side, side * 0.5 * max(0.0, t - 1)), 1)
        made.append(centre + spread * torch.tensor([0.2, 0.15 + 0.03 * t]))
    return torch.stack(made).double()


class Transport(Model[Tensor]):
    """A population carried from its first snapshot through the others, by optimal transport."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Field([2, 32, 32, 2], nn.CELU, time=True).double()
        self.data, self.test = branches(500, 1), branches(200, 2)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Cells of each snapshot."""
        return torch.stack([part[some(generator, 500, 64)] for part in self.data])

    def problem(self, batch: Tensor) -> Problem:
        """Of the cells of the first snapshot."""
        return Problem(self.field, batch[0], TIMES)

    def read(self, solution: Solution, batch: Tensor) -> Tensor:
        """The carried cells at the later snapshots."""
        return solution.ys[1:]

    def loss(self, prediction: Tensor, batch: Tensor) -> Tensor:
        """Cost of the best pairing, averaged over the snapshots."""
        return transport(prediction, batch[1:]).mean()

    def quality(self, prediction: Tensor, batch: Tensor) -> float:
        """The same at the last snapshot."""
        return float(transport(prediction, batch[1:])[-1])


GENES, LATENT = 20, 4


class Cells(NamedTuple):
    """Expression at the snapshots, shape (times, cells, genes), and the noise of the first ones' latent states."""

    values: Tensor
    noise: Tensor


@functools.cache
def toggle(count: int, seed: int) -> Tensor:
    """Cells of a noisy toggle switch that drives other genes; a cell is measured once, as sequencing does."""
    draws = generator(seed)
    map_draws = generator(5)
    weight = torch.randn(2, GENES, generator=map_draws)
    threshold = torch.randn(GENES, generator=map_draws)
    made = []
    for t in TIMES:
        x = 1.0 + 0.15 * torch.randn(count, 2, generator=draws)
        for _ in range(int(t / 0.02)):
            repressed = 3.0 / (1 + x.flip(1) ** 3)
            x = x + 0.02 * (repressed - x) + 0.02**0.5 * 0.15 * torch.randn(count, 2, generator=draws)
            x = x.clamp_min(0.0)
        genes = 2 * torch.sigmoid(x @ weight + threshold)
        made.append(torch.log1p((genes + 0.1 * torch.randn(genes.shape, generator=draws)).clamp_min(0.0)))
    return torch.stack(made)


class SingleCells(Model[Cells]):
    """Cells encoded at the first snapshot, carried by a latent ODE, decoded and compared at every one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = perceptron([GENES, 24, 2 * LATENT], nn.ReLU)
        self.decoder = perceptron([LATENT, 24, GENES], nn.ReLU)
        self.field = Field([LATENT, 24, LATENT])
        self.data = toggle(400, 1)
        self.test = Cells(toggle(150, 2), torch.randn(150, LATENT, generator=generator(6)))
        self.extra = torch.zeros(())

    def draw(self, generator: torch.Generator) -> Cells:
        """Cells of each snapshot, and noise."""
        values = torch.stack([part[some(generator, 400, 48)] for part in self.data])
        return Cells(values, torch.randn(48, LATENT, generator=generator))

    def problem(self, batch: Cells) -> Problem:
        """Of the encoded cells of the first snapshot."""
        mean, log_variance = self.encoder(batch.values).chunk(2, -1)
        divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum(-1).mean() / 2
        self.extra = (self.decoder(mean) - batch.values).square().sum(-1).mean() + 1e-3 * divergence
        start = mean[0] + (log_variance[0] / 2).exp() * batch.noise
        return Problem(self.field, start, TIMES)

    def read(self, solution: Solution, batch: Cells) -> Tensor:
        """Decoded cells at every snapshot."""
        cells: Tensor = self.decoder(solution.ys)
        return cells

    def loss(self, prediction: Tensor, batch: Cells) -> Tensor:
        """Sinkhorn's cost over the snapshots, the autoencoder's error, a little of the divergence."""
        return sinkhorn(prediction, batch.values, 0.05).mean() + self.extra

    def quality(self, prediction: Tensor, batch: Cells) -> float:
        """Cost of the best pairing."""
        return float(transport(prediction, batch.values).mean())


CLIENTS = (
    Client("mioflow", 1e-7, 1e-9, 200, 1e-2, Transport, "OT", 4.0),
    Client("scnode", 1e-5, 1e-5, 400, 1e-2, SingleCells, "OT", 4.0),
)
