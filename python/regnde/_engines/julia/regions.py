"""ATen operators that put arrays together from regions: concatenation, scatters, derivatives of slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from regnde._engines.julia.lower import Pending, Program, Shape, Value
from regnde._engines.julia.operators import Writer
from regnde._engines.julia.source import literal
from regnde._engines.julia.structure import readable, select_index, slice_index

__all__ = ["REGIONS"]


def _cat(program: Program, shape: Shape, dtype: torch.dtype, tensors: Sequence[Value], dim: int = 0) -> Value:
    tensors = [x for x in tensors if x.shape != (0,)]
    if len(tensors) == 1:
        return tensors[0]
    regions, start = [], 0
    for x in tensors:
        regions.append((slice_index(program, shape, dim, start, x.shape[dim]), readable(program, x, dtype)))
        start = start + x.shape[dim]

    def write(target: str, add: bool) -> tuple[str, ...]:
        lines: list[str] = []
        for index, x in regions:
            lines.append(f"part = view({target}, {index})")
            lines.append(f"{program.macro(x)} part {'+=' if add else '='} {x.expr.bare}")
        return tuple(lines)

    return Value(shape, dtype, pending=Pending(write))


def _parts(program: Program, shape: Shape, dtype: torch.dtype, index: str, x: Value) -> Value:
    return Value(shape, dtype, literal(0.0, dtype), parts=((index, readable(program, x, dtype)),))


def _select_backward(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, sizes: Any, dim: int, index: int
) -> Value:
    return _parts(program, shape, dtype, select_index(program, shape, dim, index), x)


def _slice_backward(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, sizes: Any, dim: int, start: Any, end: Any, step: int
) -> Value:
    if x.shape == shape:
        return x
    return _parts(program, shape, dtype, slice_index(program, shape, dim, start, x.shape[dim], step), x)


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
    index = slice_index(program, shape, dim, start, source.shape[dim], step)
    return _overwritten(program, shape, dtype, x, source, index)


def _select_scatter(
    program: Program, shape: Shape, dtype: torch.dtype, x: Value, source: Value, dim: int, index: int
) -> Value:
    return _overwritten(program, shape, dtype, x, source, select_index(program, shape, dim, index))


def _overwritten(program: Program, shape: Shape, dtype: torch.dtype, x: Value, source: Value, index: str) -> Value:
    base, part = readable(program, x, dtype), readable(program, source, dtype)

    def write(target: str, _: bool) -> tuple[str, ...]:
        lines = program.assigned(target, base)
        return (*lines, f"part = view({target}, {index})", f"{program.macro(part)} part = {part.expr.bare}")

    return program.write(Pending(write, accumulates=False), shape, dtype)


REGIONS: dict[str, Writer] = {
    "cat": _cat,
    "select_backward": _select_backward,
    "slice_backward": _slice_backward,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
}
"""Writers by ATen name: `(program, shape, dtype, *arguments) -> Value`."""
