"""Training: a loop as a generator, and the weight schedule of the papers."""

from __future__ import annotations

import inspect
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from regnde._budget import MeasuredWeight
from regnde._penalty import Penalty
from regnde._recording import recording
from regnde._solution import Solution
from regnde._solver import Record

__all__ = ["Computed", "Progress", "anneal", "fit", "unpacked"]

GOLDEN = 0.6180339887498949  # its multiples fill [0, 1) evenly, and so do those of every tenth

Batch = TypeVar("Batch")
Weight = Callable[[int], float]
Computed = tuple[Tensor, Solution | None] | Tensor


@dataclass(frozen=True)
class Progress:
    """One iteration of `fit`: one update of the parameters. Losses are means over its batches, before the update.

    Attributes:
        iteration: `start`, `start` + 1, ...
        loss: task loss plus weighted penalty.
        task: task loss.
        penalty: penalty before its weight; 0 without one.
        weight: the penalty's weight in this iteration; 0 without a penalty.
        nfe: evaluations of the field (for an SDE, of the drift) in the forward solve, the rounded mean over the
            iteration's batches. If `compute` returns the loss alone, they are those of all its solves.
        seconds: wall time of forward, backward and update.
    """

    iteration: int
    loss: float
    task: float
    penalty: float
    weight: float
    nfe: int
    seconds: float


def fit(
    compute: Callable[[Batch], Computed],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    penalty: Penalty | None = None,
    weight: float | Weight | MeasuredWeight = 1.0,
    record: Record = "all",
    scheduler: LRScheduler | ReduceLROnPlateau | None = None,
    start: int = 0,
    accumulate: int = 1,
    clip: float | None = None,
    scaler: GradScaler | None = None,
) -> Iterator[Progress]:
    """Minimises task loss + weight * penalty: a generator that makes one optimiser step and yields its progress.

    Nothing is computed before the first iteration, and the loop may be left at any iteration.

    Args:
        compute: maps a batch to its task loss (0-dim) and the solution it came from; the solution
            must hold the records that the penalty needs. Or to the loss alone: the solves that it makes, however deep
            in a model, are then recorded as by `recording`, and the penalty is the sum over them.
        batches: the batches; their number over `accumulate` is the number of iterations.
        optimizer: steps the parameters. One whose step needs a closure, such as LBFGS, gets one that computes the
            same batches again; the weight stays the same within an iteration.
        penalty: the regulariser, or None.
        weight: its weight, a function of the iteration such as `anneal` makes, or what finds it: a `LossBudget`
            or a `Balance`.
        record: `"all"` or a `Local`: what is recorded for the penalty if `compute` returns the loss alone, in solves
            that do not choose a record themselves.
        scheduler: learning rate schedule, stepped once an iteration; `ReduceLROnPlateau` is given the loss.
        start: number of the first iteration, for a training that goes on: `anneal` and `Progress` count from it.
        accumulate: batches in an iteration, whose gradients are averaged. The last iteration averages what is left.
        clip: largest norm of the gradient, as `torch.nn.utils.clip_grad_norm_` takes it; None leaves the gradient.
        scaler: scales the loss for float16 under `torch.autocast`. If the scaled gradient overflows, the scaler skips
            the optimiser's step, and the scheduler's step is skipped too; the iteration still counts.

    Yields:
        A `Progress` after each update.

    Raises:
        FloatingPointError: if the loss or its gradient is not finite; the parameters are left as they were.
        TypeError: for a `compute` that returns something else, or a weight of another kind.
        ValueError: for a loss of several entries, for options that do not go together, where there are no records
            for the penalty, and where the loss depends on none of the optimiser's parameters.

    Examples:
        >>> import torch, regnde
        >>> _ = torch.manual_seed(0)
        >>> field = regnde.nn.MLP([1, 8, 1])
        >>> def compute(y0):
        ...     sol = regnde.solve(field, y0, [0.0, 1.0], record="all")
        ...     return (sol.y1 - 2 * y0).square().mean(), sol
        >>> adam = torch.optim.Adam(field.parameters(), 1e-2)
        >>> history = list(fit(compute, [torch.ones(4, 1)] * 3, adam, penalty=regnde.ErrorPenalty(), weight=1e-2))
        >>> history[2].loss < history[0].loss
        True
    """
    if accumulate < 1 or not (clip is None or clip > 0):
        raise ValueError(f"fit(accumulate={accumulate}, clip={clip}): give at least one batch and a norm above zero.")
    if scaler is not None and not scaler.is_enabled():
        scaler = None
    if isinstance(penalty, type):
        raise TypeError(
            f"fit: penalty is the class {penalty.__name__}: give an object of it, such as {penalty.__name__}('mean')."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"fit: optimizer must be a torch optimiser, such as torch.optim.Adam(model.parameters()), got "
            f"{type(optimizer).__name__}."
        )
    _check_weight(weight)
    closure = _needs_closure(optimizer)
    if closure and scaler is not None:
        raise ValueError(f"a GradScaler does not go with {type(optimizer).__name__}, whose step needs a closure.")
    remaining = iter(batches)
    groups = iter(lambda: tuple(itertools.islice(remaining, accumulate)), ())
    for iteration, group in enumerate(groups, start):
        began = time.perf_counter()
        if isinstance(weight, MeasuredWeight):  # it measures on the first batch alone: each batch in turn comes first
            first = int(iteration * GOLDEN % 1 * len(group))
            group = (*group[first:], *group[:first])
        step = _Iteration(iteration, group, compute, optimizer, penalty, weight, record, clip, scaler)
        updated = step.with_closure() if closure else step.update()
        loss, task, value, nfe = (sum(column) / len(group) for column in zip(*step.measured, strict=True))
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss)
        elif scheduler is not None and updated:
            scheduler.step()
        yield Progress(
            iteration=iteration,
            loss=loss,
            task=task,
            penalty=value,
            weight=step.factor or 0.0,
            nfe=round(nfe),
            seconds=time.perf_counter() - began,
        )


def _check_weight(weight: object) -> None:
    """Refuses what is no weight, and warns of one that each process of a distributed training would find for itself."""
    known = callable(weight) or isinstance(weight, MeasuredWeight | float | int | Tensor)
    if isinstance(weight, type) or not known:
        raise TypeError(
            f"fit: weight must be a number, a function of the iteration, a LossBudget or a Balance, got {weight!r}."
        )
    if isinstance(weight, float | int) and weight < 0:
        raise ValueError(f"fit(weight={weight}): below zero a weight makes the penalty larger: give 0 or more.")
    distributed = torch.distributed
    if getattr(weight, "distributed", True) or not (distributed.is_available() and distributed.is_initialized()):
        return
    if (count := distributed.get_world_size()) > 1:
        kind = type(weight).__name__
        warnings.warn(
            f"{kind}: {count} processes train together, and each finds a weight of its own, so that they minimise "
            f"different losses: give {kind}(..., distributed=True).",
            stacklevel=3,
        )


def _needs_closure(optimizer: Optimizer) -> bool:
    """Whether the optimiser's step takes a function that computes the loss, and can not do without."""
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return parameter is not None and parameter.default is parameter.empty


@dataclass
class _Iteration(Generic[Batch]):
    """One update of the parameters.

    Attributes:
        measured: loss, task loss, penalty and evaluations of each batch, as the update found them.
        factor: the penalty's weight, None until the first batch was computed.
    """

    number: int
    batches: Sequence[Batch]
    compute: Callable[[Batch], Computed]
    optimizer: Optimizer
    penalty: Penalty | None
    weight: float | Weight | MeasuredWeight
    record: Record
    clip: float | None
    scaler: GradScaler | None
    measured: list[tuple[float, float, float, int]] = field(default_factory=list)
    factor: float | None = None

    def __post_init__(self) -> None:
        groups = self.optimizer.param_groups
        self.parameters = [p for group in groups for p in group["params"] if p.requires_grad]

    def update(self) -> bool:
        """Takes the step; False if the scaler left it out."""
        self.gradient()
        if self.scaler is None:
            self._check_and_clip()
            self.optimizer.step()
            return True
        self.scaler.unscale_(self.optimizer)
        scale = self.scaler.get_scale()
        self._check_and_clip(check=scale <= 1)  # above that the scale may be the cause, and the scaler lowers it
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= scale

    def with_closure(self) -> bool:
        """Takes the step of an optimiser that evaluates the loss several times."""
        before = [p.detach().clone() for p in self.parameters]

        def closure() -> float:
            loss = self.gradient()
            self._check_and_clip()
            return loss

        try:
            self.optimizer.step(closure)
        except BaseException:
            with torch.no_grad():
                for p, old in zip(self.parameters, before, strict=True):
                    p.copy_(old)
            raise
        return True

    def gradient(self) -> float:
        """Sets the parameters' gradients to those of the mean loss; returns that loss."""
        self.optimizer.zero_grad(set_to_none=True)
        measured = [self._backward(batch) for batch in self.batches]
        self.measured = self.measured or measured
        return sum(loss for loss, *_ in measured) / len(measured)

    def _backward(self, batch: Batch) -> tuple[float, float, float, int]:
        """Adds the gradient of one batch; returns its loss, task loss, penalty and evaluations."""
        task, regulariser, nfe = self._computed(batch)
        if not task.requires_grad:
            raise ValueError(self._unconnected())
        loss, value = task, 0.0
        if regulariser is not None:
            if self.factor is None:
                self.factor = self._weight(task, regulariser)
            loss, value = task + self.factor * regulariser, float(regulariser.detach())
        total, of_task = float(loss.detach()), float(task.detach())
        if not math.isfinite(total):
            raise FloatingPointError(self._blame(of_task, value))
        share = loss / len(self.batches) if len(self.batches) > 1 else loss
        torch.autograd.backward(share if self.scaler is None else self.scaler.scale(share))
        return total, of_task, value, nfe

    def _computed(self, batch: Batch) -> tuple[Tensor, Tensor | None, int]:
        """The task's loss, the penalty if there is one, and the evaluations; the solutions are freed here."""
        with recording("none" if self.penalty is None else self.record) as log:
            task, solution = unpacked(self.compute(batch))
        if solution is None:
            return task, None if self.penalty is None else log.penalty(self.penalty), log.nfe
        return task, None if self.penalty is None else self.penalty(solution), solution.stats.nfe

    def _weight(self, task: Tensor, regulariser: Tensor) -> float:
        if isinstance(self.weight, MeasuredWeight):
            if self.scaler is None:
                return self.weight.update(task, regulariser, self.parameters)
            return self.weight.update(task, regulariser, self.parameters, scale=self.scaler.get_scale())
        return float(self.weight(self.number) if callable(self.weight) else self.weight)

    def _blame(self, task: float, penalty: float) -> str:
        """A message that says what is not finite, and what to do."""
        where = f"in iteration {self.number} (task {task:.3g}, penalty {penalty:.3g}, weight {self.factor or 0.0:.3g})"
        if not math.isfinite(task):
            return f"the task's loss is {task} {where}: look for it in the data, or lower the learning rate."
        if not math.isfinite(penalty):
            return f"the penalty is {penalty} {where}: lower the learning rate or the penalty's weight."
        return f"the loss is not finite {where}: lower the penalty's weight."

    def _unconnected(self) -> str:
        """A message for a loss without a gradient."""
        return (
            f"the task's loss in iteration {self.number} has no gradient by the {len(self.parameters)} tensors that "
            "the optimiser trains: give it the model's parameters, and look for frozen ones, .detach(), .item() or "
            "torch.no_grad() between them and the loss."
        )

    def _check_and_clip(self, *, check: bool = True) -> None:
        """Raises an error if there is no gradient or one that is not finite, and clips its norm."""
        if all(p.grad is None for p in self.parameters):
            raise ValueError(self._unconnected())
        bad = _first_not_finite(self.parameters) if check else None
        if bad is not None:
            loss, task, penalty, _ = self.measured[0]
            raise FloatingPointError(
                f"the gradient is not finite in iteration {self.number}, though the loss {loss:.3g} (task {task:.3g}, "
                f"penalty {penalty:.3g}) is: the first such parameter is number {bad} of the optimiser's, of shape "
                f"{tuple(self.parameters[bad].shape)}. Look for a square root, a norm or a division at 0."
            )
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)


def unpacked(computed: Computed) -> tuple[Tensor, Solution | None]:
    """The task's loss, 0-dim, and the solution, of what `compute` returned."""
    task, solution = computed if isinstance(computed, tuple) and len(computed) == 2 else (computed, None)
    if not isinstance(task, Tensor) or task.is_complex():
        kind = task.dtype if isinstance(task, Tensor) else type(task).__name__
        raise TypeError(f"compute must return a loss, a real tensor, and the solution; its loss is a {kind}.")
    if task.numel() != 1:
        raise ValueError(
            f"compute returned a loss of shape {tuple(task.shape)}: reduce it to one number, such as loss.mean()."
        )
    if not (solution is None or isinstance(solution, Solution)):
        raise TypeError(f"compute must return (loss, solution), but the second is a {type(solution).__name__}.")
    return task.reshape(()), solution


def _first_not_finite(parameters: Sequence[Tensor]) -> int | None:
    """Index of the first parameter whose gradient is not finite, found by its largest entry: a sum could overflow."""
    largest, places = [], []
    for i, p in enumerate(parameters):
        if p.grad is not None:
            entries = p.grad.coalesce().values() if p.grad.is_sparse else p.grad
            if entries.numel():
                largest.append(torch.linalg.vector_norm(entries, math.inf))
                places.append(i)
    if not largest:
        return None
    finite = torch.isfinite(torch.stack([x.to(largest[0].device) for x in largest]))
    return None if bool(finite.all()) else places[finite.tolist().index(False)]


def anneal(start: float, end: float, iterations: int) -> Weight:
    """Exponential decay of a weight, start * (end / start)^(i / iterations), as in both papers.

    Args:
        start: weight in iteration 0 (> 0).
        end: weight reached after `iterations` (> 0); it stays there.
        iterations: length of the decay.

    Returns:
        The weight as a function of the iteration.

    Raises:
        ValueError: if a weight or the length is not above zero.

    Examples:
        >>> weight = anneal(100.0, 10.0, 50)
        >>> tuple(round(weight(i), 3) for i in (0, 25, 50, 80))
        (100.0, 31.623, 10.0, 10.0)
    """
    if not (start > 0 and end > 0 and iterations > 0):
        raise ValueError(f"anneal({start}, {end}, {iterations}): all three must be above zero.")
    return lambda iteration: start * (end / start) ** (min(iteration, iterations) / iterations)
