"""Root mean squares and 2-norms: the norms under the estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.sums import Terms, onto, summed

__all__ = [
    "MANY",
    "Measured",
    "Scratch",
    "error_scale",
    "joinable",
    "measured",
    "norms",
    "rms",
    "sample_rms",
    "scaled_norm",
    "tolerated",
    "transformed",
]

MANY = 4096  # entries from which one node of the graph is cheaper than the nodes of the formula


def rms(x: Tensor) -> float:
    """Root mean square over all entries; 0 for an empty tensor."""
    return _norm(x).item() / math.sqrt(max(x.numel(), 1))


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm


def sample_rms(x: Tensor) -> Tensor:
    """The same for each sample of the leading dimension, shape (batch,); gradient 0 where x = 0."""
    if x.numel() == 0:
        return x.reshape(x.shape[0], 0).real.sum(1)
    return _sample_norm(x) / math.sqrt(x[0].numel())


def _sample_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
    return norm


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


class Measured(NamedTuple):
    """The error of a step over its scale, without a graph, and what it was formed of.

    Attributes:
        norm: its 2-norm E = |r|, 0-dim.
        ratio: the error over the scale, r = e / s, entrywise.
        terms: e = sum_j w_j x_j.
        y, y1: states before and after: s = atol + rtol max(|y|, |y1|).
        rtol, atol: tolerances.
        column: the steps of samples that step apart, shape (batch, 1, ..., 1), as a factor of e; the norms are
            then theirs, shape (batch,).
    """

    norm: Tensor
    ratio: Tensor
    terms: Terms
    y: Tensor
    y1: Tensor
    rtol: float
    atol: float | Tensor
    column: Tensor | None = None


def scaled_norm(
    terms: Terms, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor, scratch: Scratch | None = None
) -> Tensor:
    """The 2-norm of a sum over the scale of errors, 0-dim; without a graph a single term is overwritten.

    Over sqrt(n) it is the root mean square: who has weights to give divides them instead.
    """
    if not torch.is_grad_enabled():
        return _norm(_ratio(terms, y, y1, rtol, atol, scratch.pair(y) if scratch and y.numel() >= MANY else None))
    if y.numel() < MANY or not joinable(y):
        return _norm(summed(terms) / error_scale(y, y1, rtol, atol))
    with torch.no_grad():
        known = measured(terms, y, y1, rtol, atol)
    return norms([known])[0]


def measured(
    terms: Terms,
    y: Tensor,
    y1: Tensor,
    rtol: float,
    atol: float | Tensor,
    scratch: Scratch | None = None,
    column: Tensor | None = None,
) -> Measured:
    """The same without a graph, with what `norms` wants to hang it on one; nothing is overwritten."""
    scale = torch.empty_like(y) if scratch is None or y.numel() < MANY else scratch.pair(y)[1]
    ratio = _ratio(terms, y, y1, rtol, atol, (torch.empty_like(y), scale))
    norm = _norm(ratio) if column is None else _sample_norm(ratio.mul_(column))
    return Measured(norm, ratio, terms, y, y1, rtol, atol, column)


def _ratio(
    terms: Terms, y: Tensor, y1: Tensor, rtol: float, atol: float | Tensor, memory: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The sum over the scale of errors, without a graph; given memory for the ratio and the scale is overwritten."""
    if memory is None:
        return summed(terms).div_(error_scale(y, y1, rtol, atol))
    ratio, scale = memory
    torch.maximum(torch.abs(y, out=scale), torch.abs(y1, out=ratio), out=scale)
    (weight, x), *others = terms
    onto(torch.mul(x, weight, out=ratio), others)
    return ratio.div_(tolerated(scale, rtol, atol, out=scale))


def joinable(y: Tensor) -> bool:
    """Whether `norms` serves states like this one: it knows no complex numbers, forward mode and torch.func."""
    return not (y.is_complex() or transformed())


def norms(known: Sequence[Measured]) -> Tensor:
    """The norms of steps of one solve that follow one another, shape (S,), with a graph: one node for all of them.

    Of samples that step apart it takes a single step; theirs have shape (batch,).

    As nodes of the formula, every term of every step is a kernel more, and torch's derivative of the maximum
    branches on every entry: records then cost a training pass a fifth of its time.
    """
    states = [*[step.y for step in known], known[-1].y1]
    tensors = [x for term in zip(*[step.terms for step in known], strict=True) for _, x in term]
    estimates: Tensor = _Norms.apply(known, *states, *tensors)[0]  # type: ignore[no-untyped-call]  # torch does not type it
    return estimates if estimates.ndim else estimates[None]


class _Norms(torch.autograd.Function):
    """E = |r|, r = e / s, as in `Measured`, for each step; the ratios are its second result.

    dE = sum r dr / E, dr = (de - r ds) / s. Of all that is computed on the way the graph keeps r. Several
    steps are rows of stacked tensors; the tensors of a single one are taken as they are.
    """

    @staticmethod
    def forward(ctx: Any, known: Sequence[Measured], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        first, *others = known
        estimates, ratios = first.norm, first.ratio
        if others:
            estimates, ratios = torch.stack([step.norm for step in known]), torch.stack([step.ratio for step in known])
        ctx.weights = [[weight for weight, _ in term] for term in zip(*[step.terms for step in known], strict=True)]
        ctx.rtol, ctx.atol, ctx.column = first.rtol, first.atol, first.column
        ctx.save_for_backward(estimates, ratios, *tensors[: len(known) + 1])
        ctx.set_materialize_grads(False)
        return estimates, ratios

    @staticmethod
    def backward(ctx: Any, of_estimates: Tensor | None, of_ratios: Tensor | None) -> Any:
        estimates, ratios, *states = ctx.saved_tensors
        single = len(states) == 2
        column = (-1, *[1] * (ratios.ndim - 1)) if estimates.ndim else ()
        if not single:
            states = torch.stack(states)
        y, y1 = states if single else (states[:-1], states[1:])
        weights = [ratios.new_tensor(weight).view(column) for weight in ctx.weights]
        if ctx.column is not None:
            weights = [weight * ctx.column for weight in weights]
        steps = _Steps(ratios, y, y1, weights, ctx.rtol, ctx.atol)
        factors = torch.zeros_like(estimates) if of_estimates is None else _over(of_estimates, estimates)
        factors = factors.view(column)
        if of_ratios is None and not torch.is_grad_enabled():
            of_y, of_y1, of_terms = _pulled_in_place(factors, steps)
        else:
            of_ratios = factors * ratios if of_ratios is None else factors * ratios + of_ratios
            of_y, of_y1, of_terms = _pulled(of_ratios, steps)
        if single:
            return None, of_y, of_y1, *of_terms
        between = of_y1[:-1] + of_y[1:]
        of_rows = [row for of_term in of_terms for row in of_term.unbind()]
        return None, of_y[0], *between.unbind(), of_y1[-1], *of_rows


class _Steps(NamedTuple):
    """What the derivative of a `_Norms` is formed of; the weights are those of each term."""

    ratios: Tensor
    y: Tensor
    y1: Tensor
    weights: Sequence[Tensor]
    rtol: float
    atol: float | Tensor


Cotangents = tuple[Tensor, Tensor, list[Tensor]]  # of y, of y1, of the terms


def _pulled(of_ratios: Tensor, steps: _Steps) -> Cotangents:
    """Cotangents from those of the ratios; where |y| = |y1| the scale is taken to be that of y1."""
    ratios, y, y1, weights, rtol, atol = steps
    of_errors = of_ratios / error_scale(y, y1, rtol, atol)
    of_scales = of_errors * ratios * -rtol
    at_end = y.abs() <= y1.abs()
    of_terms = [of_errors * weight for weight in weights]
    return of_scales * ~at_end * y.sgn(), of_scales * at_end * y1.sgn(), of_terms


def _pulled_in_place(factors: Tensor, steps: _Steps) -> Cotangents:
    """The same for factors * ratios as the ratios' cotangents, without a graph, in few passes over memory."""
    ratios, y, y1, weights, rtol, atol = steps
    size, size1 = y.abs(), y1.abs()
    at_end = torch.le(size, size1, out=torch.empty_like(size))  # 1 and 0: booleans are slow to multiply by
    scales = torch.maximum(size, size1, out=size)
    quotients = ratios / tolerated(scales, rtol, atol, out=scales)
    of_terms = [quotients * (weight * factors) for weight in weights]
    of_scales = quotients.mul_(ratios).mul_(factors * -rtol)
    of_y1 = torch.mul(of_scales, at_end, out=at_end)
    of_y = of_scales.sub_(of_y1)
    return of_y.mul_(torch.sgn(y, out=size)), of_y1.mul_(torch.sgn(y1, out=size)), of_terms


def transformed() -> bool:
    """Whether forward mode or a transform of torch.func is at work: those want other nodes, which cost more a step."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _over(cotangent: Tensor, estimate: Tensor) -> Tensor:
    """Cotangent / E, 0 where E = 0."""
    resting = estimate == 0
    return (cotangent / estimate.masked_fill(resting, 1.0)).masked_fill(resting, 0.0)
