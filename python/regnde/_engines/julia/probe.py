"""Where a field whose code is found again is compared: beside the first state, inside the first segment of the span.

At the start itself many a change does not show: a factor of zeros or of the time, a power of ones, the order of equal
entries.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache

import torch
from torch import Tensor

from regnde._engines.julia.arguments import in_memory
from regnde._engines.julia.fields import FieldChanged
from regnde._equation import UNDEFINED
from regnde._stops import Segment

__all__ = ["ValueAt", "probe_time", "time_within", "value_beside"]

ValueAt = tuple[Tensor, Tensor]
"""A state, and a field's value there."""

PROBE = 0.618
"""The part of the first segment behind which Julia compares the field, as its `PROBE`."""

GOLDEN = (math.sqrt(5) - 1) / 2
SMALL = 4096
"""Entries of a state up to which the way beside it is kept."""


def time_within(t: float, segments: Sequence[Segment]) -> float:
    """The time that the field gets for one in the first segment."""
    within = segments[0].within
    return t if within is None else min(max(t, within[0]), within[1])


def probe_time(start: float, segments: Sequence[Segment]) -> float:
    """The time at which the field is compared."""
    return time_within(start + PROBE * (segments[0].end - start), segments)


def value_beside(field: Callable[[Tensor, Tensor], Tensor], t: float, y0: Tensor, shape: tuple[int, ...]) -> ValueAt:
    """A state beside `y0`, and the field's value there, as torch computes it.

    Where the field has no finite value beside `y0`, the state is `y0`.

    Raises:
        FieldChanged: if the value does not have that shape.
    """
    y0 = y0.detach()
    time = torch.scalar_tensor(t, dtype=y0.dtype.to_real(), device=y0.device)
    # a field may differentiate, as when it was exported
    left = torch.inference_mode(mode=False) if torch.is_inference_mode_enabled() else nullcontext()
    with left, torch.no_grad():
        for state in _beside(y0):
            with suppress(*UNDEFINED):
                value = field(time, state)
                if value.shape == shape and cmath.isfinite(value.sum().item()):
                    return in_memory(state), in_memory(value.to(y0))
        y0 = y0.clone() if y0.is_inference() else y0
        value = field(time, y0)
    if value.shape != shape:
        raise FieldChanged
    return in_memory(y0), in_memory(value.to(y0))


def _beside(y0: Tensor) -> Iterator[Tensor]:
    """States a little way from `y0` to one of small entries of both signs, and to one of positive entries.

    Each entry goes a part of the way of its own. Convex sets that hold both ends, as that on which a logarithm or an
    arc cosine is defined, hold these states.
    """
    way = _known_way if y0.numel() <= SMALL else _way
    end, part = way(y0.shape, y0.dtype, y0.device)
    yield torch.lerp(y0, end, part)
    yield torch.lerp(y0, end.abs().to(y0.dtype), part)


def _way(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each entry goes, and which part of the way."""
    numbers = torch.arange(1, shape.numel() + 1, dtype=torch.float64, device=device).mul(GOLDEN).frac().view(shape)
    end = numbers - 0.5
    if dtype.is_complex:
        end = torch.complex(end, numbers.square() - 0.5)
    return end.to(dtype), ((numbers + 1) / 16).to(dtype)


_known_way = lru_cache(maxsize=32)(_way)
