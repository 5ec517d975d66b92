"""Which ATen operators are taken apart before they are written in Julia."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from regnde._engines.julia.indexing import INDEXING, IRREDUCIBLE
from regnde._engines.julia.resampling import RESAMPLING

__all__ = ["decompositions"]

aten = torch.ops.aten

_FURTHER = (
    "_log_softmax _softmax _native_batch_norm_legit_no_training addmm addmv celu dot elu gelu glu hardsigmoid "
    "hardswish hardtanh leaky_relu log_sigmoid_forward logsumexp mish native_batch_norm native_group_norm "
    "native_layer_norm selu silu softplus softshrink threshold vdot"
)
"""Operators that are core ATen for torch, yet are written from simpler ones here."""

_NOT_DECOMPOSED = f"diagonal mv select_backward slice_backward {IRREDUCIBLE}"
"""Operators that torch would decompose, yet Julia has a better way to write."""


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Variance and mean from sums: torch's own decomposition leaves ATen."""
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    mean = x.mean(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    apart = (x - mean).abs() if x.is_complex() else x - mean
    var = (apart**2).sum(dims, keepdim=keepdim) / (count - (1 if correction is None else correction))
    return var, mean if keepdim else x.mean(dims)


def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _std(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


def _vector_norm(
    x: Tensor, ord: float = 2, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    dims = list(range(x.dim())) if dim is None else list(dim)
    if x.is_complex():
        x = x.abs()
    if ord == 1:
        return x.abs().sum(dims, keepdim=keepdim)
    if ord == 2:
        return (x * x).sum(dims, keepdim=keepdim).sqrt()
    if ord == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    if ord == -math.inf:
        return x.abs().amin(dims, keepdim=keepdim)
    if ord == 0:
        return (x != 0).to(x.dtype).sum(dims, keepdim=keepdim)
    return (x.abs() ** ord).sum(dims, keepdim=keepdim) ** (1 / ord)


def _repeat(x: Tensor, repeats: Sequence[int]) -> Tensor:
    shape = (*(1 for _ in repeats[x.dim() :]), *x.shape)
    pairs = list(zip(repeats, shape, strict=True))
    apart = x.reshape([size for _, s in pairs for size in (1, s)]).expand([size for pair in pairs for size in pair])
    return apart.reshape([r * s for r, s in pairs])


def _weight_norm_backward(grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Derivatives of w = g v / norms by v and g, with norms over every dimension but `dim`."""
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    along = (grad * v).sum(others, keepdim=True) / norms
    return g / norms * (grad - v * along / norms), along


def _pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Torch lists the pads from the last dimension on; negative ones cut entries off."""
    for i in range(len(pads) // 2):
        dim = x.dim() - 1 - i
        around = []
        for width in pads[2 * i : 2 * i + 2]:
            shape = [*x.shape[:dim], max(width, 0), *x.shape[dim + 1 :]]
            around.append([x.new_full(shape, value)] if width > 0 else [])
        cut_before, cut_after = (max(-width, 0) for width in pads[2 * i : 2 * i + 2])
        middle = x.narrow(dim, cut_before, x.shape[dim] - cut_before - cut_after) if cut_before or cut_after else x
        x = torch.cat([*around[0], middle, *around[1]], dim)
    return x


def _softshrink_backward(grad: Tensor, x: Tensor, lambd: float) -> Tensor:
    return torch.where(x.abs() > lambd, grad, 0)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims:
        return _roll(x.reshape(-1), shifts, [0]).reshape(x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        if size and shift % size:
            start = size - shift % size
            x = torch.cat([x.narrow(dim, start, size - start), x.narrow(dim, 0, start)], dim)
    return x


def _cross(a: Tensor, b: Tensor, *, dim: int = -1) -> Tensor:
    (a1, b1), (a2, b2) = ([_roll(x, [-shift], [dim]) for x in (a, b)] for shift in (1, 2))
    return a1 * b2 - a2 * b1


def _cumsum(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """A product with a triangle of ones, along the last dimension."""
    x = x if dtype is None else x.to(dtype)
    triangle = torch.ones(x.shape[dim], x.shape[dim], dtype=x.dtype, device=x.device).triu()
    return (x.movedim(dim, -1) @ triangle).movedim(-1, dim)


def _cumprod(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Products along the rows of a triangle, which is filled up with ones. The derivative of `prod` has it."""
    x = (x if dtype is None else x.to(dtype)).movedim(dim, -1)
    triangle = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()
    return torch.where(triangle, x.unsqueeze(-2), 1.0).prod(-1).movedim(-1, dim)


def _trilinear(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    for dim in expand1:
        a = a.unsqueeze(dim)
    for dim in expand2:
        b = b.unsqueeze(dim)
    for dim in expand3:
        c = c.unsqueeze(dim)
    return (a * b * c).sum(list(sumdim))


def _distances(a: Tensor, b: Tensor, p: float, compute_mode: int | None) -> Tensor:
    """Differences, not the product form, whose small distances are rounding."""
    if p != 2:
        raise NotImplementedError(f"cdist with p = {p}")
    apart = a[..., :, None, :] - b[..., None, :, :]
    return (apart * apart).sum(-1).sqrt()


def _distances_backward(grad: Tensor, a: Tensor, b: Tensor, p: float, distances: Tensor) -> Tensor:
    each = torch.where(distances == 0, 0, grad / distances)
    return (each[..., None] * (a[..., :, None, :] - b[..., None, :, :])).sum(-2)


def _add_products(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = torch.bmm(a, b).sum(0)
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else beta * x + product


_OWN = {
    **INDEXING,
    **RESAMPLING,
    aten._trilinear.default: _trilinear,
    aten._cdist_forward.default: _distances,
    aten._euclidean_dist.default: lambda a, b: _distances(a, b, 2, None),
    aten._cdist_backward.default: _distances_backward,
    aten.addbmm.default: _add_products,
    aten.isinf.default: lambda x: x.abs() == math.inf,
    aten.cumsum.default: _cumsum,
    aten.cumprod.default: _cumprod,
    aten.linalg_cross.default: _cross,
    aten.roll.default: _roll,
    aten.constant_pad_nd.default: _pad,
    aten.softshrink_backward.default: _softshrink_backward,
    aten._weight_norm_interface_backward.default: _weight_norm_backward,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.repeat.default: _repeat,
    aten.var_mean.correction: _var_mean,
    aten.var.correction: _var,
    aten.std.correction: _std,
}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Decompositions by operator: torch's for core ATen, further ones, less those that Julia has better code for."""
    table = {
        **core_aten_decompositions(),
        **get_decompositions([getattr(aten, name) for name in _FURTHER.split()]),
    }
    for name in _NOT_DECOMPOSED.split():
        for overload in getattr(aten, name).overloads():
            table.pop(getattr(getattr(aten, name), overload), None)
    return {**table, **_OWN}
