"""What comes out of a solve: the trajectory, the differentiable records of its steps, the counts."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regnde._dense import DenseOutput
from regnde._last_step import FirstStep
from regnde._solver import ResolvedSolver
from regnde._state import tree_map

__all__ = ["Events", "SampleStats", "Solution", "SolutionArrays", "Stats", "Status", "Steps"]

T = TypeVar("T")
if TYPE_CHECKING:  # at run time it would be a dependency
    from typing_extensions import TypeVar as TypeVarWithDefault

    State = TypeVarWithDefault("State", default=Tensor)
else:
    State = TypeVar("State")

ELSEWHERE = {
    "t": "ts",
    "y": "ys",
    "nfe": "stats.nfe",
    "nfev": "stats.nfe",
    "accepted": "stats.accepted",
    "rejected": "stats.rejected",
    "success": "status",
    "error": "steps.error",
    "stiffness": "steps.stiffness",
}
"""Names that scipy's and other packages' solutions have, or that are one level below."""

STIFF_FRACTION = 0.9  # AutoSwitch of OrdinaryDiffEq.jl calls a step stiff above this share of the stability size


class Status(enum.StrEnum):
    """How a solve ended. Each member equals its text: `solution.status == "success"`."""

    SUCCESS = "success"
    NON_FINITE = "non-finite dynamics"
    UNDERFLOW = "step size underflow"
    MAX_STEPS = "max steps reached"
    EVENT = "event"

    @property
    def failed(self) -> bool:
        """Whether the solve stopped at a time where it could not go on."""
        return self in (Status.NON_FINITE, Status.UNDERFLOW, Status.MAX_STEPS)


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
            outputs or a local record added. What a backward pass recomputes is not in it, nor the four evaluations
            for each time, and eight for each stop, by which a solve carries derivatives with respect to these times.
        accepted: accepted steps.
        rejected: rejected trial steps.
        dt_first: size of the first trial step, signed (0 when no step was needed).
        nfe_diffusion: evaluations of the diffusion (0 for an ODE).
        njac: Jacobians of the field, each with its derivative by the time: one evaluation, and a backward pass for
            each entry of the state, in one. As in OrdinaryDiffEq.jl, `nfe` has that evaluation only where the step
            needs the slope at its start, and not where the step before had it.
        nfactorisations: matrices factorised by an implicit method.
        samples: with `batch="per-sample"`, the counts of each sample; the ones above are then the
            batch's: `nfe` calls of the field (on the Julia engine, which evaluates each sample by itself, those of
            the sample that took most), steps of all samples together, the least `dt_first`.
        first_step: what `dt_next` follows from.
    """

    nfe: int
    accepted: int
    rejected: int
    dt_first: float
    nfe_diffusion: int = 0
    njac: int = 0
    nfactorisations: int = 0
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
            switch to one (`"autotsit5"`), of all steps of one system; else None.
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

        The controller `PID` accepts somewhat larger ones.

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

        Of an explicit method it is the quotient of changes of slope and state over its last two stages, of a
        Rosenbrock method the norm max_i sum_j |J_ij| of the Jacobian at the step's start (OrdinaryDiffEq.jl's
        `eigen_est`), a bound of the eigenvalues.

        Raises:
            ValueError: if the method has no two stages at the end of the step to form it from.
        """
        if self._stiffness is None:
            raise ValueError(
                f"method {self._method!r} estimates no stiffness, so its steps record none: "
                "use 'tsit5', 'dp5' or 'vern7' ('sosri2' for an SDE), and no algebraic equation."
            )
        if not isinstance(self._stiffness, Tensor):
            self._stiffness = self._stiffness()
        return self._stiffness

    @property
    def stiff(self) -> Tensor:
        """Whether S * |dt| exceeds 0.9 of the stability size, shape (S,), bool.

        Of an explicit method: stability, not accuracy, set dt. Of a Rosenbrock method: stability would set dt of
        `"tsit5"`, whose stability size it has, so that an implicit method pays.
        """
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


class Events(NamedTuple):
    """The events that occurred, in the order of the solve.

    Attributes:
        t: their times, shape (E,), float64, differentiable.
        y: the states there, shape (E, *y0.shape), differentiable; in the structure of y0 if that has several parts.
        which: index of each among the events that were given, shape (E,).
        sample: with `batch="per-sample"`, the sample of each, shape (E,): the order is then by samples, and y has the
            shape (E, *y0.shape[1:]). None otherwise.
    """

    t: Tensor
    y: Any
    which: Tensor
    sample: Tensor | None = None

    def detached(self) -> Events:
        """Without gradients."""
        return self._replace(t=self.t.detach(), y=tree_map(Tensor.detach, self.y))


class SolutionArrays(NamedTuple):
    """A solution as numpy arrays; the last four are None where nothing was recorded.

    `ys` is one array, or arrays in the structure of the state.
    """

    ts: NDArray[np.floating]
    ys: Any
    t: NDArray[np.floating] | None
    dt: NDArray[np.floating] | None
    error: NDArray[np.floating] | None
    stiffness: NDArray[np.floating] | None


@dataclass(frozen=True, eq=False, repr=False)
class Solution(Generic[State]):
    """Trajectory and records of one solve.

    A pickle or a deep copy holds the numbers without their gradients; `copy.copy` keeps the gradients.

    Attributes:
        ts: the save times, shape (T,), float64. Of a solve that a terminal event stopped: those before the event, and
            then its time.
        ys: the states at `ts`, shape (T, *y0.shape), differentiable. For a state of several parts, tensors in the
            structure of the state: `sol.ys["v"]` has the shape (T, *y0["v"].shape).
        stats: counts of evaluations and steps.
        steps: the recorded steps, or None with `record="none"`.
        engine: `"torch"` or `"julia"`: which engine ran.
        solver: the solver with all defaults filled in.
        status: `Status.SUCCESS`, `Status.EVENT` if a terminal event stopped it, or why it failed (with `throw=False`,
            or in a `SolveError`).
        events: the events that occurred, or None if `event` was not given.
        dense: the solution at any time of its span, or None without `dense=True`; calling the solution calls it.
    """

    ts: Tensor
    ys: State
    stats: Stats
    steps: Steps | None
    engine: str
    solver: ResolvedSolver
    status: Status = Status.SUCCESS
    events: Events | None = None
    dense: DenseOutput | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))

    def __getstate__(self) -> dict[str, Any]:
        return _detached(self.__dict__)

    def __copy__(self) -> Self:
        return _twin(self)

    def __repr__(self) -> str:
        method = getattr(self.solver.method, "name", self.solver.method)
        count = len(self.ts)
        ts = self.ts.detach()
        times = f"{count} in [{float(ts[0]):g}, {float(ts[-1]):g}]" if count else "none"
        return (
            f"Solution(engine={self.engine!r}, method={method!r}, ts: {times}, "
            f"state: {tree_map(lambda x: tuple(x.shape[1:]), self.ys)}, "
            f"nfe={self.stats.nfe}, accepted={self.stats.accepted}, rejected={self.stats.rejected}, "
            f"status={self.status.value!r})"
        )

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch where a solution is given as a tensor, such as by the next layer of `nn.Sequential`."""
        raise TypeError(
            f"{getattr(func, '__name__', 'a function of torch')} was given a Solution, which is no tensor: take the "
            "last state, solution.y1, or all of them, solution.ys. In nn.Sequential use NeuralODE(..., output='state')."
        )

    if not TYPE_CHECKING:  # else every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            """Called for names that a solution does not have."""
            meant = " Is a tensor meant? Take solution.y1 or solution.ys." if hasattr(Tensor, name) else ""
            if name in ELSEWHERE:
                meant = f" Take solution.{ELSEWHERE[name]}."
            raise AttributeError(f"'Solution' object has no attribute {name!r}.{meant}")

        def __getitem__(self, index: object) -> Any:  # without it, Python's message does not say what to take
            raise TypeError("a Solution is no sequence of states: take solution.ys, or the last state, solution.y1.")

    @property
    def y1(self) -> State:
        """State at the last of `ts`, in the shape and structure of y0.

        Raises:
            ValueError: if the solve stopped before it.
        """
        if self.status.failed:
            place = f"{len(self.ts)} of the save times, up to t={float(self.ts[-1]):g}" if len(self.ts) else "no state"
            raise ValueError(
                f"the solve did not reach its end ({self.status.value}), so that there is no y1: the solution holds "
                f"{place}. Look at solution.status first; solution.ys has the states that were reached."
            )
        return cast(State, tree_map(lambda x: x[-1], self.ys))

    def __call__(self, t: Tensor | ArrayLike) -> State:
        """States at any times t of the span, shape (*t.shape, *y0.shape), with gradients; needs `dense=True`.

        For a state of several parts they have its structure.

        Raises:
            ValueError: without `dense=True`, or for a time outside the span.
        """
        if self.dense is None:
            raise ValueError("sol(t) needs the dense output: solve(..., dense=True).")
        flat, end = self.dense(t), 0
        if isinstance(self.ys, Tensor):
            return cast(State, flat)

        def part(saved: Tensor) -> Tensor:
            nonlocal end
            begin, shape = end, saved.shape[1:]
            end = begin + shape.numel()
            x = flat[..., begin:end].reshape((*flat.shape[:-1], *shape))
            return (x if saved.is_complex() or not x.is_complex() else x.real).to(saved.dtype)

        return cast(State, tree_map(part, self.ys))

    def numpy(self) -> SolutionArrays:
        """The solution as detached numpy arrays on the host."""

        def array(x: Tensor | None) -> NDArray[np.floating] | None:
            return None if x is None else x.detach().cpu().numpy()

        s = self.steps
        return SolutionArrays(
            ts=self.ts.detach().cpu().numpy(),
            ys=tree_map(array, self.ys),
            t=array(s.t) if s else None,
            dt=array(s.dt) if s else None,
            error=array(s.error) if s and s._error is not None else None,
            stiffness=array(s.stiffness) if s and s._stiffness is not None else None,
        )


def _detached(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of an object with its tensors cut from their graphs, which no pickle can hold."""

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach()
        return value.detached() if isinstance(value, (DenseOutput, Events)) else value

    return {name: tree_map(cut, value) if name == "ys" else cut(value) for name, value in state.items()}


def _twin(thing: T) -> T:
    """A shallow copy, gradients kept."""
    twin = object.__new__(type(thing))
    twin.__dict__.update(thing.__dict__)
    return twin
