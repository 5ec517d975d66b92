"""Sums of weighted tensors: as nodes of a graph where one is recorded, in place where none is; sums by products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Terms", "added", "onto", "product", "shifted_rows", "summed"]

Terms = Sequence[tuple[float, Tensor]]  # weights, and what they weigh


def added(y: Tensor, terms: Terms) -> Tensor:
    """The sum y + sum_j weight_j x_j. Nodes of `torch.add(y, x, alpha=float)` save no tensors."""
    if not terms:
        return y
    (weight, x), *others = terms
    return onto(torch.add(y, x, alpha=weight), others)


def summed(terms: Terms) -> Tensor:
    """The sum of weight_j x_j; one term of weight 1 is handed back itself."""
    (weight, x), *others = terms
    return x if weight == 1.0 and not others else onto(x * weight, others)


def onto(total: Tensor, terms: Terms) -> Tensor:
    """The sum total + sum_j weight_j x_j, in place where no graph wants the total."""
    if not torch.is_grad_enabled():
        for weight, x in terms:
            total.add_(x, alpha=weight)
        return total
    for weight, x in terms:
        total = torch.add(total, x, alpha=weight)
    return total


def product(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product; on a GPU in double precision, as one of float32 may be rounded to ten bits there (TF32)."""
    if a.device.type != "cuda":
        return a @ b
    wide = torch.promote_types(a.dtype, torch.float64)
    return (a.to(wide) @ b.to(wide)).to(a.dtype)


def shifted_rows(y: Tensor, weights: Tensor, xs: Tensor) -> Tensor:
    """The sums y + sum_j weights_mj x_j for each row m, shape (M, *y.shape); each x_j is a row, and of y's size."""
    return y + product(weights.to(y.dtype), xs).reshape(len(weights), *y.shape)
