"""The records of a solve: error and stiffness estimates of its accepted steps, one after another.

An estimate comes as a tensor, or as what it is to be formed of. The latter hang on the graph many steps
at a time: as nodes of their own the estimates of a small field cost a fifth of its training pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.norm import Measured, norms, sample_rms
from regnde._engines.torch.step import stiffness_quotient

__all__ = ["Changes", "Records"]

ENTRIES = 2**17  # of the states whose steps share a node: fewer cost more a step, more would hold memory for nothing


class Changes(NamedTuple):
    """The last two stages of a step and their arguments, which the stiffness estimate compares."""

    slope: Tensor
    slope_before: Tensor
    state: Tensor
    state_before: Tensor


class Records:
    """Gathers the estimates of a solve."""

    def __init__(self) -> None:
        self._errors: list[Tensor] = []
        self._waiting: list[Measured] = []
        self._stiffnesses: list[Tensor] = []
        self._changes: list[Changes] = []

    def add(self, error: Tensor | Measured | None, stiffness: Tensor | Changes | None) -> None:
        """Takes the estimates of an accepted step, or tensors of those of several."""
        if isinstance(error, Measured):
            self._waiting.append(error)
            if len(self._waiting) * error.y.numel() >= ENTRIES:
                self._join()
        elif error is not None:
            self._errors.append(error)
        if isinstance(stiffness, Changes):
            self._changes.append(stiffness)
        elif stiffness is not None:
            self._stiffnesses.append(stiffness)

    def _join(self) -> None:
        self._errors.append(norms(self._waiting))
        self._waiting = []

    def errors(self) -> Tensor | None:
        """E of each step, shape (S,); None if there are none."""
        if self._waiting:
            self._join()
        return _joined(self._errors)

    @property
    def postponed(self) -> bool:
        """Whether the stiffness is still to be formed."""
        return bool(self._changes)

    def stiffnesses(self) -> Tensor | None:
        """S of each step, shape (S,), formed here where it was left to be; None if there are none."""
        if not self._changes:
            return _joined(self._stiffnesses)
        size = max(ENTRIES // max(self._changes[0].state.numel(), 1), 1)
        groups = [self._changes[i : i + size] for i in range(0, len(self._changes), size)]
        with torch.enable_grad():
            return torch.cat([_quotients(group) for group in groups])


def _joined(estimates: Sequence[Tensor]) -> Tensor | None:
    """Estimates of a step each, or of several each, as one tensor."""
    if not estimates:
        return None
    return torch.cat(tuple(estimates)) if estimates[0].ndim else torch.stack(tuple(estimates))


def _quotients(group: Sequence[Changes]) -> Tensor:
    """Stiffness of several steps; the tensors of a single one are not copied."""
    slope, slope_before, state, state_before = (
        torch.stack(column) if len(column) > 1 else column[0].unsqueeze(0) for column in zip(*group, strict=True)
    )
    return stiffness_quotient(slope - slope_before, state - state_before, sample_rms)
