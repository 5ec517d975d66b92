"""One step of an implicit Runge-Kutta method. Its gradient is that of the solved equations.

The equations k = F(k) are solved by Broyden's method from the slope at the start, with the identity as the first
approximation of the Jacobian of k - F(k), as in torchdiffeq; its inverse is kept as rank-one updates, so that memory
grows with the iterations, not with the square of the state (C. T. Kelley, Iterative Methods for Linear and Nonlinear
Equations, 1995, 7.3). By the implicit function theorem a gradient g of k is passed on to F as the solution x of
x = g + (dF/dk)^T x, which the same method finds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from regnde._engines.torch.step import Field, shifted
from regnde._grid_method import ImplicitTableau
from regnde._last_derivative import refusing

__all__ = ["implicit_stages"]

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-8}  # of the slopes, as in torchdiffeq; of slopes above 1 relative
GRADIENT_TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}  # relative
NEARLY = 1e3  # in units of the tolerance: a residual up to this is warned about; beyond, the step has failed
GRADIENT_ITERS = 200

Slopes = list[Tensor]


def implicit_stages(field: Field, tableau: ImplicitTableau, y: Tensor, h: float, times: Sequence[Tensor]) -> Slopes:
    """The slope at the start of a step of size h from y, then the stages; NaN where they could not be found.

    Args:
        field: the right-hand side.
        tableau: the method.
        y: state at the start.
        h: signed size.
        times: of the start, then of the stages.
    """
    start = field(times[0], y)
    stages: Slopes = []
    for block in tableau.blocks:
        if block == (0,) and tableau.is_explicit(block):  # the first stage is the slope at the start
            stages.append(start)
            continue
        origins = [shifted(y, stages, tableau.a[i][: len(stages)], h) for i in block]
        weights = [[tableau.a[i][j] for j in block] for i in block]
        places = [times[1 + i] for i in block]

        def slopes(k: Slopes, origins: Slopes = origins, weights: Any = weights, places: Any = places) -> Slopes:
            rows = zip(places, origins, weights, strict=True)
            return [field(t, shifted(origin, k, row, h)) for t, origin, row in rows]

        stages += _solved(slopes, [start.detach()] * len(block), tableau)
    return [start, *stages]


def _solved(slopes: Callable[[Slopes], Slopes], guess: Slopes, tableau: ImplicitTableau) -> Slopes:
    """The solution k of k = slopes(k), with the gradient of the solution."""
    shape, dtype = (len(guess), *guess[0].shape), guess[0].dtype
    found: list[tuple[Slopes, Slopes]] = []
    wanted = False

    def residual(x: Tensor) -> Tensor:
        nonlocal wanted
        k = [stage.requires_grad_(wanted) for stage in _as_state(x, shape, dtype).unbind()]
        values = slopes(k)
        wanted = wanted or any(value.requires_grad for value in values)
        found[:] = [(k, values)]
        return x - _as_vector(torch.stack([value.detach() for value in values]))

    start = _as_vector(torch.stack(guess))
    tolerance = TOLERANCES[dtype.to_real()]

    def allowed(x: Tensor) -> float:
        return tolerance * max(1.0, _norm(x))

    x, size = broyden(residual, start, allowed, tableau.max_iters)
    if not size <= allowed(x):
        warnings.warn(
            f"the equations of a step of {tableau.name!r} were not solved in {tableau.max_iters} iterations: a "
            f"residual of {size:.3g} is left of slopes of size {_norm(x):.3g}. Take smaller steps, or more max_iters.",
            stacklevel=2,
        )
        if not size <= NEARLY * allowed(x):
            return [torch.full_like(stage, math.nan) for stage in guess]
    k, values = found[0]
    if not wanted:
        return k
    if not k[0].requires_grad:  # the last iteration was the first to need a gradient
        residual(x)
        k, values = found[0]
    return list(_Solution.apply(k, values, *values))  # type: ignore[no-untyped-call]  # torch does not type it


class _Solution(torch.autograd.Function):
    """The solution k of k = F(k); the graph of values = F(k) begins at k and at all else that F depends on."""

    @staticmethod
    def forward(ctx: Any, k: Slopes, values: Slopes, *graph: Tensor) -> tuple[Tensor, ...]:
        ctx.k, ctx.values = k, values
        return tuple(stage.detach().clone() for stage in k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = torch.stack(grads)
        shape, dtype = gradient.shape, gradient.dtype
        right = _as_vector(gradient)

        def residual(x: Tensor) -> Tensor:
            back = torch.autograd.grad(
                ctx.values, ctx.k, _as_state(x, shape, dtype).unbind(), retain_graph=True, allow_unused=True
            )
            products = [torch.zeros_like(k) if x is None else x for x, k in zip(back, ctx.k, strict=True)]
            return x - right - _as_vector(torch.stack(products))

        scale = _norm(right)
        tolerance = GRADIENT_TOLERANCES[dtype.to_real()] * scale
        x, size = broyden(residual, right, lambda _: tolerance, GRADIENT_ITERS)
        if not size <= NEARLY * tolerance:
            raise RuntimeError(
                f"the gradient of an implicit step was not found in {GRADIENT_ITERS} iterations: a residual of "
                f"{size:.3g} is left of a gradient of size {scale:.3g}. Take smaller steps."
            )
        passed = _as_state(x, shape, dtype)
        if torch.is_grad_enabled():  # for second derivatives; autograd would take this one for a constant
            passed = refusing(
                passed,
                (*grads, *ctx.values),
                "second derivatives of an implicit step are not offered: use an explicit method, such as 'rk4' or "
                "'dopri5'.",
            )
        return (None, None, *passed.unbind())


def broyden(
    residual: Callable[[Tensor], Tensor], x: Tensor, allowed: Callable[[Tensor], float], max_iters: int
) -> tuple[Tensor, float]:
    """A zero of `residual` near x: the point last tried, and the norm of the residual there.

    Args:
        residual: a function of a real vector; the last call is at the point that is returned.
        x: where to start.
        allowed: norm of the residual at which to stop, a function of the point.
        max_iters: how often to move, at most.
    """
    updates: list[tuple[Tensor, Tensor]] = []  # of the inverse, 1 + sum of u v^T
    value = residual(x)
    for _ in range(max_iters):
        size = _norm(value)
        if size <= allowed(x) or not math.isfinite(size):
            break
        step = -_plus(value, [((v @ value), u) for u, v in updates])
        x = x + step
        before, value = value, residual(x)
        change = value - before
        changed = _plus(change, [((v @ change), u) for u, v in updates])
        along = step @ changed
        if along == 0:
            break
        updates.append(((step - changed) / along, _plus(step, [((u @ step), v) for u, v in updates])))
    return x, _norm(value)


def _plus(vector: Tensor, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The vector plus a sum of multiples."""
    total = vector.clone()
    for factor, other in terms:
        total.addcmul_(factor, other)
    return total


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _as_vector(state: Tensor) -> Tensor:
    """A real vector of the entries."""
    return (torch.view_as_real(state) if state.is_complex() else state).reshape(-1)


def _as_state(vector: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The reverse: a new tensor without a graph."""
    vector = vector.detach().clone()
    return torch.view_as_complex(vector.view(*shape, 2)) if dtype.is_complex else vector.view(*shape)
