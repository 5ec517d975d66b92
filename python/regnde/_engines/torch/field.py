"""The user's field behind one call: counts evaluations and checks what comes back."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable
from numbers import Real

import numpy as np
import torch
from torch import Tensor

__all__ = ["CountedField"]

PURITY_TOLERANCE = 1e-3
EARLY = 3  # slopes that are compared with later ones


def _count_references() -> int:
    only = torch.empty(0)
    return sys.getrefcount(only)


ONLY_REFERENCE = _count_references()  # sys.getrefcount of a tensor that only one variable refers to


class CountedField:
    """Calls `f(t, y)`, counts the calls, and holds the result to the state's shape and dtype.

    A field that changes its arguments in place would change the solver's state: autograd's version counters detect
    this. A field that returns the same buffer in each call would change stages that the solver still needs. So a slope
    without a gradient is copied if something else refers to it, or if an earlier slope had the same memory.

    Args:
        function: the user's function of a 0-dim time and a state.
        name: its name in messages: `"f"`, `"drift"` or `"diffusion"`.
        columns: number of columns of a diffusion matrix, which it returns for each entry of the state: (..., d, m).

    Attributes:
        calls: evaluations so far.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], name: str = "f", columns: int | None = None
    ) -> None:
        self.function = function
        self.name = name
        self.inner = () if columns is None else (columns,)
        self.calls = 0
        self._early: list[Tensor] = []  # the first slopes as the field returned them
        self._reuses = False  # whether the field is known to use its memory again
        self._last: weakref.ref[Tensor] | None = None  # weak: the slope's graph may hold this object
        self._last_version = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        try:
            of_t, of_y = t._version, y._version
        except RuntimeError:  # tensors of inference mode count no versions
            return self._inference(t, y)
        slope = self.function(t, y)
        if t._version != of_t or y._version != of_y:
            raise ValueError(
                f"{self.name}(t, y) changed its argument in place: the solver goes on from it. "
                "Use operations that return a new tensor (y.mul(2), not y.mul_(2))."
            )
        if not isinstance(slope, Tensor) or slope.shape != self._shape(y) or slope.dtype != y.dtype:
            return self._mended(slope, y)
        if slope.requires_grad:
            self._check_last(slope)
        elif self._reuses or sys.getrefcount(slope) > ONLY_REFERENCE or slope._is_view() or self._is_early(slope):
            return slope.clone()
        return slope

    def _shape(self, y: Tensor) -> tuple[int, ...]:
        """The shape that is asked for."""
        return (*y.shape, *self.inner) if self.inner else y.shape

    def _is_early(self, slope: Tensor) -> bool:
        """Whether it is one of the first slopes. These are copied, and compared to see whether memory is reused."""
        if len(self._early) > EARLY:
            return False
        try:
            self._reuses = slope.data_ptr() in [early.data_ptr() for early in self._early]
        except RuntimeError:  # a tensor of torch.func has no memory of its own
            return False
        self._early.append(slope)
        if len(self._early) > EARLY:
            self._early = [slope.new_empty(0)] * (EARLY + 1)
        return True

    def _check_last(self, slope: Tensor) -> None:
        """Raises an error if this slope overwrote the one before, which the solver still needs."""
        last = None if self._last is None else self._last()
        if last is not None and last._version != self._last_version:
            raise ValueError(
                f"{self.name}(t, y) overwrote the tensor that it had returned before: the solver still needs that. "
                "Return a new tensor at every call."
            )
        self._last, self._last_version = weakref.ref(slope), slope._version

    def _inference(self, t: Tensor, y: Tensor) -> Tensor:
        """The same call in inference mode, without version counters: arguments and slope are copied."""
        slope = self.function(t.clone(), y.clone())
        if not isinstance(slope, Tensor) or slope.shape != self._shape(y) or slope.dtype != y.dtype:
            slope = self._mended(slope, y)
        return slope.clone()

    def _mended(self, slope: object, y: Tensor) -> Tensor:
        """The slope in the state's dtype, or an error that says what is wrong with it."""
        if not isinstance(slope, Tensor):
            raise TypeError(
                f"{self.name}(t, y) must return a tensor of y's shape {tuple(y.shape)}, got "
                f"{type(slope).__name__}.{_instead_of(slope)}"
            )
        if slope.shape != self._shape(y) and self.inner:
            raise ValueError(
                f"{self.name}(t, y) returned shape {tuple(slope.shape)} for a state of shape {tuple(y.shape)} and "
                f"{self.inner[0]} Wiener processes; it must be the matrix {self._shape(y)} (nothing is broadcast)."
            )
        if slope.shape != self._shape(y):
            order = "" if slope.ndim else f" The time is 0-dim, too: is the field written as {self.name}(y, t)?"
            raise ValueError(
                f"{self.name}(t, y) returned shape {tuple(slope.shape)} for a state of shape {tuple(y.shape)}; "
                f"the shapes must be equal (nothing is broadcast).{order}"
            )
        if slope.dtype.is_complex and not y.dtype.is_complex:
            raise TypeError(f"{self.name}(t, y) returned {slope.dtype} for a real state of {y.dtype}: make y0 complex.")
        return slope.to(y.dtype)

    def is_pure(self, t: Tensor, y: Tensor) -> bool:
        """Whether two evaluations at one point agree; they are not counted."""
        once, again = (self.function(t.clone(), y.clone()).detach() for _ in range(2))
        return _close(once, again)

    def check_pure(self, once: Tensor, again: Tensor) -> None:
        """Warns if two values of the field at the same point differ."""
        if not _close(once.detach(), again.detach()):
            warnings.warn(
                f"two calls of {self.name} at the same (t, y) differ: noise or dropout drawn inside a solve makes "
                "the error estimate meaningless. Draw it once per solve, or call .eval() on the module.",
                stacklevel=2,
            )


def _instead_of(slope: object) -> str:
    """What to do, as a sentence, where a field returns something that is no tensor."""
    if slope is None:
        return " Is its return statement missing?"
    if isinstance(slope, (tuple, list)):
        return " Use torch.stack."
    if isinstance(slope, (np.ndarray, np.generic)):
        return " Use the functions of torch: numpy's have no gradient."
    return " Use torch.full_like(y, ...)." if isinstance(slope, Real) else ""


def _close(once: Tensor, again: Tensor) -> bool:
    return torch.equal(once, again) or torch.allclose(once, again, rtol=PURITY_TOLERANCE, atol=0.0, equal_nan=True)
