"""Clients on points and graphs: two moons, concentric spheres, a density, diffusion on a citation graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.public_model import Client, Field, Model, Problem, accuracy, generator, some
from regnde import Solution

SPAN = (0.0, 1.0)
Labelled = tuple[Tensor, Tensor]


def moons(count: int, seed: int, noise: float = 0.2) -> Labelled:
    """Two interleaving half circles, and which of the two."""
    draws = generator(seed)
    label = torch.arange(count) % 2
    angle = math.pi * torch.rand(count, generator=draws)
    upper = torch.stack((angle.cos(), angle.sin()), 1)
    lower = torch.stack((1 - angle.cos(), 0.5 - angle.sin()), 1)
    x = torch.where(label[:, None] == 0, upper, lower)
    return x + noise * torch.randn(count, 2, generator=draws), label


class TwoMoons(Model[Labelled]):
    """An ODE of the plane and a linear classifier at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Field([2, 32, 2])
        self.readout = nn.Linear(2, 2)
        self.data, self.test = moons(2000, 1), moons(1000, 2)

    def draw(self, generator: torch.Generator) -> Labelled:
        """Points and labels."""
        index = some(generator, 2000, 128)
        return self.data[0][index], self.data[1][index]

    def problem(self, batch: Labelled) -> Problem:
        """Of the points."""
        return Problem(self.field, batch[0], SPAN)

    def read(self, solution: Solution, batch: Labelled) -> Tensor:
        """Logits."""
        logits: Tensor = self.readout(solution.y1)
        return logits

    def loss(self, prediction: Tensor, batch: Labelled) -> Tensor:
        """Cross-entropy."""
        return functional.cross_entropy(prediction, batch[1])

    def quality(self, prediction: Tensor, batch: Labelled) -> float:
        """Accuracy."""
        return accuracy(prediction, batch[1])


def spheres(count: int, seed: int) -> Labelled:
    """Points of a disc of radius 0.5 with target -1, and of the ring between the radii 1 and 1.5 with target 1."""
    draws = generator(seed)
    outer = (torch.arange(count) % 3 > 0).float()
    direction = functional.normalize(torch.randn(count, 2, generator=draws), dim=1)
    share = torch.rand(count, generator=draws)
    radius = torch.where(outer > 0, (1 + 1.25 * share).sqrt(), 0.5 * share.sqrt())
    return radius[:, None] * direction, 2 * outer[:, None] - 1


class AugmentedSpheres(Model[Labelled]):
    """Concentric spheres by an ODE with a dimension more, ReLU, as augmented neural ODEs have it."""

    def __init__(self) -> None:
        super().__init__()
        self.field = Field([3, 32, 32, 3], nn.ReLU)
        self.readout = nn.Linear(3, 1)
        self.data, self.test = spheres(1000, 1), spheres(500, 2)

    def draw(self, generator: torch.Generator) -> Labelled:
        """Points and targets."""
        index = some(generator, 1000, 64)
        return self.data[0][index], self.data[1][index]

    def problem(self, batch: Labelled) -> Problem:
        """Of the points in one dimension more."""
        return Problem(self.field, functional.pad(batch[0], (0, 1)), SPAN)

    def read(self, solution: Solution, batch: Labelled) -> Tensor:
        """The target's estimate."""
        estimate: Tensor = self.readout(solution.y1)
        return estimate

    def loss(self, prediction: Tensor, batch: Labelled) -> Tensor:
        """Mean squared error."""
        return functional.mse_loss(prediction, batch[1])

    def quality(self, prediction: Tensor, batch: Labelled) -> float:
        """Share of the points on the right side."""
        return float((prediction * batch[1] > 0).double().mean())


def pinwheel(count: int, seed: int, arms: int = 5) -> Tensor:
    """Points of five bent arms."""
    draws = generator(seed)
    x = torch.randn(count, 2, generator=draws) * torch.tensor([0.3, 0.08]) + torch.tensor([1.0, 0.0])
    arm = 2 * math.pi / arms * torch.randint(arms, (count,), generator=draws)
    angle = arm + 0.25 * x[:, 0].exp()
    c, s = angle.cos(), angle.sin()
    return 2 * torch.stack((c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]), 1)


class Flow(nn.Module):
    """A field of the plane with two hidden layers, and the exact trace of its Jacobian.

    Args:
        width: of the hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, width)
        self.last = nn.Linear(width, 2)
        self.clocks = nn.ParameterList(nn.Parameter(0.5 * torch.randn(width)) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope of points and log densities, shape (batch, 3)."""
        t = t.to(y)
        a = torch.tanh(self.first(y[:, :2]) + t * self.clocks[0])
        b = torch.tanh(self.second(a) + t * self.clocks[1])
        paths = self.second.weight * (self.first.weight @ self.last.weight).T
        trace = (((1 - b.square()) @ paths) * (1 - a.square())).sum(1, keepdim=True)
        return torch.cat((self.last(b), trace), 1)


class Density(Model[Tensor]):
    """A continuous normalising flow of the plane that carries a pinwheel to a normal distribution."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = Flow(32)
        self.data, self.test = pinwheel(4000, 1), pinwheel(2000, 2)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Points."""
        return self.data[some(generator, 4000, 256)]

    def problem(self, batch: Tensor) -> Problem:
        """Of the points, with the change of their log density."""
        return Problem(self.flow, functional.pad(batch, (0, 1)), SPAN)

    def read(self, solution: Solution, batch: Tensor) -> Tensor:
        """Log densities of the points."""
        z, change = solution.y1[:, :2], solution.y1[:, 2]
        return change - 0.5 * z.square().sum(1) - math.log(2 * math.pi)

    def loss(self, prediction: Tensor, batch: Tensor) -> Tensor:
        """Negative log-likelihood."""
        return -prediction.mean()

    def quality(self, prediction: Tensor, batch: Tensor) -> float:
        """The same."""
        return -float(prediction.mean())


class Citations:
    """A graph like a citation network's: classes that cite themselves, sparse noisy words, few labels.

    Attributes:
        words: of each node, shape (nodes, features).
        label: its class.
        edges: whether two nodes are joined, shape (nodes, nodes), with the diagonal.
        train: nodes whose label is known.
        test: the others.
    """

    def __init__(self, nodes: int = 160, classes: int = 4, features: int = 40, labelled: int = 10) -> None:
        draws = generator(3)
        self.label = torch.arange(nodes) % classes
        same = self.label[:, None] == self.label
        joined = torch.rand(nodes, nodes, generator=draws) < torch.where(same, 0.09, 0.006)
        joined = joined.triu(1)
        self.edges = joined | joined.T | torch.eye(nodes, dtype=torch.bool)
        topic = torch.arange(features) % classes == self.label[:, None]
        self.words = (torch.rand(nodes, features, generator=draws) < torch.where(topic, 0.22, 0.06)).float()
        self.train, self.test = torch.arange(labelled * classes), torch.arange(labelled * classes, nodes)


class Diffusion(nn.Module):
    """States that move to the mean of their neighbours, weighted by attention, and back to where they started.

    Args:
        edges: whether two nodes are joined.
        width: of the states.
    """

    def __init__(self, edges: Tensor, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.rate = nn.Parameter(torch.zeros(()))
        self.source = nn.Parameter(torch.zeros(()))
        self.register_buffer("hidden", torch.zeros(edges.shape).masked_fill(~edges, -math.inf), persistent=False)
        self.start = torch.zeros(())  # the initial state of the solve, as GRAND keeps it

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope of all nodes' states."""
        scores = self.query(y) @ self.key(y).T / math.sqrt(y.shape[1]) + self.hidden
        slope: Tensor = torch.sigmoid(self.rate) * (scores.softmax(1) @ y - y) + self.source * self.start
        return slope


class Graph(Model[Tensor]):
    """Semi-supervised classes of nodes by diffusion between a linear encoder and a linear decoder."""

    def __init__(self, width: int = 16, end: float = 8.0) -> None:
        super().__init__()
        self.graph = Citations()
        self.encoder, self.decoder = nn.Linear(40, width), nn.Linear(width, 4)
        self.diffusion = Diffusion(self.graph.edges, width)
        self.span = (0.0, end)
        self.test = torch.ones_like(self.graph.words)

    def draw(self, generator: torch.Generator) -> Tensor:
        """A dropout mask of the words; every iteration sees the whole graph."""
        return 2 * (torch.rand(self.graph.words.shape, generator=generator) < 0.5).float()

    def problem(self, batch: Tensor) -> Problem:
        """From the encoded words, without those that the mask drops."""
        start = self.encoder(self.graph.words * batch)
        self.diffusion.start = start
        return Problem(self.diffusion, start, self.span)

    def read(self, solution: Solution, batch: Tensor) -> Tensor:
        """Logits of all nodes."""
        logits: Tensor = self.decoder(torch.relu(solution.y1))
        return logits

    def nodes(self, batch: Tensor) -> Tensor:
        """Those that count: the known ones, or the others in the test batch."""
        return self.graph.test if batch is self.test else self.graph.train

    def loss(self, prediction: Tensor, batch: Tensor) -> Tensor:
        """Cross-entropy."""
        nodes = self.nodes(batch)
        return functional.cross_entropy(prediction[nodes], self.graph.label[nodes])

    def quality(self, prediction: Tensor, batch: Tensor) -> float:
        """Accuracy."""
        nodes = self.nodes(batch)
        return accuracy(prediction[nodes], self.graph.label[nodes])


CLIENTS = (
    Client("two-moons", 1e-6, 1e-6, 300, 1e-2, TwoMoons, "accuracy"),
    Client("grand", 1e-6, 1e-4, 200, 5e-3, Graph, "accuracy", 8.0),
    Client("augmented-spheres", 1e-3, 1e-3, 400, 3e-3, AugmentedSpheres, "accuracy"),
    Client("ffjord", 1e-5, 1e-5, 250, 1e-2, Density, "NLL"),
)
