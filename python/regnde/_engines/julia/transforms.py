"""Writers of Fourier transforms: `transform!(target, x, plan)`, without a factor, with a plan among the buffers.

FFTW makes the plans (julia/ext/RegNDEFFTWExt.jl). A real array's transform has half of the last of torch's dimensions,
Julia's first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sympy

from regnde._engines.julia.lower import Pending, Result, Value
from regnde._engines.julia.operators import ENTRYWISE, Writer
from regnde._engines.julia.source import factor, infix, julia_type
from regnde._engines.julia.structure import STRUCTURAL

__all__ = ["TRANSFORMS"]

NONE, BY_ROOT, BY_COUNT = range(3)  # torch's ways to normalise


def _transformed(out: Result, x: Value, kind: str, dim: Sequence[int], *options: str) -> Value:
    """Without a factor."""
    data, dims = out.program.array(x, dense=True), _julia_dims(x, dim)
    sizes = out.program.dims(x.shape)
    array = f"similar(y, {julia_type(x.dtype)}, {sizes})"
    plan = out.program.plan(f"{kind}_plan({', '.join((array, *options, dims))})")
    lines = Pending(lambda target, _: (f"transform!({target}, {data.expr.text}, {plan})",), accumulates=False)
    return out.pending(lines)


def _julia_dims(x: Value, dim: Sequence[int]) -> str:
    rank = len(x.shape)
    dims = [str(rank - d % rank) for d in reversed(dim)]
    return f"({', '.join(dims)}{',' * (len(dims) == 1)})"


def _normalised(out: Result, x: Value, counts: Sequence[Any], way: int) -> Value:
    """Divided by the number of the entries along the transformed dimensions, or by its root."""
    if way == NONE:
        return x
    count = math.prod(counts)
    if isinstance(count, sympy.Expr):
        if way == BY_ROOT:
            raise NotImplementedError("norm='ortho' over the batch")
        divisor: Any = factor(count, out.program.batch, out.dtype.to_real())
        return out.entrywise(lambda a: infix("/", a, divisor, cost=4), out.program.store(x))
    share = 1 / count if way == BY_COUNT else 1 / math.sqrt(count)
    scaled: Value = ENTRYWISE["mul"](out, out.program.store(x), share)
    return scaled


def _complex_to_complex(out: Result, x: Value, dim: Sequence[int], normalization: int, forward: bool) -> Value:
    if not dim:
        return x
    direction = "true" if forward else "false"
    return _normalised(out, _transformed(out, x, "c2c", dim, direction), _counts(x, dim), normalization)


def _real_to_complex(out: Result, x: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    if not onesided:
        complex_x = STRUCTURAL["_to_copy"](out.of(x.shape), x)
        return _complex_to_complex(out, complex_x, dim, normalization, True)
    return _normalised(out, _transformed(out, x, "r2c", dim), _counts(x, dim), normalization)


def _complex_to_real(out: Result, x: Value, dim: Sequence[int], normalization: int, last_dim_size: Any) -> Value:
    size = out.program.size(last_dim_size)
    return _normalised(
        out, _transformed(out, x, "c2r", dim, size), _counts(Value(out.shape, out.dtype), dim), normalization
    )


def _counts(x: Value, dim: Sequence[int]) -> list[Any]:
    return [x.shape[d] for d in dim]


TRANSFORMS: dict[str, Writer] = {
    "_fft_c2c": _complex_to_complex,
    "_fft_r2c": _real_to_complex,
    "_fft_c2r": _complex_to_real,
}
"""Writers by ATen name: `(out, *arguments) -> Value`."""
