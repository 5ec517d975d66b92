"""The save times of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Times", "as_floats", "kept_times", "shown"]

Times = Sequence[float] | Tensor


def kept_times(ts: Times) -> Any:
    """The times as a layer keeps them: tensors that require a gradient as they are, anything else as floats."""
    if isinstance(ts, Tensor):
        return ts if ts.requires_grad or isinstance(ts, nn.Parameter) else tuple(ts.tolist())
    if not isinstance(ts, Iterable) or isinstance(ts, str):
        raise TypeError(f"ts must be a sequence of times such as [0.0, 1.0], got {ts!r}.")
    entries = tuple(t if isinstance(t, nn.Parameter) or _moving(t) else float(t) for t in ts)
    parameters = sum(isinstance(t, nn.Parameter) for t in entries)
    if parameters and parameters < sum(isinstance(t, Tensor) for t in entries):
        raise TypeError("ts mixes nn.Parameter with other tensors that require a gradient: give one kind of them.")
    return nn.ParameterList(entries) if parameters else entries


def _moving(t: object) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


def as_floats(ts: Times) -> tuple[float, ...]:
    """The times as numbers, without their gradients."""
    return tuple(float(t.detach()) if isinstance(t, Tensor) else float(t) for t in ts)


def shown(ts: Times) -> str:
    """The times as numbers, for a module's repr."""
    return str(as_floats(ts))
