"""ATen operators that combine entries: reductions, matrix products, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy

from regnde._engines.julia.lower import Pending, Result, Value, count
from regnde._engines.julia.operators import Writer
from regnde._engines.julia.source import Expr, infix

__all__ = ["COMBINING"]


# -- reductions -------------------------------------------------------------------------------------


def _reduction(name: str) -> Writer:
    def write(out: Result, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        rank = len(x.shape)
        dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
        dims = sorted(d % rank for d in dims) if rank else []
        if not dims:
            return x
        source = out.program.array(x).expr.text
        full = out.program.dims([1 if d in dims else size for d, size in enumerate(x.shape)])
        as_it_is = keepdim or dims == list(range(len(dims)))

        def lines(target: str, add: bool) -> tuple[str, ...]:
            into = target if as_it_is else f"reshape({target}, {full})"
            return (f"{name}!({into}, {source}{'; init = false' if add else ''})",)

        return out.pending(Pending(lines, accumulates=name == "sum", bare=True))

    return write


def _mean(out: Result, x: Value, *args: Any, **kwargs: Any) -> Value:
    total = out.program.store(_reduction("sum")(out, x, *args, **kwargs))
    entries = sympy.simplify(count(x.shape) / count(out.shape))
    divisor = Expr(out.program.size(entries) if entries.is_Atom else f"({out.program.size(entries)})")
    return out.entrywise(lambda a: infix("/", a, divisor, cost=4), total)


# -- products ---------------------------------------------------------------------------------------


def _product(left: str, right: str, matrices: bool = True) -> Pending:
    def write(target: str, add: bool) -> tuple[str, ...]:
        return (f"mul!({target}, {left}, {right}{', true, true' if add else ''})",)

    return Pending(write, (lambda: _product(_flip(right), _flip(left))) if matrices else None)


def _mm(out: Result, a: Value, b: Value) -> Value:
    """Torch's `a b` on reversed arrays is Julia's `b * a`."""
    left, right = out.program.matrix(b), out.program.matrix(a)
    return out.pending(_product(left, right))


def _flip(text: str) -> str:
    return text[len("transpose(") : -1] if text.startswith("transpose(") else f"transpose({text})"


def _mv(out: Result, a: Value, x: Value) -> Value:
    matrix = _flip(out.program.matrix(a))
    return out.pending(_product(matrix, out.program.array(x).expr.text, matrices=False))


def _bmm(out: Result, a: Value, b: Value) -> Value:
    left, right = _batched(out, b), _batched(out, a)
    return out.pending(Pending(lambda target, _: (f"batched_mul!({target}, {left}, {right})",), accumulates=False))


def _batched(out: Result, x: Value) -> str:
    if x.permuted and x.permuted[1] == (0, 2, 1):
        return f"batched_transpose({out.program.array(x.permuted[0], dense=True).expr.text})"
    return out.program.array(x, dense=True).expr.text


# -- convolutions -----------------------------------------------------------------------------------


def _geometry(
    x: str,
    weight: str,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> str:
    """NNlib's description of a convolution; torch's is a cross-correlation, hence the flip."""

    def dims(numbers: Sequence[int]) -> str:
        return f"({', '.join(str(n) for n in reversed(numbers))}{',' if len(numbers) == 1 else ''})"

    return (
        f"geometry = DenseConvDims({x}, {weight}; stride = {dims(stride)}, padding = {dims(padding)}, "
        f"dilation = {dims(dilation)}, groups = {groups}, flipkernel = true)"
    )


def _convolved(name: str, first: str, second: str, weight: str, options: Sequence[Any], data: str = "") -> Pending:
    """`name!(target, first, second)`, where the target is the convolution's data if none is given."""

    def lines(target: str, _: bool) -> tuple[str, ...]:
        return _geometry(data or target, weight, *options), f"{name}!({target}, {first}, {second}, geometry)"

    return Pending(lines, accumulates=False)


def _split_options(options: Sequence[Any]) -> tuple[bool, Sequence[Any]]:
    """Whether a convolution is transposed, and (stride, padding, dilation, groups)."""
    stride, padding, dilation, transposed, _, groups = options  # the target's size tells the output padding
    return transposed, (stride, padding, dilation, groups)


def _convolution(out: Result, x: Value, weight: Value, bias: Value | None, *options: Any) -> Value:
    """A transposed convolution is the derivative, by its data, of the convolution that leads back."""
    program, (transposed, geometry) = out.program, _split_options(options)
    data, kernel = program.array(x, dense=True).expr.text, program.array(weight, dense=True).expr.text
    if transposed:
        result = out.pending(_convolved("∇conv_data", data, kernel, kernel, geometry))
    else:
        result = out.pending(_convolved("conv", data, kernel, kernel, geometry, data))
    if bias is None:
        return result
    channels = (out.shape[1], *(1 for _ in out.shape[2:]))
    column = program.named(f"reshape({program.array(bias).expr.text}, {program.dims(channels)})", channels, out.dtype)
    return out.entrywise(lambda a, b: infix("+", a, b), program.store(result), column)


def _convolution_backward(
    outs: list[Result], gradient: Value, x: Value, weight: Value, bias_sizes: Any, *options: Any
) -> list[Value | None]:
    out, mask = outs[0], options[-1]
    transposed, geometry = _split_options(options[:-1])
    g, data, kernel = (out.program.array(v, dense=True).expr.text for v in (gradient, x, weight))
    results: list[Value | None] = [None, None, None]
    if mask[0] and transposed:
        results[0] = out.of(x.shape).pending(_convolved("conv", g, kernel, kernel, geometry, g))
    elif mask[0]:
        results[0] = out.of(x.shape).pending(_convolved("∇conv_data", g, kernel, kernel, geometry))
    if mask[1]:
        first, second = (g, data) if transposed else (data, g)
        results[1] = out.of(weight.shape).pending(_convolved("∇conv_filter", first, second, kernel, geometry, first))
    if mask[2]:
        flat = out.program.array(gradient, dense=True)
        channels = (gradient.shape[1],)
        results[2] = _reduction("sum")(out.of(channels), flat, [0, *range(2, len(x.shape))])
    return results


COMBINING: dict[str, Writer] = {
    **{name: _reduction(julia) for name, julia in (("sum", "sum"), ("amax", "largest"), ("amin", "minimum"))},
    **{name: _reduction(name) for name in ("any", "prod")},
    "mean": _mean,
    "mm": _mm,
    "mv": _mv,
    "bmm": _bmm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}
"""Writers by ATen name: `(out, *arguments) -> Value`, or a list of them for a list of results."""
