"""One measured solve of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

from regnde._solution import Status
from regnde._solver import Solver

__all__ = ["Run"]

WORTH = 0.9
"""A change is named if it leaves at most this share of the evaluations. One step more or less is not worth one."""

FLOOR = 1.5
"""At most this multiple of the floor is at the floor: two steps, or three short ones. No penalty can save there."""


@dataclass(frozen=True)
class Run:
    """One measured solve.

    Attributes:
        solver: what it was solved with; tolerances filled in.
        method: name of the method.
        evaluations: evaluations of the field (NFE).
        accepted, rejected: numbers of steps.
        floor: evaluations of two steps; None if they are not known.
        error: true error, relative to the size of the state; None if it is not known.
        metric: the user's metric of the solution; None without a metric.
        status: how the solve ended.
    """

    solver: Solver
    method: str
    evaluations: int
    accepted: int
    rejected: int
    floor: int | None = None
    error: float | None = None
    metric: float | None = None
    status: Status = Status.SUCCESS

    @property
    def tolerance(self) -> float:
        """The relative tolerance, or the absolute one where that is 0; 0 for steps of fixed size."""
        return self.solver.rtol or self.solver.atol or 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the solve reached the end time."""
        return self.status == Status.SUCCESS

    @property
    def steps(self) -> int:
        """Trial steps."""
        return self.accepted + self.rejected

    @property
    def at_floor(self) -> bool:
        """Whether the run makes no more than two steps, so that no tolerance and no penalty saves evaluations."""
        return self.succeeded and self.floor is not None and self.evaluations <= FLOOR * self.floor

    @property
    def cost(self) -> tuple[int, float]:
        """The key that orders runs: evaluations, then the error."""
        return self.evaluations, self.error or 0.0

    def is_worth(self, other: Run) -> bool:
        """Whether this run is cheaper than another one by enough to be worth a change."""
        return self.evaluations <= WORTH * other.evaluations
