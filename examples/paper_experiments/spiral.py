"""The cubic spiral, without noise (A 3.5) and with it (A 3.3, in `examples/spiral_sde.py`)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import regnde
import spiral_sde
from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings
from paper_experiments.methods import Method, Weights
from regnde import BrownianPath, Solution, Solver
from regnde.comparators import steer_all
from regnde.nn import MLP, NeuralSDE

MATRIX = ((-0.1, 2.0), (-2.0, -0.1))
START = (2.0, 0.0)
ODE_TIMES = tuple(1.5 * i / 29 for i in range(30))


class Cubes(nn.Module):
    """A network on the cubes of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP([2, 50, 2], time=False)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """The slope at (t, u)."""
        return self.network(t, u**3)


def solve_truth(tolerance: float) -> Solution:
    """The spiral itself at the thirty times."""
    matrix = torch.tensor(MATRIX, dtype=torch.float64)
    start = torch.tensor([START], dtype=torch.float64)
    return regnde.solve(lambda t, u: u**3 @ matrix.T, start, ODE_TIMES, Solver(rtol=tolerance, atol=tolerance))


class CubicSpiral(Problem):
    """One trajectory of thirty points on [0, 1.5], all of them in every iteration."""

    items = 1

    def __init__(self, settings: Settings, method: Method, place: Place) -> None:
        super().__init__(settings, method, place)
        self.field = Cubes()
        true = solve_truth(1e-10)
        self.start, self.truth = (x.to(place.device, place.dtype) for x in (true.ys[0], true.ys))

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Mean squared error over the points."""
        ts = steer_all(ODE_TIMES) if self.method.steer else ODE_TIMES
        solution = self.integrate(self.field, self.start, ts)
        return self.penalised((solution.ys - self.truth).square().mean()), solution

    def evaluate(self) -> Evaluation:
        """The same error, at the points' own times."""
        error = float((self.integrate(self.field, self.start, ODE_TIMES).ys - self.truth).square().mean())
        return Evaluation(error, error, *self.timed(lambda _: self.integrate(self.field, self.start, ODE_TIMES)))


@functools.cache
def moments() -> tuple[Tensor, Tensor]:
    """Mean and variance of the true SDE, simulated once a process."""
    return spiral_sde.simulate()


class SpiralSDE(Problem):
    """Mean and variance of a hundred trajectories at thirty times."""

    items = 1
    noisy = True

    def __init__(self, settings: Settings, method: Method, place: Place) -> None:
        super().__init__(settings, method, place)
        solver = self.solver("sosri2" if method.stiff else "sosri")
        self.sde = NeuralSDE(Cubes(), MLP([2, 2], time=False), spiral_sde.TIMES, solver, method.record)
        self.start = torch.tensor(START, dtype=place.dtype, device=place.device).expand(spiral_sde.TRAJECTORIES, 2)
        mean, variance = (x.to(place.device, place.dtype) for x in moments())
        self.truth = mean, variance

    def use(self, method: str, factor: float, repeats: int) -> None:
        """Likewise, for the layer that solves."""
        super().use(method, factor, repeats)
        self.sde.solver = self.solver()

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Mean squared error of both moments."""
        solution = self.sde(self.start, steer_all(spiral_sde.TIMES) if self.method.steer else None)
        return spiral_sde.mismatch(solution, self.truth), solution

    def run(self, seed: int) -> Solution:
        """A solve along a path that every model shares."""
        noise = BrownianPath(spiral_sde.TIMES[0], spiral_sde.TIMES[-1], tuple(self.start.shape), seed=seed)
        solution: Solution = self.sde(self.start, noise=noise)
        return solution

    def evaluate(self) -> Evaluation:
        """The same error, averaged over several paths."""
        losses = [float(spiral_sde.mismatch(self.run(i), self.truth)) for i in range(spiral_sde.PREDICTIONS)]
        loss = sum(losses) / len(losses)
        return Evaluation(loss, loss, *self.timed(self.run))


def _ode_settings(options: Options) -> Settings:
    small = options.scale == "small"
    weights = Weights(
        error=(2.0, 0.2),
        stiffness=(0.01, 0.01),
        both=(2.0, 0.2),
        local=(2.0, 0.2),
        squared=(2.0, 0.2),
        rnode=(1e-3, 1e-3),
        taynode=(1e-5, 2),
    )
    return Settings(
        iterations=600 if small else 1000,
        batch=1,
        tolerance=1e-6 if small else 1.4e-8,
        learning_rate=1e-2,
        dtype="float64",
        weights=weights,
    )


def _sde_settings(options: Options) -> Settings:
    """Paper A sums E |h| with weight 0.2; a mean over about 60 steps with weight 12 is the same."""
    weights = Weights(
        error=(12.0, 12.0),
        stiffness=(1.06, 1.06),
        both=(12.0, 12.0),
        local=(20.0, 20.0),
        stiffness_reduction="mean",
    )
    return Settings(
        iterations=100 if options.scale == "small" else 250,
        batch=1,
        tolerance=0.3,
        learning_rate=1e-2,
        dtype="float32",
        weights=weights,
    )


def _ode_reference(settings: Settings, options: Options) -> str:
    """What the true field costs."""
    return f"The true field takes {solve_truth(settings.tolerance).stats.nfe} evaluations."


ODE = Experiment("loss", False, _ode_settings, lambda s, m, p, o: CubicSpiral(s, m, p), _ode_reference)
SDE = Experiment("loss", True, _sde_settings, lambda s, m, p, o: SpiralSDE(s, m, p))
