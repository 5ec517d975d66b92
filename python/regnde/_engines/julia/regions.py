"""ATen operators that put arrays together from regions: concatenation, scatters, derivatives of slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regnde._engines.julia.lower import Pending, Program, Shape, Value
from regnde._engines.julia.operators import Writer
from regnde._engines.julia.source import Expr, literal
from regnde._engines.julia.structure import index_range, readable

__all__ = ["REGIONS"]


def _cat(program: Program, shape: Shape, dtype: torch.dtype, pieces: Sequence[Value], dim: int = 0) -> Value:
    pieces = [piece for piece in pieces if piece.shape != (0,)]
    if len(pieces) == 1:
        return pieces[0]
    dim, rank = dim % len(shape), len(shape)
    if program.pure:
        names = [_whole(program, piece).expr.text for piece in pieces]
        axis = rank - dim
        join = {1: "vcat({})", 2: "hcat({})"}.get(axis, f"cat({{}}; dims = Val({axis}))").format(", ".join(names))
        return program.write(Pending(_never, lambda target: (f"{target} = {join}",)), shape, dtype)
    regions, start = [], 0
    for piece in pieces:
        text = index_range(program, shape[dim], piece.shape[dim], start, 1)
        regions.append((program.index(rank, dim, text), readable(program, piece, dtype)))
        start = start + piece.shape[dim]

    def write(target: str, add: bool) -> tuple[str, ...]:
        lines: list[str] = []
        for index, piece in regions:
            sign = "+=" if add else "="
            lines += [f"part = view({target}, {index})", f"{program.macro(piece)} part {sign} {piece.expr.text}"]
        return tuple(lines)

    return Value(shape, dtype, Expr(""), pending=Pending(write, _make_never))


def _never(target: str, add: bool) -> tuple[str, ...]:
    raise AssertionError("pure code does not write into arrays")


def _make_never(target: str) -> tuple[str, ...]:
    raise AssertionError("this value is stored another way in pure code")


def _whole(program: Program, x: Value) -> Value:
    """The value as an array with all its dimensions (numbers too), for Julia's concatenation."""
    return x if x.array and x.leaves == frozenset([x.shape]) and not x.permuted else program.array(x)


def _parts(program: Program, shape: Shape, dtype: torch.dtype, index: str, x: Value) -> Value:
    return Value(shape, dtype, literal(0.0, dtype), parts=((index, readable(program, x, dtype)),))


def _select_backward(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, sizes: Any, dim: int, index: int
) -> Value:
    dim %= len(shape)
    position = index + 1 if index >= 0 else shape[dim] + index + 1
    return _parts(program, shape, dtype, program.index(len(shape), dim, program.size(position)), x)


def _slice_backward(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, sizes: Any, dim: int, start: Any, end: Any, step: int
) -> Value:
    if x.shape == shape:
        return x
    dim %= len(shape)
    text = index_range(program, shape[dim], x.shape[dim], start, step)
    return _parts(program, shape, dtype, program.index(len(shape), dim, text), x)


def _slice_scatter(
    program: Program,
    shape: Shape,
    dtype: torch.dtype,
    x: Value,
    source: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    if source.shape == shape:
        return source
    dim %= len(shape)
    index = program.index(len(shape), dim, index_range(program, shape[dim], source.shape[dim], start, step))
    return _overwritten(program, shape, dtype, x, source, index)


def _select_scatter(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, source: Value, dim: int, index: int
) -> Value:
    dim %= len(shape)
    position = program.size(index + 1 if index >= 0 else shape[dim] + index + 1)
    return _overwritten(program, shape, dtype, x, source, program.index(len(shape), dim, position))


def _overwritten(program: Program, shape: Shape, dtype: torch.dtype, x: Value, source: Value, index: str) -> Value:
    base, part = readable(program, x, dtype), readable(program, source, dtype)

    def make(target: str) -> tuple[str, ...]:
        first = program.assigned(target, base, pure=program.pure)
        return (*first, f"part = view({target}, {index})", f"{program.macro(part)} part = {part.expr.text}")

    return program.write(Pending(lambda target, _: make(target), make), shape, dtype)


REGIONS: dict[str, Writer] = {
    "cat": _cat,
    "select_backward": _select_backward,
    "slice_backward": _slice_backward,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
}
"""Writers by ATen name: `(program, shape, dtype, *arguments) -> Value`."""
