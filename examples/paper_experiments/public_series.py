"""Clients on series: a latent ODE, a neural controlled differential equation, a point process."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.public_model import Client, Field, Model, Problem, accuracy, generator, perceptron, some
from regnde import Solution


class Series(NamedTuple):
    """Spirals at shared irregular times, half of them seen, and the draw of the latent initial state."""

    values: Tensor  # (batch, times, 2)
    seen: Tensor  # (batch, times), 1 where the encoder sees the value
    noise: Tensor  # (batch, latent)


SERIES_TIMES, LATENT, SERIES_NOISE = 40, 4, 0.1


def clock() -> Tensor:
    """Irregular times from 0 to 3."""
    inner = 3 * torch.rand(SERIES_TIMES - 2, generator=generator(4), dtype=torch.float64)
    return torch.cat((torch.zeros(1), inner.sort().values, torch.full((1,), 3.0))).double()


def spirals(count: int, seed: int) -> Series:
    """Spirals of either direction that begin anywhere."""
    draws = generator(seed)
    side = 1 - 2 * (torch.arange(count) % 2)[:, None]
    t = clock().float()
    angle = 2 * math.pi * torch.rand(count, 1, generator=draws) + side * 1.6 * t
    radius = 0.4 + 0.35 * t + 0.3 * torch.rand(count, 1, generator=draws)
    values = radius[..., None] * torch.stack((angle.cos(), angle.sin()), 2)
    values = values + SERIES_NOISE * torch.randn(values.shape, generator=draws)
    seen = (torch.rand(count, SERIES_TIMES, generator=draws) < 0.5).float()
    return Series(values, seen, torch.randn(count, LATENT, generator=draws))


class LatentSpirals(Model[Series]):
    """A variational autoencoder of irregular series whose latent state moves along an ODE."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(4, 25, batch_first=True)
        self.head = nn.Linear(25, 2 * LATENT)
        self.field = Field([LATENT, 20, 20, LATENT], nn.ELU)
        self.decoder = perceptron([LATENT, 20, 2], nn.ReLU)
        self.times = tuple(clock().tolist())
        gaps = clock().diff(prepend=torch.zeros(1, dtype=torch.float64)).float()
        self.gaps = gaps[None, :, None]
        self.data, self.test = spirals(400, 1), spirals(200, 2)
        self.divergence = torch.zeros(())

    def draw(self, generator: torch.Generator) -> Series:
        """Series, and the noise of their latent states."""
        index = some(generator, 400, 64)
        noise = torch.randn(64, LATENT, generator=generator)
        return Series(self.data.values[index], self.data.seen[index], noise)

    def problem(self, batch: Series) -> Problem:
        """From what the encoder reads, backwards in time."""
        seen = batch.seen[..., None]
        read = torch.cat((batch.values * seen, seen, self.gaps.expand(len(seen), -1, 1)), 2).flip(1)
        mean, log_variance = self.head(self.encoder(read)[1][0]).chunk(2, 1)
        start = mean + (log_variance / 2).exp() * batch.noise
        self.divergence = (log_variance.exp() + mean.square() - 1 - log_variance).sum(1).mean() / 2
        return Problem(self.field, start, self.times)

    def read(self, solution: Solution, batch: Series) -> Tensor:
        """The decoded series."""
        decoded: Tensor = self.decoder(solution.ys).transpose(0, 1)
        return decoded

    def loss(self, prediction: Tensor, batch: Series) -> Tensor:
        """Negative evidence lower bound of a series, the values' deviation taken as 0.3, in parts of the times."""
        error = (prediction - batch.values).square().sum((1, 2)).mean()
        return (error / (2 * 0.3**2) + self.divergence) / SERIES_TIMES

    def quality(self, prediction: Tensor, batch: Series) -> float:
        """Mean squared error of the values that were not seen."""
        error = (prediction - batch.values).square().mean(2)
        return float((error * (1 - batch.seen)).sum() / (1 - batch.seen).sum())


class Path(NamedTuple):
    """Cubic control paths: where they begin, the derivative in each gap by powers of the gap's share, and labels."""

    start: Tensor  # (batch, 3)
    slopes: Tensor  # (gaps, 3 powers, batch, 3)
    label: Tensor


KNOTS = 8


def paths(count: int, seed: int) -> Path:
    """Noisy points that go round clockwise or not, some of them slowly, joined by Hermite cubics."""
    draws = generator(seed)
    label = torch.arange(count) % 2
    t = torch.linspace(0, 1, KNOTS)
    speed = (2 * label - 1)[:, None] * (0.3 + 3.5 * torch.rand(count, 1, generator=draws))
    angle = 2 * math.pi * torch.rand(count, 1, generator=draws) + speed * t
    x = torch.stack((t.expand(count, -1), angle.cos() / (1 + t), angle.sin() / (1 + t)), 2)
    x[..., 1:] += 0.15 * torch.randn(count, KNOTS, 2, generator=draws)
    chord = x.diff(dim=1) * (KNOTS - 1)
    before = torch.cat((chord[:, :1], chord[:, :-1]), 1)  # slope at a gap's begin: the chord before it
    slopes = torch.stack((before, 2 * (chord - before), 0 * chord), 0)
    slopes[1] = 6 * chord - 4 * before - 2 * chord
    slopes[2] = -6 * chord + 3 * before + 3 * chord
    return Path(x[:, 0], slopes.permute(2, 0, 1, 3).contiguous(), label)


class Controlled(nn.Module):
    """dz = f(z) dX along control paths.

    Args:
        width: of the state.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = perceptron([width, 32, 3 * width], nn.ReLU)
        self.slopes = torch.zeros(())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at time t (0-dim) of states z, shape (batch, width)."""
        gap, share = self.place(float(t))
        a, b, c = self.slopes[gap]
        control = a + share * (b + share * c)
        matrix: Tensor = torch.tanh(self.network(z)).reshape(*z.shape, 3)
        slope: Tensor = (matrix @ control[..., None]).squeeze(-1)
        return slope

    @staticmethod
    def place(t: float) -> tuple[int, float]:
        """The gap that holds t, and the share of it that is behind."""
        position = t * (KNOTS - 1)
        gap = min(int(position), KNOTS - 2)
        return gap, position - gap


class ControlledSpirals(Model[Path]):
    """The direction of a spiral by a neural controlled differential equation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.initial, self.readout = nn.Linear(3, width), nn.Linear(width, 2)
        self.field = Controlled(width)
        self.data, self.test = paths(1500, 1), paths(400, 2)

    def draw(self, generator: torch.Generator) -> Path:
        """Paths and labels."""
        index = some(generator, 1500, 64)
        return Path(self.data.start[index], self.data.slopes[:, :, index], self.data.label[index])

    def problem(self, batch: Path) -> Problem:
        """Along the paths."""
        self.field.slopes = batch.slopes
        return Problem(self.field, self.initial(batch.start), (0.0, 1.0))

    def read(self, solution: Solution, batch: Path) -> Tensor:
        """Logits."""
        logits: Tensor = self.readout(solution.y1)
        return logits

    def loss(self, prediction: Tensor, batch: Path) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(prediction, batch.label)

    def quality(self, prediction: Tensor, batch: Path) -> float:
        """Accuracy."""
        return accuracy(prediction, batch.label)


EVENTS = 16


def events(count: int, seed: int) -> Tensor:
    """Gaps between the events of self-exciting processes with a periodic base rate, shape (count, EVENTS)."""
    draws = generator(seed)
    made = torch.zeros(count, EVENTS)
    now, excited = torch.zeros(count), torch.zeros(count)
    found, begun = torch.zeros(count, dtype=torch.long), torch.zeros(count)
    while int(found.min()) < EVENTS:  # Ogata's thinning, all sequences at once
        bound = 1.0 + excited
        step = -torch.rand(count, generator=draws).log() / bound
        now, excited = now + step, excited * (-2.0 * step).exp()
        rate = 0.6 + 0.4 * torch.sin(2.5 * now) + excited
        event = (torch.rand(count, generator=draws) * bound < rate) & (found < EVENTS)
        rows = event.nonzero()[:, 0]
        made[rows, found[rows]] = (now - begun)[rows]
        begun, found, excited = torch.where(event, now, begun), found + event.long(), excited + 1.2 * event
    return made


class PointProcess(Model[Tensor]):
    """Times of events: a recurrent network reads the past, an ODE carries its state to the next event.

    All gaps of all sequences are one solve, each in parts of its own length.
    """

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.history = nn.GRU(2, width, batch_first=True)
        self.field = Field([width, 32, width], nn.Softplus, time=False)
        self.rate = nn.Linear(width, 1)
        self.lengths = torch.zeros(())
        self.data, self.test = events(800, 1), events(200, 2)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Gaps of sequences."""
        return self.data[some(generator, 800, 32)]

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """Of the hidden states and of the integrals of the rate."""
        h = y[:, :-1]
        return self.lengths * torch.cat((torch.tanh(self.field(t, h)) * 3 - h, functional.softplus(self.rate(h))), 1)

    def problem(self, batch: Tensor) -> Problem:
        """From what the network has read before each gap."""
        before = functional.pad(batch, (1, 0))[:, :-1]
        read = torch.stack((before, torch.sin(2.5 * before.cumsum(1))), 2)
        hidden = self.history(read)[0].flatten(0, 1)
        self.lengths = batch.reshape(-1, 1)
        return Problem(self.slope, functional.pad(hidden, (0, 1)), (0.0, 1.0))

    def read(self, solution: Solution, batch: Tensor) -> Tensor:
        """Log density of each gap, given the past."""
        end = solution.y1
        return functional.softplus(self.rate(end[:, :-1])).log()[:, 0] - end[:, -1]

    def loss(self, prediction: Tensor, batch: Tensor) -> Tensor:
        """Negative log-likelihood of an event."""
        return -prediction.mean()

    def quality(self, prediction: Tensor, batch: Tensor) -> float:
        """The same."""
        return -float(prediction.mean())


CLIENTS = (
    Client("latent-ode", 1e-3, 1e-4, 450, 2e-2, LatentSpirals, "MSE", 3.0),
    Client("neural-cde", 1e-4, 1e-6, 150, 5e-3, ControlledSpirals, "accuracy"),
    Client("neural-stpp", 1e-4, 1e-4, 250, 1e-2, PointProcess, "NLL"),
)
