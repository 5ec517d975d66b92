"""The text of the functions that a traced field becomes, and the buffers that they write to."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from regnde._engines.julia.capture import Captured
from regnde._engines.julia.lower import Program, number_of
from regnde._engines.julia.source import NAME, Statement, julia_type
from regnde._engines.julia.trace import Outputs, Traced
from regnde._engines.julia.translate import deduplicate, residuals, translated

__all__ = ["source_of"]

Size = tuple[tuple[object, ...], torch.dtype]
Targets = Sequence[tuple[str, fx.Node, str]]


def source_of(traced: Traced, name: str, y: Tensor, seen: Captured) -> str:
    """The source that `export` describes."""
    deduplicate(traced.graph)
    with_gradient = [i + 1 for i, x in enumerate(seen.tensors) if x.requires_grad]
    count = len(seen.tensors) + len(traced.constants)
    saved = {node: f"r{i + 1}" for i, node in enumerate(residuals(traced))}
    buffers = Buffers()

    def body(targets: Targets, **options: Mapping[fx.Node, str]) -> list[str]:
        program = translated(traced, targets, buffers.plans, **options)
        overwritten = [target for target, _, sign in targets if sign == "="] + list(options.get("stored", {}).values())
        return _lines(program, buffers.place(program.statements, overwritten))

    def forward(part: Outputs, **options: Mapping[fx.Node, str]) -> list[str]:
        return body([("dy", part.value, "=")], **options)

    def reverse(part: Outputs, **options: Mapping[fx.Node, str]) -> list[str]:
        bars = zip(with_gradient, part.pbars, strict=True)
        targets = [(f"p{i}bar", node, "+=") for i, node in bars if node is not None]
        if part.ybar is None:
            return [*body(targets, **options), "fill!(ybar, 0)"]
        return body([*targets, ("ybar", part.ybar, "=")], **options)

    own, *products = traced.outputs
    functions = {"!(dy, t, y, p, cache)": forward(own), "_vjp!(ybar, pbar, ct, t, y, p, cache)": reverse(own)}
    if saved:
        functions["_keep!(dy, t, y, p, cache, residuals)"] = forward(own, stored=saved)
        functions["_back!(ybar, pbar, ct, t, y, p, cache, residuals)"] = reverse(own, given=saved)
    for product in products:
        functions["_jvp!(dy, tdot, ydot, t, y, p, cache)"] = forward(product)
        functions["_jvp_vjp!(ybar, pbar, ct, tdot, ydot, t, y, p, cache)"] = reverse(product)
    unpacked = [(f"p{i + 1}", "p") for i in range(count)] + [(f"p{i}bar", "pbar") for i in with_gradient]
    unpacked += [(residual, "residuals") for residual in saved.values()]
    shape = (*reversed(y.shape[1:]), "B") if traced.batch is not None else tuple(reversed(y.shape))
    lines = [
        f"# The field {name} and its vector-Jacobian product, written by regnde from a PyTorch trace.",
        f"# y: {julia_type(y.dtype)} array of size ({', '.join(map(str, shape))}); p: {count} arrays.",
    ]
    for head, statements in functions.items():
        opening = _opening(head, [*buffers.sizes, *buffers.plans.values()], unpacked)
        opening += [f"B = size(y, {y.dim()})"] if traced.batch is not None else []
        lines += ["", f"function {name}{head}"]
        lines += [f"    {line}" for line in (*opening, *statements, "return nothing")]
        lines += ["end"]
    return "\n".join([*lines, "", *_arrays(traced, buffers, list(saved), y.dtype)]) + "\n"


def _lines(program: Program, names: Mapping[str, str]) -> list[str]:
    """The statements as lines."""
    lines = [NAME.sub(lambda match: names[match[0]], line) for x in program.statements for line in x.lines]
    return [line for line in lines if not re.fullmatch(r"@\.+ (\w+) = \1", line)]  # written there before


def _opening(head: str, buffers: Collection[str], unpacked: Sequence[tuple[str, str]]) -> list[str]:
    """Lines that unpack the arguments of a function."""
    lines = [f"(; {', '.join(buffers)}) = cache"] if buffers else []
    for argument in ("p", "pbar", "residuals"):
        names = [name for name, source in unpacked if source == argument]
        if names and re.search(rf"\b{argument}\b", head):
            lines.append(f"({', '.join(names)},) = {argument}")
    return lines


def _arrays(traced: Traced, buffers: Buffers, saved: Sequence[fx.Node], dtype: torch.dtype) -> list[str]:
    """The source's value: functions of the batch size for the buffers and for the sizes of the residuals."""
    program = Program(traced.batch)
    made = []
    for name, (shape, kind) in buffers.sizes.items():
        element = "" if kind == dtype else f"{julia_type(kind)}, "
        made.append(f"        {name} = similar(y, {element}{program.dims(shape) or '()'}),")
    made += [f"        {name} = {text}," for text, name in buffers.plans.items()]
    shapes = [program.dims([number_of(size) for size in node.meta["val"].shape]) for node in saved]
    sizes = "".join(f"({shape},), " for shape in shapes).strip()
    return [
        "(",
        *(["    buffers = (y, B) -> (", *made, "    ),"] if made else ["    buffers = (y, B) -> (;),"]),
        f"    residuals = B -> ({sizes}),",
        ")",
    ]


# -- buffers ----------------------------------------------------------------------------------------


@dataclass
class Buffers:
    """The arrays of a cache, shared by all functions that run one after the other.

    Attributes:
        sizes: of each buffer, in torch's order, with its element type.
        plans: of transforms, their names by the text that makes them.
    """

    sizes: dict[str, Size] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)

    def place(self, statements: Sequence[Statement], outputs: Collection[str]) -> dict[str, str]:
        """An array's name for each value of a program, so that no value is overwritten before its last use.

        Goes from the last statement to the first. An array is taken where its value is read for the last time, and
        is free again before the statement that writes the value. The array that became free last is taken first: a
        value that a statement reads entry by entry shares the array of the statement's result.

        Args:
            statements: the program; a target that is no `NAME` is an output.
            outputs: outputs that are overwritten (not accumulated into): they serve as arrays before that.
        """
        memory = _memory(statements)
        sizes = {s.target: (s.shape, s.dtype) for s in statements if s.shape is not None}
        arrays: dict[str, str] = {}
        free: dict[tuple[str, torch.dtype], list[str]] = {}

        def pool(size: Size) -> list[str]:
            shape, dtype = str(size[0]), size[1]
            same = [name for name, (s, d) in self.sizes.items() if (str(s), d) == (shape, dtype)]
            return free.setdefault((shape, dtype), same[::-1])

        def take(value: str) -> None:
            if value not in arrays and NAME.fullmatch(value):
                size = sizes[value]
                names = pool(size)
                arrays[value] = names.pop() if names else self._add(size)

        for statement in reversed(statements):
            target, reads = statement.target, [memory[name] for name in statement.reads if name in memory]
            shared = {name for name in statement.entrywise if reads.count(name) == 1}
            for value in reads:
                if value not in shared:
                    take(value)
            if target in sizes:
                take(target)  # a value that nobody reads still needs memory
                if NAME.fullmatch(target) or target in outputs:
                    pool(sizes[target]).append(arrays.get(target, target))
            for value in reads:
                take(value)
        views = [s.target for s in statements if s.shape is None and NAME.fullmatch(s.target)]
        return arrays | {name: f"v{i + 1}" for i, name in enumerate(views)}

    def _add(self, size: Size) -> str:
        name = f"h{len(self.sizes) + 1}"
        self.sizes[name] = size
        return name


def _memory(statements: Sequence[Statement]) -> dict[str, str]:
    """The value whose memory each name stands for: a view's is that of the array under it."""
    memory: dict[str, str] = {}
    for statement in statements:
        source = statement.target if statement.shape is not None else None
        source = source or next((memory[name] for name in statement.reads if name in memory), None)
        if source is not None:
            memory[statement.target] = source
    return memory
