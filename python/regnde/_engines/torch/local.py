"""Where the step of a local record starts: drawn while a solve runs, so that the trajectory need not be kept."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regnde._noise import drawn_seed
from regnde._solver import Local
from regnde._stops import Segment

__all__ = ["Draw", "LocalStart"]


@dataclass
class LocalStart:
    """Where a local step starts: time, state, the size of the solver's step there, and the segment it lies in."""

    t: float
    h: float
    y: Tensor
    segment: Segment


class Draw:
    """Draws the start of a local record while the loop runs.

    Args:
        local: how to draw.
        t0: initial time.
        t1: end time; None if an event may come before it.

    Attributes:
        start: what is drawn so far; None before the step that holds it.
    """

    def __init__(self, local: Local, t0: float, t1: float | None) -> None:
        seed = local.seed if local.seed is not None else drawn_seed()
        self.random = random.Random(seed)
        self.local, self.t0, self.steps = local, t0, 0
        self.known = t1 is not None
        self.t = t0 + self.random.random() * (t1 - t0) if local.sampling == "time" and t1 is not None else math.nan
        self.start: LocalStart | None = None

    def visit(
        self,
        outputs: Callable[[Sequence[float]], Tensor],
        t: float,
        h: float,
        t1: float,
        y: Tensor,
        segment: Segment,
    ) -> None:
        """Looks at an accepted step.

        Args:
            outputs: of shares of the step, states inside it.
            t: time where it starts.
            h: its size.
            t1: time where it ends, or where an event ends it.
            y: state where it starts.
            segment: in which it lies.
        """
        self.steps += 1
        if self.local.sampling == "step":
            if self.random.random() * self.steps < 1.0:  # reservoir: each step equally likely
                self.start = LocalStart(t, h, self._state(y), segment)
            return
        if not self.known and self.random.random() * abs(t1 - self.t0) < abs(t1 - t):  # each step by its length
            self.t, self.start = t + self.random.random() * (t1 - t), None
        if self.start is None and abs(self.t - t) < abs(t1 - t):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.local.detach_state):
                state = y if self.t == t else outputs([(self.t - t) / h])[0]
            self.start = LocalStart(self.t, h, self._state(state), segment)

    def _state(self, y: Tensor) -> Tensor:
        return y.detach() if self.local.detach_state else y
