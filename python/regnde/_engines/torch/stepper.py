"""What the steppers of all methods have in common, for the loop and for the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.control import Bounds, Controller
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.local import LocalStart
from regnde._engines.torch.recorder import StepRecorder
from regnde._engines.torch.step import Estimates, stage_times, take_step
from regnde._mass import Mass
from regnde._solver import Local
from regnde._stops import Segment
from regnde._tableau import TABLEAUX

__all__ = ["Counts", "MethodStepper"]

T = TypeVar("T")


class Counts(NamedTuple):
    """Evaluations of a solve so far, by their names in `Stats`."""

    nfe: int
    nfe_diffusion: int = 0
    njac: int = 0
    nfactorisations: int = 0


class MethodStepper:
    """A method applied to one problem.

    Args:
        field: the right-hand side, of an SDE the drift.
        order: of the method, as the step control has it.
        segment: in which the solve begins.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.

    Attributes:
        controller: of the step size; None if that is fixed.
        bounds: of the sizes that the controller chooses.
        latest_stage: time of the latest stage, in units of the step (>= 1).
        recorder: of the accepted steps, or None.
        implicits: of a method that switches, whether each accepted step was implicit.
        mass: the mass matrix; None for the identity.
    """

    controller: Controller | None = None
    bounds = Bounds()
    latest_stage = 1.0
    recorder: StepRecorder[Any] | None = None
    implicits: list[bool] | None = None
    mass: Mass | None = None

    def __init__(self, field: CountedField, order: float, segment: Segment, checkpoint: Checkpoint | None) -> None:
        self.field, self.order = field, float(order)
        self.segment, self.checkpoint = segment, checkpoint

    # --- for the methods -------------------------------------------------------------------------

    def _evaluated(
        self, function: Callable[..., T], *inputs: Tensor | None, ends: Callable[[T], Sequence[Tensor]]
    ) -> T:
        """The value function(*inputs), by the checkpoint if there is one; `ends` is as for `Checkpoint`."""
        return function(*inputs) if self.checkpoint is None else self.checkpoint(function, *inputs, ends=ends)

    def _evaluated_further(self, function: Callable[[Any], T], value: Any, ends: Callable[[T], Sequence[Tensor]]) -> T:
        """The value function(value) of the last value of `_evaluated`, likewise."""
        return function(value) if self.checkpoint is None else self.checkpoint.further(function, value, ends=ends)

    def _time(self, t: float, y: Tensor) -> Tensor:
        """A time as the field gets it."""
        return stage_times((0.0,), t, 0.0, t, y, self.segment.within)[0]

    def _slope(self, t: float, y: Tensor) -> Tensor:
        """The field at (t, y)."""
        return self.field(self._time(t, y), y)

    # --- for the loop ----------------------------------------------------------------------------

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        """The signed size of the next attempt from (t, y): that which is proposed."""
        return h

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """The next attempt starts from (t, y), a stop, in another segment; y with its derivative by the stop."""
        self.segment = segment
        return y

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere, in that segment."""
        self.segment = segment

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether two evaluations of the field at (t, y) agree."""
        return self.field.is_pure(self._time(t, y), y)

    # --- for the engine --------------------------------------------------------------------------

    def counts(self) -> Counts:
        """Evaluations so far."""
        return Counts(self.field.calls)

    def records(self) -> Estimates:
        """Estimates of the accepted steps so far, each of shape (S,); None where the method has none."""
        return Estimates(None, None) if self.recorder is None else self.recorder.records()

    def local_step(self, start: LocalStart, local: Local) -> tuple[float, float, Estimates]:
        """One step beside the trajectory: its end, size and estimates, each of shape (1,)."""
        raise NotImplementedError("the method estimates no error, so that it has no local record")

    def moved(self, y: Tensor, t: float, by: Tensor, sign: float) -> Tensor:
        """The state y of an ODE, with its derivatives by a time whose value is t: exact up to the fourth.

        It is a step whose size is 0 and carries the gradient: for sign 1 from t to `by`, else back. Its four
        evaluations belong to the gradient, and are not counted.
        """
        time, tableau = self._time(t, y), TABLEAUX["rk4"]
        size = (by - t).to(y.device, y.dtype.to_real())
        origin = time if sign > 0 else time + size
        times = [origin + (sign * c) * size for c in tableau.c]
        counted = self.field.calls
        y1 = take_step(self.field, tableau, y, None, sign * size, times).y1
        self.field.calls = counted
        return y1

    def finish(self) -> None:
        """Checks a finished solve, and warns of what it could not do exactly."""
