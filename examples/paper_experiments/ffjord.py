"""FFJORD on a ring of six Gaussians (A 3.6: in the paper's code, in no table)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings
from paper_experiments.methods import Method, Weights
from regnde import Solution, steer
from regnde.nn import CNF, Density

Trace = Literal["exact", "hutchinson"]
SPAN = (0.0, 1.0)
STEER_WIDTH = 0.5
POINTS, COMPONENTS, RADIUS, SPREAD, NOISE = 2048, 6, 5.0, 0.1, 0.3


def centres() -> Tensor:
    """Those of the Gaussians, shape (components, 2)."""
    angle = 2 * math.pi * torch.arange(COMPONENTS).double() / COMPONENTS
    return RADIUS * torch.stack((angle.cos(), angle.sin()), 1)


def ring(points: int = POINTS, seed: int = 0) -> Tensor:
    """Points of six Gaussians on a circle, shape (points, 2); the width is the components' and the noise's together."""
    generator = torch.Generator().manual_seed(seed)
    centre = centres()[torch.randint(COMPONENTS, (points,), generator=generator)]
    return centre + math.hypot(SPREAD, NOISE) * torch.randn(points, 2, generator=generator, dtype=torch.float64)


class ConcatSquash(nn.Module):
    """A linear layer whose output time scales and shifts: (W x + b) sigmoid(a t + c) + d t."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.gate = nn.Linear(1, outputs)
        self.shift = nn.Linear(1, outputs, bias=False)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The layer at time t (0-dim) and x of shape (batch, inputs)."""
        clock = t.reshape(1)
        return self.linear(x) * torch.sigmoid(self.gate(clock)) + self.shift(clock)


class Squash(nn.Module):
    """Three such layers with softplus between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = ((2, width), (width, width), (width, 2))
        self.layers = nn.ModuleList(ConcatSquash(a, b) for a, b in sizes)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The slope at (t, x)."""
        first, second, third = self.layers
        return third(t, functional.softplus(second(t, functional.softplus(first(t, x)))))


class Flow(Problem):
    """Negative log-likelihood of points that the flow carries to a standard normal distribution.

    Args:
        settings: sizes and schedule.
        method: the row.
        place: device, precision, engine.
        width: of the hidden layers.
        trace: as `CNF` takes it.
    """

    noisy = True

    def __init__(
        self, settings: Settings, method: Method, place: Place, width: int = 16, trace: Trace = "hutchinson"
    ) -> None:
        super().__init__(settings, method, place)
        x = ring().to(place.device, place.dtype)
        cut = len(x) * 3 // 4
        self.train_x, self.test_x = x[:cut], x[cut:]
        self.items = cut
        self.flow = CNF(Squash(width), 2, SPAN, self.solver(), trace=trace)

    def density(self, x: Tensor, generator: torch.Generator | None = None) -> Density:
        """Log densities of points, shape (batch, 2), and the solution."""
        ts = steer(SPAN, STEER_WIDTH) if self.method.steer and self.training else SPAN

        def integrate(field: nn.Module, start: Tensor, ts: tuple[float, ...], record: object) -> Solution:
            return self.integrate(field, start, ts, of=lambda z: z[:, :-1], inner=self.flow.field)

        return self.flow(x, ts, generator=generator, integrate=integrate)

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Its negative."""
        density = self.density(self.train_x[index])
        return self.penalised(-density.log_prob.mean()), density.solution

    def evaluate(self) -> Evaluation:
        """The same on the test points, with noise that every model shares."""

        def density(seed: int) -> Density:
            return self.density(self.test_x, torch.Generator().manual_seed(seed))

        loss = -float(density(0).log_prob.mean())
        return Evaluation(loss, loss, *self.timed(lambda i: density(i).solution))


def _settings(options: Options) -> Settings:
    small = options.scale == "small"
    weights = Weights(
        error=(5.0, 5.0) if small else (2000.0, 1000.0),
        stiffness=(0.1, 0.1),
        both=(5.0, 5.0) if small else (10.0, 10.0),
        local=(5.0, 5.0) if small else (2000.0, 1000.0),
        squared=(5.0, 2.5),
        rnode=(0.01, 0.01),
        taynode=(1e-3, 2),
    )
    return Settings(
        iterations=300 if small else 0,
        epochs=0 if small else 20,
        batch=512 if small else 1024,
        tolerance=1e-5 if small else 1.4e-8,
        learning_rate=2e-2 if small else 4e-2,
        cosine=small,
        weight_decay=1e-5,
        per_epoch=not small,
        dtype="float64" if small else "float32",
        weights=weights,
    )


def _reference(settings: Settings, options: Options) -> str:
    """The likelihoods of two densities that are known: the worst that is sensible, and the best."""
    x = ring()
    test = x[len(x) * 3 // 4 :]
    normal = torch.distributions.MultivariateNormal(x.mean(0), covariance_matrix=x.T.cov())
    parts = centres().unsqueeze(0) - test.unsqueeze(1)
    width = math.hypot(SPREAD, NOISE)
    logs = -parts.square().sum(2) / (2 * width**2) - math.log(2 * math.pi * width**2 * COMPONENTS)
    worst, best = -float(normal.log_prob(test).mean()), -float(logs.logsumexp(1).mean())
    return f"A normal distribution with the points' covariance has a loss of {worst:.2f}, the ring itself {best:.2f}."


EXPERIMENT = Experiment(
    "loss", False, _settings, lambda s, m, p, o: Flow(s, m, p, 32 if o.scale == "small" else 16), _reference
)
