"""The stages of one step and their linear combinations, as a list of tensors that autograd may see.

`ListStages` builds an autograd graph out of `torch.add(y, k, alpha=float)`, whose nodes save no
tensors, so that a graph holds what the field saves and nothing else. `ProductStages` serves small
states, for which the number of nodes is what counts. `ColumnStages` serves batches whose samples step
apart. Solves without a graph have `buffers.py`. All give the same numbers to rounding; `make bench`
has the timings that decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from regnde._engines.torch.arrays import Floats, ScaledRows, array, arrays_serve
from regnde._engines.torch.norm import Scratch
from regnde._engines.torch.sums import Terms, added, shifted_rows, summed
from regnde._engines.torch.tableaux import Row, Tableau

__all__ = ["ColumnStages", "ListStages", "ProductStages", "Stages", "listed"]

WIDE, LONG = 8, 256  # states of at most so many columns and rows are combined by products


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

    def arrays(self, weights: Row, h: float, y: Tensor, y1: Tensor) -> tuple[Floats, Floats, Floats] | None:
        """The sum h sum_j weights_j k_j, y and y1 as arrays, without a graph; None if they are no faster."""

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

    def terms(self, weights: Row, h: float) -> Terms:
        """What h sum_j weights_j k_j is the sum of."""
        return [(h * weight, k) for weight, k in zip(weights, self.stages, strict=False) if weight]

    def arrays(self, weights: Row, h: float, y: Tensor, y1: Tensor) -> tuple[Floats, Floats, Floats] | None:
        """What `Stages` says."""
        return None


class ListStages(_Listed):
    """Stages combined with one step size, by operations that autograd records."""

    def __init__(self, stages: Sequence[Tensor] = ()) -> None:
        super().__init__(stages)
        self.scratch: Scratch | None = Scratch()

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        return added(y, self.terms(weights, h))

    def rows(self, y: Tensor, weights: Tensor) -> Tensor:
        stacked = torch.stack(self.stages).reshape(len(self.stages), y.numel())
        return shifted_rows(y, weights, stacked)


class ProductStages(ListStages):
    """The same for small states: a sum of stages is one product, [k_1 ... k_i] (h a_i1 I; ...; h a_ii I).

    Two nodes of the graph take the place of one a stage, each of which costs more than its arithmetic. The graph holds
    the matrices, a few kilobytes a step at most.

    Args:
        tableau: whose weight rows are turned into matrices once.
        y: a state of one or two dimensions, for its shape and dtype.
    """

    def __init__(self, tableau: Tableau, y: Tensor) -> None:
        super().__init__()
        self.scaled = ScaledRows(tableau, y.dtype, y.shape[-1])
        self.batch = y.ndim == 2
        self.joined: Tensor  # the stages side by side

    def start(self, first: Tensor) -> None:
        super().start(first)
        self.joined = first

    def push(self, k: Tensor) -> None:
        super().push(k)
        self.joined = torch.cat((self.joined, k), -1)

    def shifted(self, y: Tensor, weights: Row, h: float) -> Tensor:
        matrix = torch.from_numpy(self.scaled.of(weights, h))
        return torch.addmm(y, self.joined, matrix) if self.batch else torch.addmv(y, matrix.T, self.joined)

    def arrays(self, weights: Row, h: float, y: Tensor, y1: Tensor) -> tuple[Floats, Floats, Floats] | None:
        total: Floats = self.joined.detach().numpy().dot(self.scaled.of(weights, h))
        return total.reshape(-1), array(y), array(y1)


def listed(tableau: Tableau, y: Tensor) -> ListStages:
    """Stages for steps with a graph, the faster kind for a state like y."""
    small = y.ndim in (1, 2) and y.shape[-1] <= WIDE and y.numel() <= LONG * y.shape[-1] and arrays_serve(y)
    return ProductStages(tableau, y) if small else ListStages()


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

    def terms_apart(self, weights: Row, factor: float) -> Terms:
        """What factor sum_j weights_j k_j is the sum of, without the step sizes."""
        return super().terms(weights, factor)

    def _sum(self, weights: Row) -> Tensor:
        return summed(self.terms_apart(weights, 1.0))
