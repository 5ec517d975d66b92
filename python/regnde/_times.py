"""The times that a solve is given, as a tensor and as numbers, checked."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regnde._engines.base import exporting
from regnde._transforms import constant

__all__ = ["Times", "checked_stops", "checked_times"]

NUMBERS = frozenset((int, float))
NO_STOPS = torch.empty(0, dtype=torch.float64, device="cpu")


class Times(NamedTuple):
    """Checked times: finite, in order.

    Attributes:
        tensor: in float64, with the gradient that was given, shape (T,).
        values: the same as floats.
    """

    tensor: Tensor
    values: tuple[float, ...]


def checked_times(ts: Tensor | ArrayLike, name: str = "ts") -> Times:
    """The save times, checked; `name` is for messages."""
    times = _time_tensor(ts, name)
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"{name} must be real times, got {times.dtype}.")
    if times.is_meta:
        raise TypeError(f"{name} is on the meta device and holds no numbers.")
    if times.ndim == 0:
        raise ValueError(
            f"{name} must be a sequence of times such as [0.0, 1.0], got the single time {times.item():g}."
        )
    if times.numel() == 0:
        raise ValueError(f"{name} must be a sequence of one or more times such as [0.0, 1.0], got none.")
    if times.ndim != 1:
        raise ValueError(
            f"{name} must be a sequence of one or more times, got shape {tuple(times.shape)}. "
            "Times of their own for each sample are not offered: solve on the union of the times."
        )
    if times.device.type != "mps" and times.dtype != torch.float64:  # mps has no float64
        times = times.to(torch.float64)
    values = _numbers(name, ts, times)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be finite, got {_short(values)}.")
    following = values[1:]
    if not (all(map(operator.le, values, following)) or all(map(operator.ge, values, following))):
        raise ValueError(f"{name} must be non-decreasing or non-increasing, got {_short(values)}.")
    return Times(times, values)


def checked_stops(stops: Tensor | ArrayLike) -> tuple[Tensor, tuple[float, ...]]:
    """The stops as a tensor and as floats, checked."""
    if isinstance(stops, tuple) and not stops:
        return NO_STOPS, ()
    times = _time_tensor(stops, "stops")
    if times.is_complex() or times.dtype == torch.bool or times.is_meta:
        raise TypeError(f"stops must be real times, got {times.dtype} on {times.device}.")
    if times.ndim != 1:
        raise ValueError(f"stops must be a sequence of times such as [1.0, 2.5], got shape {tuple(times.shape)}.")
    values = _numbers("stops", stops, times)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"stops must be finite, got {_short(values)}.")
    return times, values


def _numbers(name: str, given: Tensor | ArrayLike, times: Tensor) -> tuple[float, ...]:
    """The times as floats."""
    if isinstance(given, (list, tuple)) and NUMBERS.issuperset(map(type, given)):
        return tuple(map(float, given))
    if exporting():
        raise TypeError(
            f"torch.export: times in a graph are numbers: give {name} as a list of floats, not as a tensor."
        )
    return tuple(times.detach().to("cpu", torch.float64).tolist())


def _short(values: Sequence[float]) -> str:
    """The times around the first one that is out of order or not finite, as text."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    sign = next((step for step in steps if step), 0.0)
    place = next((i for i, step in enumerate(steps) if not sign * step >= 0 or not math.isfinite(step)), 0)
    first, last = max(place - 1, 0), place + 3
    shown = ", ".join(map(repr, values[first:last]))
    return f"[{'..., ' if first else ''}{shown}{', ...' if last < len(values) else ''}]"


def _time_tensor(ts: Tensor | ArrayLike, name: str = "ts") -> Tensor:
    """The times as a tensor: a given tensor as it is; numbers in float64 on the CPU.

    Torch's default device and dtype are not used: in float32 two times of a clock may be minutes apart.
    """
    if isinstance(ts, Tensor):
        return ts
    if isinstance(ts, (list, tuple)) and {float}.issuperset(map(type, ts)):
        return constant(ts)
    if isinstance(ts, (list, tuple, torch.nn.ParameterList)):
        given = next((t for t in ts if isinstance(t, Tensor)), None)
        if given is not None:  # each keeps its gradient
            double, device = torch.float64, given.device
            parts = [t if isinstance(t, Tensor) else torch.tensor(t, dtype=double, device=device) for t in ts]
            return torch.stack([part.reshape(()) if part.numel() == 1 else part for part in parts])
    values = np.asarray(ts)
    if values.dtype.kind not in "bcfiu":
        raise TypeError(f"{name} must be a sequence of times such as [0.0, 1.0], got {type(ts).__name__} {ts!r:.80}.")
    return constant(values if values.dtype.kind in "bc" else values.astype(np.float64))
