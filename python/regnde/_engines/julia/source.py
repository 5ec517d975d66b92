"""Julia text: expressions, numbers, sizes, statements."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import sympy
import torch

__all__ = [
    "NAME",
    "Expr",
    "Statement",
    "call",
    "factor",
    "infix",
    "julia_type",
    "literal",
    "prefix",
    "size_text",
]

NAME = re.compile(r"%\d+")
"""A value of the program before its buffer is known: `%1`, `%2`, ..."""

_TYPES = {
    torch.float64: "Float64",
    torch.float32: "Float32",
    torch.complex128: "ComplexF64",
    torch.complex64: "ComplexF32",
    torch.bool: "Bool",
    torch.int64: "Int64",
    torch.int32: "Int32",
    torch.uint8: "UInt8",
}


@dataclass(frozen=True)
class Expr:
    """A Julia expression for one entry of an array (broadcast over all of them by `@.`).

    Attributes:
        text: the expression; in parentheses if an operator is its outermost part, so that it can be an operand.
        cost: about how many additions one evaluation is worth.
        terms: how many names and numbers are in it.
    """

    text: str
    cost: int = 0
    terms: int = 1

    @property
    def bare(self) -> str:
        """The text without the outer parentheses, for where nothing stands beside it."""
        return self.text[1:-1] if self.text.startswith("(") else self.text

    @property
    def names(self) -> tuple[str, ...]:
        """The values that it reads, each once."""
        return tuple(dict.fromkeys(NAME.findall(self.text)))


@dataclass(frozen=True)
class Statement:
    """One step of the program.

    Attributes:
        target: the value that it makes.
        lines: Julia text.
        shape: the target's size in torch's order, or None for a view or a number, which need no memory.
        dtype: the target's element type.
        entrywise: values whose memory the target may take over: read entry by entry at the same place, or not at all.
    """

    target: str
    lines: tuple[str, ...]
    shape: tuple[object, ...] | None
    dtype: torch.dtype
    entrywise: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        """The values in the text beside the target."""
        found = dict.fromkeys(name for line in self.lines for name in NAME.findall(line))
        return tuple(name for name in found if name != self.target)


def julia_type(dtype: torch.dtype) -> str:
    """Julia's name of an element type; KeyError if there is none here."""
    return _TYPES[dtype]


def call(function: str, *arguments: Expr, cost: int = 10) -> Expr:
    """`function(arguments...)`."""
    return _joined(f"{function}({', '.join(a.bare for a in arguments)})", cost, *arguments)


def infix(operator: str, a: Expr, b: Expr, cost: int = 1) -> Expr:
    """`(a operator b)`."""
    space = "" if operator == "^" else " "
    return _joined(f"({a.text}{space}{operator}{space}{b.text})", cost, a, b)


def prefix(operator: str, a: Expr) -> Expr:
    """`(operator a)`."""
    return _joined(f"({operator}{a.text})", 1, a)


def _joined(text: str, cost: int, *parts: Expr) -> Expr:
    return Expr(text, cost + sum(a.cost for a in parts), sum(a.terms for a in parts))


def literal(value: complex | float | bool, dtype: torch.dtype, exact: bool = False) -> Expr:
    """A number that keeps an array of `dtype` what it is.

    Args:
        value: the number.
        dtype: of the result that it goes into; a complex number without an imaginary part is written as a real one.
        exact: write integers as floating-point numbers too, where they alone decide the result's type.
    """
    if isinstance(value, bool):
        return Expr("true" if value else "false")
    if isinstance(value, complex):
        if value.imag:
            parts = (literal(x, dtype.to_real(), exact=True).bare for x in (value.real, value.imag))
            return Expr(f"{julia_type(dtype)}({', '.join(parts)})")
        value = value.real
    dtype = dtype.to_real() if dtype.is_complex else dtype
    single = dtype == torch.float32
    if not math.isfinite(value):
        text = ("NaN" if math.isnan(value) else "-Inf" if value < 0 else "Inf") + ("32" if single else "")
    elif float(value).is_integer() and abs(value) < 2**31 and not (exact and dtype.is_floating_point):
        text = str(int(value))
    elif single:
        digits = repr(float(np.float32(value).astype(str)))
        text = digits.replace("e", "f") if "e" in digits else digits + "f0"
    else:
        text = repr(float(value))
    return Expr(f"({text})" if text.startswith("-") else text)


def size_text(size: object, batch: sympy.Symbol | None) -> str:
    """A dimension as Julia text; `B` is the state's batch size."""
    expr = sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)
    text = re.sub(r"\(?(\w+)//(\w+)\)?", r"div(\1, \2)", re.sub(r"(Python)?Mod\(", "mod(", _text_of(expr, batch)))
    if not re.fullmatch(r"[B\d+*\- ()divmo,]+", text) or "**" in text:
        raise ValueError(f"size {expr}")
    return text


def factor(number: sympy.Expr, batch: sympy.Symbol | None, dtype: torch.dtype) -> Expr:
    """A number that depends on the batch size, as an operand of an array of `dtype`."""
    plain = number.replace(lambda x: x.func.__name__ == "ToFloat", lambda x: x.args[0])
    plain = plain.replace(lambda x: x.func.__name__ in ("FloatTrueDiv", "IntTrueDiv"), lambda x: x.args[0] / x.args[1])
    text = re.sub(r"(?<=\S)([*/])(?=\S)", r" \1 ", _text_of(plain, batch))
    if not re.fullmatch(r"[B\d.+*\-/ ()]+", text) or "**" in text:
        raise ValueError(f"number {number}")
    return Expr(text if text == "B" else f"{julia_type(dtype)}({text})")


def _text_of(expr: sympy.Expr, batch: sympy.Symbol | None) -> str:
    return str(expr if batch is None else expr.subs(batch, sympy.Symbol("B", integer=True, positive=True)))
