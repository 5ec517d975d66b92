"""Makes a trained model cheaper to solve: further training with a penalty, within a budget of the loss."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from regnde import _modules
from regnde._budget import LossBudget, averaged
from regnde._fit import Computed, Progress, fit, unpacked
from regnde._penalty import ErrorPenalty, Penalty
from regnde._recording import recording
from regnde._solver import Record

__all__ = ["Cheapening", "Measured", "cheapen"]

Batch = TypeVar("Batch")

MIN_GAIN = 0.01  # share of the evaluations: a smaller saving counts as none
SMALLER = 1 / 3  # learning rate after `patience` measurements that saved nothing
STAGES = 3  # learning rates
LARGEST = 3.0  # share of a `LossBudget`: a state that went too far is not kept
PASS = 50  # batches that are measured at most if none are given
FEWEST = 2  # steps that an adaptive solve makes at least: one, and the rest of the span


@dataclass(frozen=True)
class Measured:
    """Mean over the measured batches.

    Attributes:
        loss: task loss.
        nfe: evaluations of the field for a batch (for an SDE, of the drift).
        steps: trial steps of a solve.
    """

    loss: float
    nfe: float
    steps: float


@dataclass
class Cheapening(Generic[Batch]):
    """The run of a `cheapen`: iterate it, then read what it saved.

    Attributes:
        before: the model as it was given.
        best: the cheapest model within the budget so far, the one that the parameters hold at the end.
        allowed: the loss that is allowed.
    """

    before: Measured
    best: Measured
    allowed: float
    _steps: Iterator[Progress]

    def __iter__(self) -> Iterator[Progress]:
        yield from self._steps  # a loop that ends early closes this generator, and with it the run

    def __repr__(self) -> str:
        share = self.best.nfe / self.before.nfe if self.before.nfe else 1.0
        return (
            f"Cheapening(nfe {self.before.nfe:.1f} -> {self.best.nfe:.1f} ({share:.2f}x), "
            f"loss {self.before.loss:.4g} -> {self.best.loss:.4g}, allowed {self.allowed:.4g})"
        )


def cheapen(
    compute: Callable[[Batch], Computed],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    budget: float = 0.02,
    allowed: float | Tensor | None = None,
    penalty: Penalty | None = None,
    record: Record = "all",
    measure: Sequence[Batch] | None = None,
    every: int = 20,
    patience: int = 5,
    iterations: int = 1000,
    model: nn.Module | None = None,
    scaler: GradScaler | None = None,
    distributed: bool = False,
) -> Cheapening[Batch]:
    """Trains a trained model further until its solves are as cheap as a budget of the loss allows.

    The loss of the model as it stands is measured first; that loss plus the budget is the bound. Then `fit` runs
    with a `LossBudget`. Every so often the model is measured again, and the cheapest state within the bound is kept.
    If `patience` measurements saved nothing, the training continues from that state with a third of the learning rate.
    It ends after the third time, or after `iterations`. The parameters then hold the cheapest state within the bound;
    if there is none, they hold what they held at the start. The same is true if the loop is left early. So do the
    buffers (batch norm's statistics) of all modules that `compute` refers to. The optimiser's own state is cleared.

    Only a change in the number of steps counts. If the solves make two steps there is almost nothing to save, and a
    warning says so.

    Args:
        compute: maps a batch to its task loss and the solution it came from, with `record="all"`; or to the loss
            alone, and all its solves are recorded and measured. As `fit` takes it.
        batches: what to train on; gone through again and again, so not a generator that ends.
        optimizer: of the model's parameters. A learning rate of about a third of the training's first one serves.
        budget: by how much the loss may rise, as a share of its size (0.02: 2 %).
        allowed: the bound itself, in place of the measured loss plus the budget. For a model that is solved from
            now on with another solver, at which its loss may be worse: a state within the bound is then preferred
            to a cheaper one above it.
        penalty: what is lowered, by default `ErrorPenalty("mean")`.
        record: what `fit` records where `compute` returns the loss alone.
        measure: batches on which loss and evaluations are measured, such as validation batches; by default the
            first pass of `batches` (at most 50 of them). The loss on other batches than those of the training is
            another one: the weight then follows the training's loss plus the difference of the two, which every
            measurement renews. All measurements use the same random numbers inside `compute`.
        every: iterations between two measurements.
        patience: measurements without a saving before the learning rate falls.
        iterations: the largest number of iterations.
        model: a module whose parameters and buffers belong to the state that is kept, beside the optimiser's
            parameters: for modules that `compute` does not refer to by name, and for parameters that change without
            the optimiser.
        scaler: a `GradScaler` for training in float16, as in `fit`.
        distributed: average what is measured over the processes of `torch.distributed`'s default group, so that all
            keep the same state. Without it each process decides for itself.

    Returns:
        An iterable of `Progress`, one for each iteration, that knows what was saved.

    Raises:
        ValueError: for a budget below zero, no batches, a loss that is not finite at the start, or a `compute` that
            makes no solve.

    Examples:
        >>> import torch, regnde
        >>> _ = torch.manual_seed(0)
        >>> field = regnde.nn.MLP([2, 16, 2])
        >>> def compute(y0):
        ...     sol = regnde.solve(field, y0, [0.0, 1.0], record="all")
        ...     return (sol.y1 - 2 * y0).square().mean(), sol
        >>> adam = torch.optim.Adam(field.parameters(), 1e-2)
        >>> data = [torch.randn(16, 2)]
        >>> _ = list(regnde.fit(compute, data * 60, adam))
        >>> run = regnde.cheapen(compute, data, adam, iterations=40)
        >>> steps = list(run)
        >>> run.best.nfe <= run.before.nfe and run.best.loss <= run.allowed
        True
    """
    if budget > 1:
        raise ValueError(
            f"cheapen(budget={budget}): give a share of the loss, {budget / 100:g} for {budget:g} %; for a loss that "
            "is more than doubled give allowed=."
        )
    if not budget >= 0 or every < 1 or patience < 1 or iterations < 1:
        raise ValueError(
            f"cheapen(budget={budget}, every={every}, patience={patience}, iterations={iterations}): the budget must "
            "be at least 0, the others at least 1."
        )
    if isinstance(allowed, Tensor):
        allowed = float(allowed.detach())
    samples = list(itertools.islice(batches, PASS) if measure is None else measure)
    if not samples:
        raise ValueError("cheapen: there are no batches.")
    state = _State(optimizer, model, _modules.found(compute))

    def measured(some: Sequence[Batch] = samples) -> Measured:
        with state.buffers_left():
            return _measured(compute, some, distributed)

    before = measured()
    gap = 0.0  # of the measured loss over that of the training, which the weight sees
    if measure is not None and (trained := list(itertools.islice(batches, PASS))):
        gap = before.loss - measured(trained).loss
    if not math.isfinite(before.loss if allowed is None else allowed):
        raise ValueError(f"cheapen: the loss is {before.loss} before anything was trained, allowed is {allowed}.")
    if before.steps <= FEWEST and allowed is None:
        warnings.warn(
            f"cheapen: the solves make {before.steps:.3g} steps: this solver has next to nothing to save. Give one "
            "that makes more: without a first step (dt0), with a tighter tolerance, or with a method of lower order. "
            "After that, regnde.diagnose finds the solver to predict with.",
            stacklevel=2,
        )
    bound = before.loss + budget * abs(before.loss) if allowed is None else allowed
    run: Cheapening[Batch] = Cheapening(before, before, bound, iter(()))
    stage = ErrorPenalty("mean") if penalty is None else penalty
    endless = _again_and_again(batches)

    def steps() -> Iterator[Progress]:
        done, kept_gap = 0, gap
        try:
            for shrinking in range(STAGES):
                weight = LossBudget(bound - kept_gap, largest=LARGEST, distributed=distributed)
                waited = 0
                while waited < patience and done < iterations:
                    part = itertools.islice(endless, min(every, iterations - done))
                    run_on = fit(
                        compute,
                        part,
                        optimizer,
                        penalty=stage,
                        weight=weight,
                        record=record,
                        start=done,
                        scaler=scaler,
                    )
                    for progress in run_on:
                        done = progress.iteration + 1
                        yield progress
                    found = measured()
                    if measure is not None and math.isfinite(found.loss):
                        weight.allowed = bound - (found.loss - weight.loss)
                    waited += 1
                    cheaper = found.nfe < run.best.nfe * (1 - MIN_GAIN)
                    if found.loss <= bound and (cheaper or not run.best.loss <= bound):
                        run.best, waited = found, 0
                        kept_gap = bound - (weight.allowed or 0.0)
                        state.keep()
                if shrinking + 1 < STAGES and done < iterations:
                    state.restore()
                    state.slow_down()
        finally:
            state.restore()
            state.full_speed()

    run._steps = steps()
    return run


def _again_and_again(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, repeated for ever."""
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise ValueError("cheapen: the batches are used up: give a list or a DataLoader, not an iterator.")


def _measured(compute: Callable[[Batch], Computed], batches: Sequence[Batch], distributed: bool) -> Measured:
    """The means over the batches, with the same random numbers at every call."""
    rows: list[tuple[float, int, float]] = []
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # all of them: the seed is set on all
        torch.manual_seed(0)
        for batch in batches:
            with recording("none") as log:
                task, solution = unpacked(_computed(compute, batch))
            solves = log.solutions if solution is None else (solution,)
            if not solves:
                raise ValueError(
                    "cheapen: compute made no solve that was seen, and the evaluations of its solves are what is "
                    "lowered: return (loss, solution), or see regnde.install for a model on another package."
                )
            steps = sum(s.stats.accepted + s.stats.rejected for s in solves)
            rows.append((float(task.detach()), sum(s.stats.nfe for s in solves), steps / len(solves)))
    means = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Measured(*(averaged(x) for x in means)) if distributed else Measured(*means)


def _computed(compute: Callable[[Batch], Computed], batch: Batch) -> Computed:
    """The result of `compute` without a graph; with one if the field differentiates something itself."""
    try:
        with torch.no_grad():
            return compute(batch)
    except RuntimeError as problem:
        if "does not require grad" not in str(problem):
            raise
    return compute(batch)


class _State:
    """The parameters that are kept, with the buffers of the modules, and the learning rates."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None, modules: Sequence[nn.Module]) -> None:
        self.optimizer = optimizer
        given = () if model is None else (model,)
        self.buffers = [buffer for module in (*given, *modules) for buffer in module.buffers()]
        trained: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        others: list[Tensor] = [*(p for module in given for p in module.parameters()), *self.buffers]
        self.tensors = list({id(x): x for x in (*trained, *others)}.values())
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.keep()

    def keep(self) -> None:
        """Copies the state as it is now."""
        self.kept = _copies(self.tensors)

    def restore(self) -> None:
        """Restores the copy, and clears the optimiser's state, which belongs to other parameters."""
        _put_back(self.tensors, self.kept)
        self.optimizer.state.clear()

    @contextlib.contextmanager
    def buffers_left(self) -> Iterator[None]:
        """Restores the buffers afterwards: a measurement must not change them."""
        before = _copies(self.buffers)
        try:
            yield
        finally:
            _put_back(self.buffers, before)

    def slow_down(self) -> None:
        """Lowers the learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * SMALLER

    def full_speed(self) -> None:
        """Restores the learning rates."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in tensors]


@torch.no_grad()
def _put_back(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for x, old in zip(tensors, copies, strict=True):
        x.copy_(old)
