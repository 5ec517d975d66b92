"""The text of the functions that a traced field becomes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from regnde._engines.julia.buffers import Buffers
from regnde._engines.julia.capture import Captured
from regnde._engines.julia.lower import Program, number_of
from regnde._engines.julia.source import NAME, julia_type, wrapped
from regnde._engines.julia.trace import Traced, outputs_of
from regnde._engines.julia.translate import deduplicate, residuals, translated

__all__ = ["source_of"]


def source_of(traced: Traced, name: str, y: Tensor, seen: Captured) -> str:
    """The source that `export` describes."""
    deduplicate(traced.graph)
    value, ybar, *pbars = outputs_of(traced.graph)
    assert value is not None
    with_gradient = [i + 1 for i, x in enumerate(seen.tensors) if x.requires_grad]
    count = len(seen.tensors) + len(traced.constants)
    forward = [("dy", value, "=")]
    reverse = [(f"p{i}bar", node, "+=") for i, node in zip(with_gradient, pbars, strict=True) if node is not None]
    reverse += [("ybar", ybar, "=")] if ybar is not None else []
    saved = {node: f"r{i + 1}" for i, node in enumerate(residuals(traced))}
    buffers = Buffers()

    def function(head: str, outputs: Sequence[tuple[str, fx.Node, str]], **options: Mapping[fx.Node, str]) -> list[str]:
        program = translated(traced, outputs, **options)
        overwritten = [target for target, _, sign in outputs if sign == "="] + list(options.get("stored", {}).values())
        body = _body(program, buffers.place(program.statements, overwritten))
        if outputs is reverse and ybar is None:
            body.append("    fill!(ybar, 0)")
        return [
            "",
            f"function {name}{head}",
            *_opening(body, count, with_gradient, y),
            *body,
            "    return nothing",
            "end",
        ]

    shape = (*reversed(y.shape[1:]), "B") if traced.batch is not None else tuple(reversed(y.shape))
    lines = [
        f"# The field {name} and its vector-Jacobian product, written by regnde from a PyTorch trace.",
        f"# y: {julia_type(y.dtype)} array of size ({', '.join(map(str, shape))}); p: {count} arrays.",
        *function("!(dy, t, y, p, cache)", forward),
        *function("_vjp!(ybar, pbar, ct, t, y, p, cache)", reverse),
    ]
    if saved:
        lines += function("_keep!(dy, t, y, p, cache, residuals)", forward, stored=saved)
        lines += function("_back!(ybar, pbar, ct, t, y, p, cache, residuals)", reverse, given=saved)
    return "\n".join([*lines, "", *_arrays(traced, buffers, list(saved), y.dtype)]) + "\n"


def _body(program: Program, names: Mapping[str, str]) -> list[str]:
    """The statements as lines, with the user's own above them."""
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


def _opening(body: Sequence[str], count: int, with_gradient: Sequence[int], y: Tensor) -> list[str]:
    """Lines that unpack the arguments that the body uses."""
    used = set(re.findall(r"\b\w+\b", re.sub(r"#.*", "", "\n".join(body))))
    lines = []
    buffers, residuals = (_numbered(used, letter) for letter in "hr")
    if buffers:
        lines += wrapped(f"(; {', '.join(f'h{i}' for i in buffers)}) = cache", "    ")
    for source, names in (
        ("p", [f"p{i + 1}" for i in range(count)]),
        ("pbar", [f"p{i}bar" for i in with_gradient]),
        ("residuals", [f"r{i + 1}" for i in range(max(residuals, default=0))]),
    ):
        if used.intersection(names):
            lines += wrapped(f"({', '.join(names)}{',' if len(names) == 1 else ''}) = {source}", "    ")
    return [*lines, f"    B = size(y, {y.dim()})"] if "B" in used else lines


def _numbered(used: set[str], letter: str) -> list[int]:
    return sorted(int(name[1:]) for name in used if re.fullmatch(rf"{letter}\d+", name))


def _arrays(traced: Traced, buffers: Buffers, saved: Sequence[fx.Node], dtype: torch.dtype) -> list[str]:
    """The source's value: functions of the batch size for the buffers and for the sizes of the residuals."""
    program = Program(traced.batch)
    made = []
    for name, (shape, kind) in buffers.sizes.items():
        element = "" if kind == dtype else f"{julia_type(kind)}, "
        made.append(f"        {name} = similar(y, {element}{program.dims(shape) or '()'}),")
    shapes = [program.dims([number_of(size) for size in node.meta["val"].shape]) for node in saved]
    sizes = "".join(f"({shape},), " for shape in shapes).strip()
    return [
        "(",
        *(["    buffers = (y, B) -> (", *made, "    ),"] if made else ["    buffers = (y, B) -> (;),"]),
        *wrapped(f"residuals = B -> ({sizes}),", "    "),
        ")",
    ]
