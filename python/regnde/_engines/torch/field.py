"""The user's field behind one call: counts evaluations and checks what comes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CountedField"]

PURITY_TOLERANCE = 1e-3


class CountedField:
    """Calls `f(t, y)`, counts the calls, and holds the result to the state's shape and dtype.

    Args:
        function: the user's function of a 0-dim time and a state.
        name: what messages call it: `"f"`, `"drift"` or `"diffusion"`.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], name: str = "f") -> None:
        self.function = function
        self.name = name
        self.calls = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        slope = self.function(t, y)
        if not isinstance(slope, Tensor) or slope.shape != y.shape or slope.dtype != y.dtype:
            return self._mended(slope, y)
        return slope

    def _mended(self, slope: object, y: Tensor) -> Tensor:
        """The slope in the state's dtype, or an error that says what is wrong with it."""
        if not isinstance(slope, Tensor):
            raise TypeError(
                f"{self.name}(t, y) must return a tensor of y's shape {tuple(y.shape)}, got {type(slope).__name__}."
            )
        if slope.shape != y.shape:
            raise ValueError(
                f"{self.name}(t, y) returned shape {tuple(slope.shape)} for a state of shape {tuple(y.shape)}; "
                "the shapes must be equal (nothing is broadcast)."
            )
        if slope.dtype.is_complex and not y.dtype.is_complex:
            raise TypeError(f"{self.name}(t, y) returned {slope.dtype} for a real state of {y.dtype}: make y0 complex.")
        return slope.to(y.dtype)

    def check_pure(self, once: Tensor, again: Tensor) -> None:
        """Warns if two values of the field at the same point differ."""
        once, again = once.detach(), again.detach()
        if not torch.allclose(once, again, rtol=PURITY_TOLERANCE, atol=0.0, equal_nan=True):
            warnings.warn(
                f"two calls of {self.name} at the same (t, y) differ: noise or dropout drawn inside a solve makes "
                "the error estimate meaningless. Draw it once per solve, or call .eval() on the module.",
                stacklevel=2,
            )
