"""Which statement writes where: buffers that are allocated once, taken over and reused."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from regnde._engines.julia.source import NAME, Statement

__all__ = ["Buffers", "placed"]

Key = tuple[str, torch.dtype]


@dataclass
class Buffers:
    """The arrays of a cache, shared by all functions that run one after the other.

    Attributes:
        sizes: of each buffer, in torch's order, with its element type.
    """

    sizes: dict[str, tuple[tuple[object, ...], torch.dtype]] = field(default_factory=dict)

    def of(self, key: Key) -> list[str]:
        """The buffers of one size and type so far."""
        return [name for name, (shape, dtype) in self.sizes.items() if (str(shape), dtype) == key]

    def add(self, shape: tuple[object, ...], dtype: torch.dtype) -> str:
        """One more buffer."""
        name = f"h{len(self.sizes) + 1}"
        self.sizes[name] = (shape, dtype)
        return name


def placed(statements: Sequence[Statement], outputs: Iterable[str], buffers: Buffers) -> dict[str, str]:
    """Final names of all values: buffers, or outputs that a value can be written to at once.

    Args:
        statements: the program; a target that is no `NAME` is an output.
        outputs: outputs that are overwritten (not accumulated into), so that they can serve as memory.
        buffers: the cache; grows where nothing is free.
    """
    made = {s.target: s for s in statements}
    roots = _roots(statements)
    last = {roots[name]: i for i, s in enumerate(statements) for name in (s.target, *s.reads) if name in roots}
    names: dict[str, str] = {}
    for i, statement in enumerate(statements):
        if statement.target in outputs:
            _write_through(statement, i, statements, made, roots, last, names)
    free: dict[Key, list[str]] = {}
    for i, statement in enumerate(statements):
        if statement.shape is None:
            if NAME.fullmatch(statement.target):
                names[statement.target] = f"v{sum(name.startswith('v') for name in names.values()) + 1}"
        elif NAME.fullmatch(statement.target) and statement.target not in names:
            taken = next((x for x in _dying(statement, i, made, roots, last) if names[x] in buffers.sizes), None)
            key = (str(statement.shape), statement.dtype)
            if taken is not None:
                names[statement.target] = names[taken]
            else:
                pool = free.setdefault(key, buffers.of(key))
                names[statement.target] = pool.pop(0) if pool else buffers.add(statement.shape, statement.dtype)
        _release(statement, i, roots, last, names, buffers, free)
    return names


def _roots(statements: Sequence[Statement]) -> dict[str, str]:
    """The value whose memory each name stands for."""
    roots: dict[str, str] = {}
    for statement in statements:
        if statement.shape is not None:
            roots[statement.target] = statement.target
        else:
            source = [name for name in statement.reads if name in roots]
            if source:
                roots[statement.target] = roots[source[0]]
    return roots


def _dying(
    statement: Statement, i: int, made: dict[str, Statement], roots: dict[str, str], last: dict[str, int]
) -> list[str]:
    """Values that the statement may overwrite: of its size, read entry by entry, and not needed again."""
    found = []
    for name in statement.over:
        origin = made.get(name)
        if origin is None or origin.shape is None or last[name] != i:
            continue
        alone = sum(roots.get(other) == name for other in statement.reads) == 1
        if alone and (str(origin.shape), origin.dtype) == (str(statement.shape), statement.dtype):
            found.append(name)
    return found


def _write_through(
    statement: Statement,
    i: int,
    statements: Sequence[Statement],
    made: dict[str, Statement],
    roots: dict[str, str],
    last: dict[str, int],
    names: dict[str, str],
) -> None:
    """Lets the chain of values that ends in an output live in the output's memory."""
    target = statement.target
    while True:
        chain = [name for name in _dying(statement, i, made, roots, last) if name not in names]
        if not chain:
            return
        names[chain[0]] = target
        statement = made[chain[0]]
        i = statements.index(statement)


def _release(
    statement: Statement,
    i: int,
    roots: dict[str, str],
    last: dict[str, int],
    names: dict[str, str],
    buffers: Buffers,
    free: dict[Key, list[str]],
) -> None:
    """Returns the buffers that were read for the last time."""
    kept = names.get(statement.target)
    for root in {roots[name] for name in (statement.target, *statement.reads) if name in roots}:
        buffer = names.get(root)
        if last[root] == i and buffer in buffers.sizes and (buffer != kept or root == statement.target):
            shape, dtype = buffers.sizes[buffer]
            pool = free.setdefault((str(shape), dtype), buffers.of((str(shape), dtype)))
            if buffer not in pool:
                pool.append(buffer)
