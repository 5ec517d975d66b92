"""What comes out of a solve: the trajectory, the differentiable records of its steps, the counts."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regnde._last_step import FirstStep
from regnde._solver import ResolvedSolver

__all__ = ["SampleStats", "Solution", "SolutionArrays", "Stats", "Status", "Steps"]

T = TypeVar("T")

STIFF_FRACTION = 0.9  # AutoSwitch of OrdinaryDiffEq.jl calls a step stiff above this share of the stability size


class Status(enum.StrEnum):
    """How a solve ended. Each member equals its text: `solution.status == "success"`."""

    SUCCESS = "success"
    NON_FINITE = "non-finite dynamics"
    UNDERFLOW = "step size underflow"
    MAX_STEPS = "max steps reached"


class SampleStats(NamedTuple):
    """Counts of one sample of a batch with per-sample step sizes."""

    nfe: int
    accepted: int
    rejected: int


@dataclass(frozen=True)
class Stats:
    """Counts of one solve.

    Attributes:
        nfe: evaluations of the field (of the drift, for an SDE) in the forward solve: the starting
            one, the first-step heuristic's, every stage of accepted and rejected steps, and what
            outputs or a local record added. What a backward pass recomputes is not in it.
        accepted: accepted steps.
        rejected: rejected trial steps.
        dt_first: size of the first trial step, signed (0 when no step was needed).
        nfe_diffusion: evaluations of the diffusion (0 for an ODE).
        samples: with `batch="per-sample"`, the counts of each sample; the ones above are then the
            batch's: `nfe` calls of the field, steps of all samples together, the least `dt_first`.
        first_step: what `dt_next` follows from.
    """

    nfe: int
    accepted: int
    rejected: int
    dt_first: float
    nfe_diffusion: int = 0
    samples: tuple[SampleStats, ...] = ()
    first_step: FirstStep | None = field(default=None, repr=False, compare=False)

    @property
    def dt_next(self) -> float:
        """Size (> 0) that a `LastStep` would give the next solve's first step.

        Where the error estimate of this solve's first step would have been 0.1, or the size of that step if it was
        the only one; 0 where no step was made, or the method estimates no error. With `batch="per-sample"` the
        smallest of the samples'.
        """
        return 0.0 if self.first_step is None else self.first_step.next_size()


class Steps:
    """The recorded steps: all accepted ones, or the single one of a local record.

    A pickle or a deep copy holds the numbers without their gradients; `copy.copy` keeps the gradients.

    Attributes:
        t: time at the end of each step, shape (S,); no gradient.
        dt: signed size of each step, shape (S,); no gradient.
        stability_size: extent of the method's stability region along the negative real axis.
        implicit: whether an implicit method made the step, shape (S,), bool, for the methods that are or
            switch to one (`"autotsit5"`); else None.
        mask: with `batch="per-sample"`, shape (S, B), which entries are steps: the records then have that
            shape too, with 0 where a sample took fewer steps. None otherwise.
    """

    def __init__(
        self,
        *,
        t: Tensor,
        dt: Tensor,
        error: Tensor | None,
        stiffness: Tensor | Callable[[], Tensor] | None,
        method: str,
        stability_size: float | None,
        implicit: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.implicit = implicit
        self.t = t
        self.dt = dt
        self.stability_size = stability_size
        self.mask = mask
        self._error = error
        self._stiffness = stiffness
        self._method = method

    @property
    def error(self) -> Tensor:
        """Scaled local error estimate E of each step, shape (S,), dimensionless, at most 1 when accepted.

        Raises:
            ValueError: if the method has no embedded error estimate.
        """
        if self._error is None:
            raise ValueError(
                f"method {self._method!r} estimates no error, so its steps record none: "
                "use an adaptive method such as 'tsit5'."
            )
        return self._error

    @property
    def stiffness(self) -> Tensor:
        """Stiffness estimate S of each step, shape (S,), in units of 1/time: about the dominant |eigenvalue|.

        Raises:
            ValueError: if the method has no two stages at the end of the step to form it from.
        """
        if self._stiffness is None:
            raise ValueError(
                f"method {self._method!r} estimates no stiffness, so its steps record none: "
                "use 'tsit5', 'dp5' or 'vern7' ('sosri2' for an SDE)."
            )
        if not isinstance(self._stiffness, Tensor):
            self._stiffness = self._stiffness()
        return self._stiffness

    @property
    def stiff(self) -> Tensor:
        """Whether S * |dt| exceeds 0.9 of the stability size, shape (S,), bool: stability, not accuracy, set dt."""
        if self.stability_size is None:
            raise ValueError(f"method {self._method!r} has no stability size to compare the stiffness with.")
        return self.stiffness.detach() * self.dt.abs() > STIFF_FRACTION * self.stability_size

    def __len__(self) -> int:
        return int(self.dt.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        if callable(self._stiffness):
            self._stiffness = self.stiffness  # a function can not be pickled
        return _detached(self.__dict__)

    def __copy__(self) -> Self:
        return _twin(self)

    def __repr__(self) -> str:
        return f"Steps({len(self)} steps of {self._method})"


class SolutionArrays(NamedTuple):
    """A solution as numpy arrays; the last four are None where nothing was recorded."""

    ts: NDArray[np.floating]
    ys: NDArray[np.inexact]
    t: NDArray[np.floating] | None
    dt: NDArray[np.floating] | None
    error: NDArray[np.floating] | None
    stiffness: NDArray[np.floating] | None


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    """Trajectory and records of one solve.

    A pickle or a deep copy holds the numbers without their gradients; `copy.copy` keeps the gradients.

    Attributes:
        ts: the save times, shape (T,).
        ys: the states at `ts`, shape (T, *y0.shape), differentiable.
        stats: counts of evaluations and steps.
        steps: the recorded steps, or None with `record="none"`.
        engine: `"torch"` or `"julia"`: which engine ran.
        solver: the solver with all defaults filled in.
        status: `Status.SUCCESS`, or why it stopped early (with `throw=False`, or in a `SolveError`).
    """

    ts: Tensor
    ys: Tensor
    stats: Stats
    steps: Steps | None
    engine: str
    solver: ResolvedSolver
    status: Status = Status.SUCCESS

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))

    def __getstate__(self) -> dict[str, Any]:
        return _detached(self.__dict__)

    def __copy__(self) -> Self:
        return _twin(self)

    def __repr__(self) -> str:
        method = getattr(self.solver.method, "name", self.solver.method)
        count = len(self.ts)
        times = f"{count} in [{float(self.ts[0]):g}, {float(self.ts[-1]):g}]" if count else "none"
        return (
            f"Solution(engine={self.engine!r}, method={method!r}, ts: {times}, state: {tuple(self.ys.shape[1:])}, "
            f"nfe={self.stats.nfe}, accepted={self.stats.accepted}, rejected={self.stats.rejected}, "
            f"status={self.status.value!r})"
        )

    @property
    def y1(self) -> Tensor:
        """State at the last save time, shape y0.shape."""
        return self.ys[-1]

    def numpy(self) -> SolutionArrays:
        """The solution as detached numpy arrays on the host."""

        def array(x: Tensor | None) -> NDArray[np.floating] | None:
            return None if x is None else x.detach().cpu().numpy()

        s = self.steps
        return SolutionArrays(
            ts=self.ts.detach().cpu().numpy(),
            ys=self.ys.detach().cpu().numpy(),
            t=array(s.t) if s else None,
            dt=array(s.dt) if s else None,
            error=array(s.error) if s and s._error is not None else None,
            stiffness=array(s.stiffness) if s and s._stiffness is not None else None,
        )


def _detached(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an object with its tensors cut from their graphs, which no pickle can hold."""
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}


def _twin(thing: T) -> T:
    """A shallow copy, gradients kept."""
    twin = object.__new__(type(thing))
    twin.__dict__.update(thing.__dict__)
    return twin
