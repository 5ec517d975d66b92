"""The mass matrix of M y' = f(t, y), singular ones included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regnde._engines.torch.jacobian import Jacobian, as_vectors
from regnde._engines.torch.step import Field, Tolerance, tolerance

__all__ = ["SMALL_START", "Mass"]

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
    def of(matrix: Tensor | None) -> Mass | None:
        """The matrix with its null spaces; None for none."""
        if matrix is None:
            return None
        u, sizes, v = torch.linalg.svd(matrix.detach())
        limit = RANK * torch.finfo(matrix.dtype).eps * float(sizes.max())
        rank = int((sizes > limit).sum())
        return Mass(matrix, u[:, rank:], v.mT[:, rank:])

    @property
    def singular(self) -> bool:
        """Whether there are algebraic equations: their eigenvalues are infinite, and no stiffness is told."""
        return self.left.shape[1] > 0

    def slopes(self, slope: Tensor, samples: bool) -> Tensor:
        """The derivative M^-1 f of a state, or of each sample; M is not singular."""
        rows = as_vectors(slope, samples).reshape(-1, len(self.matrix))
        found: Tensor = torch.linalg.solve(self.matrix, rows.mT)
        return found.mT.reshape(slope.shape)

    @torch.no_grad()
    def check_start(self, field: Field, t: Tensor, y: Tensor, rtol: Tolerance, atol: Tolerance, samples: bool) -> None:
        """Refuses a state that does not satisfy the algebraic equations within the tolerance, or an index above 1.

        The residual is measured by the change of the state, in the directions without a derivative, that removes it.

        Raises:
            ValueError: that says which it is.
        """
        if not self.singular:
            return
        slope, by_state, _ = Jacobian(samples=samples)(field, t, y)
        block = self.left.mT @ by_state @ self.right
        residual = as_vectors(slope, samples) @ self.left
        condition = float(torch.linalg.cond(block).max())
        if not condition < 1 / (RANK * torch.finfo(y.dtype).eps):
            raise ValueError(
                "the differential-algebraic equation has an index above 1: the derivative of its algebraic equations "
                "by the algebraic variables is singular at the start. Differentiate the constraint, and solve that."
            )
        change = torch.linalg.solve(block, -residual.unsqueeze(-1)).squeeze(-1) @ self.right.mT
        size = (change.reshape(y.shape) / tolerance(y.abs(), rtol, atol)).abs().max()
        if not float(size) <= 1:
            raise ValueError(
                f"y0 does not satisfy the algebraic equations: they ask for a change by "
                f"{float(change.abs().max()):.3g}, which is {float(size):.3g} times the tolerance. Solve them for the "
                "variables without a derivative first."
            )
