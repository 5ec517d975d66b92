"""Mixed precision: the field runs under the caller's autocast, the solver's own sums do not.

A state that is combined in bfloat16 has lost what the error control is there to keep.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.field import takes_samples
from regnde._equation import SDE

__all__ = ["under_present_autocast"]


def under_present_autocast(equation: Any, kind: str) -> Any:
    """An equation whose functions run under the autocast that is on now, wherever they are called.

    Args:
        equation: a field, or an `SDE`.
        kind: of device, as in `torch.autocast`.
    """
    if isinstance(equation, SDE):
        drift, diffusion = (under_present_autocast(f, kind) for f in (equation.drift, equation.diffusion))
        return replace(equation, drift=drift, diffusion=diffusion)
    call = _called_with_samples if takes_samples(equation) else _called
    # a partial, into which the search for a field's parameters looks
    return functools.partial(call, equation, kind, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())


def _called(f: Callable[..., Tensor], kind: str, dtype: torch.dtype, cache: bool, t: Tensor, y: Tensor) -> Tensor:
    with torch.autocast(kind, dtype=dtype, cache_enabled=cache):
        return f(t, y)


def _called_with_samples(
    f: Callable[..., Tensor], kind: str, dtype: torch.dtype, cache: bool, t: Tensor, y: Tensor, samples: Tensor
) -> Tensor:
    with torch.autocast(kind, dtype=dtype, cache_enabled=cache):
        return f(t, y, samples)
