"""A backward pass that has no derivative itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["last_derivative", "refusing"]

Gradients = Sequence[Tensor | None]
Backward = Callable[..., Gradients]


def last_derivative(refusal: str) -> Callable[[Backward], Backward]:
    """Marks the backward pass of a `torch.autograd.Function` as one without a derivative.

    With `create_graph=True` the gradients that it returns depend on its saved tensors, and a backward pass through them
    raises the error. `torch.autograd.function.once_differentiable` does this only if a gradient that it is given
    requires one: else the gradients count as constants, and a second derivative is zero without a word.

    Args:
        refusal: text of the RuntimeError.
    """

    def mark(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def marked(ctx: Any, *grads: Tensor | None) -> Gradients:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return found
            sources = [x for x in (*grads, *ctx.saved_tensors) if x is not None and x.requires_grad]
            return tuple(None if x is None else refusing(x, sources, refusal) for x in found)

        return marked

    return mark


def refusing(gradient: Tensor, sources: Iterable[Tensor], refusal: str) -> Tensor:
    """The same gradient; a backward pass through it, to the sources, raises a RuntimeError with the text `refusal`."""
    passed: Tensor = _Refusing.apply(refusal, gradient, *sources)  # type: ignore[no-untyped-call]
    return passed


class _Refusing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, refusal: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.refusal = refusal
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(ctx.refusal)
