"""What can go wrong in a solve, as exceptions that say where, why and what to do."""

from __future__ import annotations

from typing import Any, ClassVar

from regnde._solution import Solution, Status

__all__ = [
    "EngineUnavailable",
    "MaxStepsReached",
    "NonFiniteDynamics",
    "SolveError",
    "StepSizeUnderflow",
    "UnsupportedField",
]


class SolveError(RuntimeError):
    """A solve that stopped before the end time.

    It can be copied, pickled and sent between processes; its solution then has no gradients.

    Attributes:
        status: which kind of failure it is.
        t: time of the last accepted state.
        dt: step size that was tried last (signed).
        error_ratio: error estimate of the last trial step (at most 1 is accepted); None if there was none.
        component: index of the worst component in the flattened state, or None.
        stiffness: stiffness estimate of the last trial step, in units of 1/time, or None.
        nfe: evaluations of the field (the drift, for an SDE) so far.
        accepted: accepted steps.
        rejected: rejected trial steps.
        solution: the partial solution: the rows of `ys` up to `t`, and the records.
    """

    status: ClassVar[Status]

    def __init__(
        self,
        reason: str,
        *,
        t: float,
        dt: float,
        solution: Solution,
        error_ratio: float | None = None,
        component: int | None = None,
        stiffness: float | None = None,
    ) -> None:
        self.t = t
        self.dt = dt
        self.error_ratio = error_ratio
        self.component = component
        self.stiffness = stiffness
        self.solution = solution
        self.nfe = solution.stats.nfe
        self.accepted = solution.stats.accepted
        self.rejected = solution.stats.rejected
        super().__init__(
            f"{reason} [t={t:.6g}, dt={dt:.3g}, NFE={self.nfe}, accepted={self.accepted}, "
            f"rejected={self.rejected}; the partial solution is in the exception's .solution]"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the message and the attributes: the arguments of the constructor are not kept."""
        return _restored, (type(self), self.args), self.__dict__


class NonFiniteDynamics(SolveError):
    """The field returns NaN or infinity and smaller steps do not avoid it."""

    status = Status.NON_FINITE


class StepSizeUnderflow(SolveError):
    """The error control asks for steps below the resolution of the clock."""

    status = Status.UNDERFLOW


class MaxStepsReached(SolveError):
    """The end time was not reached in `Solver.max_steps` trial steps, or in 1,000 by a field that draws noise."""

    status = Status.MAX_STEPS


class EngineUnavailable(RuntimeError):
    """The engine asked for can not run here; the message names the next step to take."""


class UnsupportedField(TypeError):
    """The engine can not run the field; the message names the operator or the reason."""


def _restored(kind: type[SolveError], args: tuple[Any, ...]) -> SolveError:
    """A failure of this kind with this message; unpickling then sets its attributes."""
    return kind.__new__(kind, *args)
