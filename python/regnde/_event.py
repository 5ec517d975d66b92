"""Events: zeros of a function of the solution, at which a solve may stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from torch import Tensor

from regnde._arguments import check_arguments

__all__ = ["Event", "checked_events"]

Condition = Callable[..., Tensor]  # of a time and a state, and of the samples if it takes them


@dataclass(frozen=True)
class Event:
    """A zero of condition(t, y) along the solution: `solve(..., event=Event(condition))`.

    After each accepted step the condition's sign is compared with that before it. Where it changed, the zero is
    located on the step's interpolant, to the resolution of the clock and the state. **Two changes within one step are
    not seen**: bound the step by `Solver(dt_max=...)` where the condition keeps a sign for a short time only. A zero
    at the initial time is no event.

    Args:
        condition: function of a 0-dim time and a state that returns a real 0-dim tensor. It should pass zero with a
            slope. Its own parameters get gradients, too. With `batch="per-sample"` it is called as the field is: with
            the times of b samples, shape (b, 1, ..., 1), their states and, if it takes a third argument, their indices
            in the batch. It then returns shape (b,), one value for each of them.
        direction: 1 for a condition that rises through zero in the order of the solve, -1 for one that falls, 0 for
            both.
        terminal: whether the solve stops there; with `batch="per-sample"`, the sample, which stays where it is then.

    Raises:
        TypeError: for a condition that can not be called.
        ValueError: for another direction.

    Examples:
        >>> import torch, regnde
        >>> def falling(t, y):  # height and velocity
        ...     return torch.stack([y[1], torch.full_like(y[1], -9.81)])
        >>> ground = Event(lambda t, y: y[0], direction=-1)
        >>> sol = regnde.solve(falling, [10.0, 0.0], [0.0, 5.0], event=ground)
        >>> sol.status.value, round(float(sol.events.t[0]), 3), round(float(sol.y1[1]), 2)
        ('event', 1.428, -14.01)
    """

    condition: Condition
    _: KW_ONLY
    direction: Literal[-1, 0, 1] = 0
    terminal: bool = True

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise TypeError(f"Event(condition={self.condition!r}): give a function of t and y.")
        check_arguments("condition", self.condition, most=3)
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise ValueError(f"Event(direction={self.direction!r}): choose 1 (rising), -1 (falling) or 0 (both).")


def checked_events(event: Event | Sequence[Event] | None) -> tuple[Event, ...]:
    """The events as a tuple."""
    if event is None or isinstance(event, Event):
        return () if event is None else (event,)
    if not isinstance(event, (list, tuple)):
        hint = f": write Event({getattr(event, '__name__', 'condition')})" if callable(event) else ""
        raise TypeError(f"event must be a regnde.Event or a list of them, got {event!r}{hint}.")
    for one in event:
        if not isinstance(one, Event):
            raise TypeError(f"event must be a regnde.Event or a list of them, got a list with {one!r}.")
    return tuple(event)
