"""What a client of the experiment `public` is: a model with its data, and how its code trains and solves it."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regnde import Solution, Solver, solve
from regnde._solver import Record

Batch = TypeVar("Batch")


class Score(NamedTuple):
    """Test loss, of the kind of the training loss; quality; evaluations of the one solve of the test batch."""

    loss: float
    quality: float
    nfe: int


class Problem(NamedTuple):
    """What `solve` and `diagnose` are given first."""

    field: Callable[[Tensor, Tensor], Tensor]
    y0: Tensor
    ts: Sequence[float]


class Model(nn.Module, ABC, Generic[Batch]):
    """A model with its training data and one fixed test batch."""

    test: Batch

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Batch:
        """A training batch, with all the noise that the loss needs."""

    @abstractmethod
    def problem(self, batch: Batch) -> Problem:
        """The one solve behind a prediction."""

    @abstractmethod
    def read(self, solution: Solution, batch: Batch) -> Tensor:
        """The prediction, of which the loss is computed."""

    @abstractmethod
    def loss(self, prediction: Tensor, batch: Batch) -> Tensor:
        """The task's loss, 0-dim."""

    @abstractmethod
    def quality(self, prediction: Tensor, batch: Batch) -> float:
        """What a user of the model asks of it."""

    def batches(self, seed: int, iterations: int) -> Iterator[Batch]:
        """The training batches of a seed, the same at every call."""
        draws = generator(1_000_003 * (seed + 1))
        for _ in range(iterations):
            yield self.draw(draws)

    def predict(self, batch: Batch, solver: Solver, record: Record) -> tuple[Tensor, Solution]:
        """The prediction and its solution."""
        solution = solve(*self.problem(batch), solver, record=record)
        return self.read(solution, batch), solution

    def compute(self, batch: Batch, solver: Solver, record: Record) -> tuple[Tensor, Solution]:
        """The task's loss and its solution, as `regnde.fit` wants them."""
        prediction, solution = self.predict(batch, solver, record)
        return self.loss(prediction, batch), solution

    @torch.no_grad()
    def evaluate(self, solver: Solver) -> Score:
        """Measures the model on the test batch; two calls give the same numbers."""
        prediction, solution = self.predict(self.test, solver, "none")
        loss = float(self.loss(prediction, self.test))
        return Score(loss, self.quality(prediction, self.test), solution.stats.nfe)


@dataclass(frozen=True)
class Client:
    """A public kind of model as its code trains it.

    Attributes:
        name: of the row of the table.
        rtol: relative tolerance of such code.
        atol: absolute tolerance.
        iterations: of Adam.
        learning_rate: of Adam.
        model: makes the model, from torch's generator.
        measure: what the quality is: "accuracy", "NLL", "OT", "MSE".
        span: length of the solve, in units of time.
        weight: of the mean error penalty, set by hand.
        cooldown: last part of the iterations over which the learning rate falls to 0 on a line.
    """

    name: str
    rtol: float
    atol: float
    iterations: int
    learning_rate: float
    model: Callable[[], Model[Any]]
    measure: str
    span: float = 1.0
    weight: float = 10.0
    cooldown: float = 0.5

    def build(self, seed: int) -> Model[Any]:
        """The untrained model of a seed; the data are the same for all seeds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model()

    def solver(self, factor: float = 1.0, method: str | None = None, dt0: float | None = None) -> Solver:
        """The client's solver, both tolerances times a factor, each at most 0.1 or the client's own."""
        rtol, atol = (max(tolerance, min(0.1, factor * tolerance)) for tolerance in (self.rtol, self.atol))
        return Solver(method=method, rtol=rtol, atol=atol, dt0=dt0, engine="torch")

    def optimizer(self, model: nn.Module, iterations: int | None = None) -> tuple[Optimizer, LambdaLR]:
        """Adam and its schedule, for the client's iterations or for another number."""
        total = iterations or self.iterations
        adam = Adam(model.parameters(), self.learning_rate)
        length = max(1.0, self.cooldown * total)
        return adam, LambdaLR(adam, lambda i: min(1.0, (total - i) / length))


class Field(nn.Module):
    """A multilayer perceptron of the state alone, or of the state with the time beside it."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module] = nn.Tanh, *, time: bool = False) -> None:
        super().__init__()
        self.time = time
        self.network = perceptron((sizes[0] + time, *sizes[1:]), activation)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at time t (0-dim) and state y, shape (..., sizes[0])."""
        if self.time:
            y = torch.cat((y, t.to(y).expand(*y.shape[:-1], 1)), -1)
        slope: Tensor = self.network(y)
        return slope


def perceptron(sizes: Sequence[int], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def generator(seed: int) -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator().manual_seed(seed)


def some(draws: torch.Generator, items: int, count: int) -> Tensor:
    """Indices of `count` different items."""
    return torch.randperm(items, generator=draws)[:count]


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of the labels that the logits hit."""
    return float((logits.argmax(-1) == labels).double().mean())


def transport(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance under the best pairing of two sets of as many points, over leading dimensions.

    Args:
        x: points, shape (sets, points, features).
        y: likewise.

    Returns:
        The cost of each set, differentiable with the pairing kept constant.
    """
    with torch.no_grad():
        cost = torch.cdist(x, y).square().double().numpy()
        pairs = torch.stack([torch.from_numpy(linear_sum_assignment(part)[1]) for part in cost])
    paired = torch.gather(y, 1, pairs[..., None].expand_as(y))
    return (x - paired).square().sum(-1).mean(-1)


def sinkhorn(x: Tensor, y: Tensor, blur: float, iterations: int = 20) -> Tensor:
    """Transport cost under the entropic plan, with the plan kept constant, over leading dimensions.

    Args:
        x: points, shape (sets, points, features).
        y: likewise.
        blur: entropy's weight, as a share of the mean cost.
        iterations: of Sinkhorn's algorithm.
    """
    cost = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    with torch.no_grad():
        scaled = -cost / (blur * cost.mean((-2, -1), keepdim=True))
        plan = scaled
        for _ in range(iterations):
            plan = torch.log_softmax(torch.log_softmax(plan, -1), -2)
        weights = plan.exp() / x.shape[-2]
    return (weights * cost).sum((-2, -1))
