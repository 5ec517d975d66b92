"""ATen operators that put arrays together from regions: concatenation, scatters, derivatives of slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regnde._engines.julia.lower import Pending, Result, Value
from regnde._engines.julia.operators import Writer
from regnde._engines.julia.source import literal
from regnde._engines.julia.structure import select_index, slice_index

__all__ = ["REGIONS"]


def _cat(out: Result, tensors: Sequence[Value], dim: int = 0) -> Value:
    tensors = [x for x in tensors if x.shape != (0,)]
    if len(tensors) == 1:
        return tensors[0]
    regions, start = [], 0
    for x in tensors:
        regions.append((slice_index(out.program, out.shape, dim, start, x.shape[dim]), out.readable(x)))
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
    return _part(out, select_index(out.program, out.shape, dim, index), x)


def _slice_backward(out: Result, x: Value, sizes: Any, dim: int, start: Any, end: Any, step: int) -> Value:
    if x.shape == out.shape:
        return x
    return _part(out, slice_index(out.program, out.shape, dim, start, x.shape[dim], step), x)


def _slice_scatter(
    out: Result, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    if source.shape == out.shape:
        return source
    return _overwritten(out, x, source, slice_index(out.program, out.shape, dim, start, source.shape[dim], step))


def _overwritten(out: Result, x: Value, source: Value, index: str) -> Value:
    program, base, part = out.program, out.readable(x), out.readable(source)

    def write(target: str, _: bool) -> tuple[str, ...]:
        lines = program.assigned(target, base)
        return (*lines, f"part = view({target}, {index})", f"{program.macro(part)} part = {part.expr.bare}")

    return program.write(Pending(write, accumulates=False), out.shape, out.dtype)


REGIONS: dict[str, Writer] = {
    "cat": _cat,
    "select_backward": _select_backward,
    "slice_backward": _slice_backward,
    "slice_scatter": _slice_scatter,
}
"""Writers by ATen name: `(out, *arguments) -> Value`."""
