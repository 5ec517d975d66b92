"""ATen operators that change how entries are seen (views, casts), put regions together, or make constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import sympy
import torch

from regnde._engines.julia.lower import Pending, Program, Result, Shape, Value, count, stripped
from regnde._engines.julia.operators import ENTRYWISE, Writer
from regnde._engines.julia.source import Expr, call, julia_type, literal

__all__ = ["STRUCTURAL"]


def _cast(out: Result, x: Value, **_: Any) -> Value:
    if x.dtype == out.dtype:
        return x
    if out.dtype == torch.bool:
        truth: Value = ENTRYWISE["ne"](out, x, 0)
        return truth
    if x.dtype.is_complex and not out.dtype.is_complex:
        x = replace(out, dtype=x.dtype.to_real()).entrywise(lambda a: call("real", a, cost=0), x)
        return _cast(out, x)
    if x.dtype == torch.bool:
        one, zero = literal(1.0, out.dtype, exact=True), literal(0.0, out.dtype, exact=True)
        return out.entrywise(lambda c: call("ifelse", c, one, zero, cost=1), x)
    kind = julia_type(out.dtype)
    if x.dtype.is_floating_point and not out.dtype.is_floating_point and not out.dtype.is_complex:
        return out.entrywise(lambda a: call(f"whole_{kind}", a, cost=1), x)  # `Int64(0.5)` is an error in Julia
    return out.entrywise(lambda a: call(kind, a, cost=1), x)


# -- views ------------------------------------------------------------------------------------------


def _reshape(out: Result, x: Value, *_: Any, **__: Any) -> Value:
    shape = out.shape
    if x.shape == shape:
        return x
    only_ones_differ = stripped(x.shape) == stripped(shape)
    if x.pending and x.pending.bare and only_ones_differ and len(shape) <= len(x.shape):
        return replace(x, shape=shape)
    if x.pending or x.parts:
        x = out.program.store(x)
    if x.permuted is None and only_ones_differ and len(x.natural) <= len(shape):
        return replace(x, shape=shape)
    dense = out.program.array(x, dense=True)
    return out.program.reshaped(dense.expr.text, shape, out.dtype)


def _as_strided(out: Result, x: Value, size: Any, stride: Sequence[Any], offset: Any = 0) -> Value:
    """Decompositions use it for reshaping; anything else has no meaning for memory that is not torch's."""
    contiguous = [1, *accumulate(reversed(out.shape[1:]), lambda a, b: a * b)] if out.shape else []
    if list(reversed(stride)) != contiguous or offset not in (0, None) or count(x.shape) != count(out.shape):
        raise NotImplementedError("strides other than a contiguous tensor's")
    return _reshape(out, x)


def _expand(out: Result, x: Value, *_: Any, **__: Any) -> Value:
    if x.shape == out.shape:
        return x
    if x.pending or x.parts:
        x = out.program.store(x)
    return replace(out.program.view(x), shape=out.shape)


def _permute(out: Result, x: Value, order: Sequence[int]) -> Value:
    rank = len(out.shape)
    perm = tuple(d % rank for d in order) if rank else ()
    if perm == tuple(range(rank)) or not (x.natural or x.pending or x.parts or x.permuted):
        return replace(x, shape=out.shape)
    if x.pending and x.pending.transposed and perm == (1, 0):
        return replace(x, shape=out.shape, pending=x.pending.transposed())
    if x.permuted:
        base, first = x.permuted
        perm = tuple(first[p] for p in perm)
        if perm == tuple(range(rank)):
            return base
        x = base
    return Value(out.shape, out.dtype, array=True, permuted=(out.program.array(x), perm))


def _slice(out: Result, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    if x.shape == out.shape:
        return x
    return _view(out, x, _slice_index(out.program, x.shape, dim, start, out.shape[dim], step))


def _select(out: Result, x: Value, dim: int, index: Any) -> Value:
    return _view(out, x, _select_index(out.program, x.shape, dim, index))


def _diagonal(out: Result, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    rank = len(x.shape)
    order = [*(d for d in range(rank) if d not in (dim1 % rank, dim2 % rank)), dim1 % rank, dim2 % rank]
    shape = tuple(x.shape[d] for d in order)
    *lead, rows, columns = shape
    dense = out.program.array(_permute(out.of(shape), x, order), dense=True)
    flat = out.program.reshaped(dense.expr.text, (*lead, rows * columns), out.dtype)
    first = 1 + (offset if offset >= 0 else -offset * columns)
    last = first + (out.shape[-1] - 1) * (columns + 1)
    return _view(out, flat, ", ".join([f"{first}:{columns + 1}:{last}", *(":" for _ in lead)]))


def _flip(out: Result, x: Value, dims: Sequence[int]) -> Value:
    rank = len(out.shape)
    flipped = {d % rank for d in dims}
    ranges = (f"{out.program.size(out.shape[d])}:-1:1" if d in flipped else ":" for d in reversed(range(rank)))
    return _view(out, x, ", ".join(ranges))


def _view(out: Result, x: Value, index: str) -> Value:
    return out.program.named(f"view({out.program.array(x).expr.text}, {index})", out.shape, out.dtype)


def _slice_index(program: Program, shape: Shape, dim: int, start: Any, length: Any, step: int = 1) -> str:
    """Julia's index of `length` entries along torch's dimension `dim`, from torch's `start` on."""
    size, first = shape[dim], 0 if start is None else start
    if not isinstance(first, sympy.Expr) and first < 0:
        first = max(first + size, 0) if isinstance(size, int) else first + size
    last = program.size(first + (length - 1) * step + 1)
    steps = "" if step == 1 else f"{step}:"
    return _index(shape, dim, f"{program.size(first + 1)}:{steps}{last}")


def _select_index(program: Program, shape: Shape, dim: int, index: Any) -> str:
    """Julia's index of torch's entry `index` along torch's dimension `dim`."""
    first = index + 1 if isinstance(index, sympy.Expr) or index >= 0 else shape[dim] + index + 1
    return _index(shape, dim, program.size(first))


def _index(shape: Shape, dim: int, text: str) -> str:
    """`text` along torch's dimension `dim`, everything along the others."""
    rank = len(shape)
    return ", ".join(text if d == dim % rank else ":" for d in reversed(range(rank)))


def _split(outs: list[Result], x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    starts = accumulate((out.shape[dim] for out in outs), initial=0)
    return [_slice(out, x, dim, start) for out, start in zip(outs, starts, strict=False)]


# -- regions ----------------------------------------------------------------------------------------


def _cat(out: Result, tensors: Sequence[Value], dim: int = 0) -> Value:
    tensors = [x for x in tensors if x.shape != (0,)]
    if len(tensors) == 1:
        return tensors[0]
    regions, start = [], 0
    for x in tensors:
        regions.append((_slice_index(out.program, out.shape, dim, start, x.shape[dim]), out.readable(x)))
        start = start + x.shape[dim]

    def write(target: str, add: bool) -> tuple[str, ...]:
        lines: list[str] = []
        for index, x in regions:
            lines.append(f"part = view({target}, {index})")
            lines.append(f"{out.program.macro(x)} part {'+=' if add else '='} {x.expr.bare}")
        return tuple(lines)

    return out.pending(Pending(write))


def _part(out: Result, index: str, x: Value) -> Value:
    return Value(out.shape, out.dtype, literal(0.0, out.dtype), parts=((index, out.readable(x)),))


def _select_backward(out: Result, x: Value, sizes: Any, dim: int, index: int) -> Value:
    return _part(out, _select_index(out.program, out.shape, dim, index), x)


def _slice_backward(out: Result, x: Value, sizes: Any, dim: int, start: Any, end: Any, step: int) -> Value:
    if x.shape == out.shape:
        return x
    return _part(out, _slice_index(out.program, out.shape, dim, start, x.shape[dim], step), x)


def _slice_scatter(
    out: Result, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    if source.shape == out.shape:
        return source
    return _overwritten(out, x, source, _slice_index(out.program, out.shape, dim, start, source.shape[dim], step))


def _overwritten(out: Result, x: Value, source: Value, index: str) -> Value:
    program, base, part = out.program, out.readable(x), out.readable(source)

    def write(target: str, _: bool) -> tuple[str, ...]:
        lines = program.assigned(target, base)
        return (*lines, f"part = view({target}, {index})", f"{program.macro(part)} part = {part.expr.bare}")

    return program.write(Pending(write, accumulates=False), out.shape, out.dtype)


# -- numbers ----------------------------------------------------------------------------------------


def _full(out: Result, _: Any, number: Any, **__: Any) -> Value:
    if isinstance(number, Value):
        return replace(out.readable(number), shape=out.shape)
    if isinstance(number, sympy.Expr):
        return Value(out.shape, out.dtype, Expr(out.program.size(number)))
    return out.constant(number)


def _zeros(out: Result, *_: Any, **__: Any) -> Value:
    return out.constant(False if out.dtype == torch.bool else 0.0)


STRUCTURAL: dict[str, Writer] = {
    "_to_copy": _cast,
    "copy": lambda out, _, source, *__: _expand(out, _cast(out.of(source.shape), source)),
    **{name: _reshape for name in ("squeeze", "unsqueeze", "view")},
    "as_strided": _as_strided,
    "expand": _expand,
    "permute": _permute,
    "slice": _slice,
    "select": _select,
    "diagonal": _diagonal,
    "flip": _flip,
    "split_with_sizes": _split,
    "cat": _cat,
    "select_backward": _select_backward,
    "slice_backward": _slice_backward,
    "slice_scatter": _slice_scatter,
    "full": _full,
    "full_like": _full,
    "scalar_tensor": lambda out, number, **_: _full(out, None, number),
    **{name: _zeros for name in ("empty", "empty_permuted", "empty_strided", "new_empty_strided")},
}
"""Writers by ATen name: `(out, *arguments) -> Value`, or a list of them for a list of results."""
