"""Latent ODE on Physionet 2012 (A 3.2, B 3.9), or on synthetic series of its shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings
from paper_experiments.methods import Method, Weights
from paper_experiments.physionet import NOISE, TIMES, VARIABLES, Series, load_physionet, oscillators, synthetic
from regnde import Solution, Solver, solve
from regnde.comparators import steer_all
from regnde.nn import MLP, BackwardGRU, LatentODE

SIGMA = 0.01  # standard deviation of the likelihood


class Field(nn.Module):
    """The papers' autonomous field: tanh, then blocks of two layers, each with a tanh behind it."""

    def __init__(self, latent: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.network = MLP([latent, *(hidden, latent) * blocks], output=torch.tanh, time=False)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope at (t, z)."""
        return self.network(t, torch.tanh(z))


class Latent(Problem):
    """Reconstructs what was observed: encoder, latent ODE, linear decoder; the bound on the likelihood as the loss.

    Args:
        settings: sizes and schedule.
        method: the row.
        place: device, precision, engine.
        train: series to train on.
        test: series to test on.
        widths: latent state, the encoder's state and gates, the field's hidden layers, and its blocks.
        sampled: whether a prediction draws its initial state (paper A) or takes the mean (paper B, small).
        log_variance: where the latent state's starts. The papers' 0 drowns the state at first, and a decoder that
            then ignores it takes thousands of iterations to come back to it; a short run starts lower.
        annealing: what the weight of the divergence grows with, and its delay: `w = 1 - 0.99^(count - delay)`.
    """

    def __init__(
        self,
        settings: Settings,
        method: Method,
        place: Place,
        train: Series,
        test: Series,
        widths: tuple[int, int, int, int, int],
        sampled: bool,
        annealing: tuple[str, int],
        log_variance: float = 0.0,
    ) -> None:
        super().__init__(settings, method, place)
        latent, state, gates, hidden, blocks = widths
        encoder = BackwardGRU(len(VARIABLES), hidden=state, units=gates, latent=latent)
        decoder = nn.Linear(latent, len(VARIABLES))
        with torch.no_grad():
            encoder.head[-1].bias[latent:] += log_variance
        self.model = LatentODE(encoder, Field(latent, hidden, blocks), decoder, solver=self.solver())
        self.model.record = method.record
        self.train_data, self.test_data = train, test
        self.items = len(train.values)
        self.sampled, self.annealing = sampled, annealing

    def run(self, data: Series, ts: tuple[float, ...], sample: bool) -> tuple[Tensor, Tensor, Solution]:
        """Mean squared error over what was observed, and divergence, each of shape (batch,)."""
        made = self.model(
            data.values,
            data.mask,
            ts,
            sample=sample,
            integrate=lambda z, times, record: self.integrate(self.model.field, z, times, record),
        )
        squares = ((made.values - data.values) * data.mask).square().sum((1, 2))
        return squares / data.mask.sum((1, 2)), made.kl(), made.solution

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Mean negative log-likelihood of an observed entry plus the weighted divergence."""
        data = Series(self.train_data.values[index], self.train_data.mask[index])
        errors, kl, solution = self.run(data, steer_all(TIMES) if self.method.steer else TIMES, True)
        unit, delay = self.annealing
        count = math.floor(epoch) if unit == "epoch" else iteration
        weight = max(0.0, 1 - 0.99 ** (count - delay))
        likelihood = -errors / (2 * SIGMA**2) - math.log(SIGMA * math.sqrt(2 * math.pi))
        return self.penalised((weight * kl - likelihood).mean()), solution

    def evaluate(self) -> Evaluation:
        """Mean squared error on the test series; NFE and seconds of one batch of them."""
        size, errors = self.settings.batch, []
        for values, mask in zip(self.test_data.values.split(size), self.test_data.mask.split(size), strict=True):
            errors.append(self.run(Series(values, mask), TIMES, self.sampled)[0])
        sample = Series(self.test_data.values[:size], self.test_data.mask[:size])
        error = float(torch.cat(errors).mean())
        return Evaluation(error, error, *self.timed(lambda _: self.run(sample, TIMES, self.sampled)[2]))


def _settings(options: Options) -> Settings:
    if options.scale == "small":
        weights = Weights(
            error=(250.0, 500.0),
            stiffness=(10.0, 10.0),
            both=(250.0, 500.0),
            local=(250.0, 500.0),
            rnode=(0.3, 0.3),
            taynode=(0.1, 2),
        )
        return Settings(iterations=1200, batch=128, tolerance=1e-6, learning_rate=1e-2, cooldown=0.25, weights=weights)
    a = options.source == "A"
    weights = Weights(
        error=(1000.0, 100.0),
        stiffness=(10.0, 10.0),
        both=(10.0, 10.0),
        local=(1000.0, 100.0) if a else (100.0, 10.0),
        taynode=(0.01, 2),
    )
    return Settings(
        epochs=300 if a else 0,
        iterations=0 if a else 3000,
        batch=512,
        tolerance=1.4e-8,
        learning_rate=1e-2,
        optimizer="adamax",
        inverse_decay=1e-5,
        per_epoch=a,
        dtype="float32",
        official_local=not a,
        weights=weights,
    )


def _build(settings: Settings, method: Method, place: Place, options: Options) -> Latent:
    seed = int(torch.randint(2**31, ()))  # of the run, which the runner has seeded
    series = synthetic(3000) if options.physionet is None else load_physionet(options.physionet)
    train, test = (Series(*(x.to(place.device, place.dtype) for x in part)) for part in series.split(seed))
    if options.scale == "small":
        return Latent(settings, method, place, train, test, (12, 24, 32, 48, 2), False, ("iteration", 100), -6.0)
    a = options.source == "A"
    widths = (20, 50, 40, 50 if a else 40, 4)
    return Latent(settings, method, place, train, test, widths, a, ("epoch", 10) if a else ("iteration", 100))


def _reference(settings: Settings, options: Options) -> str:
    """What the synthetic series' own equation costs, and what their noise leaves."""
    if options.physionet is not None:
        return ""
    angle = 2 * math.pi * torch.arange(settings.batch, dtype=torch.float64)[:, None] / torch.tensor([7.0, 11.0])
    circle = torch.stack((angle.cos(), angle.sin()), -1)
    solver = Solver(rtol=settings.tolerance, atol=settings.tolerance)
    nfe = [solve(oscillators, size * circle, TIMES, solver).stats.nfe for size in (0.1, 1.0)]
    return (
        f"The equation that made the series takes {nfe[0]} evaluations for states of size 0.1 and {nfe[1]} for states "
        f"of size 1; their noise leaves a loss of {NOISE**2:.4f} to a perfect model."
    )


EXPERIMENT = Experiment("loss", False, _settings, _build, _reference)
