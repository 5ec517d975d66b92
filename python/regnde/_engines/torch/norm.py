"""Root mean squares: the norms under the estimates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["error_scale", "rms", "sample_rms", "scaled_rms", "transformed"]

MANY = 4096  # entries from which one node of the graph is cheaper than the nodes of the formula


def rms(x: Tensor) -> Tensor:
    """Root mean square over all entries, 0-dim; 0 for an empty tensor, gradient 0 where x = 0."""
    if x.numel() == 0:
        return x.real.sum()
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm / math.sqrt(x.numel())


def sample_rms(x: Tensor) -> Tensor:
    """The same for each sample of the leading dimension, shape (batch,)."""
    flat = x.reshape(x.shape[0], x[0].numel())
    if x.numel() == 0:
        return flat.real.sum(1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm / math.sqrt(flat.shape[1])


def error_scale(y: Tensor, y1: Tensor, rtol: float, atol: float) -> Tensor:
    """What an error of a step from y to y1 is measured by, atol + rtol max(|y|, |y1|), entrywise."""
    largest = torch.maximum(y.abs(), y1.abs())
    return largest * rtol + atol if torch.is_grad_enabled() else largest.mul_(rtol).add_(atol)


def scaled_rms(error: Tensor, y: Tensor, y1: Tensor, rtol: float, atol: float) -> Tensor:
    """Root mean square of an error over its scale, 0-dim; without a graph the error is overwritten."""
    if torch.is_grad_enabled() and error.numel() >= MANY and not error.is_complex() and not transformed():
        estimate: Tensor = _ScaledRms.apply(error, y, y1, rtol, atol)  # type: ignore[no-untyped-call]
        return estimate
    scale = error_scale(y, y1, rtol, atol)
    return rms(error / scale if torch.is_grad_enabled() else error.div_(scale))


class _ScaledRms(torch.autograd.Function):
    """E = rms(r), r = error / s, s = atol + rtol max(|y|, |y1|), as one node.

    dE = sum r (d error - r ds) / (n E s). torch's derivative of the maximum branches on every entry,
    which made a regularised training pass of a large field a sixth slower; here signs select.
    """

    @staticmethod
    def forward(ctx: Any, error: Tensor, y: Tensor, y1: Tensor, rtol: float, atol: float) -> Tensor:
        scale = error_scale(y, y1, rtol, atol)
        ratio = error / scale
        estimate = rms(ratio)
        ctx.rtol, ctx.atol = rtol, atol
        ctx.save_for_backward(error, y, y1, estimate, ratio, scale)
        ctx.save_for_forward(y, y1, estimate, ratio, scale)
        return estimate

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        error, y, y1, estimate, ratio, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # for derivatives of this one: the saved results have no graph
            scale = error_scale(y, y1, ctx.rtol, ctx.atol)
            ratio = error / scale
            estimate = rms(ratio)
        of_error = ratio * _weight(cotangent, estimate, ratio) / scale
        of_scale = of_error * ratio * -ctx.rtol
        of_larger = of_scale * _first_is_larger(y, y1)
        return of_error, of_larger * y.sgn(), (of_scale - of_larger) * y1.sgn(), None, None

    @staticmethod
    def jvp(ctx: Any, of_error: Tensor, of_y: Tensor | None, of_y1: Tensor | None, *_: None) -> Any:
        y, y1, estimate, ratio, scale = ctx.saved_tensors
        of_y, of_y1 = (torch.zeros_like(y) if x is None else x for x in (of_y, of_y1))
        of_scale = torch.lerp(y1.sgn() * of_y1, y.sgn() * of_y, _first_is_larger(y, y1)) * ctx.rtol
        moved = ((of_error - ratio * of_scale) / scale * ratio).sum()
        return moved * _weight(torch.ones_like(estimate), estimate, ratio)


def transformed() -> bool:
    """Whether a transform of torch.func is at work: those want another kind of node, which costs 20 us more a step."""
    return torch._C._are_functorch_transforms_active()


def _weight(cotangent: Tensor, estimate: Tensor, ratio: Tensor) -> Tensor:
    """Cotangent / (n E), 0 where E = 0."""
    resting = estimate == 0
    return torch.where(resting, 0.0, cotangent / (torch.where(resting, 1.0, estimate) * ratio.numel()))


def _first_is_larger(y: Tensor, y1: Tensor) -> Tensor:
    """1 where |y| > |y1|, 0 where it is smaller, 1/2 where they are equal, as torch's derivative of the maximum."""
    return ((y.abs() - y1.abs()).sgn() + 1) / 2
