"""Zeros of conditions in a step where they have changed their sign, located on the step's interpolant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._equation import takes_samples
from regnde._event import Event
from regnde._solution import Events
from regnde._transforms import has_derivative

__all__ = ["EventLocator", "Hit", "behind", "bracketed_zero", "events_of", "of_sample", "passes"]

SLACK = 100  # in units of the clock's resolution: a zero this close to the initial time is a zero at it
Value = Any  # a float for one system, an array for samples
NEWTON_STEPS = 2  # of which the first gives first derivatives, and each further one doubles their order and one more


class Hit(NamedTuple):
    """An event that occurred: which one, its time as a number, and time and state with their gradients."""

    which: int
    at: float
    t: Tensor
    y: Tensor


class EventLocator:
    """Locates the zeros of conditions within steps.

    Args:
        events: what to look for.
    """

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events

    def hits(
        self,
        interpolant: Callable[[], Interpolant],
        t: float,
        t1: float,
        before: Sequence[float],
        after: Sequence[float],
    ) -> list[Hit]:
        """The events within a step, or a part of it, from t to t1, in their order, up to the first terminal one.

        Args:
            interpolant: of the step.
            t: where the part starts.
            t1: where it ends.
            before: values of the conditions at t.
            after: at t1.
        """
        found = [
            (self._zero(i, interpolant().detached(), t, t1, before[i], after[i]), i)
            for i, event in enumerate(self.events)
            if passes(event, before[i], after[i])
        ]
        found.sort(key=lambda pair: abs(pair[0] - t))
        last = next((n for n, (_, i) in enumerate(found, 1) if self.events[i].terminal), len(found))
        return [self._hit(i, at, interpolant()) for at, i in found[:last]]

    def terminal(self, hits: Sequence[Hit]) -> Hit | None:
        """The one that stops the solve."""
        return hits[-1] if hits and self.events[hits[-1].which].terminal else None

    def value(self, which: int, t: Tensor, y: Tensor) -> Tensor:
        """The condition at (t, y), with the time in the dtype that the field gets."""
        value = self.events[which].condition(t.to(y.device, y.dtype.to_real()), y)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
            shown = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the condition of event {which} must return a real 0-dim tensor, got {shown}.")
        return value.reshape(())

    def number(self, which: int, t: float, y: Tensor) -> float:
        with torch.no_grad():
            value: float = self.value(which, torch.tensor(t, dtype=torch.float64), y.detach()).item()
        if math.isnan(value):
            raise ValueError(f"the condition of event {which} is nan at t={t:.6g}: it must have a sign in every state.")
        return value

    def _zero(self, which: int, within: Interpolant, t: float, t1: float, before: float, after: float) -> float:
        """The time of the zero, as precise as the clock and the state are."""

        def value(theta: float) -> float:
            at = t + theta * (t1 - t)
            return self.number(which, at, within(torch.tensor(at, dtype=torch.float64)))

        if t == t1:
            return t1
        resolution = max(torch.finfo(within.y.dtype).eps, math.ulp(max(abs(t), abs(t1))) / abs(t1 - t))
        return t + bracketed_zero(value, before, after, resolution) * (t1 - t)

    def _hit(self, which: int, at: float, within: Interpolant) -> Hit:
        """The event with its gradients, by the implicit function theorem: those of Newton's method from the zero.

        Each of its steps doubles the number of derivatives that are exact, and adds one.
        """
        t = torch.tensor(at, dtype=torch.float64, device=within.y.device)
        y = within(t)
        if not has_derivative(self.value(which, t, y)):
            return Hit(which, at, t, y)

        def value(t: Tensor) -> Tensor:
            return self.value(which, t, within(t))

        for _ in range(NEWTON_STEPS):
            slope, rest = torch.func.grad_and_value(value)(t)
            if not (math.isfinite(slope.item()) and slope.item() != 0):
                raise ValueError(
                    f"the condition of event {which} has slope {slope.item():g} along the solution where it is zero, "
                    f"at t={at:.6g}: the time of the event has no derivative. Give a condition that passes zero with "
                    "a slope, or solve under torch.no_grad()."
                )
            shift = rest / slope
            t = t - (shift - shift.detach())  # its value stays what it is
        return Hit(which, at, t, within(t))


def events_of(hits: Sequence[Hit], y0: Tensor) -> Events:
    """The events that occurred, in one system or sample whose initial state is y0."""
    if not hits:
        nothing = torch.zeros(0, dtype=torch.float64, device=y0.device)
        return Events(nothing, y0.new_zeros((0, *y0.shape)), nothing.long())
    which = torch.tensor([hit.which for hit in hits], device=y0.device)
    return Events(torch.stack([hit.t for hit in hits]).to(y0.device), torch.stack([hit.y for hit in hits]), which)


def of_sample(event: Event, sample: Tensor) -> Event:
    """The event of one sample, whose index is given with shape (1,): a condition of its own time and state."""
    condition, with_samples = event.condition, takes_samples(event.condition)

    def of_one(t: Tensor, y: Tensor) -> Tensor:
        arguments = t.reshape(-1, *[1] * y.ndim), y.unsqueeze(0)
        return condition(*arguments, sample) if with_samples else condition(*arguments)

    return dataclasses.replace(event, condition=of_one)


def passes(event: Event, before: Value, after: Value) -> Value:
    """Whether a condition passes zero in the event's direction between two values of it, or two arrays of them."""
    rises, falls = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
    return rises if event.direction > 0 else falls if event.direction < 0 else rises | falls


def behind(t: Value, t1: Value, dtype: torch.dtype) -> Value:
    """A time in the step from t to t1, so close behind t that a zero between them counts as one at t."""
    near = np.maximum(SLACK * np.spacing(np.abs(t)), math.sqrt(torch.finfo(dtype).eps) * np.abs(t1 - t))
    time = t + np.copysign(np.minimum(near, np.abs(t1 - t)), t1 - t)
    return time if isinstance(t, np.ndarray) else float(time)


def bracketed_zero(f: Callable[[float], float], at_0: float, at_1: float, resolution: float) -> float:
    """The first zero in (0, 1] of an f that changes its sign once, or ends in zeros, given its values at 0 and 1.

    Inverse quadratic interpolation where it is safe, else bisection: T. R. Chandrupatla, Adv. Eng. Software 28
    (1997) 145-149. Where f is 0 at an end, it may be so in a whole interval: a place next to it tells, else bisection.
    """
    a, b, c, f_a, f_b, f_c = 1.0, 0.0, 0.0, at_1, at_0, at_0
    share, probed = 0.5, False  # share of the way from a to b
    while True:
        least = resolution / abs(b - a)
        if least >= 0.5:
            return a if f_a == 0 or (f_b != 0 and abs(f_a) < abs(f_b)) else b
        x = a + min(max(share, least), 1 - least) * (b - a)
        f_x = f(x)
        if _is_before(f_x, at_0) == _is_before(f_a, at_0):
            c, f_c = a, f_a
        else:
            c, b, f_c, f_b = b, a, f_b, f_a
        a, f_a = x, f_x
        share = 0.5
        if f_a == 0 or f_b == 0:
            share, probed = 0.5 if probed else float(f_b == 0), True
            continue
        xi, phi = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        if phi**2 < xi and (1 - phi) ** 2 < 1 - xi:
            share = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            share += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)


def _is_before(value: float, at_0: float) -> bool:
    """Whether a value has the sign of that at 0."""
    return value != 0 and (value > 0) == (at_0 > 0)
