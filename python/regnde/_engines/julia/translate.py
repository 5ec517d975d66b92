"""From a traced graph to statements of Julia: which nodes are needed, which are shared, what writes each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from regnde._engines.julia.complex_numbers import COMPLEX
from regnde._engines.julia.linear_algebra import LINEAR_ALGEBRA
from regnde._engines.julia.lower import Program, Result, Value, array_value, number_of
from regnde._engines.julia.operators import ENTRYWISE
from regnde._engines.julia.picking import PICKING
from regnde._engines.julia.products import COMBINING
from regnde._engines.julia.source import Expr, Statement, julia_type
from regnde._engines.julia.structure import STRUCTURAL
from regnde._engines.julia.trace import Traced
from regnde._engines.julia.transforms import TRANSFORMS
from regnde._errors import UnsupportedField

__all__ = ["deduplicate", "residuals", "translated"]

_WRITERS = {**ENTRYWISE, **STRUCTURAL, **COMBINING, **PICKING, **LINEAR_ALGEBRA, **COMPLEX, **TRANSFORMS}
_NO_OPERATION = (
    "alias",
    "clone",
    "contiguous",
    "detach",
    "lift_fresh",
    "lift_fresh_copy",
    "resolve_conj",
    "resolve_neg",
)
_SIZE_OF_FIRST = ("copy", "full_like", "new_empty_strided")
"""Operators that ask their first argument for nothing but its size."""

_TYPING = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments that the traced result already answers."""

_EXPENSIVE = ("mm", "mv", "bmm", "convolution", "_fft_c2c", "_fft_r2c", "_fft_c2r")
"""Operators whose results the reverse had rather read than compute again."""


def translated(
    traced: Traced,
    outputs: Sequence[tuple[str, fx.Node, str]],
    plans: dict[str, str],
    *,
    given: Mapping[fx.Node, str] = MappingProxyType({}),
    stored: Mapping[fx.Node, str] = MappingProxyType({}),
) -> Program:
    """Statements that compute nodes of the graph and write them to `(target, node, operator)`.

    Args:
        traced: the field.
        outputs: what to compute.
        plans: those of all functions, as a `Program` has them.
        given: nodes that need not be computed: arrays of those names hold them.
        stored: nodes to write to arrays of those names on the way.
    """
    program = Program(traced.batch, plans)
    needed = _needed([node for _, node, _ in outputs], given)
    uses = Counter(node for _, node, _ in outputs)
    for node in needed:
        uses.update(() if node in given else _inputs(node))
    values: dict[fx.Node, Any] = {node: _array_of(node, name) for node, name in given.items()}
    for position, node in enumerate(x for x in traced.graph.nodes if x.op == "placeholder"):
        values[node] = _argument(node, position, traced.arguments)
    for node in traced.graph.nodes:
        if node in needed and node not in values:
            value = _value(program, node, values)
            if node in stored:
                _output(program, stored[node], value, "=")
                value = _array_of(node, stored[node])
            values[node] = _shared(program, value, uses[node])
    for target, node, operator in outputs:
        _output(program, target, values[node], operator)
    return program


def deduplicate(graph: fx.Graph) -> None:
    """Leaves one node of those with equal values, and none that does nothing."""
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        same: Any = node.args[0]
        if _operator(node) not in _NO_OPERATION:
            same = first.setdefault(f"{node.target} {node.args} {node.kwargs}", node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def residuals(traced: Traced) -> list[fx.Node]:
    """What a forward evaluation keeps for its reverse: results of products, or what is made of them entry by entry.

    Each is in the state's type, so that one kind of memory holds them all.
    """
    value, ybar, pbars = traced.outputs[0]
    cotangents = [x for x in (ybar, *pbars) if x is not None]
    forward, backward = _needed([value]), _needed(cotangents)
    users: dict[fx.Node, set[fx.Node]] = {}
    for node in forward | backward:
        for x in _inputs(node):
            users.setdefault(x, set()).add(node)
    shared = forward & backward
    found: dict[fx.Node, None] = {}
    for node in traced.graph.nodes:
        if node not in shared or node.op != "call_function" or _operator(node) not in _EXPENSIVE:
            continue
        while node is not value and len(users[node]) == 1:  # what alone reads it is as good, and nearer to the end
            (user,) = users[node]
            if user not in shared or _operator(user) not in ENTRYWISE or not _alike(user.meta["val"], node.meta["val"]):
                break
            node = user
        if node.meta["val"].dtype == value.meta["val"].dtype:
            found[node] = None
    read = _needed(cotangents, found)
    return [node for node in found if node in read]


def _alike(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and str(a.shape) == str(b.shape)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """What the code of a node reads, with repetitions; not what it asks for sizes alone."""
    if not isinstance(node.meta.get("val"), Tensor | tuple | list) or node.op != "call_function":
        return []
    found: list[fx.Node] = []
    arguments = node.args[1:] if _operator(node) in _SIZE_OF_FIRST else node.args
    fx.node.map_arg((arguments, node.kwargs), found.append)
    return found


def _needed(outputs: Sequence[fx.Node], given: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that have to be computed for the outputs, and the `given` ones that this reads."""
    found = set(outputs)
    stack = list(found)
    while stack:
        node = stack.pop()
        new = set(() if node in given else _inputs(node)) - found
        found |= new
        stack.extend(new)
    return found


def _operator(node: fx.Node) -> str:
    return node.target._opname if isinstance(node.target, torch._ops.OpOverload) else str(node.target)


def _argument(node: fx.Node, position: int, names: Sequence[str]) -> Value:
    name = names[position] if position < len(names) else f"p{position - len(names) + 1}"
    if name in ("t", "tdot"):
        return Value((), node.meta["val"].dtype, Expr(name))
    return _array_of(node, name)


def _array_of(node: fx.Node, name: str) -> Value:
    return array_value(name, _shape(node.meta["val"]), node.meta["val"].dtype)


def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    result = node.meta.get("val")
    if isinstance(result, torch.SymInt | torch.SymFloat | int | float):
        return number_of(result)
    operator = _operator(node)
    if operator == "<built-in function getitem>":
        several, position = node.args
        return values[several][position]  # type: ignore[index]  # `several` is a node
    writer = _WRITERS.get(operator)
    if writer is None:
        raise UnsupportedField(
            f"the field can not be written in Julia: no translation of {node.target}. Write it with other functions of "
            f"torch, or set Solver(engine='torch').{_where(node)}"
        )
    args = fx.node.map_arg(node.args, values.get)
    kwargs = {key: fx.node.map_arg(x, values.get) for key, x in node.kwargs.items() if key not in _TYPING}
    _check_precision(node, result)
    try:
        if isinstance(result, Tensor):
            return writer(_result(program, result), *args, **kwargs)
        return writer([_result(program, x) for x in result or () if x is not None], *args, **kwargs)
    except (KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise UnsupportedField(
            f"the field can not be written in Julia: no translation of {node.target} with these arguments "
            f"({type(error).__name__}: {error}).{_where(node)}"
        ) from error


def _check_precision(node: fx.Node, result: Any) -> None:
    """Refuses what is computed in half precision."""
    for x in [result] if isinstance(result, Tensor) else result or ():
        if isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedField(
                f"the field can not be written in Julia: {node.target} computes in {x.dtype}, as under torch.autocast. "
                "Compute the field in the dtype of its state, with autocast off, or set Solver(engine='torch')."
                f"{_where(node)}"
            )


def _result(program: Program, tensor: Tensor) -> Result:
    julia_type(tensor.dtype)  # KeyError for what Julia's side does not know
    return Result(program, _shape(tensor), tensor.dtype)


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(number_of(size) for size in tensor.shape)


def _shared(program: Program, value: Any, uses: int) -> Any:
    """Gives a name to what is used more than once and not free to compute."""
    if not isinstance(value, Value) or uses < 2:
        return value
    if value.pending or value.parts:
        return program.store(value)
    if value.array or value.expr.cost == 0 or (value.dtype == torch.bool and value.expr.cost < 8):
        return value
    return program.number(value) if program.scalar(value) else program.store(value)


def _output(program: Program, target: str, value: Value, operator: str) -> None:
    if value.permuted:
        value = program.view(value)
    if value.pending and (operator == "=" or value.pending.accumulates):
        lines = value.pending.write(target, operator == "+=")
        program.statements.append(Statement(target, lines, value.shape, value.dtype))
    else:
        program.assign(target, program.store(value) if value.pending else value, operator)


def _where(node: fx.Node) -> str:
    line = (node.stack_trace or "").strip()
    return f"\n  at {line}" if line else " It is in the field's derivative."
