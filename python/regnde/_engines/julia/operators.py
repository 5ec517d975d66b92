"""What each entrywise ATen operator is in Julia.

Names that are not Base's are those of `FIELD_NAMES` in julia/src/compile.jl: NaNMath has sqrt, log, pow, ... that
return NaN where Base's throw, as torch's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import sympy
import torch

from regnde._engines.julia.lower import LONG, Program, Shape, Value
from regnde._engines.julia.source import Expr, call, infix, literal, prefix

__all__ = ["ENTRYWISE", "Writer", "entrywise"]

Writer = Callable[..., Any]

_UNARY = {
    "acos": "NaNMath.acos",
    "acosh": "NaNMath.acosh",
    "asin": "NaNMath.asin",
    "asinh": "asinh",
    "atan": "atan",
    "atanh": "NaNMath.atanh",
    "cos": "NaNMath.cos",
    "cosh": "cosh",
    "erf": "erf",
    "exp": "fast_exp",
    "exp2": "exp2",
    "expm1": "expm1",
    "log": "NaNMath.log",
    "log10": "NaNMath.log10",
    "log1p": "NaNMath.log1p",
    "log2": "NaNMath.log2",
    "sigmoid": "fast_sigmoid",
    "sin": "NaNMath.sin",
    "sinh": "sinh",
    "sqrt": "NaNMath.sqrt",
    "tan": "NaNMath.tan",
    "tanh": "fast_tanh",
}

_CHEAP_UNARY = {"abs": "abs", "ceil": "ceil", "floor": "floor", "sign": "sign", "sgn": "sign", "trunc": "trunc"}

_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def entrywise(
    program: Program, build: Callable[..., Expr], operands: tuple[Any, ...], shape: Shape, dtype: torch.dtype
) -> Value:
    """An operator that works entry by entry: joins the operands' expressions."""
    types = [x.dtype for x in operands if isinstance(x, Value)]
    number_type = next((d for d in types if d.is_floating_point), dtype) if dtype == torch.bool else dtype
    read = [program.read(x, shape, number_type) for x in operands]
    while sum(e.terms for e, _ in read) > LONG:
        longest = max(range(len(read)), key=lambda i: read[i][0].terms)
        stored = program.store(Value(operands[longest].shape, operands[longest].dtype, *read[longest]))
        read[longest] = (stored.expr, stored.leaves)
    return Value(shape, dtype, build(*(e for e, _ in read)), frozenset().union(*(leaves for _, leaves in read)))


def _writer(build: Callable[..., Expr]) -> Writer:
    def write(program: Program, shape: Shape, dtype: torch.dtype, *operands: Any) -> Value:
        return entrywise(program, build, operands, shape, dtype)

    return write


def _is(operand: Any, number: float) -> bool:
    if isinstance(operand, Value):
        plain = not (operand.leaves or operand.pending or operand.parts or operand.permuted)
        return plain and operand.expr.text in (str(number), f"{number}.0f0", f"{number}.0")
    return not isinstance(operand, sympy.Expr) and operand == number


def _same(value: Any, shape: Shape, dtype: torch.dtype) -> TypeGuard[Value]:
    return isinstance(value, Value) and value.shape == shape and value.dtype == dtype


def _scaled(build: Callable[[Expr, Expr], Expr], negate: bool) -> Writer:
    """`a + alpha b` and `a - alpha b`."""

    def write(program: Program, shape: Shape, dtype: torch.dtype, a: Any, b: Any, alpha: Any = 1) -> Value:
        for this, other in ((a, b), (b, a)):
            if _is(other, 0) and _same(this, shape, dtype) and (this is a or (not negate and alpha == 1)):
                return this
        if not negate and alpha == 1 and (merged := _with_parts(program, a, b, shape, dtype)):
            return merged
        if alpha != 1:
            b = entrywise(program, _times, (b, alpha), b.shape if isinstance(b, Value) else (), dtype)
        return entrywise(program, build, (a, b), shape, dtype)

    return write


def _with_parts(program: Program, a: Any, b: Any, shape: Shape, dtype: torch.dtype) -> Value | None:
    """A sum in which some regions alone have a term: they are added in place."""
    if not any(_same(x, shape, dtype) and x.parts for x in (a, b)):
        return None
    parts: list[tuple[str, Value]] = []
    rest: list[Value] = []
    for x in (a, b):
        if _same(x, shape, dtype) and x.parts:
            parts += x.parts
            x = Value(shape, dtype, x.expr, x.leaves)
        if not _is(x, 0):
            rest.append(x)
    base = rest[0] if len(rest) == 1 and _same(rest[0], shape, dtype) else None
    if base is None:
        base = program.constant(0.0, shape, dtype) if not rest else entrywise(program, _plus, tuple(rest), shape, dtype)
    if base.pending or base.permuted:
        base = program.view(program.array(base))
    merged: dict[str, Value] = {}
    for index, part in parts:
        first = merged.get(index)
        merged[index] = part if first is None else entrywise(program, _plus, (first, part), part.shape, dtype)
    return Value(shape, dtype, base.expr, base.leaves, parts=tuple(merged.items()))


def _plus(a: Expr, b: Expr) -> Expr:
    return infix("+", a, b)


def _minus(a: Expr, b: Expr) -> Expr:
    return infix("-", a, b)


def _times(a: Expr, b: Expr) -> Expr:
    if a.text == b.text:
        return _raised(a, 2, cost=1)
    return infix("*", a, b)


def _raised(a: Expr, exponent: int, cost: int) -> Expr:
    return infix("^", a, Expr(str(exponent)), cost)


def _over(a: Expr, b: Expr) -> Expr:
    return infix("/", a, b, cost=4)


def _multiply(program: Program, shape: Shape, dtype: torch.dtype, a: Any, b: Any) -> Value:
    for this, other in ((a, b), (b, a)):
        if _is(other, 1) and _same(this, shape, dtype):
            return this
    return entrywise(program, _times, (a, b), shape, dtype)


def _divide(
    program: Program, shape: Shape, dtype: torch.dtype, a: Any, b: Any, rounding_mode: str | None = None
) -> Value:
    if rounding_mode is None:
        return a if _is(b, 1) and _same(a, shape, dtype) else entrywise(program, _over, (a, b), shape, dtype)
    name = {"floor": "floor", "trunc": "trunc"}[rounding_mode]
    return entrywise(program, lambda x, y: call(name, _over(x, y), cost=1), (a, b), shape, dtype)


def _power(program: Program, shape: Shape, dtype: torch.dtype, a: Any, b: Any) -> Value:
    if isinstance(b, Value) or not isinstance(a, Value):
        return entrywise(program, lambda x, y: call("NaNMath.pow", x, y, cost=20), _floats(a, b, dtype), shape, dtype)
    if b == 0:
        return program.constant(1.0, shape, dtype)
    if b == 1 and a.dtype == dtype:
        return a
    if float(b).is_integer() and abs(b) <= 64:
        return entrywise(program, lambda x: _raised(x, int(b), cost=abs(int(b))), (a,), shape, dtype)
    if b in (0.5, -0.5):
        root = entrywise(program, lambda x: call("NaNMath.sqrt", x), (a,), shape, dtype)
        return root if b > 0 else entrywise(program, lambda x: call("inv", x, cost=4), (root,), shape, dtype)
    exponent = literal(b, dtype, exact=True)
    return entrywise(program, lambda x: call("NaNMath.pow", x, exponent, cost=20), (a,), shape, dtype)


def _floats(a: Any, b: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """Base and exponent, with a number among them as a floating-point one."""
    fixed = [x if isinstance(x, Value) else Value((), dtype, literal(x, dtype, exact=True)) for x in (a, b)]
    return fixed[0], fixed[1]


def _where(program: Program, shape: Shape, dtype: torch.dtype, condition: Value, a: Any, b: Any) -> Value:
    """`false * x` is 0 in Julia whatever x: the one type for both cases that `ifelse(c, x, 0)` would not have."""
    if _is(b, 0):
        return entrywise(program, lambda c, x: infix("*", c, x), (condition, a), shape, dtype)
    if _is(a, 0):
        return entrywise(program, lambda c, x: infix("*", _not(c), x), (condition, b), shape, dtype)
    a, b = _floats(a, b, dtype)
    return entrywise(program, lambda c, x, y: call("ifelse", c, x, y, cost=1), (condition, a, b), shape, dtype)


def _not(c: Expr) -> Expr:
    return prefix("!", c)


def _clamp(program: Program, shape: Shape, dtype: torch.dtype, x: Value, low: Any = None, high: Any = None) -> Value:
    if low is not None:
        x = entrywise(program, lambda a, b: call("max", a, b, cost=1), _floats(x, low, dtype), shape, dtype)
    if high is not None:
        x = entrywise(program, lambda a, b: call("min", a, b, cost=1), _floats(x, high, dtype), shape, dtype)
    return x


def _compare(operator: str) -> Writer:
    return _writer(lambda a, b: infix(operator, a, b))


ENTRYWISE: dict[str, Writer] = {
    **{name: _writer(lambda a, f=julia: call(f, a)) for name, julia in _UNARY.items()},
    **{name: _writer(lambda a, f=julia: call(f, a, cost=1)) for name, julia in _CHEAP_UNARY.items()},
    **{name: _compare(operator) for name, operator in _COMPARISONS.items()},
    "add": _scaled(_plus, negate=False),
    "sub": _scaled(_minus, negate=True),
    "rsub": lambda program, shape, dtype, a, b, alpha=1: _scaled(_minus, True)(program, shape, dtype, b, a, alpha),
    "mul": _multiply,
    "div": _divide,
    "neg": _writer(lambda a: prefix("-", a)),
    "reciprocal": _writer(lambda a: call("inv", a, cost=4)),
    "rsqrt": _writer(lambda a: call("inv", call("NaNMath.sqrt", a), cost=4)),
    "square": _writer(lambda a: _raised(a, 2, cost=1)),
    "pow": _power,
    "relu": _writer(lambda a: call("max", a, Expr("0"), cost=1)),
    "maximum": _writer(lambda a, b: call("max", a, b, cost=1)),
    "minimum": _writer(lambda a, b: call("min", a, b, cost=1)),
    "clamp": _clamp,
    "atan2": _writer(lambda a, b: call("atan", a, b, cost=20)),
    "hypot": _writer(lambda a, b: call("hypot", a, b)),
    "fmod": _writer(lambda a, b: call("rem", a, b)),
    "remainder": _writer(lambda a, b: call("mod", a, b)),
    "isnan": _writer(lambda a: call("isnan", a, cost=1)),
    "logical_not": _writer(_not),
    "bitwise_not": _writer(_not),
    **{name: _writer(lambda a, b: infix("&", a, b)) for name in ("logical_and", "bitwise_and")},
    **{name: _writer(lambda a, b: infix("|", a, b)) for name in ("logical_or", "bitwise_or")},
    "where": _where,
}
"""Writers of the entrywise operators, by ATen name: `(program, shape, dtype, *operands) -> Value`."""
