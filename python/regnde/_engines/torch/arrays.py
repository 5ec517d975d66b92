"""Small states on the CPU as numpy arrays, whose calls take a third of the time of torch's."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.norm import transformed
from regnde._engines.torch.tableaux import Row, Tableau

__all__ = ["KINDS", "Floats", "ScaledRows", "array", "array_error", "arrays_serve"]

SMALL = 1024  # entries up to which numpy is faster; beyond, its products would want threads of their own
KINDS = {torch.float32: np.float32, torch.float64: np.float64}

Floats = NDArray[np.floating[Any]]


def arrays_serve(y: Tensor) -> bool:
    """Whether states like this one are small, and nothing but numbers in the memory of the CPU."""
    small = y.numel() <= SMALL and y.device.type == "cpu" and y.dtype in KINDS
    return small and type(y) in (Tensor, torch.nn.Parameter) and not (y.is_neg() or transformed())


def array(x: Tensor) -> Floats:
    """The entries of a tensor, one after another, where it can be in its own memory."""
    entries: Floats = x.detach().numpy().reshape(-1)
    return entries


class ScaledRows:
    """The rows of a tableau times the size of the step at hand.

    Args:
        tableau: the method.
        dtype: of the state.
        width: None for vectors; or how many columns a stage has, for matrices that sum up stages side by side.
    """

    def __init__(self, tableau: Tableau, dtype: torch.dtype, width: int | None = None) -> None:
        self.of_unit_step, self.places = _unscaled(tableau, KINDS[dtype], width)
        self.of_step, self.h = self.of_unit_step, 1.0

    def of(self, weights: Row, h: float) -> Floats:
        """The row `weights` of the tableau times h."""
        if h != self.h:
            self.h, self.of_step = h, self.of_unit_step * h  # not in place: graphs hold what was
        return self.of_step[self.places[weights]]


@functools.lru_cache(maxsize=32)
def _unscaled(tableau: Tableau, kind: type[np.floating[Any]], width: int | None) -> tuple[Floats, dict[Row, slice]]:
    """The rows of a tableau, one after another, and where each lies."""
    weights = np.array([weight for row in tableau.rows for weight in row], kind)
    if width is None:
        return weights, tableau.places()
    matrices: Floats = np.kron(weights[:, None], np.eye(width)).astype(kind)
    return matrices, tableau.places(width)


def array_error(error: Floats, y: Floats, y1: Floats, rtol: float, atol: float) -> float:
    """The 2-norm of an error over its scale and over the root of its size, which takes the place of the error."""
    factor = math.sqrt(max(error.size, 1))
    scale = np.maximum(np.abs(y), np.abs(y1))
    scale *= rtol * factor
    scale += atol * factor
    error /= scale
    return math.sqrt(error.dot(error))
