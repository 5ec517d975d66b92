"""Which statement writes to which array: buffers that are allocated once and reused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from regnde._engines.julia.source import NAME, Statement

__all__ = ["Buffers"]

Size = tuple[tuple[object, ...], torch.dtype]


@dataclass
class Buffers:
    """The arrays of a cache, shared by all functions that run one after the other.

    Attributes:
        sizes: of each buffer, in torch's order, with its element type.
    """

    sizes: dict[str, Size] = field(default_factory=dict)

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
