"""The text of the functions that a traced field becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from regnde._engines.julia.capture import Captured
from regnde._engines.julia.lower import Program, number_of
from regnde._engines.julia.memory import Buffers, placed
from regnde._engines.julia.source import NAME, julia_type, wrapped
from regnde._engines.julia.trace import Traced, outputs_of
from regnde._engines.julia.translate import residuals, translated

__all__ = ["source_of"]


def source_of(traced: Traced, name: str, y: Tensor, seen: Captured) -> str:
    count = len(seen.tensors) + len(traced.constants)
    value, ybar, *pbars = outputs_of(traced.graph)
    assert value is not None
    gradients = [i + 1 for i, x in enumerate(seen.tensors) if x.requires_grad]
    buffers = Buffers()

    left = {node: f"k{i + 1}" for i, node in enumerate(residuals(traced))}

    def function(
        head: str, outputs: Sequence[tuple[str, fx.Node, str]], pure: bool, end: str, **kept: Mapping[fx.Node, str]
    ) -> list[str]:
        program = translated(traced, outputs, pure, **kept)
        written = [target for target, _, sign in outputs if sign == "="] + list(kept.get("stored", {}).values())
        body = _body(program, written, None if pure else buffers)
        return [
            f"function {head}",
            *_opening("\n".join(body), count, gradients, y.dim(), pure),
            *body,
            *([f"    {end}"] if end else []),
            "end",
        ]

    cotangents = [(f"p{i}bar", node, "+=") for i, node in zip(gradients, pbars, strict=True) if node is not None]
    cotangents += [("ybar", ybar, "=")] if ybar is not None else []

    def reverse(head: str, **kept: Mapping[fx.Node, str]) -> list[str]:
        lines = function(head, cotangents, False, "return nothing", **kept)
        if ybar is None:
            lines.insert(-2, "    fill!(ybar, 0)")
        return lines

    plain = function(f"{name}(t, y, p)", [("dy", value, "=")], True, "")
    into = function(f"{name}!(dy, t, y, p, cache)", [("dy", value, "=")], False, "return nothing")
    back = reverse(f"{name}_vjp!(ybar, pbar, ct, t, y, p, cache)")
    pair: list[str] = []
    if left:
        pair = [
            *function(
                f"{name}_keep!(dy, t, y, p, cache, kept)", [("dy", value, "=")], False, "return nothing", stored=left
            ),
            "",
            *reverse(f"{name}_back!(ybar, pbar, ct, t, y, p, cache, kept)", given=left),
            "",
            *_sizes(traced, name, list(left), y.dim()),
            "",
        ]
    zeros = "".join(f"zero(p[{i}]), " for i in gradients).rstrip(", ") + ("," if len(gradients) == 1 else "")
    header = f"# The field {name} and its vector-Jacobian product, written by regnde from a PyTorch trace."
    size = (*reversed(y.shape[1:]), "B") if traced.batch is not None else tuple(reversed(y.shape))
    lines = [
        header,
        f"# y: {julia_type(y.dtype)} array of size ({', '.join(map(str, size))}); p: {count} arrays.",
        "",
        *plain,
        "",
        *into,
        "",
        *back,
        "",
        *pair,
        *_cache(traced, name, buffers, y.dtype, y.dim()),
        "",
        f"function {name}_vjp(t, y, ct, p)",
        *wrapped(f"ybar, pbar = similar(y), ({zeros})", "    "),
        f"    {name}_vjp!(ybar, pbar, ct, t, y, p, {name}_cache(y, p))",
        "    return ybar, pbar",
        "end",
    ]
    return "\n".join(lines) + "\n"


def _body(program: Program, outputs: Sequence[str], buffers: Buffers | None) -> list[str]:
    if buffers is None:
        names: dict[str, str] = {}
        for statement in program.statements:
            if NAME.fullmatch(statement.target):
                letter = "v" if statement.shape is None else "h"
                names[statement.target] = f"{letter}{sum(x[0] == letter for x in names.values()) + 1}"
    else:
        names = placed(program.statements, outputs, buffers)
    lines, origin = [], ""
    for statement in program.statements:
        if statement.origin and statement.origin != origin:
            origin = statement.origin
            lines.append(f"    # {origin}")
        for line in statement.lines:
            text = NAME.sub(lambda match: names[match[0]], line)
            if not re.fullmatch(r"@\.+ (\w+) = \1", text):  # written there before
                lines += wrapped(text, "    ")
    return lines


def _opening(body: str, count: int, gradients: Sequence[int], rank: int, pure: bool) -> list[str]:
    """Lines that unpack the arguments that the body uses."""
    body = re.sub(r"#.*", "", body)
    lines = []
    held = sorted(set(re.findall(r"\bh\d+\b", body)), key=lambda x: int(x[1:]))
    if held and not pure:
        lines += wrapped(f"(; {', '.join(held)}) = cache", "    ")
    kept = [int(x[1:]) for x in re.findall(r"\bk\d+\b", body)]
    for prefix, numbers in (
        ("p", range(1, count + 1)),
        ("pbar", gradients),
        ("kept", range(1, max(kept, default=0) + 1)),
    ):
        names = [{"p": f"p{i}", "pbar": f"p{i}bar", "kept": f"k{i}"}[prefix] for i in numbers]
        if any(re.search(rf"\b{x}\b", body) for x in names):
            left = ", ".join(names)
            one, few = f"{left} = {prefix}[1]", f"{left} = {prefix}"
            lines += wrapped(one if len(names) == 1 else few if len(left) < 80 else f"({left}) = {prefix}", "    ")
    if re.search(r"\bB\b", body):
        lines.append(f"    B = size(y, {rank})")
    if re.search(r"\bt\b", body):
        lines.append("    t = t isa AbstractFloat ? eltype(y)(t) : t")
    return lines


def _sizes(traced: Traced, name: str, nodes: Sequence[fx.Node], rank: int) -> list[str]:
    """The function that tells the sizes of what the value leaves for the reverse."""
    program = Program(traced.batch, pure=False)
    shapes = [tuple(number_of(size) for size in node.meta["val"].shape) for node in nodes]
    sizes = [f"({program.dims(shape)}{',' if len(shape) == 1 else ''})" for shape in shapes]
    text = f"return ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
    batch = [f"    B = size(y, {rank})"] if re.search(r"\bB\b", text) else []
    return [f"function {name}_kept(y, p)", *batch, *wrapped(text, "    "), "end"]


def _cache(traced: Traced, name: str, buffers: Buffers, dtype: torch.dtype, rank: int) -> list[str]:
    program = Program(traced.batch, pure=False)
    entries = []
    for buffer, (shape, kind) in buffers.sizes.items():
        element = "" if kind == dtype else f"{julia_type(kind)}, "
        size = program.dims(shape) if shape else "()"
        entries.append(f"        {buffer} = similar(y, {element}{size}),")
    body = "\n".join(entries)
    batch = [f"    B = size(y, {rank})"] if re.search(r"\bB\b", body) else []
    return [
        f"function {name}_cache(y, p)",
        *batch,
        *(["    return (", body, "    )"] if body else ["    return (;)"]),
        "end",
    ]
