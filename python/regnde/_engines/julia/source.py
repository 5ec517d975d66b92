"""Pieces of Julia text: expressions with their precedence, numbers, sizes, statements, long lines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

import numpy as np
import sympy
import torch

__all__ = [
    "ATOM",
    "COMPARISON",
    "LOGIC",
    "NAME",
    "SUM",
    "TERM",
    "UNARY",
    "Expr",
    "Statement",
    "call",
    "factor",
    "infix",
    "julia_type",
    "literal",
    "negative",
    "power",
    "size_text",
    "wrapped",
]

NAME = re.compile(r"%\d+")
"""A value of the program before its buffer is known: `%1`, `%2`, ..."""

LOGIC, COMPARISON, SUM, TERM, UNARY, POWER, ATOM = range(7)
"""How tightly Julia's operators bind, loosest first."""

WIDTH = 92

_TYPES = {
    torch.float64: "Float64",
    torch.float32: "Float32",
    torch.bool: "Bool",
    torch.int64: "Int64",
    torch.int32: "Int32",
}


@dataclass(frozen=True)
class Expr:
    """A Julia expression for one entry of an array (broadcast over all of them by `@.`).

    Attributes:
        text: the expression.
        level: its loosest operator.
        cost: about how many additions one evaluation is worth.
        terms: how many names and numbers are in it.
    """

    text: str
    level: int = ATOM
    cost: int = 0
    terms: int = 1

    def at(self, level: int) -> str:
        """The text, in parentheses where an operator of `level` would tear it apart."""
        return self.text if self.level >= level else f"({self.text})"

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
        over: values whose memory the target may take over: read entry by entry at the same place, or not at all.
        origin: the line of the user's module.
    """

    target: str
    lines: tuple[str, ...]
    shape: tuple[object, ...] | None
    dtype: torch.dtype
    over: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)

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
    return Expr(
        f"{function}({', '.join(a.text for a in arguments)})",
        ATOM,
        cost + sum(a.cost for a in arguments),
        sum(a.terms for a in arguments),
    )


def infix(operator: str, a: Expr, b: Expr, level: int, cost: int = 1) -> Expr:
    """`a operator b`, associating to the left."""
    if operator == "+" and b.text.startswith("-") and b.level >= UNARY:
        operator, b = "-", Expr(b.text[1:], b.level, b.cost, b.terms)
    if level <= COMPARISON:  # `a & b > c` and chains of comparisons have their own meanings
        return Expr(f"{a.at(SUM)} {operator} {b.at(SUM)}", level, cost + a.cost + b.cost, a.terms + b.terms)
    return Expr(f"{a.at(level)} {operator} {b.at(level + 1)}", level, cost + a.cost + b.cost, a.terms + b.terms)


def negative(a: Expr) -> Expr:
    """`-a`."""
    return Expr(f"-{a.at(POWER)}", UNARY, a.cost + 1, a.terms)


def power(a: Expr, exponent: str, cost: int) -> Expr:
    """`a^exponent` for an integer literal."""
    return Expr(f"{a.at(ATOM)}^{exponent}", POWER, a.cost + cost, a.terms + 1)


def literal(value: complex | float | bool, dtype: torch.dtype, exact: bool = False) -> Expr:
    """A number that keeps an array of `dtype` what it is.

    Args:
        value: the number.
        dtype: of the result that it goes into.
        exact: write integers as floating-point numbers too, where they alone decide the result's type.
    """
    if isinstance(value, bool):
        return Expr("true" if value else "false")
    single = dtype == torch.float32
    if isinstance(value, complex):
        raise TypeError(value)
    if not math.isfinite(value):
        text = ("NaN" if math.isnan(value) else "-Inf" if value < 0 else "Inf") + ("32" if single else "")
    elif float(value).is_integer() and abs(value) < 2**31 and not (exact and dtype.is_floating_point):
        text = str(int(value))
    elif single:
        digits = repr(float(np.float32(value).astype(str)))
        text = digits.replace("e", "f") if "e" in digits else digits + "f0"
    else:
        text = repr(float(value))
    return Expr(text, UNARY if text.startswith("-") else ATOM)


def size_text(size: object, batch: sympy.Symbol | None) -> str:
    """A dimension as Julia text; `B` is the state's batch size."""
    expr = sympy.sympify(size.node.expr if isinstance(size, torch.SymInt) else size)
    text = str(expr.subs(batch, sympy.Symbol("B", integer=True, positive=True))) if batch is not None else str(expr)
    text = re.sub(r"\(?(\w+)//(\w+)\)?", r"div(\1, \2)", text)
    if not re.fullmatch(r"[B\d+*\- ()div,]+", text) or "**" in text:
        raise ValueError(f"size {expr}")
    return _spaced(text)


def _spaced(text: str) -> str:
    return re.sub(r"(?<=\S)([*/])(?=\S)", r" \1 ", text)


def factor(number: sympy.Expr, batch: sympy.Symbol | None, dtype: torch.dtype) -> Expr:
    """A number that depends on the batch size, as an operand of an array of `dtype`."""
    plain = number.replace(lambda x: x.func.__name__ == "ToFloat", lambda x: x.args[0])
    plain = plain.replace(lambda x: x.func.__name__ in ("FloatTrueDiv", "IntTrueDiv"), lambda x: x.args[0] / x.args[1])
    text = _spaced(str(plain.subs(batch, sympy.Symbol("B", integer=True, positive=True))))
    if not re.fullmatch(r"[B\d.+*\-/ ()]+", text) or "**" in text:
        raise ValueError(f"number {number}")
    return Expr(text if text == "B" else f"{julia_type(dtype)}({text})")


def wrapped(line: str, indent: str) -> list[str]:
    """A statement as lines of at most about `WIDTH` characters, broken after operators and commas."""
    lines, rest, pad = [], line, indent
    while len(pad) + len(rest) > WIDTH:
        breaks = [m.end() for m in re.finditer(r"(?<= [-+*/<>]| =)\s|(?<=,)\s", rest[: WIDTH - len(pad)])]
        breaks = [b for b in breaks if b > 20]
        if not breaks:
            break
        lines.append(pad + rest[: breaks[-1]].rstrip())
        rest, pad = rest[breaks[-1] :], indent + "    "
    lines.append(pad + rest)
    return lines
