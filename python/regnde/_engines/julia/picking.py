"""Writers of the operators that pick entries by lists of integers (see `indexing`)."""

from __future__ import annotations

from typing import Any

from regnde._engines.julia.lower import Pending, Result, Value
from regnde._engines.julia.operators import ENTRYWISE, Writer

__all__ = ["PICKING"]


def _picked(function: str) -> Writer:
    """The writer of an operator that reads: `function!(target, x, index, dim)`."""

    def write(out: Result, x: Value, dim: int, index: Value, **_: Any) -> Value:
        data, places = out.program.array(x, dense=True).expr.text, out.program.array(index, dense=True).expr.text
        along = _julia_dim(x, dim)
        return out.pending(
            Pending(lambda target, _: (f"{function}!({target}, {data}, {places}, {along})",), accumulates=False)
        )

    return write


def _put(function: str, accumulates: bool) -> Writer:
    """The writer of an operator that writes into a copy of `x`: `function!(target, source, index, dim)`."""

    def write(out: Result, x: Value, dim: int, index: Value, source: Value, *, alpha: Any = 1) -> Value:
        if alpha != 1:
            source = ENTRYWISE["mul"](out.of(source.shape), source, alpha)
        program, base, along = out.program, out.readable(x), _julia_dim(x, dim)
        data, places = program.array(source, dense=True).expr.text, program.array(index, dense=True).expr.text
        zero = base.expr.text in ("0", "0.0", "0.0f0")

        def lines(target: str, add: bool) -> tuple[str, ...]:
            first = () if add else program.assigned(target, base)
            return (*first, f"{function}!({target}, {data}, {places}, {along})")

        return out.pending(Pending(lines, accumulates=accumulates and zero))

    return write


def _julia_dim(x: Value, dim: int) -> int:
    rank = max(len(x.shape), 1)
    return rank - dim % rank


PICKING: dict[str, Writer] = {
    "index_select": _picked("index_select"),
    "gather": _picked("gather"),
    "index_add": _put("index_add", accumulates=True),
    "index_copy": _put("index_copy", accumulates=False),
    "scatter_add": _put("scatter_add", accumulates=True),
    "scatter": _put("scatter", accumulates=False),
}
"""Writers by ATen name: `(out, *arguments) -> Value`."""
