"""What to solve, where it is more than a function `f(t, y)`: an SDE, or a field written in Julia."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["SDE", "Equation", "Field", "JuliaField"]

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SDE:
    """An Ito SDE with diagonal noise: dy = drift(t, y) dt + diffusion(t, y) * dW.

    Args:
        drift: function of a 0-dim time and a state, returning its shape and structure.
        diffusion: likewise; each entry multiplies its own Wiener process.

    The methods "sosri2", "sriw1", "sosra" and "em" call both inside the span only. "sosri" has stages at
    -0.04 h and 3.75 h, so it calls the drift up to 2.75 steps beyond the end: for a drift that exists
    in the span alone, use another.
    """

    drift: Callable[[Tensor, Any], Any]
    diffusion: Callable[[Tensor, Any], Any]

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise TypeError(f"SDE: {name} must be callable as {name}(t, y), got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class JuliaField:
    """A field written in Julia, for the Julia engine alone.

    The source is executed by Julia as it stands: never pass text from someone you do not trust.

    Args:
        source: Julia source of a function `(t, y, p...) -> dy`. Arrays arrive with their dimensions
            reversed: a torch state of shape (batch, dim) is a Julia matrix of size (dim, batch).
        parameters: tensors passed as `p...`, differentiated like a module's parameters.
    """

    source: str
    parameters: Sequence[Tensor] = ()


Equation = Field | SDE | JuliaField
