"""What an experiment is: settings, data, and a model that knows its loss and how to be measured."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.methods import Method, Weights
from regnde import Solution, Solver, solve
from regnde._solver import Record
from regnde.comparators import solve_with_integral


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule of an experiment at one scale.

    Attributes:
        batch: items in a batch, all one system with one step size.
        tolerance: absolute and relative.
        learning_rate: the optimiser's.
        weights: the penalties'.
        iterations: optimiser steps, or 0 to count in epochs.
        epochs: passes over the data, the last batch of a pass being what is left.
        optimizer: "adam", "adamax" or "sgd" (momentum 0.9).
        inverse_decay: d in learning rate / (1 + d * iteration).
        cosine: whether the learning rate falls to 0 along a half cosine instead.
        cooldown: last part of the iterations over which it falls to 0 on a line, on top of either.
        weight_decay: the optimiser's.
        per_epoch: whether a penalty's weight changes once an epoch (paper A) or every iteration (paper B).
        dtype: "float32" or "float64".
        official_local: a local step as paper B's code takes it.
        factor: what the weights are multiplied by already.
        balance: fraction of a `regnde.Balance` that sets the penalty's weight, or 0 for the weights above.
        allowed: training loss that the row `budget` may have, or None.
        timing: solves of one test batch, of which the median is the prediction time.
    """

    batch: int
    tolerance: float
    learning_rate: float
    weights: Weights
    iterations: int = 0
    epochs: int = 0
    optimizer: Literal["adam", "adamax", "sgd"] = "adam"
    inverse_decay: float = 0.0
    cosine: bool = False
    cooldown: float = 0.0
    weight_decay: float = 0.0
    per_epoch: bool = False
    dtype: str = "float64"
    official_local: bool = False
    factor: float = 1.0
    balance: float = 0.0
    allowed: float | None = None
    timing: int = 11

    def steps(self, items: int) -> tuple[int, int]:
        """Iterations in all, and in an epoch."""
        epoch = -(-items // self.batch)
        return self.iterations or self.epochs * epoch, epoch


class Evaluation(NamedTuple):
    """Accuracy as a fraction or loss, the loss in either case, evaluations and seconds of one solve of a test batch."""

    quality: float
    loss: float
    nfe: float
    predict_seconds: float


def scores(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of the labels that the logits hit, and cross-entropy."""
    accuracy = (logits.argmax(1) == labels).double().mean()
    return float(accuracy), float(functional.cross_entropy(logits, labels))


@dataclass(frozen=True)
class Place:
    """Where and in what precision a model lives, and which engine solves."""

    device: torch.device
    dtype: torch.dtype
    engine: str = "auto"

    def clock(self) -> float:
        """Seconds: of this process on the CPU, which other jobs disturb less; of the wall elsewhere."""
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()


class Problem(nn.Module, ABC):
    """A model with its data.

    Args:
        settings: sizes and schedule.
        method: the row that it trains.
        place: device, precision, engine.
    """

    items: int  # of training data
    noisy = False  # whether the solves of one test batch differ

    def __init__(self, settings: Settings, method: Method, place: Place) -> None:
        super().__init__()
        self.settings, self.method, self.place = settings, method, place
        self.integral: Tensor | None = None
        self.given: Solver | None = None
        self.repeats = settings.timing

    def use(self, method: str, factor: float, repeats: int) -> None:
        """From now on solves by another method, the tolerances times a factor, and `timed` so often."""
        self.given, self.repeats = self._solver(method, factor), repeats

    def solver(self, method: str | None = None) -> Solver:
        """The solver of the settings, or what is in use instead."""
        return self._solver(method, 1.0) if self.given is None else self.given

    def _solver(self, method: str | None, factor: float) -> Solver:
        t = factor * self.settings.tolerance
        return Solver(method=method, rtol=t, atol=t, engine=self.place.engine)  # type: ignore[arg-type]  # checked

    def record(self) -> Record:
        """What to record: nothing outside training."""
        return self.method.record if self.training else "none"

    def integrate(
        self,
        field: Callable[[Tensor, Tensor], Tensor],
        y0: Tensor,
        ts: Sequence[float],
        record: Record | None = None,
        **inner: Callable[..., Tensor],
    ) -> Solution:
        """Solves an ODE; in training, keeps the method's integral along the solution for `penalised`."""
        record = self.record() if record is None else record
        if self.method.integrand is None or not self.training:
            return solve(field, y0, ts, self.solver(), record=record)
        solution, self.integral = solve_with_integral(
            field, y0, ts, self.method.integrand, self.solver(), record=record, **inner
        )
        return solution

    def penalised(self, task: Tensor) -> Tensor:
        """The task loss plus the method's integral."""
        return task if self.integral is None else task + self.method.integral_weight * self.integral

    @abstractmethod
    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Task loss of the chosen items, with a comparator's integral, and the solution that records are read from."""

    @abstractmethod
    def evaluate(self) -> Evaluation:
        """Measures the model on the test data."""

    def timed(self, run: Callable[[int], Solution]) -> tuple[float, float]:
        """Mean NFE and median seconds of a number of solves, each given its number."""
        seconds, evaluations = [], []
        for i in range(self.repeats):
            began = self.place.clock()
            solution = run(i)
            seconds.append(self.place.clock() - began)
            evaluations.append(solution.stats.nfe)
        return sum(evaluations) / len(evaluations), sorted(seconds)[len(seconds) // 2]


@dataclass(frozen=True)
class Options:
    """What the command line says about data."""

    scale: Literal["small", "paper"] = "small"
    source: Literal["A", "B"] = "A"
    mnist: Path | None = None
    physionet: Path | None = None
    cifar: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        quality: "accuracy" or "loss".
        sde: whether the equation is an SDE.
        settings: of a scale and a paper.
        build: makes the seeded model of settings, method, place and options.
        reference: a sentence with numbers to read the table by that no training made, or "".
    """

    quality: Literal["accuracy", "loss"]
    sde: bool
    settings: Callable[[Options], Settings]
    build: Callable[[Settings, Method, Place, Options], Problem]
    reference: Callable[[Settings, Options], str] = lambda settings, options: ""
