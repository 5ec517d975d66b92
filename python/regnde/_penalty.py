"""Regularisers: ordinary functions of a solution's records, which may be summed and multiplied.

Which steps were recorded, all (Pal et al., ICML 2021) or one random one (Pal et al., ICML 2023), and
which engine ran, is the solution's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regnde._solution import Solution, Steps

__all__ = ["ErrorPenalty", "Penalty", "SquaredErrorPenalty", "StiffnessPenalty", "steer"]

Reduction = Literal["sum", "mean", "max"]


class Penalty(ABC):
    """A scalar function of a solution. `2.0 * penalty` and `penalty + penalty` are penalties too."""

    @abstractmethod
    def __call__(self, solution: Solution) -> Tensor:
        """The penalty, 0-dim, differentiable.

        Raises:
            ValueError: if the solution lacks the records it needs.
        """

    def __add__(self, other: Penalty) -> Penalty:
        return _Sum((self, other)) if isinstance(other, Penalty) else NotImplemented

    def __mul__(self, factor: float) -> Penalty:
        return _Multiple(float(factor), self) if isinstance(factor, (int, float)) else NotImplemented

    __rmul__ = __mul__


@dataclass(frozen=True)
class _Sum(Penalty):
    terms: tuple[Penalty, ...]

    def __call__(self, solution: Solution) -> Tensor:
        first, *rest = (term(solution) for term in self.terms)
        return sum(rest, start=first)


@dataclass(frozen=True)
class _Multiple(Penalty):
    factor: float
    penalty: Penalty

    def __call__(self, solution: Solution) -> Tensor:
        return self.factor * self.penalty(solution)


@dataclass(frozen=True)
class _StepPenalty(Penalty):
    """A reduction over the recorded steps of one term each; subclasses name the term.

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps. A weight belongs to its reduction:
            sum and mean differ by the number of steps. No steps (a span of length 0) give 0.
    """

    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        if self.reduction not in ("sum", "mean", "max"):
            raise ValueError(f"reduction={self.reduction!r}: choose 'sum', 'mean' or 'max'.")

    @abstractmethod
    def term(self, steps: Steps) -> Tensor:
        """The term of each step, shape (S,)."""

    def __call__(self, solution: Solution) -> Tensor:
        """The reduced term, 0-dim, differentiable.

        Raises:
            ValueError: if nothing was recorded, or the method has no such estimate.
        """
        if solution.steps is None:
            raise ValueError(
                f"{type(self).__name__} needs the records of the solver's steps, but the solution has none: "
                "solve with record='all' or record=Local()."
            )
        values = self.term(solution.steps)
        if self.reduction == "sum" or values.numel() == 0:
            return values.sum()
        if self.reduction == "max":
            return values.max()
        mask = solution.steps.mask
        return values.mean() if mask is None else values.sum() / mask.sum()


class ErrorPenalty(_StepPenalty):
    """R_E = sum_j E_j |h_j|: the local error estimates times the step sizes.

    Source: Pal et al. (ICML 2021), eq. for R_E; E is scaled by the tolerances as in the papers' code
    (`docs/heuristics.md`). The step sizes are constants. In units of time.

    Args:
        reduction: `"sum"`, `"mean"` (the code of both papers) or `"max"` over the steps.

    Example:
        >>> import regnde
        >>> sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], record="all")
        >>> bool(0 < (1e-2 * ErrorPenalty() + SquaredErrorPenalty("mean"))(sol) < 1)
        True
    """

    def term(self, steps: Steps) -> Tensor:
        """E_j |h_j|, shape (S,)."""
        return steps.error * steps.dt.abs()


class SquaredErrorPenalty(_StepPenalty):
    """R_E2 = sum_j E_j^2: the squared local error estimates, dimensionless.

    Source: Pal et al. (ICML 2021), the variant that needs no step sizes.

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps.
    """

    def term(self, steps: Steps) -> Tensor:
        """E_j^2, shape (S,)."""
        return steps.error.square()


class StiffnessPenalty(_StepPenalty):
    """R_S = sum_j S_j: the stiffness estimates, in units of 1/time.

    Source: Pal et al. (ICML 2021), R_S, without the step sizes, as their code has it (it reduces with
    "max" for ODEs and divides by the method's stability size, here `Steps.stability_size`).

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps.
    """

    def term(self, steps: Steps) -> Tensor:
        """S_j, shape (S,)."""
        return steps.stiffness


def steer(ts: Sequence[float], width: float, *, generator: torch.Generator | None = None) -> tuple[float, ...]:
    """Save times with a random end: the last one drawn from U(T - width, T + width).

    Source: STEER (Ghosh et al., NeurIPS 2020): train at a random end time, predict at T.

    Args:
        ts: save times, increasing, in units of time.
        width: half-width of the interval (> 0), less than the last gap, so that the order stays.
        generator: torch generator to draw from, by default torch's own.

    Returns:
        The times, the last one moved.

    Raises:
        ValueError: if the interval reaches back to the last time but one.
    """
    *head, end = (float(t) for t in ts)
    if not head or not 0 < width < abs(end - head[-1]):
        raise ValueError(f"steer(width={width}): give a width between 0 and the last gap of the times {tuple(ts)}.")
    draw = float(torch.rand((), generator=generator, dtype=torch.float64))
    return (*head, end + width * (2 * draw - 1))
