"""What each entrywise ATen operator is in Julia.

Names that are not Base's are those of `FIELD_NAMES` in julia/src/compile.jl: NaNMath has sqrt, acos, ... that
return NaN where Base's throw, as torch's do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import sympy

from regnde._engines.julia.lower import Result, Value
from regnde._engines.julia.source import Expr, call, infix, julia_type, literal, prefix

__all__ = ["ENTRYWISE", "Writer"]

Writer = Callable[..., Any]

_NAN_FOR_ERROR = ("acos", "acosh", "asin", "atanh", "log10", "sqrt")
_FAST = ("atan", "cos", "erf", "exp", "expm1", "log", "log1p", "log2", "sigmoid", "sin", "tan", "tanh")
_UNARY = {
    **{name: name for name in ("asinh", "cosh", "digamma", "erfc", "erfinv", "exp2", "sinh")},
    "lgamma": "log_gamma",
    **{name: f"NaNMath.{name}" for name in _NAN_FOR_ERROR},
    **{name: f"fast_{name}" for name in _FAST},
}
_CHEAP_UNARY = ("abs", "ceil", "floor", "isnan", "round", "sign", "trunc")
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _writer(build: Callable[..., Expr]) -> Writer:
    return lambda out, *operands: out.entrywise(build, *operands)


def _is_complex(*operands: Any) -> bool:
    """Whether one of them is."""
    return any(isinstance(x, complex) or (isinstance(x, Value) and x.dtype.is_complex) for x in operands)


def _function(name: str, *operands: Any) -> str:
    """The name in Julia: NaNMath's functions are those of real numbers, Base's of complex ones have no exceptions."""
    return name.removeprefix("NaNMath.") if _is_complex(*operands) else name


def _is(operand: Any, number: float) -> bool:
    if isinstance(operand, Value):
        plain = not (operand.leaves or operand.pending or operand.parts or operand.permuted)
        return plain and operand.expr.text in (str(number), f"{number}.0f0", f"{number}.0")
    return not isinstance(operand, sympy.Expr) and operand == number


def _fits(value: Any, out: Result) -> TypeGuard[Value]:
    return isinstance(value, Value) and value.shape == out.shape and value.dtype == out.dtype


def _add(out: Result, a: Any, b: Any, alpha: Any = 1) -> Value:
    if _is(a, 0) and _fits(b, out) and alpha == 1:
        return b
    if _is(b, 0) and _fits(a, out):
        return a
    if alpha == 1 and any(_fits(x, out) and x.parts for x in (a, b)):
        return _add_parts(out, a, b)
    return out.entrywise(_plus, a, _scaled(out, b, alpha))


def _subtract(out: Result, a: Any, b: Any, alpha: Any = 1) -> Value:
    if _is(b, 0) and _fits(a, out):
        return a
    return out.entrywise(lambda x, y: infix("-", x, y), a, _scaled(out, b, alpha))


def _scaled(out: Result, x: Any, factor: Any) -> Any:
    return x if factor == 1 else out.of(x.shape if isinstance(x, Value) else ()).entrywise(_times, x, factor)


def _add_parts(out: Result, a: Any, b: Any) -> Value:
    """A sum in which some regions alone have a term: they are added in place."""
    parts: list[tuple[str, Value]] = []
    rest: list[Any] = []
    for x in (a, b):
        if _fits(x, out) and x.parts:
            parts += x.parts
            x = Value(out.shape, out.dtype, x.expr, x.leaves)
        if not _is(x, 0):
            rest.append(x)
    if len(rest) == 2:
        base = out.entrywise(_plus, *rest)
    else:
        (only,) = rest or [0.0]
        base = only if _fits(only, out) else out.entrywise(lambda x: x, only)
    if base.pending or base.permuted:
        base = out.program.view(out.program.array(base))
    merged: dict[str, Value] = {}
    for index, part in parts:
        merged[index] = out.of(part.shape).entrywise(_plus, merged[index], part) if index in merged else part
    return Value(out.shape, out.dtype, base.expr, base.leaves, parts=tuple(merged.items()))


def _plus(a: Expr, b: Expr) -> Expr:
    return infix("+", a, b)


def _times(a: Expr, b: Expr) -> Expr:
    return _raised(a, 2, cost=1) if a.text == b.text else infix("*", a, b)


def _raised(a: Expr, exponent: int, cost: int) -> Expr:
    return infix("^", a, Expr(str(exponent)), cost)


def _over(a: Expr, b: Expr) -> Expr:
    return infix("/", a, b, cost=4)


def _multiply(out: Result, a: Any, b: Any) -> Value:
    for this, other in ((a, b), (b, a)):
        if _is(other, 1) and _fits(this, out):
            return this
    return out.entrywise(_times, a, b)


def _divide(out: Result, a: Any, b: Any, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return a if _is(b, 1) and _fits(a, out) else out.entrywise(_over, a, b)
    name = {"floor": "floor", "trunc": "trunc"}[rounding_mode]
    return out.entrywise(lambda x, y: call(name, _over(x, y), cost=1), a, b)


def _power(out: Result, a: Any, b: Any) -> Value:
    b = b.real if isinstance(b, complex) and not b.imag else b
    if isinstance(b, Value | complex) or not isinstance(a, Value):
        if _is_complex(a, b):
            return out.entrywise(lambda x, y: infix("^", x, y, cost=40), *_floats(out, a, b))
        return out.entrywise(lambda x, y: call("fast_pow", x, y, cost=20), *_floats(out, a, b))
    if b == 0:
        return out.constant(1.0)
    if b == 1 and a.dtype == out.dtype:
        return a
    if float(b).is_integer() and abs(b) <= 64:
        return out.entrywise(lambda x: _raised(x, int(b), cost=abs(int(b))), a)
    if b in (0.5, -0.5):
        root = out.entrywise(lambda x: call(_function("NaNMath.sqrt", a), x), a)
        return root if b > 0 else out.entrywise(lambda x: call("inv", x, cost=4), root)
    exponent = literal(b, out.dtype, exact=True)
    if _is_complex(a):
        return out.entrywise(lambda x: infix("^", x, exponent, cost=40), a)
    return out.entrywise(lambda x: call("fast_pow", x, exponent, cost=20), a)


def _floats(out: Result, *operands: Any) -> list[Value]:
    """The operands, numbers among them as floating-point ones."""
    return [x if isinstance(x, Value) else out.of(()).constant(x) for x in operands]


def _where(out: Result, condition: Value, a: Any, b: Any) -> Value:
    """`false * x` is 0 in Julia whatever x: the one type for both cases that `ifelse(c, x, 0)` would not have."""
    if _is(b, 0):
        return out.entrywise(lambda c, x: infix("*", c, x), condition, a)
    if _is(a, 0):
        return out.entrywise(lambda c, x: infix("*", prefix("!", c), x), condition, b)
    return out.entrywise(lambda c, x, y: call("ifelse", c, x, y, cost=1), condition, *_alike(out, a, b))


def _alike(out: Result, *operands: Any) -> list[Value]:
    """The operands as numbers of one type."""
    values = _floats(out, *operands)
    if not out.dtype.is_complex:
        return values
    kind = julia_type(out.dtype)
    of_one = [x.dtype == out.dtype and (x.leaves or x.array or x.pending) for x in values]
    return [
        x if same else out.of(x.shape).entrywise(lambda a: call(kind, a, cost=1), x)
        for x, same in zip(values, of_one, strict=True)
    ]


def _clamp(out: Result, x: Value, low: Any = None, high: Any = None) -> Value:
    for name, bound in (("max", low), ("min", high)):
        if bound is not None:
            x = out.entrywise(lambda a, b, name=name: call(name, a, b, cost=1), *_floats(out, x, bound))
    return x


def _called(name: str, cost: int = 10) -> Writer:
    def write(out: Result, *operands: Any) -> Value:
        function = _function(name, *operands)
        return out.entrywise(lambda *parts: call(function, *parts, cost=cost), *operands)

    return write


def _rsqrt(out: Result, x: Value) -> Value:
    root = _function("NaNMath.sqrt", x)
    return out.entrywise(lambda a: call("inv", call(root, a), cost=4), x)


def _infix(operator: str) -> Writer:
    return _writer(lambda a, b: infix(operator, a, b))


ENTRYWISE: dict[str, Writer] = {
    **{name: _called(julia) for name, julia in _UNARY.items()},
    **{name: _called(name, cost=1) for name in _CHEAP_UNARY},
    **{name: _infix(operator) for name, operator in _COMPARISONS.items()},
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "div": _divide,
    "neg": _writer(lambda a: prefix("-", a)),
    "reciprocal": _called("inv", cost=4),
    "rsqrt": _rsqrt,
    "pow": _power,
    "relu": _writer(lambda a: call("max", a, Expr("0"), cost=1)),
    "maximum": _called("max", cost=1),
    "minimum": _called("min", cost=1),
    "clamp": _clamp,
    "atan2": _called("atan", cost=20),
    "hypot": _called("hypot"),
    "fmod": _called("rem"),
    "polygamma": lambda out, n, x: out.entrywise(lambda a: call("polygamma", Expr(str(n)), a, cost=20), x),
    "remainder": _called("mod"),
    **{name: _writer(lambda a: prefix("!", a)) for name in ("logical_not", "bitwise_not")},
    **{name: _infix("&") for name in ("logical_and", "bitwise_and")},
    **{name: _infix("|") for name in ("logical_or", "bitwise_or")},
    "where": _where,
}
"""Writers of the entrywise operators, by ATen name: `(out, *operands) -> Value`."""
