"""One training run: batches, schedules, checkpoints, measurements; and the file of results."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

import regnde
from paper_experiments import cifar, ffjord, free, latent, mnist, spiral
from paper_experiments.base import Evaluation, Experiment, Options, Place, Problem, Settings
from paper_experiments.methods import Method, method
from regnde._budget import smoothed

EXPERIMENTS: dict[str, Experiment] = {
    "mnist-ode": mnist.ODE,
    "physionet-latent-ode": latent.EXPERIMENT,
    "spiral-sde": spiral.SDE,
    "mnist-sde": mnist.SDE,
    "ffjord-gaussian": ffjord.EXPERIMENT,
    "cubic-spiral": spiral.ODE,
    "cifar10": cifar.STANDARD,
    "cifar10-multiscale": cifar.MULTI_SCALE,
}
HISTORY_POINTS = 50  # of the curve of training NFE that a result keeps


@dataclass(frozen=True)
class Run:
    """One run: what is trained, where, and with which changes to the experiment's settings.

    Attributes:
        experiment: a name out of `EXPERIMENTS`.
        method: a name out of the methods.
        seed: of parameters, batches and draws.
        options: scale, source and data.
        place: device, precision, engine.
        settings: of the experiment, any change applied.
    """

    experiment: str
    method: str
    seed: int
    options: Options
    place: Place
    settings: Settings

    def described(self) -> dict[str, Any]:
        """Everything that tells this run from others, as it stands in the results."""
        settings = dataclasses.asdict(self.settings)
        settings |= {
            "scale": self.options.scale,
            "source": self.options.source,
            "data": str(self.options.mnist or self.options.physionet or self.options.cifar or "built in"),
            "engine": self.place.engine,
            "device": str(self.place.device),
        }
        described = {"experiment": self.experiment, "method": self.method, "seed": self.seed, "settings": settings}
        # As it will be read back, so that a run can be looked for.
        return json.loads(json.dumps(described))  # type: ignore[no-any-return]  # a dict it was


def done(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; the last one may have been cut by a kill and is then dropped."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


class Described(Protocol):
    """What can be looked for in the results."""

    def described(self) -> dict[str, Any]:
        """The entries of its line that tell it from others."""


def find(results: list[dict[str, Any]], run: Described) -> dict[str, Any] | None:
    """The line of a run that has ended."""
    wanted = run.described()
    return next((line for line in results if all(line.get(key) == value for key, value in wanted.items())), None)


def train(
    run: Run, checkpoint: Path, *, every: float = 20.0, watch: Callable[[regnde.Progress], None] = lambda _: None
) -> dict[str, Any]:
    """Trains and measures one run, going on from its checkpoint if there is one.

    Args:
        run: which.
        checkpoint: file that holds the state of a run under way; removed at its end.
        every: seconds between two checkpoints.
        watch: called with every iteration's progress.

    Returns:
        Its line of the results.
    """
    experiment = EXPERIMENTS[run.experiment]
    chosen = method(run.method, run.settings.weights, sde=experiment.sde, official_local=run.settings.official_local)
    torch.manual_seed(run.seed)
    model = experiment.build(run.settings, chosen, run.place, run.options)
    model.to(run.place.device, run.place.dtype)
    total, per_epoch = run.settings.steps(model.items)
    optimizer = _optimizer(model, run.settings)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(run.settings, total))
    weight = _weight(chosen, run.settings, total, per_epoch)
    found = _found(run)

    start, nfes, tasks, seconds = 0, [], [], 0.0
    kept: dict[str, Tensor] | None = None  # the last parameters within a budget
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=run.place.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"].cpu())
        start, nfes, tasks, seconds = (state[key] for key in ("iteration", "nfes", "tasks", "seconds"))
        kept = state["kept"]
        if found is not None:
            found.load_state_dict(state["weight"])

    def compute(batch: tuple[int, Tensor]) -> tuple[Tensor, regnde.Solution]:
        iteration, index = batch
        return model.loss(index.to(run.place.device), iteration, iteration / per_epoch)

    steps = regnde.fit(
        compute,
        _batches(model.items, run.settings.batch, run.seed, start, total),
        optimizer,
        penalty=chosen.penalty,
        weight=(lambda i: weight(start + i)) if found is None else found,
        scheduler=scheduler,
    )
    saved, began = time.monotonic(), run.place.clock()
    for iteration, progress in enumerate(steps, start + 1):
        nfes.append(progress.nfe)
        tasks.append(progress.task)
        if isinstance(found, regnde.LossBudget) and found.within:
            kept = copy.deepcopy(model.state_dict())
        watch(progress)
        if time.monotonic() - saved >= every and iteration < total:
            seconds += run.place.clock() - began
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "rng": torch.get_rng_state(),
                "weight": None if found is None else found.state_dict(),
                "kept": kept,
                "iteration": iteration,
                "nfes": nfes,
                "tasks": tasks,
                "seconds": seconds,
            }
            _save(state, checkpoint)
            saved, began = time.monotonic(), run.place.clock()
    seconds += run.place.clock() - began

    if kept is not None:
        model.load_state_dict(kept)
    quality, loss, test_nfe, predict_seconds = _measured(model, run.seed)
    group = max(1, math.ceil(len(nfes) / HISTORY_POINTS))
    line = (
        run.described()
        | {
            "test_nfe": test_nfe,
            "train_nfe": statistics.mean(nfes),
            experiment.quality: quality,
            "test_loss": loss,
            "train_loss": smoothed(tasks),  # as a budget takes it
            "predict_seconds": predict_seconds,
            "train_seconds": seconds,
            "iterations": total,
            "within": found.within if isinstance(found, regnde.LossBudget) else None,
            "nfe_history": [round(statistics.mean(nfes[i : i + group]), 1) for i in range(0, len(nfes), group)],
            "solved": [
                {"by": "own", "factor": 1.0, "loss": loss, "quality": quality, "nfe": test_nfe},
                *_solved(model, run, free.SDE if experiment.sde else free.ODE, test_nfe),
            ],
        }
    )
    checkpoint.unlink(missing_ok=True)
    return line


def _measured(model: Problem, seed: int) -> Evaluation:
    """The model's numbers on the test data, which do not depend on what was drawn before."""
    model.eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.evaluate()


def _solved(model: Problem, run: Run, alternatives: tuple[str, ...], most: float) -> list[free.Line]:
    """The model's scores by every alternative, up to so many evaluations; by vanilla's method at x10 and x100 too."""
    repeats = run.settings.timing if model.noisy else 1

    def score(by: str, factor: float) -> free.Line:
        model.use(by, factor, repeats)
        quality, loss, nfe, _ = _measured(model, run.seed)
        return {"loss": loss, "quality": quality, "nfe": nfe}

    steps = free.factors(run.settings.tolerance, least=3)
    return [entry for by in alternatives for entry in free.solved(by, steps, score, most)]


def append(line: dict[str, Any], path: Path) -> None:
    """Adds one line to the results and makes sure that it is on the disk."""
    text = path.read_text() if path.exists() else ""
    with path.open("a") as file:
        if text and not text.endswith("\n"):  # a kill cut the last line: do not glue ours to it
            file.write("\n")
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _save(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint that is whole or not there."""
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    os.replace(fresh, path)


def _batches(items: int, batch: int, seed: int, start: int, total: int) -> Iterator[tuple[int, Tensor]]:
    """Iterations and shuffled indices from `start` on; an epoch's order depends on seed and epoch alone."""
    per_epoch = -(-items // batch)
    order: list[Tensor] = []
    for iteration in range(start, total):
        epoch, place = divmod(iteration, per_epoch)
        if not order or place == 0:
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            order = list(torch.randperm(items, generator=generator).split(batch))
        yield iteration, order[place]


def _optimizer(model: torch.nn.Module, settings: Settings) -> Optimizer:
    """The settings' optimiser on the model's parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.Adamax if settings.optimizer == "adamax" else torch.optim.Adam
    return kind(model.parameters(), rate, weight_decay=decay)


def _rate(settings: Settings, total: int) -> Callable[[int], float]:
    """What the learning rate is multiplied by over the iterations."""

    def factor(iteration: int) -> float:
        if settings.cosine:
            fallen = (1 + math.cos(math.pi * iteration / total)) / 2
        else:
            fallen = 1 / (1 + settings.inverse_decay * iteration)
        left = (total - iteration) / (settings.cooldown * total) if settings.cooldown else 1.0
        return fallen * min(1.0, left)

    return factor


def _found(run: Run) -> regnde.Balance | regnde.LossBudget | None:
    """What finds the penalty's weight, or None for a schedule."""
    if run.method == "budget":
        return regnde.LossBudget(run.settings.allowed)
    return regnde.Balance(run.settings.balance) if run.settings.balance else None


def _weight(chosen: Method, settings: Settings, total: int, per_epoch: int) -> Callable[[int], float]:
    """The penalty's weight over the iterations: an exponential, in steps of epochs or of iterations."""
    if not settings.per_epoch:
        return regnde.anneal(*chosen.weight, total)
    by_epoch = regnde.anneal(*chosen.weight, max(1, total // per_epoch))
    return lambda iteration: by_epoch(iteration // per_epoch)
