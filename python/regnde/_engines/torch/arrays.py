"""Small states on the CPU as numpy arrays, whose calls take a third of the time of torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._engines.torch.norm import transformed

__all__ = ["KINDS", "SMALL", "Floats", "array", "array_error", "arrays_serve"]

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


def array_error(error: Floats, y: Floats, y1: Floats, rtol: float, atol: float) -> float:
    """The 2-norm of an error over its scale and over the root of its size, which takes the place of the error."""
    factor = math.sqrt(max(error.size, 1))
    scale = np.maximum(np.abs(y), np.abs(y1))
    scale *= rtol * factor
    scale += atol * factor
    error /= scale
    return math.sqrt(error.dot(error))
