"""The output of a layer: a solution, or states of it."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from regnde._solution import Solution

__all__ = ["Output", "checked_output", "picked"]

Output = Literal["solution", "state", "states"]


def checked_output(layer: str, output: str) -> Output:
    """The choice, checked."""
    if output not in get_args(Output):
        raise ValueError(f"{layer}(output={output!r}): choose 'solution', 'state' (the last one) or 'states'.")
    return output  # type: ignore[return-value]  # it is one of them


def picked(solution: Solution, output: Output) -> Solution | Tensor:
    """The solution, its state at the last time, or its states at all times."""
    if output == "solution":
        return solution
    return solution.y1 if output == "state" else solution.ys
