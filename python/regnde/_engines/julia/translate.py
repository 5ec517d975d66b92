"""From a traced graph to statements of Julia: which nodes are needed, which are shared, what writes each."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from regnde._engines.julia.lower import Program, Value, number_of
from regnde._engines.julia.operators import ENTRYWISE
from regnde._engines.julia.products import COMBINING
from regnde._engines.julia.regions import REGIONS
from regnde._engines.julia.source import NAME, Expr, Statement, julia_type
from regnde._engines.julia.structure import STRUCTURAL
from regnde._engines.julia.trace import Traced, outputs_of
from regnde._errors import UnsupportedField

__all__ = ["residuals", "translated"]

_WRITERS = {**ENTRYWISE, **STRUCTURAL, **REGIONS, **COMBINING}
_NO_OPERATION = ("alias", "clone", "detach", "lift_fresh", "lift_fresh_copy")
_SIZE_OF_FIRST = (
    *("copy", "empty_like", "full_like", "new_empty", "new_empty_strided"),
    *("new_full", "new_zeros", "ones_like", "zeros_like"),
)
"""Operators that ask their first argument for nothing but its size."""

_TYPING = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments that the traced result already answers."""

_EXPENSIVE = ("mm", "addmm", "mv", "addmv", "bmm", "baddbmm", "convolution")
"""Operators whose results the reverse had rather read than compute again."""


def translated(
    traced: Traced,
    outputs: Sequence[tuple[str, fx.Node, str]],
    pure: bool,
    *,
    given: Mapping[fx.Node, str] = MappingProxyType({}),
    stored: Mapping[fx.Node, str] = MappingProxyType({}),
) -> Program:
    """Statements that compute nodes of the graph and write them to `(target, node, operator)`.

    Args:
        traced: the field.
        outputs: what to compute.
        pure: write new arrays instead of writing into given ones.
        given: nodes that need not be computed: arrays of those names hold them.
        stored: nodes to write to arrays of those names on the way.
    """
    program = Program(traced.batch, pure)
    canonical = _canonical(traced.graph)
    needed = _needed([canonical[node] for _, node, _ in outputs], canonical, given)
    uses: dict[fx.Node, int] = dict.fromkeys(needed, 0)
    for node in needed:
        for x in () if node in given else _inputs(node, canonical):
            uses[x] += 1
    for _, node, _ in outputs:
        uses[canonical[node]] += 1
    values: dict[fx.Node, Any] = {node: _array_of(node, name) for node, name in given.items()}
    for position, node in enumerate(x for x in traced.graph.nodes if x.op == "placeholder"):
        values[node] = _argument(node, position, pure)
    for node in traced.graph.nodes:
        if node in uses and node not in values:
            value = _value(program, node, values, canonical)
            if node in stored:
                _output(program, stored[node], value, "=", value.origin)
                value = _array_of(node, stored[node])
            values[node] = _shared(program, value, uses[node])
    for target, node, operator in outputs:
        _output(program, target, values[canonical[node]], operator)
    return program


def residuals(traced: Traced) -> list[fx.Node]:
    """What the value leaves for the reverse to read: results of products, or what is made of them entry by entry.

    Each is in the state's type, so that one kind of memory holds them all.
    """
    canonical = _canonical(traced.graph)
    value, *cotangents = (None if node is None else canonical[node] for node in outputs_of(traced.graph))
    assert value is not None
    ahead, back = _needed([value], canonical), _needed([x for x in cotangents if x is not None], canonical)
    users: dict[fx.Node, set[fx.Node]] = {}
    for node in {*ahead, *back}:
        for x in _inputs(node, canonical):
            users.setdefault(x, set()).add(node)
    shared = set(ahead) & set(back)
    found: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        if node not in shared or node.op != "call_function" or _operator(node) not in _EXPENSIVE:
            continue
        while node is not value and len(users[node]) == 1:  # what alone reads it is as good, and nearer to the end
            (user,) = users[node]
            like = user.meta["val"], node.meta["val"]
            if user not in shared or _operator(user) not in ENTRYWISE or not _alike(*like):
                break
            node = user
        if node.meta["val"].dtype == value.meta["val"].dtype:
            found[node] = ""
    read = _needed([x for x in cotangents if x is not None], canonical, found)
    return [node for node in found if node in read]


def _alike(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and str(a.shape) == str(b.shape)


def _canonical(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node the first one with the same value."""
    canonical: dict[fx.Node, fx.Node] = {}
    first: dict[str, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "call_function" and _operator(node) in _NO_OPERATION:
            canonical[node] = canonical[node.args[0]]
            continue
        arguments = fx.node.map_arg((node.args, node.kwargs), lambda x: canonical[x])
        key = f"{node.target} {arguments}" if node.op == "call_function" else node.name
        canonical[node] = first.setdefault(key, node)
    return canonical


def _inputs(node: fx.Node, canonical: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    """What the code of a node reads, with repetitions; not what it asks for sizes alone."""
    if not isinstance(node.meta.get("val"), Tensor | tuple | list) or node.op != "call_function":
        return []
    found: list[fx.Node] = []
    arguments = node.args[1:] if _operator(node) in _SIZE_OF_FIRST else node.args
    fx.node.map_arg((arguments, node.kwargs), lambda x: found.append(canonical[x]))
    return found


def _needed(
    outputs: Sequence[fx.Node], canonical: dict[fx.Node, fx.Node], given: Container[fx.Node] = ()
) -> list[fx.Node]:
    """The nodes that have to be computed for the outputs, and the `given` ones that this reads."""
    found = dict.fromkeys(outputs)
    stack = list(found)
    while stack:
        node = stack.pop()
        for x in () if node in given else _inputs(node, canonical):
            if x not in found:
                found[x] = None
                stack.append(x)
    return list(found)


def _operator(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else str(node.target)


def _argument(node: fx.Node, position: int, pure: bool) -> Value:
    if position == 0:
        return Value((), node.meta["val"].dtype, Expr("t"))
    return _array_of(node, ("t", "y", "ct")[position] if position < 3 else f"p{position - 2}")


def _array_of(node: fx.Node, name: str) -> Value:
    value = node.meta["val"]
    shape = tuple(number_of(size) for size in value.shape)
    return Value(shape, value.dtype, Expr(name), frozenset([shape]), array=True, dense=True, blas=len(shape) == 2)


def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any], canonical: dict[fx.Node, fx.Node]) -> Any:
    result = node.meta.get("val")
    if isinstance(result, torch.SymInt | torch.SymFloat | int | float):
        return number_of(result)
    operator = _operator(node)
    if operator == "<built-in function getitem>":
        several, position = node.args
        return values[canonical[several]][position]  # type: ignore[index]  # `several` is a node
    writer = _WRITERS.get(operator)
    if writer is None:
        raise UnsupportedField(f"the field can not be written in Julia: no translation of {node.target}.{_where(node)}")
    args = fx.node.map_arg(node.args, lambda x: values.get(canonical[x]))
    kwargs = {
        key: fx.node.map_arg(x, lambda x: values.get(canonical[x]))
        for key, x in node.kwargs.items()
        if key not in _TYPING
    }
    program.origin = _origin(node)
    try:
        if isinstance(result, Tensor):
            shape = tuple(number_of(s) for s in result.shape)
            value = writer(program, shape, _real(result.dtype), *args, **kwargs)
            return value if value.origin or not program.origin else replace(value, origin=program.origin)
        results = [x for x in result or () if x is not None]
        shapes = [tuple(number_of(s) for s in x.shape) for x in results]
        return writer(program, shapes, _real(results[0].dtype), *args, **kwargs)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedField(
            f"the field can not be written in Julia: no translation of {node.target} with these arguments "
            f"({type(error).__name__}: {error}).{_where(node)}"
        ) from error


def _real(dtype: torch.dtype) -> torch.dtype:
    julia_type(dtype)  # KeyError for complex and half precision
    return dtype


def _shared(program: Program, value: Any, uses: int) -> Any:
    """Gives a name to what is used more than once and not free to compute."""
    if not isinstance(value, Value) or uses < 2:
        return value
    if value.pending or value.parts:
        return program.store(value)
    if value.array or value.expr.cost == 0 or (value.dtype == torch.bool and value.expr.cost < 8):
        return value
    return program.number(value) if program.scalar(value) else program.store(value)


def _output(program: Program, target: str, value: Value, operator: str, origin: str = "") -> None:
    program.origin = origin
    over: tuple[str, ...] = ()
    if value.permuted:
        value = program.view(value)
    if program.pure:
        value = value if value.array and NAME.fullmatch(value.expr.text) else program.store(value)
        lines: tuple[str, ...] = (f"return {value.expr.text if value.shape else f'fill({value.expr.text})'}",)
    elif value.pending and (operator == "=" or value.pending.accumulates):
        lines = value.pending.write(target, operator == "+=")
    else:
        value = program.store(value) if value.pending else value
        lines = program.assigned(target, value, operator=operator)
        parts = {name for _, part in value.parts for name in part.expr.names}
        over = tuple(name for name in value.expr.names if name not in parts)
    program.statements.append(Statement(target, lines, value.shape, value.dtype, over, origin))


def _where(node: fx.Node) -> str:
    line = (node.stack_trace or "").strip()
    return f"\n  at {line}" if line else " It is in the field's derivative."


def _origin(node: fx.Node) -> str:
    match = re.fullmatch(r"(?:.*[/\\])?([^/\\]+:\d+), in .*?: (.*)", (node.stack_trace or "").strip())
    return f"{match[1]}: {match[2]}"[:90] if match else ""
