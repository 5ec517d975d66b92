"""ATen operators that change how entries are seen (views, casts), and those that make constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import sympy
import torch

from regnde._engines.julia.lower import Program, Shape, Value, count, stripped
from regnde._engines.julia.operators import ENTRYWISE, Writer, entrywise
from regnde._engines.julia.source import Expr, call, julia_type, literal

__all__ = ["STRUCTURAL", "readable", "select_index", "slice_index"]


def _same(program: Program, shape: Shape, dtype: torch.dtype, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _cast(program: Program, shape: Shape, dtype: torch.dtype, x: Value, **_: Any) -> Value:
    if x.dtype == dtype:
        return x
    if dtype == torch.bool:
        truth: Value = ENTRYWISE["ne"](program, shape, dtype, x, 0)
        return truth
    if x.dtype == torch.bool:
        one, zero = literal(1.0, dtype, exact=True), literal(0.0, dtype, exact=True)
        return entrywise(program, lambda c: call("ifelse", c, one, zero, cost=1), (x,), shape, dtype)
    return entrywise(program, lambda a: call(julia_type(dtype), a, cost=1), (x,), shape, dtype)


# -- views ------------------------------------------------------------------------------------------


def _reshape(program: Program, shape: Shape, dtype: torch.dtype, x: Value, *_: Any, **__: Any) -> Value:
    if x.shape == shape:
        return x
    only_ones_differ = stripped(x.shape) == stripped(shape)
    if x.pending and x.pending.bare and only_ones_differ:
        return replace(x, shape=shape)
    if x.pending or x.parts:
        x = program.store(x)
    if x.permuted is None and only_ones_differ and len(x.natural) <= len(shape):
        return replace(x, shape=shape)
    if not x.natural and not x.permuted and all(size == 1 for size in shape):
        return replace(x, shape=shape, array=False)
    dense = program.array(x, dense=True)
    return program.reshaped(dense.expr.text, shape, dtype)


def _as_strided(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, size: Any, stride: Sequence[Any], offset: Any = 0
) -> Value:
    """Decompositions use it for reshaping; anything else has no meaning for memory that is not torch's."""
    contiguous = [1, *accumulate(reversed(shape[1:]), lambda a, b: a * b)] if shape else []
    if list(reversed(stride)) != contiguous or offset not in (0, None) or count(x.shape) != count(shape):
        raise NotImplementedError("strides other than a contiguous tensor's")
    return _reshape(program, shape, dtype, x)


def _expand(program: Program, shape: Shape, dtype: torch.dtype, x: Value, *_: Any, **__: Any) -> Value:
    if x.shape == shape:
        return x
    if x.pending or x.parts:
        x = program.store(x)
    if x.permuted:
        x = program.view(x)
    return replace(x, shape=shape)


def _permute(program: Program, shape: Shape, dtype: torch.dtype, x: Value, order: Sequence[int]) -> Value:
    rank = len(shape)
    perm = tuple(d % rank for d in order) if rank else ()
    if perm == tuple(range(rank)) or not (x.natural or x.pending or x.parts or x.permuted):
        return replace(x, shape=shape)
    if x.pending and x.pending.transposed and perm == (1, 0):
        return replace(x, shape=shape, pending=x.pending.transposed())
    if x.permuted:
        base, first = x.permuted
        perm = tuple(first[p] for p in perm)
        if perm == tuple(range(rank)):
            return base
        x = base
    base = program.array(x)
    return Value(shape, dtype, array=True, permuted=(base, perm))


def _transpose(program: Program, shape: Shape, dtype: torch.dtype, x: Value, a: int = 0, b: int = 1) -> Value:
    order = list(range(len(shape)))
    if order:
        order[a], order[b] = order[b], order[a]
    return _permute(program, shape, dtype, x, order)


def _slice(
    program: Program,
    shape: Shape,
    dtype: torch.dtype,
    x: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    if x.shape == shape:
        return x
    if _constant_along(x, dim % len(shape)):
        return replace(x, shape=shape)
    array = program.array(x)
    index = slice_index(program, x.shape, dim, start, shape[dim], step)
    return program.named(f"view({array.expr.text}, {index})", shape, dtype)


def slice_index(program: Program, shape: Shape, dim: int, start: Any, length: Any, step: int = 1) -> str:
    """Julia's index of `length` entries along torch's dimension `dim`, from torch's `start` on."""
    size, first = shape[dim], 0 if start is None else start
    if not isinstance(first, sympy.Expr) and first < 0:
        first = max(first + size, 0) if isinstance(size, int) else first + size
    last = program.size(first + (length - 1) * step + 1)
    steps = "" if step == 1 else f"{step}:"
    return _index(shape, dim, f"{program.size(first + 1)}:{steps}{last}")


def select_index(program: Program, shape: Shape, dim: int, index: Any) -> str:
    """Julia's index of torch's entry `index` along torch's dimension `dim`."""
    first = index + 1 if isinstance(index, sympy.Expr) or index >= 0 else shape[dim] + index + 1
    return _index(shape, dim, program.size(first))


def _index(shape: Shape, dim: int, text: str) -> str:
    """`text` along torch's dimension `dim`, everything along the others."""
    rank = len(shape)
    return ", ".join(text if d == dim % rank else ":" for d in reversed(range(rank)))


def _constant_along(x: Value, dim: int) -> bool:
    """Whether entries can be left out along `dim` without reading anything."""
    if x.pending or x.parts or x.permuted:
        return False
    return dim < len(x.shape) - len(x.natural)


def _flip(program: Program, shape: Shape, dtype: torch.dtype, x: Value, dims: Sequence[int]) -> Value:
    rank = len(shape)
    flipped = {d % rank for d in dims}
    ranges = (f"{program.size(shape[d])}:-1:1" if d in flipped else ":" for d in reversed(range(rank)))
    return program.named(f"view({program.array(x).expr.text}, {', '.join(ranges)})", shape, dtype)


def _select(program: Program, shape: Shape, dtype: torch.dtype, x: Value, dim: int, index: Any) -> Value:
    if _constant_along(x, dim % len(x.shape)):
        return replace(x, shape=shape)
    array = program.array(x)
    return program.named(f"view({array.expr.text}, {select_index(program, x.shape, dim, index)})", shape, dtype)


def _split(
    program: Program, shapes: list[Shape], dtype: torch.dtype, x: Value, sizes: Any, dim: int = 0
) -> list[Value]:
    starts = accumulate((shape[dim] for shape in shapes), initial=0)
    return [_slice(program, shape, dtype, x, dim, start) for shape, start in zip(shapes, starts, strict=False)]


def _unbind(program: Program, shapes: list[Shape], dtype: torch.dtype, x: Value, dim: int = 0) -> list[Value]:
    return [_select(program, shape, dtype, x, dim, i) for i, shape in enumerate(shapes)]


def readable(program: Program, x: Value, dtype: torch.dtype) -> Value:
    """The value as an expression that can be broadcast into its place."""
    expr, leaves = program.read(x, x.shape, dtype)
    return Value(x.shape, dtype, expr, leaves)


# -- numbers ----------------------------------------------------------------------------------------


def _full(program: Program, shape: Shape, dtype: torch.dtype, _: Any, number: Any, **__: Any) -> Value:
    if isinstance(number, Value):
        return replace(readable(program, number, dtype), shape=shape)
    if isinstance(number, sympy.Expr):
        return Value(shape, dtype, Expr(program.size(number)))
    return program.constant(number, shape, dtype)


def _filled(number: int) -> Writer:
    def write(program: Program, shape: Shape, dtype: torch.dtype, *_: Any, **__: Any) -> Value:
        return program.constant(bool(number) if dtype == torch.bool else float(number), shape, dtype)

    return write


def _scalar_tensor(program: Program, shape: Shape, dtype: torch.dtype, number: Any, **_: Any) -> Value:
    return _full(program, shape, dtype, None, number)


def _copy(program: Program, shape: Shape, dtype: torch.dtype, _: Value, source: Value, *__: Any) -> Value:
    return _expand(program, shape, dtype, _cast(program, source.shape, dtype, source))


STRUCTURAL: dict[str, Writer] = {
    **{name: _same for name in ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "lift_fresh")},
    "_to_copy": _cast,
    "copy": _copy,
    **{name: _reshape for name in ("_unsafe_view", "reshape", "squeeze", "unsqueeze", "view")},
    "as_strided": _as_strided,
    "expand": _expand,
    "permute": _permute,
    "t": _transpose,
    "transpose": _transpose,
    "slice": _slice,
    "select": _select,
    "flip": _flip,
    "split": _split,
    "split_with_sizes": _split,
    "unbind": _unbind,
    "full": _full,
    "full_like": _full,
    "new_full": _full,
    **{name: _filled(1) for name in ("ones", "ones_like", "new_ones")},
    "scalar_tensor": _scalar_tensor,
    **{
        name: _filled(0)
        for name in (
            *("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "empty_permuted", "empty_strided"),
            *("new_empty", "new_empty_strided"),
        )
    },
}
"""Writers by ATen name: `(program, shape, dtype, *arguments) -> Value`, or a list of them."""
