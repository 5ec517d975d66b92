"""A stepper that calls functions of the user at each step."""

from __future__ import annotations

from torch import Tensor

from regnde._engines.base import StepCallbacks
from regnde._engines.torch.loop import Stepper, Trial

__all__ = ["Observed"]


class Observed:
    """The stepper, with callbacks at each attempt, accepted or rejected; at the latter as the next one begins.

    Args:
        stepper: the method applied to the problem.
        callbacks: what to call.
    """

    def __init__(self, stepper: Stepper, callbacks: StepCallbacks) -> None:
        self.stepper, self.callbacks = stepper, callbacks
        self.controller, self.bounds, self.latest_stage = stepper.controller, stepper.bounds, stepper.latest_stage
        self.outputs, self.interpolant = stepper.outputs, stepper.interpolant
        self.planned, self.enter, self.restart = stepper.planned, stepper.enter, stepper.restart
        self.start_is_finite, self.is_pure, self.diagnosis = stepper.start_is_finite, stepper.is_pure, stepper.diagnosis
        self.last: tuple[float, Tensor, float] | None = None  # the last attempt, until it is accepted or rejected
        self.end: tuple[float, Tensor]

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step from (t, y) to t1 = t + h."""
        self.close()
        if self.callbacks.step is not None:
            self.callbacks.step(t, y, h)
        trial = self.stepper.attempt(t, h, t1, y)
        self.last, self.end = (t, y, h), (t1, trial.y1)
        return trial

    def accepted(self) -> None:
        """The last attempt is accepted."""
        assert self.last is not None
        t, y, h = self.last
        if self.callbacks.accept is not None:
            self.callbacks.accept(t, y, h)
        t1, y1 = self.end
        back = self.callbacks.back
        if back is not None and y1.requires_grad:
            state = y1.detach()  # y1 itself would refer to itself by its hook
            y1.register_hook(lambda gradient: back(t1, state, gradient, h))  # type: ignore[no-untyped-call]
        self.last = None
        self.stepper.accepted()

    def close(self) -> None:
        """An attempt that was not accepted by now was rejected."""
        if self.last is not None and self.callbacks.reject is not None:
            self.callbacks.reject(*self.last)
        self.last = None
