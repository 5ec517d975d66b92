"""Tolerances: one number for the state, or others for its parts or entries."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._state import Node, Part, Structure, tree_map

__all__ = ["Entries", "Tolerance", "entries"]

FEW = 8  # entries of an array that a message shows


class Tolerance:
    """Tolerances of the parts or entries of a state, as `Solver` stores them: immutable numbers.

    Two are equal if their containers and numbers are equal. One may be given to another `Solver`.

    Args:
        name: `"rtol"` or `"atol"`.
        given: numbers, tensors, arrays or sequences of numbers, in containers as the state's.

    Attributes:
        tree: the same containers, with floats and read-only arrays at the leaves.
    """

    def __init__(self, name: str, given: Any) -> None:
        self.name = name
        self.tree = _frozen(name, given, "")
        self._key = _key(self.tree)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Tolerance) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(tree_map(_Shown, self.tree))

    def __bool__(self) -> bool:
        return True


class _Shown:
    """A leaf in a `Tolerance`'s repr: a number, a short array or the range of a long one."""

    def __init__(self, leaf: float | NDArray[np.float64]) -> None:
        self.leaf = leaf

    def __repr__(self) -> str:
        if isinstance(self.leaf, float):
            return repr(self.leaf)
        if self.leaf.size <= FEW:
            return np.array2string(self.leaf, separator=", ", formatter={"float_kind": lambda x: f"{x:g}"})
        return f"array(shape={self.leaf.shape}, {self.leaf.min():g} to {self.leaf.max():g})"


def _frozen(name: str, value: Any, path: str) -> Any:
    """The value with floats and read-only arrays at its leaves, all of them checked."""
    if isinstance(value, Mapping):
        return {key: _frozen(name, x, f"{path}[{key!r}]") for key, x in value.items()}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)) is not None:
        make: Any = type(value)
        return make(*(_frozen(name, x, f"{path}.{field}") for field, x in zip(fields, value, strict=True)))
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(name, x, f"{path}[{i}]") for i, x in enumerate(value))
    what = f"Solver({name}=...): {name}{path}"
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{what} requires a gradient, and a tolerance has none: give it detached.")
        value = value.cpu().numpy()
    try:
        array = np.array(value)
        usable = array.dtype.kind in "fiu"
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise TypeError(f"{what} is {value!r:.80}: give a number, or numbers for its entries.")
    array = array.astype(np.float64)
    if not bool((array >= 0).all()):
        raise ValueError(f"{what} is {value!r:.80}: give numbers of at least 0, or infinity for no control.")
    if array.ndim == 0:
        return float(array)
    array.setflags(write=False)
    return array


def _key(tree: Any) -> Hashable:
    if isinstance(tree, Mapping):
        return "dict", frozenset((key, _key(x)) for key, x in tree.items())
    if isinstance(tree, tuple):
        return type(tree), tuple(_key(x) for x in tree)
    return (tree.shape, tree.tobytes()) if isinstance(tree, np.ndarray) else tree


# --- for a state ---------------------------------------------------------------------------------


class Entries(NamedTuple):
    """The tolerances of one solve.

    Attributes:
        rtol, atol: numbers, or tensors of the flat state's shape, real dtype and device. Without control an entry
            has an infinite atol and the rtol 0.
        tightest: of each part, the least max(rtol, atol) of its entries; infinite without control.
    """

    rtol: float | Tensor
    atol: float | Tensor
    tightest: tuple[float, ...]


def entries(rtol: float | Tolerance, atol: float | Tolerance, structure: Structure) -> Entries:
    """The tolerances for a state.

    Raises:
        ValueError: for a tolerance that does not fit the state, or an entry that has none.
    """
    if isinstance(rtol, float) and isinstance(atol, float):
        return Entries(rtol, atol, (max(rtol, atol),) * len(structure.parts))
    relative, absolute = (_of_parts(name, x, structure) for name, x in (("rtol", rtol), ("atol", atol)))
    for part, r, a in zip(structure.parts, relative, absolute, strict=True):
        if bool(((r == 0) & (a == 0)).any()):
            raise ValueError(f"rtol and atol of y{part.path} are both 0: one of the two must be above zero.")
    loosest = [np.maximum(r, a) for r, a in zip(relative, absolute, strict=True)]
    if all(bool(np.isinf(x).all()) for x in loosest):
        raise ValueError("rtol or atol is infinite for every entry of the state, so that nothing controls the steps.")
    tightest = tuple(float(x.min(initial=math.inf)) for x in loosest)
    free = [np.isinf(x) for x in loosest]
    relative = [np.where(f, 0.0, r) for f, r in zip(free, relative, strict=True)]
    absolute = [np.where(f, math.inf, a) for f, a in zip(free, absolute, strict=True)]
    return Entries(_flat(relative, structure), _flat(absolute, structure), tightest)


def _flat(arrays: Sequence[NDArray[np.float64]], structure: Structure) -> float | Tensor:
    """One number if all entries have it, else a tensor of the flat state's shape."""
    least, largest = min(x.min(initial=math.inf) for x in arrays), max(x.max(initial=0.0) for x in arrays)
    if least == largest:
        return float(least)
    y0 = structure.flat
    if structure.nested:
        lead = y0.shape[:-1]
        joined = np.concatenate(
            [x.reshape(*lead, part.size) for x, part in zip(arrays, structure.parts, strict=True)], axis=-1
        )
    else:
        joined = arrays[0]
    return torch.from_numpy(np.array(joined)).to(y0.device, y0.dtype.to_real())


def _of_parts(name: str, tolerance: float | Tolerance, structure: Structure) -> list[NDArray[np.float64]]:
    """The tolerances of the entries of each part, of the part's shape."""
    tree = tolerance.tree if isinstance(tolerance, Tolerance) else tolerance
    found: dict[int, Any] = {}
    _collect(name, tree, structure.tree, "", found)
    return [_of_part(name, found[i], part) for i, part in enumerate(structure.parts)]


def _collect(name: str, tree: Any, node: Node | int, path: str, found: dict[int, Any]) -> None:
    """The tolerance of each part: its own, or the number that a container around it has."""
    if isinstance(node, int):
        found[node] = tree
        return
    values = [tree] * len(node.children) if isinstance(tree, float) else node.values_of(tree)
    if values is None:
        raise ValueError(
            f"Solver({name}=...): y{path} is {node.description}, but {name}{path} is {_shown(tree)}. Give one number "
            "for all of its parts, or one tolerance for each."
        )
    for child, inner, of_child in zip(node.children, values, node.paths, strict=True):
        _collect(name, inner, child, path + of_child, found)


def _of_part(name: str, value: Any, part: Part) -> NDArray[np.float64]:
    """The tolerance of a part, in its shape."""
    what = f"Solver({name}=...): {name}{part.path}"
    if isinstance(value, Mapping):
        raise ValueError(
            f"{what} is a dict, but y{part.path} is one tensor: give one number, or numbers for its entries."
        )
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is no array of numbers, but y{part.path} is one tensor.") from None
    try:
        return np.broadcast_to(array, part.shape)
    except ValueError:
        raise ValueError(
            f"{what} has shape {array.shape}, which does not broadcast to the shape {tuple(part.shape)} of "
            f"y{part.path}."
        ) from None


def _shown(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a dict with the keys {', '.join(map(repr, tree))}"
    return f"a sequence of {len(tree)}" if isinstance(tree, tuple) else f"an array of shape {tree.shape}"
