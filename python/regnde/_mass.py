"""The mass matrix of M y' = f(t, y), singular ones included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MASS_METHODS", "SMALL_START", "Mass"]

MASS_METHODS = ("rodas5p", "rodas4")  # the error estimate of rosenbrock23 would need a rule for algebraic entries

SMALL_START = 1e-6  # first step of a differential-algebraic equation, as in OrdinaryDiffEq.jl

RANK = 1e3  # in units of the dtype's resolution and of the largest singular value: smaller ones are zero


@dataclass(frozen=True, eq=False)
class Mass:
    """A constant matrix and what a solve needs to know of it.

    Attributes:
        matrix: M, shape (n, n).
        left: a basis of the left null space, shape (n, m): the combinations of rows that are algebraic equations.
        right: a basis of the null space, shape (n, m): the directions that have no derivative.
    """

    matrix: Tensor
    left: Tensor
    right: Tensor

    @staticmethod
    def of(matrix: Tensor) -> Mass:
        """The matrix with its null spaces."""
        u, sizes, v = torch.linalg.svd(matrix.detach())
        limit = RANK * torch.finfo(matrix.dtype).eps * float(sizes.max())
        rank = int((sizes > limit).sum())
        return Mass(matrix, u[:, rank:], v.mT[:, rank:])

    @property
    def singular(self) -> bool:
        """Whether there are algebraic equations: their eigenvalues are infinite, and no stiffness is told."""
        return self.left.shape[1] > 0

    def slopes(self, slope: Tensor) -> Tensor:
        """The derivative M^-1 f of a state, or of each sample; M is not singular."""
        found: Tensor = torch.linalg.solve(self.matrix, slope.reshape(-1, len(self.matrix)).mT)
        return found.mT.reshape(slope.shape)

    @torch.no_grad()
    def check_start(
        self, slope: Tensor, by_state: Tensor, y: Tensor, rtol: float | Tensor, atol: float | Tensor
    ) -> None:
        """Refuses a start that does not satisfy the algebraic equations within the tolerance, or an index above 1.

        Raises:
            ValueError: that says which it is.
        """
        change, size = self._change(slope, by_state, y, rtol, atol)
        if not size <= 1:
            raise ValueError(
                f"y0 does not satisfy the algebraic equations: they ask for a change by {change:.3g}, which is "
                f"{size:.3g} times the tolerance. Solve them for the variables without a derivative first."
            )

    @torch.no_grad()
    def check_stop(
        self,
        t: float,
        before: Tensor,
        slope: Tensor,
        by_state: Tensor,
        y: Tensor,
        rtol: float | Tensor,
        atol: float | Tensor,
    ) -> None:
        """Refuses a stop at which the algebraic equations jump: the state behind it does not satisfy them.

        Args:
            t: time of the stop.
            before: the field's value before the stop.
            slope: that behind it.
            by_state: its derivative there.
            y: the state.
            rtol: relative tolerance.
            atol: absolute tolerance.

        Raises:
            ValueError: for such a stop.
        """
        change, size = self._change(slope - before, by_state, y, rtol, atol)
        if not size <= 1:
            raise ValueError(
                f"the algebraic equations jump at the stop t={t:.6g}: behind it they ask for a change by {change:.3g}, "
                f"which is {size:.3g} times the tolerance. Solve up to the stop, solve them for the variables without "
                "a derivative, and go on from there with another solve."
            )

    def _change(
        self, slope: Tensor, by_state: Tensor, y: Tensor, rtol: float | Tensor, atol: float | Tensor
    ) -> tuple[float, float]:
        """The largest change of the state that the algebraic equations ask for, and over the tolerance.

        It is in the directions without a derivative.

        Args:
            slope: the field there.
            by_state: its derivative, shape (n, n), or (B, n, n) for samples.
            y: the state.
            rtol: relative tolerance.
            atol: absolute tolerance.

        Raises:
            ValueError: for an index above 1.
        """
        block = self.left.mT @ by_state @ self.right
        residual = slope.reshape(by_state.shape[:-1]) @ self.left
        condition = float(torch.linalg.cond(block).max())
        if not condition < 1 / (RANK * torch.finfo(y.dtype).eps):
            raise ValueError(
                "the differential-algebraic equation has an index above 1: the derivative of its algebraic equations "
                "by the algebraic variables is singular. Differentiate the constraint, and solve that."
            )
        change = torch.linalg.solve(block, -residual.unsqueeze(-1)).squeeze(-1) @ self.right.mT
        size = change.reshape(y.shape) / (atol + rtol * y.abs())
        return float(change.abs().max()), float(size.abs().max())
