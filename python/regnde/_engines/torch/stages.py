"""The stages of one step and their linear combinations, kept in one of three ways.

`ListStages` builds an autograd graph out of `torch.add(y, k, alpha=float)`, whose nodes save no
tensors, so that a graph holds what the field saves and nothing else. `BufferStages` serves solves
without a graph: one (stages, N) buffer, each combination one `addmv`; only of large states the
copies cost more than they save. All give the same numbers to rounding; `make bench` has the timings
that decided. `ColumnStages` serves batches whose samples step apart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from regnde._engines.torch.norm import Scratch
from regnde._engines.torch.sums import Terms, added, summed
from regnde._engines.torch.tableaux import Row, Tableau

__all__ = ["BufferStages", "ColumnStages", "ListStages", "Stages"]


class Stages(Protocol):
    """Stages k_0, k_1, ... of the step at hand.

    Attributes:
        scratch: memory for estimates without a graph; None where it would not pay.
    """

    scratch: Scratch | None

    def start(self, first: Tensor) -> None:
        """Begins a step whose first stage is `first`."""

    def push(self, k: Tensor) -> None:
        """Adds the next stage."""

    def __getitem__(self, index: int) -> Tensor: ...

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        """The sum y + h sum_j weights_j k_j."""

    def terms(self, weights: Row, h: float) -> Terms:
        """What h sum_j weights_j k_j is the sum of; a single one may be overwritten."""

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        """The sums y + sum_j weights_mj k_j for each row m, shape (M, *y.shape)."""


class _Listed:
    """Stages as a list of tensors, which autograd may see."""

    def __init__(self, stages: Sequence[Tensor] = ()) -> None:
        self.stages = list(stages)

    def start(self, first: Tensor) -> None:
        """Begins a step whose first stage is `first`."""
        self.stages = [first]

    def push(self, k: Tensor) -> None:
        """Adds the next stage."""
        self.stages.append(k)

    def __getitem__(self, index: int) -> Tensor:
        return self.stages[index]


class ListStages(_Listed):
    """Stages combined with one step size, by operations that autograd records."""

    def __init__(self, stages: Sequence[Tensor] = ()) -> None:
        super().__init__(stages)
        self.scratch: Scratch | None = Scratch()

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        return added(y, self.terms(weights, h))

    def terms(self, weights: Row, h: float) -> Terms:
        return [(h * weight, k) for weight, k in zip(weights, self.stages, strict=False) if weight]

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        stacked = torch.stack(self.stages).reshape(len(self.stages), y.numel())
        flat = torch.addmm(y.reshape(1, y.numel()), weights.to(y.dtype), stacked)
        return flat.reshape(len(weights), *y.shape)


class BufferStages:
    """Stages as rows of one preallocated buffer, for solves without gradients.

    Args:
        tableau: whose weight rows are turned into tensors once.
        y: a state, for its shape, dtype and device.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        count = tableau.stages + len(tableau.extra_a)
        whole = torch.empty((count, *y.shape), dtype=y.dtype, device=y.device)
        self.stages = whole.unbind()
        self.buffer = whole.view(count, y.numel())
        columns = self.buffer.T
        self.transposed = [columns.narrow(1, 0, i) for i in range(count + 1)]
        self.shape = y.shape
        self.filled = 0
        self.scratch: Scratch | None = None  # of small states, new memory costs nothing
        self.y, self.flat = y, y.reshape(-1)
        self.weights = _weights(tableau, y.dtype, y.device)

    def start(self, first: Tensor) -> None:
        if first is not self.stages[0]:
            self.stages[0].copy_(first)
        self.filled = 1

    def push(self, k: Tensor) -> None:
        self.stages[self.filled].copy_(k)  # a copy: a field may hand out its own buffer
        self.filled += 1

    def __getitem__(self, index: int) -> Tensor:
        return self.stages[index]

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        if len(weights) == 1:
            return torch.add(y, self.stages[0], alpha=h * weights[0])
        if y is not self.y:  # one state serves all stages of a step
            self.y, self.flat = y, y.reshape(-1)
        moved: Tensor = torch.addmv(self.flat, self.transposed[len(weights)], self.weights[weights], alpha=h)
        return moved.view_as(y)

    def terms(self, weights: Row, h: float) -> Terms:
        total = torch.addmv(self.flat, self.transposed[len(weights)], self.weights[weights], beta=0, alpha=h)
        return [(1.0, total.view_as(self.y))]

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        flat = torch.addmm(y.reshape(1, y.numel()), weights.to(y.dtype), self.buffer[: weights.shape[1]])
        return flat.reshape(len(weights), *self.shape)


@functools.lru_cache(maxsize=16)
def _weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> dict[Row, Tensor]:
    """The rows of a tableau as tensors."""
    rows = [*tableau.a, *tableau.extra_a, tableau.b, *([tableau.btilde] if tableau.btilde else [])]
    with torch.inference_mode(False):  # a later solve may not be in that mode
        coefficients = torch.tensor([w for row in rows for w in row], dtype=dtype, device=device)
        return dict(zip(rows, torch.split(coefficients, [len(row) for row in rows]), strict=True))


class ColumnStages(_Listed):
    """Stages combined with a step size per sample: h is a column that broadcasts against the state.

    The float that a joint step would use is a factor on top, 1.

    Args:
        h: step sizes, shape (batch, 1, ..., 1).
        stages: those known already.
    """

    def __init__(self, h: Tensor, stages: Sequence[Tensor] = ()) -> None:
        super().__init__(stages)
        self.h = h
        self.scratch: Scratch | None = None

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        return torch.addcmul(y, self.h, self._sum(weights))

    def terms(self, weights: Row, h: float) -> Terms:
        return [(h, self.h * self._sum(weights))]

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        """States of pairs of sample and time are not rows of a batch: `per_sample.py` forms them."""
        raise AssertionError("not used per sample")

    def _sum(self, weights: Row) -> Tensor:
        return summed([(weight, k) for weight, k in zip(weights, self.stages, strict=False) if weight])
