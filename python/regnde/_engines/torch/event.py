"""Conditions along a solution: a change of sign over a step is an event in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._event import Event
from regnde._event_locator import EventLocator, Hit, behind

__all__ = ["EventDetector"]


class EventDetector(EventLocator):
    """Compares the signs of conditions before and after each step.

    Args:
        events: what to look for.
        t: initial time.
        y: state there.
    """

    def __init__(self, events: Sequence[Event], t: float, y: Tensor) -> None:
        super().__init__(events)
        self.t0, self.values = t, self._numbers(t, y)

    def seen(self, interpolant: Callable[[], Interpolant], t: float, t1: float, y1: Tensor) -> list[Hit]:
        """The events within a step from t to (t1, y1) in their order, up to the first terminal one."""
        before, self.values = self.values, self._numbers(t1, y1)
        if t == self.t0 or 0.0 in before:  # a zero here is none of this step: what counts is the sign behind it
            t = behind(t, t1, y1.dtype)
            before = self._numbers(t, interpolant().detached()(torch.tensor(t, dtype=torch.float64)))
        return self.hits(interpolant, t, t1, before, self.values)

    def _numbers(self, t: float, y: Tensor) -> list[float]:
        return [self.number(i, t, y) for i in range(len(self.events))]
