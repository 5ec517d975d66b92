"""Root mean squares and 2-norms: the norms under the estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.sums import Terms, onto, summed

__all__ = ["Scratch", "error_scale", "rms", "sample_rms", "scaled_norm", "tolerated", "transformed"]

MANY = 4096  # entries from which one node of the graph is cheaper than the nodes of the formula


def rms(x: Tensor) -> Tensor:
    """Root mean square over all entries, 0-dim; 0 for an empty tensor, gradient 0 where x = 0."""
    if x.numel() == 0:
        return x.real.sum()
    return _norm(x) / math.sqrt(x.numel())


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm


def sample_rms(x: Tensor) -> Tensor:
    """The same for each sample of the leading dimension, shape (batch,)."""
    flat = x.reshape(x.shape[0], x[0].numel())
    if x.numel() == 0:
        return flat.real.sum(1)
    norm: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norm / math.sqrt(flat.shape[1])


def error_scale(y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor) -> Tensor:
    """What an error of a step from y to y1 is measured by, atol + rtol max(|y|, |y1|), entrywise."""
    return tolerated(torch.maximum(y.abs(), y1.abs()), rtol, atol)


def tolerated(size: Tensor, rtol: float, atol: float | Tensor, out: Tensor | None = None) -> Tensor:
    """The errors that are allowed in entries of some size, atol + rtol size.

    A tolerance that is a tensor already, real and 0-dim, spares every step to make it one.
    """
    least = atol if isinstance(atol, Tensor) else size.new_full((), atol)
    return torch.add(least, size, alpha=rtol, out=out)


class Scratch:
    """Two tensors like a state, for estimates without a graph: large ones are slower to get than to fill."""

    def __init__(self) -> None:
        self._pair: tuple[Tensor, Tensor] | None = None

    def pair(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Overwritten by the next call's user."""
        if self._pair is None:
            self._pair = torch.empty_like(like), torch.empty_like(like)
        return self._pair


def scaled_norm(
    terms: Terms, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor, scratch: Scratch | None = None
) -> Tensor:
    """The 2-norm of a sum over the scale of errors, 0-dim; without a graph a single term is overwritten.

    Over sqrt(n) it is the root mean square: who has weights to give divides them instead.
    """
    graph = torch.is_grad_enabled()
    if y.numel() >= MANY and not y.is_complex() and not transformed():
        weights, tensors = zip(*terms, strict=True)
        if graph:
            inputs = weights, rtol, atol, y, y1, *tensors
            estimate: Tensor = _ScaledNorm.apply(*inputs)[0]  # type: ignore[no-untyped-call]  # torch does not type it
            return estimate
        if scratch is not None:
            return _norm(_ratio_in(*scratch.pair(y), terms, y, y1, rtol, atol))
    error, scale = summed(terms), error_scale(y, y1, rtol, atol)
    return _norm(error / scale if graph else error.div_(scale))


def _ratio_in(
    ratio: Tensor, scale: Tensor, terms: Terms, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor
) -> Tensor:
    """The sum over the scale of errors, without a graph, in given memory."""
    torch.maximum(torch.abs(y, out=scale), torch.abs(y1, out=ratio), out=scale)
    (weight, x), *others = terms
    onto(torch.mul(x, weight, out=ratio), others)
    return ratio.div_(tolerated(scale, rtol, atol, out=scale))


class _ScaledNorm(torch.autograd.Function):
    """E = |r|, r = e / s, e = sum_j w_j x_j, s = atol + rtol max(|y|, |y1|), as one node; r is its second result.

    dE = sum r dr / E, dr = (de - r ds) / s. As nodes of the formula, every term is a kernel more and
    torch's derivative of the maximum branches on every entry: records then cost a training pass of a large
    field a fifth of its time. Of all that is computed on the way the graph keeps r.
    """

    @staticmethod
    def forward(
        ctx: Any, weights: Sequence[float], rtol: float, atol: float | Tensor, y: Tensor, y1: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        terms = list(zip(weights, tensors, strict=True))
        ratio = _ratio_in(torch.empty_like(y), torch.empty_like(y), terms, y, y1, rtol, atol)
        estimate = _norm(ratio)
        ctx.weights, ctx.rtol, ctx.atol = weights, rtol, atol
        ctx.save_for_backward(y, y1, estimate, ratio)
        ctx.save_for_forward(y, y1, estimate, ratio)
        ctx.set_materialize_grads(False)
        return estimate, ratio

    @staticmethod
    def backward(ctx: Any, of_estimate: Tensor | None, of_ratio: Tensor | None) -> Any:
        y, y1, estimate, ratio = ctx.saved_tensors
        if of_estimate is not None:
            through = ratio * _over(of_estimate, estimate)
            of_ratio = through if of_ratio is None else through + of_ratio
        if of_ratio is None:
            return (None,) * (5 + len(ctx.weights))
        pull = _pulled if torch.is_grad_enabled() else _pulled_in_place
        of_error, of_y, of_y1 = pull(of_ratio, ratio, y, y1, ctx.rtol, ctx.atol)
        return None, None, None, of_y, of_y1, *[of_error * weight for weight in ctx.weights]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        y, y1, estimate, ratio = ctx.saved_tensors
        of_y, of_y1 = (torch.zeros_like(y) if x is None else x for x in tangents[3:5])
        of_terms = [pair for pair in zip(ctx.weights, tangents[5:], strict=True) if pair[1] is not None]
        of_error = summed(of_terms) if of_terms else torch.zeros_like(y)
        side = _side(y, y1)
        of_scale = ((1 + side) * y.sgn() * of_y + (1 - side) * y1.sgn() * of_y1) * (ctx.rtol / 2)
        moved = (of_error - ratio * of_scale) / error_scale(y, y1, ctx.rtol, ctx.atol)
        return (moved * ratio).sum() * _over(torch.ones_like(estimate), estimate), moved


def _pulled(
    of_ratio: Tensor, ratio: Tensor, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents of e, y and y1 from that of r = e / (atol + rtol max(|y|, |y1|))."""
    of_error = of_ratio / error_scale(y, y1, rtol, atol)
    shared = of_error * ratio * (-rtol / 2)
    side = _side(y, y1)
    return of_error, shared * (1 + side) * y.sgn(), shared * (1 - side) * y1.sgn()


def _pulled_in_place(
    of_ratio: Tensor, ratio: Tensor, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a graph, in as few passes over memory as it takes."""
    size, size1 = y.abs(), y1.abs()
    scale = torch.maximum(size, size1)
    tolerated(scale, rtol, atol, out=scale)
    of_error = of_ratio / scale
    shared = torch.mul(of_error, ratio, out=scale).mul_(-rtol / 2)
    one_sided = size.sub_(size1).sgn_().mul_(shared)
    of_y = torch.add(shared, one_sided, out=size1).mul_(y.sgn())
    return of_error, of_y, shared.sub_(one_sided).mul_(y1.sgn())


def transformed() -> bool:
    """Whether a transform of torch.func is at work: those want another kind of node, which costs 20 us more a step."""
    return torch._C._are_functorch_transforms_active()


def _over(cotangent: Tensor, estimate: Tensor) -> Tensor:
    """Cotangent / E, 0 where E = 0."""
    resting = estimate == 0
    return (cotangent / estimate.masked_fill(resting, 1.0)).masked_fill(resting, 0.0)


def _side(y: Tensor, y1: Tensor) -> Tensor:
    """1 where |y| > |y1|, -1 where it is smaller, 0 where both share, as in torch's derivative of the maximum."""
    return (y.abs() - y1.abs()).sgn()
