"""The size of the first step, taken from the last solve."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from regnde._state_dict import check_state

__all__ = ["FirstStep", "LastStep"]

FIRST_ERROR = 0.1  # of the first step that is aimed at: batches differ, and a rejected step costs more than a short one
GROWTH = 10_000.0  # of a first step from solve to solve, at most: the error control's own bound within a solve


class LastStep:
    """The size of the first step, passed from one solve to the next: `Solver(dt0=LastStep())`.

    A solve spends two evaluations on the size of its first step, which then is shorter than the tolerance requires.
    When similar problems are solved many times, as in training, the last solve gives a better size. The first solve
    chooses its step as usual. A later one begins with the size at which the error estimate of the last solve's first
    step would have been 0.1. If the last solve made one step, it begins with the size of that step or a larger one.
    The span bounds the size. A first step that is too long is rejected and counted as usual.

    **Results then depend on the solves before**, by as much as the tolerance allows, and so do `nfe`, records and
    penalties. For numbers that can be reproduced, such as an evaluation's, give another `Solver`, or set `size`.

    The size is stored in this object. A `Solver` made by `dataclasses.replace` shares the object; a copy or a pickle
    has its own. A solve that fails, or makes no step, does not change the size. Threads must not share one object.
    With `batch="per-sample"` all samples begin with the smallest of their sizes.

    Args:
        size: of the first solve's first step (> 0, in units of time). Default: chosen from the field at the start.

    Attributes:
        size: of the next solve's first step; None lets the solver choose it. It may be set.

    Raises:
        ValueError: for a size that is not a finite number above zero.

    Examples:
        >>> import regnde
        >>> solver = regnde.Solver(rtol=1e-3, atol=1e-3, dt0=LastStep(), engine="torch")
        >>> [regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], solver).stats.nfe for _ in range(3)]
        [27, 13, 13]
    """

    def __init__(self, size: float | None = None) -> None:
        self.size = size

    def __repr__(self) -> str:
        return "LastStep()" if self.size is None else f"LastStep({self.size:.6g})"

    @property
    def size(self) -> float | None:
        """Size of the next solve's first step; None lets the solver choose it."""
        return self._size

    @size.setter
    def size(self, size: float | None) -> None:
        if size is not None:
            if isinstance(size, str) or not (math.isfinite(size) and size > 0):
                raise ValueError(f"LastStep(size={size!r}): give a finite number above zero, or None.")
            size = float(size)
        self._size = size

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, to continue a run."""
        return {"size": self.size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores such a state."""
        check_state("LastStep", state, ("size",))
        self.size = state["size"]


class FirstStep(NamedTuple):
    """The first accepted step of a solve: numbers, or arrays over samples.

    Attributes:
        size: its size; the sign does not matter.
        error: its error estimate; NaN where there was no step, or no estimate.
        accepted: how many steps the solve made.
        order: of the method, as its step control has it.
    """

    size: Any
    error: Any
    accepted: Any
    order: float

    def next_size(self) -> float:
        """Size of the first step for a similar solve: the smallest over samples; 0 if it can not be told.

        The error estimate of a step of size h is proportional to h to the power of the order.
        """
        size, error, accepted = (np.atleast_1d(np.asarray(x, np.float64)) for x in self[:3])
        with np.errstate(all="ignore"):
            growth = np.minimum((FIRST_ERROR / error) ** (1 / self.order), GROWTH)
        sizes = np.abs(size) * np.where(accepted == 1, np.maximum(growth, 1.0), growth)  # one step will do
        usable = sizes[np.isfinite(sizes) & (sizes > 0)]
        return float(usable.min()) if usable.size else 0.0
