"""Regularisers: ordinary functions of a solution's records, which may be summed and multiplied.

Which steps were recorded, all (Pal et al., ICML 2021) or one random one (Pal et al., ICML 2023), and
which engine ran, is the solution's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from regnde._solution import Solution, Steps

__all__ = ["ErrorPenalty", "Penalty", "SquaredErrorPenalty", "StepPenalty", "StiffnessPenalty", "steer"]

Reduction = Literal["sum", "mean", "max"]


class Penalty(ABC):
    """A scalar function of a solution.

    Penalties are added, subtracted, summed with `sum`, and multiplied or divided by a number or a 0-dim tensor; the
    result is a penalty. The tensor keeps its gradient: it may be a weight that is trained. To write a penalty of the
    recorded steps derive from `StepPenalty`; to write another one derive from this class.
    """

    __array_ufunc__ = None  # a number of numpy times a penalty is left to the penalty

    @abstractmethod
    def __call__(self, solution: Solution) -> Tensor:
        """The penalty, 0-dim, differentiable.

        Raises:
            ValueError: if the solution does not have the records it needs.
        """

    def __add__(self, other: Penalty | float) -> Penalty:
        if isinstance(other, Penalty):
            return _Sum((self, other))
        if isinstance(other, Real) and other == 0:  # `sum` starts from 0
            return self
        return NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Penalty | float) -> Penalty:
        return self + (-other)

    def __rsub__(self, other: float) -> Penalty:
        return -self + other

    def __neg__(self) -> Penalty:
        return _Multiple(-1.0, self)

    def __mul__(self, factor: float | Tensor) -> Penalty:
        return _Multiple(_plain(factor), self) if _is_factor(factor) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | Tensor) -> Penalty:
        if not _is_factor(divisor):
            return NotImplemented
        if not isinstance(divisor, Tensor) and divisor == 0:
            raise ZeroDivisionError("a penalty divided by zero.")
        return _Quotient(_plain(divisor), self)


def _is_factor(value: object) -> TypeGuard[float | Tensor]:
    """Whether a penalty can be multiplied by the value; raises an error for a tensor of several entries."""
    if not isinstance(value, Tensor):
        return isinstance(value, Real)
    if value.ndim or value.is_complex():
        raise TypeError(
            f"a penalty's factor must be a number or a real tensor of no dimensions, got {value.dtype} of shape "
            f"{tuple(value.shape)}."
        )
    return True


def _plain(value: float | Tensor) -> float | Tensor:
    return value if isinstance(value, Tensor) else float(value)


@dataclass(frozen=True)
class _Sum(Penalty):
    terms: tuple[Penalty, ...]

    def __call__(self, solution: Solution) -> Tensor:
        first, *rest = (term(solution) for term in self.terms)
        return sum(rest, start=first)


@dataclass(frozen=True, eq=False)
class _Scaled(Penalty):
    """A penalty and a factor. Two are equal if both parts are; a tensor as a factor is equal to itself only."""

    factor: float | Tensor
    penalty: Penalty

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Scaled) or type(self) is not type(other):
            return NotImplemented
        a, b = self.factor, other.factor
        same = a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b
        return same and self.penalty == other.penalty

    def __hash__(self) -> int:
        return hash((type(self), self.factor, self.penalty))


class _Multiple(_Scaled):
    def __call__(self, solution: Solution) -> Tensor:
        return self.factor * self.penalty(solution)


class _Quotient(_Scaled):
    def __call__(self, solution: Solution) -> Tensor:
        return self.penalty(solution) / self.factor


@dataclass(frozen=True)
class StepPenalty(Penalty):
    """A reduction over the recorded steps of one term each: what a new penalty derives from.

    A subclass defines `term`. The term may use all records of the steps; `error` and `stiffness` carry gradients.

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps. A weight belongs to its reduction:
            sum and mean differ by the number of steps. No steps (a span of length 0) give 0.

    Examples:
        >>> import regnde
        >>> class LateErrorPenalty(regnde.StepPenalty):
        ...     def term(self, steps):
        ...         return steps.error * steps.t  # errors late in the span cost more
        >>> sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], record="all")
        >>> bool(0 < (1e-2 * LateErrorPenalty("mean"))(sol) < 1e-2)
        True
    """

    reduction: Reduction = "sum"

    def __post_init__(self) -> None:
        if isinstance(self.reduction, Solution):
            name = type(self).__name__
            raise TypeError(f"{name} was given a Solution as its reduction: write {name}()(solution).")
        if self.reduction not in ("sum", "mean", "max"):
            raise ValueError(f"reduction={self.reduction!r}: choose 'sum', 'mean' or 'max'.")

    @abstractmethod
    def term(self, steps: Steps) -> Tensor:
        """The term of each step, of the shape of `steps.dt`; entries that are no steps (`steps.mask`) are not read."""

    def __call__(self, solution: Solution) -> Tensor:
        """The reduced term, 0-dim, differentiable.

        Raises:
            ValueError: if nothing was recorded, or the method has no such estimate.
            TypeError: for something else than a solution.
        """
        if not isinstance(solution, Solution):
            raise TypeError(
                f"{type(self).__name__} takes the Solution of a solve, got {type(solution).__name__}. A layer returns "
                "it with output='solution'; for a whole model use regnde.recording()."
            )
        if solution.steps is None:
            raise ValueError(
                f"{type(self).__name__} needs the records of the solver's steps, but the solution has none: "
                "solve with record='all' or record=Local(). Layers record in training mode only, not after .eval()."
            )
        values, mask = self.term(solution.steps), solution.steps.mask
        if mask is not None:
            values = values[mask]
        if self.reduction == "sum" or values.numel() == 0:
            return values.sum()
        return values.max() if self.reduction == "max" else values.mean()


class ErrorPenalty(StepPenalty):
    """R_E = sum_j E_j |h_j|: the local error estimates times the step sizes.

    Source: Pal et al. (ICML 2021), eq. for R_E; E is scaled by the tolerances as in the papers' code
    (`docs/heuristics.md`). The step sizes are constants. In units of time.

    Args:
        reduction: `"sum"`, `"mean"` (the code of both papers) or `"max"` over the steps.

    Examples:
        >>> import regnde
        >>> sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], record="all")
        >>> bool(0 < (1e-2 * ErrorPenalty() + SquaredErrorPenalty("mean"))(sol) < 1)
        True
    """

    def term(self, steps: Steps) -> Tensor:
        """E_j |h_j|, shape (S,)."""
        return steps.error * steps.dt.abs().to(steps.error.dtype)


class SquaredErrorPenalty(StepPenalty):
    """R_E2 = sum_j E_j^2: the squared local error estimates, dimensionless.

    Source: Pal et al. (ICML 2021), the variant that needs no step sizes.

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps.
    """

    def term(self, steps: Steps) -> Tensor:
        """E_j^2, shape (S,)."""
        return steps.error.square()


class StiffnessPenalty(StepPenalty):
    """R_S = sum_j S_j: the stiffness estimates, in units of 1/time.

    Source: Pal et al. (ICML 2021), R_S, without the step sizes, as their code has it (it reduces with
    "max" for ODEs and divides by the method's stability size, here `Steps.stability_size`).

    Args:
        reduction: `"sum"`, `"mean"` or `"max"` over the steps.
    """

    def term(self, steps: Steps) -> Tensor:
        """S_j, shape (S,)."""
        return steps.stiffness


def steer(ts: Sequence[float] | Tensor, width: float, *, generator: torch.Generator | None = None) -> tuple[float, ...]:
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
    *head, end = (float(t.detach() if isinstance(t, Tensor) else t) for t in ts)
    if not head or not 0 < width < abs(end - head[-1]):
        raise ValueError(f"steer(width={width}): give a width between 0 and the last gap of the times {tuple(ts)}.")
    device = "cpu" if generator is None else generator.device  # whatever torch's default device
    draw = float(torch.rand((), generator=generator, dtype=torch.float64, device=device))
    return (*head, end + width * (2 * draw - 1))
