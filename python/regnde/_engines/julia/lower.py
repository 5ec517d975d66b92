"""From a graph of ATen operators to a list of Julia statements.

Entrywise operators stay expressions until something needs their result in memory; what is used twice gets a name.
A torch array of shape (a, b, c) is a Julia array of size (c, b, a), so broadcasting aligns alike on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch

from regnde._engines.julia.source import Expr, Statement, factor, literal, size_text

__all__ = ["Pending", "Program", "Result", "Shape", "Value", "array_value", "count", "number_of", "stripped"]

NOTHING = Expr("")
Size = Any  # int, or a sympy expression in the batch size
Shape = tuple[Size, ...]

CHEAP = 2
"""An expression up to this cost is computed again for every entry of a larger array rather than stored."""

LONG_ROW = 8
"""Entries along the last dimension, the first one in Julia, from which on it pays to go along rows."""

LONG = 20
"""No broadcast has more operands: beyond about 30 Julia's inference gives up and allocates."""


@dataclass(frozen=True, eq=False)
class Pending:
    """An array that an operator will write once it is known where to.

    Attributes:
        write: Julia lines that write it to a named array, or add it there (`True`).
        transposed: the same for the transposed matrix, if it can be had at no cost.
        accumulates: whether `write` can add.
        bare: whether leading dimensions of size 1 are nothing to `write`.
    """

    write: Callable[[str, bool], tuple[str, ...]]
    transposed: Callable[[], Pending] | None = None
    accumulates: bool = True
    bare: bool = False


@dataclass(frozen=True, eq=False)
class Value:
    """What a node of the graph is in Julia: a name, an expression, or something still to be written.

    Attributes:
        shape: in torch's order.
        dtype: element type.
        expr: entrywise expression; for an array, its name.
        leaves: shapes of the arrays that `expr` reads.
        array: whether `expr` is the name of an array; its size is then `leaves[0]`.
        dense: whether that array's memory is contiguous.
        blas: whether that array is a matrix that BLAS can read.
        permuted: the array that this is a permutation of, and the permutation (torch's).
        pending: an array not written yet.
        parts: regions that are added to `expr`, as (Julia index, value).
    """

    shape: Shape
    dtype: torch.dtype
    expr: Expr = NOTHING
    leaves: frozenset[Shape] = frozenset()
    array: bool = False
    dense: bool = False
    blas: bool = False
    permuted: tuple[Value, tuple[int, ...]] | None = None
    pending: Pending | None = None
    parts: tuple[tuple[str, Value], ...] = ()

    @property
    def natural(self) -> Shape:
        """The shape that the expression has by itself, before it is broadcast to `shape`."""
        result: list[Size] = []
        for leaf in self.leaves:
            for i, size in enumerate(reversed(leaf)):
                if i == len(result):
                    result.append(size)
                elif result[i] == 1:
                    result[i] = size
        return tuple(reversed(result))


class Program:
    """Statements under construction.

    Args:
        batch: symbol of the batch size.
        plans: what to make once beside the buffers, as Julia text, and their names; new ones are added.
    """

    def __init__(self, batch: sympy.Symbol | None, plans: dict[str, str] | None = None) -> None:
        self.batch = batch
        self.plans = {} if plans is None else plans
        self.statements: list[Statement] = []
        self._count = 0
        self._views: dict[tuple[str, str], str] = {}
        self._reshaped: dict[str, str] = {}
        self._read: dict[str, Shape] = {}

    # -- names, sizes, numbers ------------------------------------------------------------------

    def fresh(self) -> str:
        """A name for a new value."""
        self._count += 1
        return f"%{self._count}"

    def dims(self, shape: Sequence[Size]) -> str:
        """A torch shape as Julia sizes."""
        return ", ".join(size_text(size, self.batch) for size in reversed(shape))

    def size(self, size: Size) -> str:
        """One size as Julia text."""
        return size_text(size, self.batch)

    def plan(self, text: str) -> str:
        """The name of what `text` makes from the state `y` and the batch size `B`."""
        return self.plans.setdefault(text, f"plan{len(self.plans) + 1}")

    # -- reading --------------------------------------------------------------------------------

    def read(self, operand: Any, shape: Shape, dtype: torch.dtype) -> tuple[Expr, frozenset[Shape]]:
        """An operand of an entrywise operator whose result has `shape`."""
        if isinstance(operand, sympy.Expr):
            return factor(operand, self.batch, dtype), frozenset()
        if not isinstance(operand, Value):
            return literal(operand, dtype), frozenset()
        if (
            operand.pending
            or operand.parts
            or (operand.expr.cost > CHEAP and stripped(operand.natural) != stripped(shape))
        ):
            operand = self.number(operand) if self.scalar(operand) else self.store(operand)
        if operand.permuted:
            operand = self.view(operand)
        self._note(operand)
        return operand.expr, operand.leaves

    def _note(self, operand: Value) -> None:
        """Notes the size of an array that an expression reads."""
        if operand.array:
            (self._read[operand.expr.text],) = operand.leaves

    def scalar(self, value: Value) -> bool:
        """Whether the value is a Julia number: it depends on the time and on literals alone."""
        return not (value.array or value.pending or value.parts or value.leaves)

    def array(self, value: Value, dense: bool = False) -> Value:
        """The value as a named array of exactly its size."""
        if value.array and (value.leaves or value.permuted):
            if value.permuted:
                return self._permuted_copy(value) if dense else self.view(value)
            (natural,) = value.leaves
            if natural == value.shape and (value.dense or not dense):
                return value
            if value.dense and count(natural) == count(value.shape):
                return self.reshaped(value.expr.text, value.shape, value.dtype)
        return self.store(value)

    def matrix(self, value: Value) -> str:
        """The value as a matrix operand for BLAS."""
        if value.permuted and value.permuted[1] == (1, 0):
            base = value.permuted[0]
            return f"transpose({self.matrix(base)})"
        array = self.array(value)
        return array.expr.text if array.blas else self.array(value, dense=True).expr.text

    def view(self, value: Value) -> Value:
        """A permuted array as a lazy view with a name."""
        if value.permuted is None:
            return value
        base, perm = value.permuted
        if perm == (1, 0):
            text = f"transpose({base.expr.text})"
        else:
            text = f"PermutedDimsArray({base.expr.text}, ({self.permutation(perm)}))"
        return replace(self.named(text, value.shape, value.dtype), dense=False, blas=False)

    def permutation(self, perm: Sequence[int]) -> str:
        """Torch's permutation of dimensions as Julia's."""
        return ", ".join(str(len(perm) - p) for p in reversed(perm))

    def _permuted_copy(self, value: Value) -> Value:
        assert value.permuted is not None
        base, perm = value.permuted
        text, order = base.expr.text, self.permutation(perm)
        copy = Pending(lambda target, _: (f"permutedims!({target}, {text}, ({order}))",))
        return self.write(copy, value.shape, value.dtype)

    # -- writing --------------------------------------------------------------------------------

    def named(self, text: str, shape: Shape, dtype: torch.dtype) -> Value:
        """A view of an array under its own name; the same view is named once."""
        name = self._views.get((text, str(dtype)))
        if name is None:
            name = self._views[text, str(dtype)] = self.fresh()
            self.statements.append(Statement(name, (f"{name} = {text}",), None, dtype))
        rows = not text.startswith("view(") or text.split(", ")[1].startswith((":", "1:"))
        blas = rows and len(shape) == 2
        return Value(shape, dtype, Expr(name), frozenset([shape]), True, not text.startswith("view("), blas)

    def reshaped(self, text: str, shape: Shape, dtype: torch.dtype) -> Value:
        """A dense array under another shape; views of views are views of the first array."""
        base = self._reshaped.get(text, text)
        value = self.named(f"reshape({base}, {self.dims(shape) or '()'})", shape, dtype)
        self._reshaped[value.expr.text] = base
        return value

    def write(self, pending: Pending, shape: Shape, dtype: torch.dtype) -> Value:
        """Writes an array to memory."""
        name = self.fresh()
        self.statements.append(Statement(name, pending.write(name, False), shape, dtype))
        return array_value(name, shape, dtype)

    def store(self, value: Value) -> Value:
        """Writes a value to memory, whatever it is."""
        if value.pending:
            return self.write(value.pending, value.shape, value.dtype)
        name = self.fresh()
        self.assign(name, value)
        return array_value(name, value.shape, value.dtype)

    def number(self, value: Value) -> Value:
        """Gives a Julia number a name."""
        name = self.fresh()
        self.statements.append(Statement(name, (f"{name} = {value.expr.bare}",), None, value.dtype))
        return replace(value, expr=Expr(name))

    def assign(self, target: str, value: Value, operator: str = "=") -> None:
        """Writes an expression, and the parts added to it, to `target`, or adds them there (`operator="+="`)."""
        lines = self.assigned(target, value, operator)
        parts = {name for _, part in value.parts for name in part.expr.names}
        entrywise = tuple(name for name in value.expr.names if name not in parts)
        self.statements.append(Statement(target, lines, value.shape, value.dtype, entrywise))

    def assigned(self, target: str, value: Value, operator: str = "=") -> tuple[str, ...]:
        """The lines of `assign`."""
        lines: tuple[str, ...]
        if value.expr.text in ("0", "0.0", "0.0f0"):
            lines = (f"fill!({target}, 0)",) if operator == "=" else ()
        else:
            lines = (f"{self.macro(value)} {target} {operator} {value.expr.bare}",)
        for index, part in value.parts:
            negative = part.expr.text.startswith("(-")
            sign, added = ("-", part.expr.text[2:-1]) if negative else ("+", part.expr.bare)
            lines += (f"part = view({target}, {index})", f"{self.macro(part)} part {sign}= {added}")
        return lines

    def macro(self, value: Value) -> str:
        """FastBroadcast's `@..` is several times faster than `@.`, yet does not stretch dimensions of size 1.

        Our own `@rows` stretches, and is as fast where rows are long.
        """
        rank = len(value.shape)
        plain = all(leaf == value.shape[max(rank - len(leaf), 0) :] for leaf in value.leaves)
        if value.expr.terms == 1 and value.leaves:
            plain = value.natural == value.shape  # without an operator `@..` copies entries in memory order
        if plain:
            return "@.."
        self._note(value)
        if not value.shape or not isinstance(value.shape[-1], int) or value.shape[-1] < LONG_ROW:
            return "@."
        fixed = [name for name, leaf in self._arrays_in(value) if leaf[-1:] in ((), (1,))]
        return f"@rows ({', '.join(fixed)}{',' * (len(fixed) == 1)})"

    def _arrays_in(self, value: Value) -> list[tuple[str, Shape]]:
        """The arrays that an expression reads, and their shapes."""
        names = dict.fromkeys(re.findall(r"%\d+|[A-Za-z_]\w*", value.expr.text))
        return [(name, self._read[name]) for name in names if name in self._read]


@dataclass(frozen=True, eq=False)
class Result:
    """What the writer of an operator is asked for: a value of that shape and type, by statements of `program`."""

    program: Program
    shape: Shape
    dtype: torch.dtype

    def of(self, shape: Shape) -> Result:
        """The same of another shape."""
        return replace(self, shape=shape)

    def constant(self, number: Any) -> Value:
        """The same number everywhere."""
        return Value(self.shape, self.dtype, literal(number, self.dtype, exact=True))

    def pending(self, pending: Pending) -> Value:
        """An array that is written later."""
        return Value(self.shape, self.dtype, pending=pending)

    def readable(self, x: Value) -> Value:
        """`x` as an expression that can be broadcast into its place."""
        return Value(x.shape, self.dtype, *self.program.read(x, x.shape, self.dtype))

    def entrywise(self, build: Callable[..., Expr], *operands: Any) -> Value:
        """An operator that works entry by entry: joins the operands' expressions."""
        types = [x.dtype for x in operands if isinstance(x, Value)]
        number_type = self.dtype
        if self.dtype == torch.bool:
            number_type = next((d for d in types if d.is_floating_point or d.is_complex), self.dtype)
        read = [self.program.read(x, self.shape, number_type) for x in operands]
        while sum(e.terms for e, _ in read) > LONG:
            longest = max(range(len(read)), key=lambda i: read[i][0].terms)
            stored = self.program.store(Value(operands[longest].shape, operands[longest].dtype, *read[longest]))
            read[longest] = (stored.expr, stored.leaves)
        leaves = frozenset().union(*(leaves for _, leaves in read))
        return Value(self.shape, self.dtype, build(*(e for e, _ in read)), leaves)


def array_value(name: str, shape: Shape, dtype: torch.dtype) -> Value:
    """A contiguous array that has a name."""
    return Value(shape, dtype, Expr(name), frozenset([shape]), array=True, dense=True, blas=True)


def stripped(shape: Shape) -> Shape:
    """The shape without its leading ones, which broadcasting supplies."""
    for i, size in enumerate(shape):
        if size != 1:
            return shape[i:]
    return ()


def number_of(argument: Any) -> Any:
    """A graph argument that is no tensor: symbolic integers as sympy expressions, the rest as it is."""
    if isinstance(argument, torch.SymInt | torch.SymFloat):
        expr = argument.node.expr
        return int(expr) if expr.is_Integer else float(expr) if expr.is_number else expr
    return argument


def count(shape: Shape) -> Any:
    """How many entries a shape has."""
    total: Any = 1
    for size in shape:
        total = total * size
    return sympy.sympify(total)
