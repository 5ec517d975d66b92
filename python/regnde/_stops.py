"""Stops: times at which a field may jump or bend, and the segments of the span between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Segment", "segments", "uniform"]

SLACK = 100  # in units of the clock's resolution: times this close to each other, or to an end of the span, are one


class Segment(NamedTuple):
    """A part of the span between two stops.

    Attributes:
        end: time at which its last step ends.
        within: bounds of the times that the field gets, the least and the largest, both in the dtype of these times
            and inside the open segment; infinite at an end of the span that is no stop. None if both are.
        start: the stop at which it begins, a 0-dim tensor, if its gradient is asked for.
    """

    end: float
    within: tuple[float, float] | None = None
    start: Tensor | None = None


class _Boundary(NamedTuple):
    """A time between segments, or an end of the span.

    Attributes:
        t: the time.
        below: the last time of the field's dtype before the stops there, infinite if there are none.
        above: the first one after them.
        moving: the stop, if its gradient is asked for.
    """

    t: float
    below: float = math.inf
    above: float = -math.inf
    moving: Tensor | None = None


def segments(
    t0: float, t1: float, stops: Sequence[float], dtype: torch.dtype, moving: Tensor | None = None
) -> tuple[Segment, ...]:
    """The segments from t0 to t1, in the order in which they are passed.

    Stops outside the span are ignored. A stop at an end of the span makes no further segment, but the field is not
    evaluated at it.

    Args:
        t0: initial time.
        t1: end time.
        stops: in any order; equal ones count once.
        dtype: of the times that the field gets.
        moving: the same stops as a tensor, shape (S,), if their gradient is asked for.

    Raises:
        ValueError: if no time of that dtype lies between two stops, or if the solution has no derivative by a stop.
    """
    if t0 == t1 or not stops:
        return (Segment(t1),)
    found = []
    for a, b in itertools.pairwise(_boundaries(t0, t1, stops, dtype, moving)):
        low, high = (a.above, b.below) if t1 > t0 else (b.above, a.below)
        if low > high:
            raise ValueError(
                f"no time of {dtype} lies between {a.t!r} and {b.t!r}, so that the field can not be evaluated between "
                "these stops: solve in float64 (y0.double()), or leave one of them out."
            )
        found.append(Segment(b.t, None if math.isinf(low) and math.isinf(high) else (low, high), a.moving))
    return tuple(found)


def _boundaries(
    t0: float, t1: float, stops: Sequence[float], dtype: torch.dtype, moving: Tensor | None
) -> list[_Boundary]:
    """The ends of the span, and the stops between them."""
    sign, slack = math.copysign(1.0, t1 - t0), SLACK * math.ulp(max(abs(t0), abs(t1)))
    rounded = torch.tensor([*stops, t0, t1], dtype=dtype, device="cpu")
    below, above = (_next(rounded, direction).tolist() for direction in (-1.0, 1.0))
    *values, first_value, last_value = rounded.tolist()
    first, last = _Boundary(t0), _Boundary(t1)
    inner: list[_Boundary] = []
    for i in sorted(range(len(stops)), key=lambda i: sign * stops[i]):
        stop = stops[i]
        new = _Boundary(stop, below[i], above[i], None if moving is None else moving[i])
        if abs(stop - t0) <= slack or values[i] == first_value:
            first = _joined(first, new)
        elif abs(stop - t1) <= slack or values[i] == last_value:
            last = _joined(last, new)
        elif not sign * t0 < sign * stop < sign * t1:
            continue
        elif inner and abs(stop - inner[-1].t) <= slack:
            inner[-1] = _joined(inner[-1], new)
        else:
            inner.append(new)
    return [first, *inner, last]


def _next(t: Tensor, direction: float) -> Tensor:
    """The next normal number in a direction."""
    beyond = torch.nextafter(t, torch.full_like(t, direction * math.inf))
    tiny = torch.finfo(t.dtype).tiny
    return torch.where(beyond.abs() < tiny, torch.full_like(t, direction * tiny), beyond)


def _joined(boundary: _Boundary, stop: _Boundary) -> _Boundary:
    """The boundary that covers a further stop, too."""
    if stop.moving is not None:
        raise ValueError(
            f"the stop {stop.t!r} lies at the end {boundary.t!r} of the span, or is another stop again: the solution "
            "has no derivative with respect to it. Detach the stops, or leave this one out."
        )
    return boundary._replace(below=min(boundary.below, stop.below), above=max(boundary.above, stop.above))


def uniform(t0: float, t1: float, h: float) -> Iterator[float]:
    """Ends of steps of signed size h from t0 to t1, the last one cut at t1; no rounding accumulates."""
    slack = SLACK * math.ulp(max(abs(t0), abs(t1)))
    for n in range(1, max(math.ceil((abs(t1 - t0) - slack) / abs(h)), 1)):
        yield t0 + n * h
    yield t1
