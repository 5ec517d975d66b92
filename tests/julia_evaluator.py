"""Evaluates the subset of Julia that the exporter writes, on numpy arrays; raises on everything else.

A Julia array of size (c, b, a) is a numpy array of shape (c, b, a) in Fortran order, that is `tensor.numpy().T`.
`@..` is held to FastBroadcast's rules: no dimension of size 1 is stretched, and without an operator memory is copied.
No statement may read other entries of the array that it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tree_sitter_julia
from tree_sitter import Language, Node, Parser

from julia_library import CALLS, ENTRYWISE, REDUCTIONS, TYPES, reduced

_PARSER = Parser(Language(tree_sitter_julia.language()))


class Unknown(Exception):
    """Julia that this evaluator does not know."""


def parses(source: str) -> bool:
    """Whether tree-sitter's grammar accepts the source without an error node."""
    return not _PARSER.parse(source.encode()).root_node.has_error


def load(source: str) -> dict[str, Callable[..., Any]]:
    """The functions that a source defines, by name, and those that its value, a named tuple, holds."""
    functions: dict[str, Callable[..., Any]] = {}
    for node in _PARSER.parse(source.encode()).root_node.named_children:
        if node.type == "function_definition":
            head, *body = node.named_children
            name, arguments = head.named_children[0].named_children
            parameters = [_text(x) for x in arguments.named_children]
            functions[_text(name)] = _function(parameters, body, functions)
        elif node.type == "tuple_expression":
            functions |= _Frame({}, functions).value(node)
        elif node.type != "line_comment":
            raise Unknown(_text(node))
    return functions


def _function(parameters: list[str], body: list[Node], scope: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    def run(*values: Any) -> Any:
        assert len(values) == len(parameters)
        frame = _Frame(dict(zip(parameters, values, strict=True)), scope)
        with np.errstate(all="ignore"):
            for statement in body:
                if statement.type == "return_statement":
                    return frame.value(statement.named_children[0])
                frame.run(statement)
        raise Unknown("a function without return")

    return run


def _text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def _aligned(x: Any, rank: int) -> Any:
    """Julia broadcasting lines up the first dimensions, numpy's the last."""
    return x.reshape(x.shape + (1,) * (rank - x.ndim)) if isinstance(x, np.ndarray) else x


def _times(a: Any, b: Any) -> Any:
    """Julia's `false` is a strong zero."""
    for mask, other in ((a, b), (b, a)):
        if np.asarray(mask).dtype == bool:
            return np.where(mask, other, np.zeros_like(other))
    return a * b


def _raised(a: Any, b: Any) -> Any:
    if np.iscomplexobj(a) or np.iscomplexobj(b):
        return np.power(a, b)
    return np.float_power(a, b) if np.asarray(a).dtype == np.float64 else a ** np.float32(b)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": _times,
    "/": np.true_divide,
    "^": _raised,
    "&": np.logical_and,
    "|": np.logical_or,
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


class _Frame:
    """The local names of one call."""

    def __init__(self, names: dict[str, Any], scope: dict[str, Callable[..., Any]]) -> None:
        self.names = names
        self.scope = scope

    # -- statements ---------------------------------------------------------------------------------

    def run(self, node: Node) -> None:
        if node.type == "assignment":
            left, _, right = node.named_children
            value = self.value(right)
            if left.type == "tuple_expression" and _text(left).startswith("(;"):
                self.names |= {_text(x): value[_text(x)] for x in left.named_children}
            elif left.type in ("tuple_expression", "open_tuple"):
                assert len(left.named_children) == len(value)
                self.names |= dict(zip((_text(x) for x in left.named_children), value, strict=True))
            elif left.type == "identifier":
                self.names[_text(left)] = value
            else:
                raise Unknown(_text(node))
        elif node.type == "macrocall_expression":
            self.broadcast(node)
        elif node.type == "call_expression":
            self.value(node)
        elif node.type != "line_comment":
            raise Unknown(f"{node.type}: {_text(node)}")

    def broadcast(self, node: Node) -> None:
        """`@.. x = ...`, `@. x += ...` and the like."""
        macro, arguments = node.named_children
        *before, assignment = arguments.named_children
        left, sign, right = assignment.named_children
        target = self.value(left)
        arrays = [self.names[name] for name in _identifiers(right) if isinstance(self.names.get(name), np.ndarray)]
        if _text(macro) == "@..":
            self.check_fast(right, target)
        elif _text(macro) == "@rows":
            self.check_rows(_identifiers(before[0]), right, target)
        elif _text(macro) != "@.":
            raise Unknown(_text(node))
        for array in arrays:  # entries are written one by one while the others are still read
            same = (array.ctypes.data, array.shape, array.strides) == (target.ctypes.data, target.shape, target.strides)
            assert same or not np.shares_memory(array, target), f"overwrites what it reads: {_text(node)}"
        value = self.entry(right, target.ndim)
        value = value.reshape(value.shape[: target.ndim]) if getattr(value, "ndim", 0) > target.ndim else value
        if _text(sign) == "=":
            target[...] = value
        elif _text(sign) in ("+=", "-="):
            target[...] = target + value if _text(sign) == "+=" else target - value
        else:
            raise Unknown(_text(node))

    def check_fast(self, node: Node, target: np.ndarray) -> None:
        leaves = [self.names[name] for name in _identifiers(node) if isinstance(self.names.get(name), np.ndarray)]
        for leaf in leaves:
            same = leaf.shape == target.shape
            if not (same if node.type == "identifier" else leaf.shape == target.shape[: leaf.ndim]):
                raise AssertionError(f"@.. stretches {leaf.shape} to {target.shape} in {_text(node)}")

    def check_rows(self, fixed: list[str], node: Node, target: np.ndarray) -> None:
        """Those arrays, and no others, have one entry where the target's first dimension has several."""
        assert target.ndim
        assert target.shape[0] > 1
        for name in _identifiers(node):
            leaf = self.names.get(name)
            if isinstance(leaf, np.ndarray) and leaf.ndim:
                assert leaf.ndim <= target.ndim
                assert (name in fixed) == (leaf.shape[0] == 1), f"@rows of {fixed}: {name} has {leaf.shape}"

    # -- entry by entry -----------------------------------------------------------------------------

    def entry(self, node: Node, rank: int) -> Any:
        """An expression under `@.`, with all arrays brought to one rank."""
        children = node.named_children
        if node.type == "parenthesized_expression":
            return self.entry(children[0], rank)
        if node.type == "binary_expression":
            return _BINARY[_text(children[1])](self.entry(children[0], rank), self.entry(children[2], rank))
        if node.type == "unary_expression":
            x = self.entry(children[1], rank)
            return {"-": np.negative, "!": np.logical_not}[_text(children[0])](x)
        if node.type == "call_expression" and children[0].type == "operator":  # !(x), -(x)
            x = self.entry(children[1].named_children[0], rank)
            return {"-": np.negative, "!": np.logical_not}[_text(children[0])](x)
        if node.type == "call_expression":
            arguments = [self.entry(x, rank) for x in children[1].named_children]
            return ENTRYWISE[_text(children[0])](*arguments)
        return _aligned(self.value(node), rank)

    # -- whole values -------------------------------------------------------------------------------

    def value(self, node: Node) -> Any:
        children = node.named_children
        if node.type == "identifier":
            return self.names[_text(node)] if _text(node) in self.names else _constant(_text(node))
        if node.type == "integer_literal":
            return int(_text(node))
        if node.type == "float_literal":
            text = _text(node)
            return np.float32(text.replace("f", "e")) if "f" in text else float(text)
        if node.type == "boolean_literal":
            return _text(node) == "true"
        if node.type == "parenthesized_expression":
            return self.value(children[0])
        if node.type == "tuple_expression":
            if any(x.type in ("named_field", "assignment") for x in children):
                return {_text(x.named_children[0]): self.value(x.named_children[-1]) for x in children}
            return {} if _text(node) == "(;)" else tuple(self.value(x) for x in children)
        if node.type == "open_tuple":
            return tuple(self.value(x) for x in children)
        if node.type == "index_expression":
            (index,) = children[1].named_children
            return self.value(children[0])[self.value(index) - 1]
        if node.type == "range_expression":
            first, *others = (x for x in children if x.type != "operator")
            if first.type == "range_expression":  # a:step:b is read as (a:step):b
                first, step = (x for x in first.named_children if x.type != "operator")
                start, stop, by = self.value(first) - 1, self.value(others[0]), self.value(step)
                return slice(start, stop if by > 0 else (stop - 2 if stop > 1 else None), by)
            return slice(self.value(first) - 1, self.value(others[0]), 1)
        if node.type == "operator" and _text(node) == ":":
            return slice(None)
        if node.type == "binary_expression":
            return self.binary(node)
        if node.type == "unary_expression":
            return -self.value(children[1])
        if node.type == "call_expression":
            return self.call(node)
        if node.type == "arrow_function_expression":
            left, body = children
            names = [_text(x) for x in left.named_children] if left.named_children else [_text(left)]
            return lambda *values: _Frame(dict(zip(names, values, strict=True)), self.scope).value(body)
        raise Unknown(f"{node.type}: {_text(node)}")

    def binary(self, node: Node) -> Any:
        left, operator, right = node.named_children
        return _BINARY[_text(operator)](self.value(left), self.value(right))

    def call(self, node: Node) -> Any:
        function, arguments = node.named_children
        plain = [self.value(x) for x in arguments.named_children if x.type != "named_argument"]
        named = {
            _text(x.named_children[0]): self.value(x.named_children[-1])
            for x in arguments.named_children
            if x.type == "named_argument"
        }
        name = _text(function)
        if name in self.scope:
            return self.scope[name](*plain, **named)
        if name.endswith("!") and name[:-1] in REDUCTIONS:
            return reduced(name[:-1], *plain, **named)
        if name in CALLS:
            return CALLS[name](*plain, **named)
        if name in ENTRYWISE and not any(isinstance(x, np.ndarray) for x in plain):
            return ENTRYWISE[name](*plain)
        raise Unknown(_text(node))


def _identifiers(node: Node) -> list[str]:
    if node.type == "identifier":
        return [_text(node)]
    return [name for child in node.named_children for name in _identifiers(child)]


def _constant(name: str) -> Any:
    numbers = {"Inf": np.inf, "NaN": np.nan, "Inf32": np.float32(np.inf), "NaN32": np.float32(np.nan), "nothing": None}
    if name in TYPES:
        return TYPES[name]
    return numbers[name]
