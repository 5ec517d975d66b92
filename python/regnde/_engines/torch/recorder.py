"""The records of a solve: estimates of its accepted steps, formed for many steps at once by the formulas of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from regnde._engines.torch.step import Estimates

__all__ = ["GROUP", "StepRecorder"]

S = TypeVar("S")
GROUP = 2**17  # entries of the states whose estimates are formed at once: fewer take more time, more take more memory


class StepRecorder(Generic[S]):
    """Collects the accepted steps of a solve.

    Args:
        stacked: steps of one system as a batch of samples.
        estimates: of each step of such a batch.
    """

    def __init__(self, stacked: Callable[[Sequence[S]], S], estimates: Callable[[S], Estimates]) -> None:
        self._stacked, self._estimates = stacked, estimates
        self._waiting: list[S] = []
        self._formed: list[Estimates] = []

    def add(self, step: S, known: Estimates | None, entries: int) -> None:
        """Adds an accepted step whose state has that many entries, with its estimates if they are known."""
        if known is not None:
            self._formed.append(known)
            return
        self._waiting.append(step)
        if len(self._waiting) * entries >= GROUP:
            self._form()

    def _form(self) -> None:
        self._formed.append(self._estimates(self._stacked(self._waiting)))
        self._waiting = []

    def records(self) -> Estimates:
        """Of all steps so far, each of shape (S,); None where the method has none."""
        if self._waiting:
            self._form()
        errors, stiffnesses = zip(*self._formed, strict=True) if self._formed else ((), ())
        return Estimates(_joined(errors), _joined(stiffnesses))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None
