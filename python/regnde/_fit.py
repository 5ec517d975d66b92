"""Training: a loop as a generator, and the weight schedule of the papers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from regnde._balance import Balance
from regnde._penalty import Penalty
from regnde._solution import Solution

__all__ = ["Progress", "anneal", "fit"]

Batch = TypeVar("Batch")
Weight = Callable[[int], float]


@dataclass(frozen=True)
class Progress:
    """One iteration of `fit`.

    Attributes:
        iteration: 0, 1, 2, ...
        loss: task loss plus weighted penalty.
        task: task loss.
        penalty: penalty before its weight; 0 without one.
        weight: its weight in this iteration; 0 without a penalty.
        nfe: evaluations of the field (for an SDE, of the drift) in the forward solve.
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
    compute: Callable[[Batch], tuple[Tensor, Solution]],
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    penalty: Penalty | None = None,
    weight: float | Weight | Balance = 1.0,
    scheduler: LRScheduler | None = None,
) -> Iterator[Progress]:
    """Minimises task loss + weight * penalty, one optimiser step a batch, handing out progress.

    Nothing happens until the generator is iterated, and it may be left at any iteration.

    Args:
        compute: maps a batch to its task loss (0-dim) and the solution it came from; the solution
            must hold the records that the penalty needs.
        batches: the batches; their number is the number of iterations.
        optimizer: steps the parameters.
        penalty: the regulariser, or None.
        weight: its weight, a function of the iteration such as `anneal` makes, or a `Balance` that finds it.
        scheduler: learning rate schedule, stepped once an iteration.

    Yields:
        A `Progress` after each update.

    Raises:
        FloatingPointError: if the loss is not finite; the parameters are left as they were.

    Example:
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
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    for iteration, batch in enumerate(batches):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        task, solution = compute(batch)
        loss, value, factor = task, 0.0, 0.0
        if penalty is not None:
            regulariser = penalty(solution)
            if isinstance(weight, Balance):
                factor = weight.update(task, regulariser, parameters)
            else:
                factor = weight(iteration) if callable(weight) else weight
            loss, value = task + factor * regulariser, float(regulariser.detach())
        total = float(loss.detach())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss is {total} in iteration {iteration} (task {float(task.detach()):.3g}, penalty {value:.3g}): "
                "lower the learning rate or the penalty's weight."
            )
        torch.autograd.backward(loss)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        yield Progress(
            iteration=iteration,
            loss=total,
            task=float(task.detach()),
            penalty=value,
            weight=factor,
            nfe=solution.stats.nfe,
            seconds=time.perf_counter() - began,
        )


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

    Example:
        >>> weight = anneal(100.0, 10.0, 50)
        >>> tuple(round(weight(i), 3) for i in (0, 25, 50, 80))
        (100.0, 31.623, 10.0, 10.0)
    """
    if not (start > 0 and end > 0 and iterations > 0):
        raise ValueError(f"anneal({start}, {end}, {iterations}): all three must be above zero.")
    return lambda iteration: start * (end / start) ** (min(iteration, iterations) / iterations)
