"""The stages of one step in preallocated memory and their linear combinations, for solves without a graph.

Each combination is one product with a (stages, N) buffer; only of large states the copies into it cost more
than they save. Small ones on the CPU are numpy's, whose calls take a third of the time of torch's.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from regnde._engines.torch.arrays import Floats, ScaledRows, array, arrays_serve
from regnde._engines.torch.norm import Scratch
from regnde._engines.torch.sums import Terms, shifted_rows
from regnde._engines.torch.tableaux import Row, Tableau

__all__ = ["ArrayStages", "BufferStages", "Buffered", "buffered"]


class Buffered:
    """Stages as rows of one buffer.

    Args:
        tableau: how many there are.
        y: a state, for its shape, dtype and device.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        count = tableau.stages + len(tableau.extra_a)
        whole = torch.empty((count, *y.shape), dtype=y.dtype, device=y.device)
        self.stages = whole.unbind()
        self.buffer = whole.view(count, y.numel())
        self.shape = y.shape
        self.filled = 0
        self.scratch: Scratch | None = None  # of small states, new memory costs nothing

    def start(self, first: Tensor) -> None:
        """Begins a step whose first stage is `first`."""
        if first is not self.stages[0]:
            self.stages[0].copy_(first)
        self.filled = 1

    def push(self, k: Tensor) -> None:
        """Adds the next stage."""
        self.stages[self.filled].copy_(k)  # a copy: a field may hand out its own buffer
        self.filled += 1

    def __getitem__(self, index: int) -> Tensor:
        return self.stages[index]

    def arrays(self, weights: Row, h: float, y: Tensor, y1: Tensor) -> tuple[Floats, Floats, Floats] | None:
        """The sum h sum_j weights_j k_j, y and y1 as arrays."""
        return None

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        """The sums y + sum_j weights_mj k_j for each row m, shape (M, *y.shape)."""
        return shifted_rows(y, weights, self.buffer[: weights.shape[1]])


class BufferStages(Buffered):
    """Stages whose combinations are torch's `addmv`.

    Args:
        tableau: whose weight rows are turned into tensors once.
        y: a state, for its shape, dtype and device.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        super().__init__(tableau, y)
        columns = self.buffer.T
        self.transposed = [columns.narrow(1, 0, i) for i in range(len(self.stages) + 1)]
        self.y, self.flat = y, y.reshape(-1)
        self.weights = _weights(tableau, y.dtype, y.device)

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


class ArrayStages(Buffered):
    """Stages whose combinations are numpy's, on the same memory.

    Args:
        tableau: whose weight rows are turned into arrays once.
        y: a state, for its shape and dtype.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        super().__init__(tableau, y)
        memory = self.buffer.numpy()
        self.leading = [memory[:i].T for i in range(len(memory) + 1)]
        self.scaled = ScaledRows(tableau, y.dtype)
        self.y = self.argument = y
        self.flat = self.moved = array(y)

    @np.errstate(all="ignore")  # what is not finite is found by the error estimate
    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        if y is not self.y:  # one state serves all stages of a step
            self.y, self.flat = y, self.moved if y is self.argument else array(y)
        self.moved = moved = self._total(weights, h)
        moved += self.flat
        self.argument = torch.from_numpy(moved.reshape(self.shape))
        return self.argument

    def arrays(self, weights: Row, h: float, y: Tensor, y1: Tensor) -> tuple[Floats, Floats, Floats]:
        assert y is self.y  # the state that the step began from
        assert y1 is self.argument  # the last sum
        return self._total(weights, h), self.flat, self.moved

    def _total(self, weights: Row, h: float) -> Floats:
        total: Floats = self.leading[len(weights)].dot(self.scaled.of(weights, h))
        return total

    def terms(self, weights: Row, h: float) -> Terms:
        return [(1.0, torch.from_numpy(self._total(weights, h).reshape(self.shape)))]


def buffered(tableau: Tableau, y: Tensor) -> ArrayStages | BufferStages:
    """Stages for steps without a graph, the faster kind for a state like y."""
    return (ArrayStages if arrays_serve(y) else BufferStages)(tableau, y)


@functools.lru_cache(maxsize=16)
def _weights(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> dict[Row, Tensor]:
    """The rows of a tableau as tensors."""
    with torch.inference_mode(False):  # a later solve may not be in that mode
        coefficients = torch.tensor([w for row in tableau.rows for w in row], dtype=dtype, device=device)
        return {row: coefficients[place] for row, place in tableau.places().items()}
