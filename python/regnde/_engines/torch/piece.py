"""What a Runge-Kutta step does apart from the state of a solve, and what is kept to take steps again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.compiled import compiled_step
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.norm import Measured
from regnde._engines.torch.records import Changes
from regnde._engines.torch.stages import ListStages, Stages, listed
from regnde._engines.torch.step import (
    Taken,
    dense_rows,
    error_estimate,
    error_value,
    extra_stages,
    measured_error,
    stiffness_estimate,
    take_step,
)
from regnde._engines.torch.tableaux import Tableau

__all__ = ["ErrorKind", "Estimates", "Kept", "Piece"]

LARGE, MOST = 16_384, 8  # a state is kept every few steps: so many as make this many entries, at most so many

MEASURES = {"value": error_value, "graph": error_estimate, "later": measured_error}
ErrorKind = Literal["none", "value", "graph", "later"]


class Estimates(NamedTuple):
    """Of a step; None where the method has none or it is not wanted.

    Attributes:
        value: the error estimate to decide by.
        error: for the records: a tensor, or what it is to be formed of; None if it is the value and no more.
        stiffness: likewise.
    """

    value: Tensor | float | None = None
    error: Tensor | Measured | None = None
    stiffness: Tensor | Changes | None = None


@dataclass(frozen=True)
class Piece:
    """What a step does, apart from the state of the solve.

    A checkpointed step is kept by the graph to be run again: were it the stepper's own method, graph
    and stepper would hold each other, and memory would wait for the garbage collector.

    Attributes:
        field: the right-hand side.
        tableau: the method.
        rtol, atol: tolerances, the latter as a real 0-dim tensor.
        error: what becomes of the error: `"none"` if it is not estimated, `"value"` if it has no graph, `"graph"`
            if it has one, `"later"` if `Records` forms one of it and of the stiffness.
        stiffness: whether the stiffness is estimated.
        compiled: whether torch.compile runs it.
    """

    field: CountedField
    tableau: Tableau
    rtol: float
    atol: Tensor
    error: ErrorKind
    stiffness: bool
    compiled: bool

    def step(
        self, stages: Stages, h: float, times: Sequence[Tensor], y: Tensor, first: Tensor | None
    ) -> tuple[Taken, Estimates]:
        """Fills the stages; the estimates carry a graph only where they are recorded."""
        tableau, last = self.tableau, self.tableau.stages - 1
        if first is None:
            first = self.field(times[0], y)
        if self.compiled:
            return self._compiled_step(stages, h, times, y, first)
        stages.start(first)
        taken = take_step(self.field, tableau, stages, y, h, times)
        measure = MEASURES.get(self.error)
        error = measure and measure(tableau, stages, y, taken.y1, h, self.rtol, self.atol)
        if isinstance(error, Measured):
            changes = Changes(stages[last], stages[last - 1], taken.last_argument, taken.previous_argument)
            return taken, Estimates(error.norm, error, changes if self.stiffness else None)
        stiffness = stiffness_estimate(stages, last, taken) if self.stiffness else None
        return taken, Estimates(error, error if isinstance(error, Tensor) else None, stiffness)

    def _compiled_step(
        self, stages: Stages, h: float, times: Sequence[Tensor], y: Tensor, first: Tensor
    ) -> tuple[Taken, Estimates]:
        size = torch.tensor(h, dtype=y.real.dtype, device=y.device)
        options = (self.rtol, self.atol.item(), self.error == "graph", self.stiffness)
        taken, known, error, stiffness = compiled_step(
            self.field.function, self.tableau, y, first, size, torch.stack(tuple(times)), *options
        )
        self.field.calls += self.tableau.stages - 1
        stages.start(known[0])
        for k in known[1:]:
            stages.push(k)
        return taken, Estimates(error, error, stiffness)

    def listed_step(
        self, h: float, times: Sequence[Tensor], y: Tensor, first: Tensor | None
    ) -> tuple[list[Tensor], Taken, Estimates]:
        """The same with a list of stages that is handed back."""
        stages = listed(self.tableau, y)
        taken, estimates = self.step(stages, h, times, y, first)
        return stages.stages, taken, estimates

    def extended_rows(
        self, t: float, h: float, t_new: float, thetas: Sequence[float], y: Tensor, *known: Tensor
    ) -> Tensor:
        """States inside a step whose interpolant needs further stages."""
        stages = ListStages(known)
        extra_stages(self.field, self.tableau, stages, y, t, h, t_new)
        return dense_rows(self.tableau, stages, y, h, thetas)


class Kept:
    """What a solve keeps so that its steps can be taken again: a state every few steps.

    Args:
        piece: takes the steps again.
        leaves: what the field depends on besides its arguments.
        entries: of the state.
    """

    def __init__(self, piece: Piece, leaves: list[Tensor], entries: int) -> None:
        self.piece, self.leaves = piece, leaves
        self.every = min(max(LARGE // max(entries, 1), 1), MOST)
        self.steps = 0
        self.states: list[tuple[Tensor, ...]] = []  # state, and the FSAL stage if the method has one

    def add(self, y: Tensor, first: Tensor | None) -> None:
        """Looks at an accepted step from y."""
        if self.steps % self.every == 0:
            self.states.append((y,) if first is None else (y, first))
        self.steps += 1
