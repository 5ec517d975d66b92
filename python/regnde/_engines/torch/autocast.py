"""Mixed precision: the field runs under the caller's autocast, the solver's own sums do not.

A state that is combined in bfloat16 has too few digits for the error control.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

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
    dtype, cache = torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()

    @functools.wraps(equation, assigned=(), updated=())  # so that `takes_samples` finds the field itself
    def called(*arguments: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=dtype, cache_enabled=cache):
            value: Tensor = equation(*arguments)
        return value

    return called
