"""Writers of the operators of complex numbers, which are Julia's own complex numbers in memory.

Everything that has one name for real and complex numbers in Julia is written where it is written for real ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from regnde._engines.julia.lower import Pending, Result, Value
from regnde._engines.julia.operators import ENTRYWISE, Writer
from regnde._engines.julia.source import call, infix
from regnde._engines.julia.structure import STRUCTURAL

__all__ = ["COMPLEX"]


def _conjugate(out: Result, x: Value) -> Value:
    """That of a permuted array is a permutation, which products can read as it is."""
    if not x.dtype.is_complex:
        return x
    if x.permuted:
        base, order = x.permuted
        return replace(x, permuted=(out.program.store(_conjugate(out.of(base.shape), base)), order))
    return out.entrywise(lambda a: call("conj", a, cost=1), x)


def _part(name: str) -> Writer:
    return lambda out, x: out.entrywise(lambda a: call(name, a, cost=0), x)


def _complex(out: Result, real: Any, imaginary: Any) -> Value:
    return out.entrywise(lambda a, b: call("complex", a, b, cost=0), real, imaginary)


def _polar(out: Result, size: Value, angle: Value) -> Value:
    def part(name: str) -> Value:
        real = replace(out, dtype=size.dtype)
        return real.entrywise(lambda r, a: infix("*", r, call(f"fast_{name}", a)), size, angle)

    return _complex(out, part("cos"), part("sin"))


def _angle(out: Result, x: Value) -> Value:
    if not x.dtype.is_complex:
        raise NotImplementedError("the angle of real numbers")
    return out.entrywise(lambda a: call("angle", a, cost=20), x)


def _as_real(out: Result, x: Value) -> Value:
    """The real and imaginary part of every number beside each other, along a last dimension."""
    parts = [out.readable(COMPLEX[name](out.of(x.shape), x)) for name in ("real", "imag")]

    def write(target: str, add: bool) -> tuple[str, ...]:
        lines: list[str] = []
        for place, part in enumerate(parts, 1):
            lines.append(f"part = view({target}, {', '.join([str(place), *(':' for _ in x.shape)])})")
            lines.append(f"{out.program.macro(part)} part {'+=' if add else '='} {part.expr.bare}")
        return tuple(lines)

    return out.pending(Pending(write))


def _as_complex(out: Result, x: Value) -> Value:
    real = replace(out, dtype=x.dtype)
    if x.parts and not x.leaves:  # the derivative of a real or imaginary part
        sums: dict[str, Value] = {}
        for index, part in x.parts:
            first, *rest = index.split(", ")
            if first not in ("1", "2") or any(place != ":" for place in rest):
                break
            sums[first] = part
        else:
            return _complex(out, *(replace(sums[i], shape=out.shape) if i in sums else 0 for i in ("1", "2")))
    return _complex(out, *(STRUCTURAL["select"](real, x, -1, i) for i in (0, 1)))


COMPLEX: dict[str, Writer] = {
    **{name: _conjugate for name in ("_conj", "_conj_physical", "conj_physical")},
    "_neg_view": ENTRYWISE["neg"],
    "real": _part("real"),
    "imag": _part("imag"),
    "complex": _complex,
    "polar": _polar,
    "angle": _angle,
    "sgn": ENTRYWISE["sign"],
    "view_as_real": _as_real,
    "view_as_complex": _as_complex,
}
"""Writers by ATen name: `(out, *arguments) -> Value`."""
