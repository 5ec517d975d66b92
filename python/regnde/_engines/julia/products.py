"""ATen operators that combine entries: reductions, matrix products, convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch

from regnde._engines.julia.lower import Pending, Program, Shape, Value
from regnde._engines.julia.operators import ENTRYWISE, Writer, entrywise
from regnde._engines.julia.source import Expr, infix

__all__ = ["COMBINING"]


# -- reductions -------------------------------------------------------------------------------------


def _reduction(name: str) -> Writer:
    def write(
        program: Program, shape: Shape, dtype: torch.dtype, x: Value, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> Value:
        rank = len(x.shape)
        dims = [dim] if isinstance(dim, int) else list(dim or range(rank))
        dims = sorted(d % rank for d in dims) if rank else []
        if not dims:
            return x
        source = program.array(x).expr.text
        full = program.dims([1 if d in dims else size for d, size in enumerate(x.shape)])
        as_it_is = keepdim or dims == list(range(len(dims)))

        def lines(target: str, add: bool) -> tuple[str, ...]:
            into = target if as_it_is else f"reshape({target}, {full})"
            return (f"{name}!({into}, {source}{'; init = false' if add else ''})",)

        return Value(shape, dtype, pending=Pending(lines, accumulates=name == "sum", bare=True))

    return write


def _mean(program: Program, shape: Shape, dtype: torch.dtype, x: Value, *args: Any, **kwargs: Any) -> Value:
    total = program.store(_reduction("sum")(program, shape, dtype, x, *args, **kwargs))
    count: Any = sympy.sympify(1)
    for size in x.shape:
        count = count * size
    for size in shape:
        count = count / size
    count = sympy.simplify(count)
    divisor = Expr(program.size(count) if count.is_Atom else f"({program.size(count)})")
    return entrywise(program, lambda a: infix("/", a, divisor, cost=4), (total,), shape, dtype)


# -- products ---------------------------------------------------------------------------------------


def _product(left: str, right: str, matrices: bool = True) -> Pending:
    def write(target: str, add: bool) -> tuple[str, ...]:
        return (f"mul!({target}, {left}, {right}{', true, true' if add else ''})",)

    return Pending(write, (lambda: _product(_flip(right), _flip(left))) if matrices else None)


def _mm(program: Program, shape: Shape, dtype: torch.dtype, a: Value, b: Value) -> Value:
    """Torch's `a b` on reversed arrays is Julia's `b * a`."""
    left, right = program.matrix(b), program.matrix(a)
    return Value(shape, dtype, pending=_product(left, right))


def _flip(text: str) -> str:
    return text[len("transpose(") : -1] if text.startswith("transpose(") else f"transpose({text})"


def _addmm(
    program: Program,
    shape: Shape,
    dtype: torch.dtype,
    bias: Value,
    a: Value,
    b: Value,
    *,
    beta: Any = 1,
    alpha: Any = 1,
) -> Value:
    product = program.store(_PRODUCTS[len(b.shape), len(a.shape)](program, shape, dtype, a, b))
    product = ENTRYWISE["mul"](program, shape, dtype, product, alpha)
    bias = ENTRYWISE["mul"](program, bias.shape, dtype, bias, beta)
    return entrywise(program, lambda x, y: infix("+", x, y), (product, bias), shape, dtype)


def _mv(program: Program, shape: Shape, dtype: torch.dtype, a: Value, x: Value) -> Value:
    matrix = _flip(program.matrix(a))
    return Value(shape, dtype, pending=_product(matrix, program.array(x).expr.text, matrices=False))


def _dot(program: Program, shape: Shape, dtype: torch.dtype, a: Value, b: Value) -> Value:
    product = entrywise(program, lambda x, y: infix("*", x, y), (a, b), a.shape, dtype)
    total: Value = _reduction("sum")(program, shape, dtype, product)
    return total


def _bmm(program: Program, shape: Shape, dtype: torch.dtype, a: Value, b: Value) -> Value:
    left, right = _batched(program, b), _batched(program, a)
    product = Pending(lambda target, _: (f"batched_mul!({target}, {left}, {right})",), accumulates=False)
    return Value(shape, dtype, pending=product)


def _batched(program: Program, x: Value) -> str:
    if x.permuted and x.permuted[1] == (0, 2, 1):
        return f"batched_transpose({program.array(x.permuted[0], dense=True).expr.text})"
    return program.array(x, dense=True).expr.text


_PRODUCTS: dict[tuple[int, int], Writer] = {(2, 2): _mm, (1, 2): _mv, (3, 3): _bmm}


# -- convolutions -----------------------------------------------------------------------------------


def _geometry(
    x: str, weight: str, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> str:
    """NNlib's description of a convolution; torch's is a cross-correlation, hence the flip."""

    def dims(numbers: Sequence[int]) -> str:
        return f"({', '.join(str(n) for n in reversed(numbers))}{',' if len(numbers) == 1 else ''})"

    return (
        f"geometry = DenseConvDims({x}, {weight}; stride = {dims(stride)}, padding = {dims(padding)}, "
        f"dilation = {dims(dilation)}, groups = {groups}, flipkernel = true)"
    )


def _called(name: str, first: str, second: str, geometry: str) -> Pending:
    call = f"{name}!({{}}, {first}, {second}, geometry)"
    return Pending(lambda target, _: (geometry, call.format(target)), accumulates=False)


def _convolution(
    program: Program,
    shape: Shape,
    dtype: torch.dtype,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed:
        raise NotImplementedError("transposed convolution")
    data, kernel = program.array(x, dense=True).expr.text, program.array(weight, dense=True).expr.text
    geometry = _geometry(data, kernel, stride, padding, dilation, groups)
    result = Value(shape, dtype, pending=_called("conv", data, kernel, geometry))
    if bias is None:
        return result
    channels: Shape = (shape[1], *(1 for _ in shape[2:]))
    column = program.named(f"reshape({program.array(bias).expr.text}, {program.dims(channels)})", channels, dtype)
    return entrywise(program, lambda a, b: infix("+", a, b), (program.store(result), column), shape, dtype)


def _convolution_backward(
    program: Program,
    shapes: list[Shape],
    dtype: torch.dtype,
    gradient: Value,
    x: Value,
    weight: Value,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> list[Value | None]:
    if transposed:
        raise NotImplementedError("transposed convolution")
    g, data, kernel = (program.array(v, dense=True).expr.text for v in (gradient, x, weight))
    geometry = _geometry(data, kernel, stride, padding, dilation, groups)
    results: list[Value | None] = [None, None, None]
    if mask[0]:
        results[0] = Value(x.shape, dtype, pending=_called("∇conv_data", g, kernel, geometry))
    if mask[1]:
        results[1] = Value(weight.shape, dtype, pending=_called("∇conv_filter", data, g, geometry))
    if mask[2]:
        dims = [0, *range(2, len(x.shape))]
        flat = program.array(gradient, dense=True)
        results[2] = _reduction("sum")(program, (weight.shape[0],), dtype, flat, dims)
    return results


COMBINING: dict[str, Writer] = {
    **{name: _reduction(julia) for name, julia in (("sum", "sum"), ("amax", "maximum"), ("amin", "minimum"))},
    **{name: _reduction(name) for name in ("any", "all")},
    "prod": _reduction("prod"),
    "mean": _mean,
    "mm": _mm,
    "mv": _mv,
    "bmm": _bmm,
    "dot": _dot,
    "vdot": _dot,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
}
"""Writers by ATen name: `(program, shape, dtype, *arguments) -> Value`, or a list of them."""
