"""MNIST by a neural ODE (A 3.1, B 3.7 in the notes of the papers) and by a neural SDE (A 3.4, B 3.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings, scores
from paper_experiments.data import Images, load_mnist
from paper_experiments.methods import Method, Weights
from regnde import BrownianPath, Solution, steer
from regnde.nn import MLP, NeuralSDE

SPAN = (0.0, 1.0)
STEER_WIDTH = 0.5  # half-width of the end time's interval, as in paper A
CHUNK = 1000  # test images solved as one system


class MnistODE(Problem):
    """The image is the initial state, a linear layer reads the digit off the final one.

    Args:
        settings: sizes and schedule.
        method: the row.
        place: device, precision, engine.
        data: images.
        hidden: width of the field's hidden layer.
        squashed: whether the field ends in tanh (paper A) or in the linear layer (paper B).
    """

    def __init__(
        self, settings: Settings, method: Method, place: Place, data: Images, hidden: int, squashed: bool
    ) -> None:
        super().__init__(settings, method, place)
        pixels = data.train_x.shape[1]
        self.data = data
        self.items = len(data.train_x)
        self.field = MLP([pixels, hidden, pixels], output=torch.tanh if squashed else None)
        self.readout = nn.Linear(pixels, 10)

    def solve(self, x: Tensor) -> Solution:
        """The solution whose end holds the digit."""
        ts = steer(SPAN, STEER_WIDTH) if self.method.steer and self.training else SPAN
        return self.integrate(self.field, x, ts)

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Cross-entropy."""
        solution = self.solve(self.data.train_x[index])
        return self.penalised(functional.cross_entropy(self.readout(solution.y1), self.data.train_y[index])), solution

    def evaluate(self) -> Evaluation:
        """Accuracy and cross-entropy on all test images; NFE and seconds of one batch of them."""
        logits = torch.cat([self.readout(self.solve(x).y1) for x in self.data.test_x.split(CHUNK)])
        sample = self.data.test_x[: self.settings.batch]
        return Evaluation(*scores(logits, self.data.test_y), *self.timed(lambda _: self.solve(sample)))


class MnistSDE(Problem):
    """A linear layer makes the initial state of an SDE from the image, another reads the digit off its end.

    Args:
        settings: sizes and schedule.
        method: the row.
        place: device, precision, engine.
        data: images.
        trajectories: whose mean logits make a prediction (paper A: 10; paper B and small: 1); training takes one.
    """

    noisy = True

    def __init__(self, settings: Settings, method: Method, place: Place, data: Images, trajectories: int) -> None:
        super().__init__(settings, method, place)
        self.data, self.trajectories = data, trajectories
        self.items = len(data.train_x)
        self.embed = nn.Linear(data.train_x.shape[1], 32)
        drift, diffusion = MLP([32, 64, 32], time=False), MLP([32, 32], time=False)
        solver = self.solver("sosri2" if method.stiff else "sosri")
        self.sde = NeuralSDE(drift, diffusion, SPAN, solver, method.record)
        self.readout = nn.Linear(32, 10)

    def use(self, method: str, factor: float, repeats: int) -> None:
        """Likewise, for the layer that solves."""
        super().use(method, factor, repeats)
        self.sde.solver = self.solver()

    def loss(self, index: Tensor, iteration: int, epoch: float) -> tuple[Tensor, Solution]:
        """Cross-entropy along one path an image."""
        ts = steer(SPAN, STEER_WIDTH) if self.method.steer else SPAN
        solution = self.sde(self.embed(self.data.train_x[index]), ts)
        return functional.cross_entropy(self.readout(solution.y1), self.data.train_y[index]), solution

    def predict(self, x: Tensor, seed: int) -> tuple[Tensor, Solution]:
        """Mean logits, shape (batch, 10), along paths that every model of the seed shares."""
        start = self.embed(x).repeat(self.trajectories, 1)
        noise = BrownianPath(*SPAN, start.shape, seed=seed)
        solution = self.sde(start, noise=noise)
        return self.readout(solution.y1).unflatten(0, (self.trajectories, len(x))).mean(0), solution

    def evaluate(self) -> Evaluation:
        """Accuracy and cross-entropy on all test images; NFE (of the drift) and seconds of one batch of them."""
        parts = self.data.test_x.split(self.settings.batch)
        logits = torch.cat([self.predict(x, i)[0] for i, x in enumerate(parts)])
        return Evaluation(*scores(logits, self.data.test_y), *self.timed(lambda i: self.predict(parts[0], i)[1]))


def _images(options: Options, place: Place) -> Images:
    images = load_mnist(options.mnist, 14 if options.scale == "small" else 28)
    x = (part.to(place.device, place.dtype) for part in (images.train_x, images.test_x))
    y = (part.to(place.device) for part in (images.train_y, images.test_y))
    return Images(*(part for pair in zip(x, y, strict=True) for part in pair))


def _ode_settings(options: Options) -> Settings:
    if options.scale == "small":
        weights = Weights(
            error=(150.0, 30.0),
            stiffness=(1.0, 1.0),
            both=(150.0, 30.0),
            local=(100.0, 30.0),
            squared=(1500.0, 300.0),
            rnode=(3.0, 3.0),
            taynode=(3.0, 2),
        )
        return Settings(iterations=300, batch=200, tolerance=1e-6, learning_rate=3e-3, weights=weights)
    weights = Weights(
        error=(100.0, 10.0), stiffness=(0.1, 0.1), both=(10.0, 10.0), local=(50.0, 20.0), taynode=(3.02e-3, 3)
    )
    if options.source == "A":
        return Settings(
            epochs=75,
            batch=512,
            tolerance=1.4e-8,
            learning_rate=0.1,
            optimizer="sgd",
            inverse_decay=1e-5,
            per_epoch=True,
            dtype="float32",
            weights=weights,
        )
    weights = Weights(
        error=(100.0, 10.0), stiffness=(0.1, 0.1), both=(10.0, 10.0), local=(2.5, 1.0), taynode=(3.02e-3, 3)
    )
    return Settings(
        iterations=7500,
        batch=512,
        tolerance=1.4e-8,
        learning_rate=1e-3,
        dtype="float32",
        official_local=True,
        weights=weights,
    )


def _build_ode(settings: Settings, method: Method, place: Place, options: Options) -> MnistODE:
    small = options.scale == "small"
    squashed = small or options.source == "A"
    return MnistODE(settings, method, place, _images(options, place), 64 if small else 100, squashed)


def _sde_settings(options: Options) -> Settings:
    if options.scale == "small":
        weights = Weights(
            error=(50.0, 50.0),
            stiffness=(0.1, 0.1),
            both=(50.0, 50.0),
            local=(50.0, 50.0),
            stiffness_reduction="mean",
        )
        return Settings(
            iterations=150, batch=200, tolerance=0.14, learning_rate=1e-2, dtype="float32", timing=5, weights=weights
        )
    weights = Weights(
        error=(10.0, 10.0),
        stiffness=(0.1, 0.1),
        both=(10.0, 10.0),
        local=(10.0, 10.0) if options.source == "A" else (1000.0, 1000.0),
        stiffness_reduction="mean",
    )
    a = options.source == "A"
    return Settings(
        epochs=40 if a else 0,
        iterations=0 if a else 4000,
        batch=512,
        tolerance=0.14,
        learning_rate=1e-2,
        inverse_decay=1e-5,
        per_epoch=a,
        dtype="float32",
        official_local=not a,
        weights=weights,
    )


def _build_sde(settings: Settings, method: Method, place: Place, options: Options) -> MnistSDE:
    trajectories = 10 if options.scale == "paper" and options.source == "A" else 1
    return MnistSDE(settings, method, place, _images(options, place), trajectories)


ODE = Experiment("accuracy", False, _ode_settings, _build_ode)
SDE = Experiment("accuracy", True, _sde_settings, _build_sde)
