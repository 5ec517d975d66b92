"""The state of a solve: one tensor, or several of them in tuples, lists and dicts, which an engine sees as one."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regnde._equation import SDE, Equation, JuliaField

__all__ = ["Node", "Part", "Structure", "checked_state", "tree_map"]


class Part(NamedTuple):
    """One tensor of a state.

    Attributes:
        path: how to get it from the state y, such as `"['v'][1]"`.
        shape: as it was given.
        inner: its shape, with per-sample step sizes that of one sample.
        dtype: as it was given.
        begin: its first entry in the last dimension of the flat state.
        size: number of its entries there.
    """

    path: str
    shape: torch.Size
    inner: torch.Size
    dtype: torch.dtype
    begin: int
    size: int


@dataclass(frozen=True, eq=False)
class Node:
    """A tuple, list or dict of a state, with the numbers of the parts in their places.

    Attributes:
        make: makes such a container of its values.
        kind: name of its type, for messages.
        paths: how to get each child, such as `"['v']"`, `"[1]"` or `".v"`.
        keys: of a dict, None for a sequence.
        fields: of a named tuple, else None.
        children: in their order.
    """

    make: Callable[[list[Any]], Any]
    kind: str
    paths: tuple[str, ...]
    keys: tuple[Hashable, ...] | None
    fields: tuple[str, ...] | None
    children: tuple[Node | int, ...]

    @property
    def description(self) -> str:
        """What it is, for messages."""
        if self.keys is None:
            return f"a {self.kind} of {len(self.children)}"
        return f"a {self.kind} with the keys {', '.join(map(repr, self.keys))}"

    def values_of(self, value: object) -> list[Any] | None:
        """The children of a container of the same kind, in the order of this one; None if it is of another kind."""
        if self.keys is not None:
            fits = isinstance(value, Mapping) and len(value) == len(self.keys) and all(k in value for k in self.keys)
            return [value[key] for key in self.keys] if fits else None  # type: ignore[index]  # fits: a Mapping
        if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
            return None
        fields = getattr(value, "_fields", None)
        return None if fields and self.fields and fields != self.fields else list(value)


class Structure:
    """How a state is put together, and how an engine's flat tensor is made of it.

    A state of one tensor is its own flat tensor. Several parts are concatenated: to shape (N,), or with per-sample
    step sizes, whose leading dimension is the samples', to shape (B, N). The flat tensor has the dtype that the parts
    are promoted to; the field is given each part in its own.

    Args:
        y0: the initial state as the user gave it.
        samples: whether the leading dimension of every part is that of samples.
        half: whether half precision is allowed, in which no error can be controlled.

    Attributes:
        flat: the initial state as one tensor.
        tree: containers with numbers of parts; the number 0 alone for a state of one tensor.
        parts: the tensors.
        nested: whether there is more than one tensor without a container.

    Raises:
        TypeError: for a part that is no tensor or has a dtype that can not be solved in.
        ValueError: for parts that do not go together.
    """

    # No __dict__: the search for what a field captures must not enter the solver's own objects.
    __slots__ = ("device", "dimensions", "dtype", "flat", "nested", "parts", "samples", "sizes", "tree")

    def __init__(self, y0: Any, *, samples: bool = False, half: bool = False) -> None:
        found: list[tuple[str, Any]] = []
        self.tree = _numbered(y0, "", found)
        self.nested = isinstance(self.tree, Node)
        self.samples = samples
        if not self.nested:
            self.flat = checked_state(y0, half=half)
            shape = self.flat.shape
            self.parts: tuple[Part, ...] = (Part("", shape, shape, self.flat.dtype, 0, self.flat.numel()),)
            return
        tensors = _together([path for path, _ in found], [value for _, value in found], half)
        parts: list[Part] = []
        begin = 0
        for (path, _), x in zip(found, tensors, strict=True):
            if samples and x.ndim == 0:
                raise ValueError(
                    f"batch='per-sample' needs a leading dimension of samples, but y0{path} has no dimension."
                )
            if samples and len(x) != len(tensors[0]):
                raise ValueError(
                    f"batch='per-sample' needs one number of samples, but y0{parts[0].path} has {len(tensors[0])} and "
                    f"y0{path} has {len(x)}."
                )
            inner = x.shape[1:] if samples else x.shape
            parts.append(Part(path, x.shape, inner, x.dtype, begin, inner.numel()))
            begin += inner.numel()
        self.parts = tuple(parts)
        self.dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors), tensors[0].dtype)
        self.device = tensors[0].device
        self.dimensions = max(len(part.shape) for part in parts)
        self.sizes = [part.size for part in parts]
        self.flat = self._joined(tensors, (len(tensors[0]),) if samples else (), self.dtype)

    @property
    def kind(self) -> str:
        """Name of the state's type, for messages."""
        return self.tree.kind if isinstance(self.tree, Node) else "tensor"

    # --- states ----------------------------------------------------------------------------------

    def tree_of(self, flat: Tensor) -> Any:
        """The state, or states at several times, of a flat tensor of shape (..., N): a view where dtypes agree.

        A flat tensor of another dtype than the state's stays in its precision.
        """
        if not isinstance(self.tree, Node):
            return flat
        leaves = list(flat.split_with_sizes(self.sizes, -1))
        for i, part in enumerate(self.parts):
            if len(part.inner) != 1:
                leaves[i] = leaves[i].view((*flat.shape[:-1], *part.inner))
            if part.dtype != self.dtype:
                x = leaves[i] if part.dtype.is_complex or not flat.is_complex() else leaves[i].real
                leaves[i] = x.to(part.dtype) if flat.dtype == self.dtype else x
        return _built(self.tree, leaves)

    def flat_of(self, tree: Any) -> Tensor:
        """The flat tensor of a state, or of states at several times: what `tree_of` took apart."""
        if not isinstance(self.tree, Node):
            return tree  # type: ignore[no-any-return]  # a tensor
        leaves: list[Any] = []
        _collect(self.tree, tree, leaves)
        return self._joined(leaves, leaves[0].shape[: leaves[0].ndim - len(self.parts[0].inner)], self.dtype)

    def _joined(self, leaves: Sequence[Tensor], lead: Sequence[int], dtype: torch.dtype) -> Tensor:
        rows = [
            x if x.dtype == dtype and len(part.inner) == 1 else x.to(dtype).reshape((*lead, part.size))
            for x, part in zip(leaves, self.parts, strict=True)
        ]
        return torch.cat(rows, -1)

    def entry(self, component: int) -> str:
        """Where an entry of the whole flat state is, such as `"y['v'], index (0, 2)"`."""
        width = sum(part.size for part in self.parts)
        sample, place = divmod(component, width) if self.samples else (None, component)
        part = next(p for p in self.parts if p.begin <= place < p.begin + p.size)
        index = tuple(int(i) for i in np.unravel_index(place - part.begin, part.inner)) if part.inner else ()
        index = index if sample is None else (sample, *index)
        return f"y{part.path}, index {index}" if index else f"y{part.path}"

    # --- fields ----------------------------------------------------------------------------------

    def on_flat(self, equation: Equation) -> Equation:
        """The equation of the flat state."""
        if not self.nested:
            return equation
        if isinstance(equation, JuliaField):
            raise TypeError("a JuliaField takes a state of one tensor: concatenate the parts, and split them in it.")
        if isinstance(equation, SDE):
            if equation.noise != "diagonal":
                raise ValueError(
                    f"SDE(noise={equation.noise!r}) takes a state of one tensor, and y0 is a {self.kind} of tensors: "
                    "concatenate the parts, and split them in the drift and the diffusion."
                )
            drift, diffusion = self._field(equation.drift, "drift"), self._field(equation.diffusion, "diffusion")
            return dataclasses.replace(equation, drift=drift, diffusion=diffusion)
        return self._field(equation, "f")

    def condition_on_flat(self, condition: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A function of a time and the state, such as an event's condition, as one of the flat state."""
        if not self.nested:
            return condition

        @functools.wraps(condition, assigned=(), updated=())
        def on_flat(t: Tensor, y: Tensor, *samples: Tensor) -> Tensor:
            return condition(self._time(t), self.tree_of(y), *samples)

        return on_flat

    def _field(self, f: Callable[..., Any], name: str) -> Callable[..., Tensor]:
        """A field of the flat state; it is called with a third argument where the user's takes one."""
        structure = self

        @functools.wraps(f, assigned=(), updated=())
        def field(t: Tensor, y: Tensor, *samples: Tensor) -> Tensor:
            time, state = structure._time(t), structure.tree_of(y)
            try:
                value = f(time, state, *samples)
            except (TypeError, AttributeError) as problem:
                problem.add_note(
                    f"y0 is a {structure.kind} of tensors, and so is what the field is given. If they are entries of "
                    "one state tensor, give that: torch.stack(y0) or torch.cat(y0)."
                )
                raise
            return structure.slope(value, y, name)

        return field

    def _time(self, t: Tensor) -> Tensor:
        """A time as the user's functions get it: with per-sample step sizes it broadcasts against the largest part."""
        return t.reshape(-1, *[1] * (self.dimensions - 1)) if t.ndim else t

    def slope(self, value: object, y: Tensor, name: str) -> Tensor:
        """The flat slope of what the user's field returned.

        Args:
            value: tensors in containers as the state's.
            y: the flat state.
            name: of the field, for messages.
        """
        lead = y.shape[:-1]
        leaves: list[Any] = []
        assert isinstance(self.tree, Node)
        if not _collect(self.tree, value, leaves):
            _explain(self.tree, value, "", name)
        for part, x in zip(self.parts, leaves, strict=True):
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{name}(t, y){part.path} must be a tensor of shape {(*lead, *part.inner)}, as y{part.path}, got "
                    f"{_kind(x)}."
                )
            if x.shape != (*lead, *part.inner):
                raise ValueError(
                    f"{name}(t, y){part.path} has shape {tuple(x.shape)}, but y{part.path} has {(*lead, *part.inner)}; "
                    "the shapes must be equal (nothing is broadcast)."
                )
            if x.dtype != part.dtype and x.is_complex() and not part.dtype.is_complex:
                raise TypeError(
                    f"{name}(t, y){part.path} is {x.dtype}, but y{part.path} is {part.dtype}: make y0{part.path} "
                    "complex."
                )
            if x.device != self.device:
                raise ValueError(
                    f"{name}(t, y){part.path} is on {x.device}, but the state is on {self.device}: return it there."
                )
        return self._joined(leaves, lead, y.dtype)


# --- containers ----------------------------------------------------------------------------------


def _is_nested(value: object) -> bool:
    """Whether a value is a container of parts and not one tensor.

    Lists and tuples without a tensor in them are one tensor, as numpy reads them. So is a list of 0-dim tensors (and
    numbers): `[rate, 1.0]` is a vector whose entries have gradients.
    """
    if isinstance(value, Tensor):
        return False
    if isinstance(value, Mapping) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return True
    if isinstance(value, tuple):
        return any(isinstance(x, Tensor) or _is_nested(x) for x in value)
    if isinstance(value, list):
        tensors = any(isinstance(x, Tensor) for x in value)
        shaped = any(isinstance(x, (Tensor, np.ndarray)) and x.ndim for x in value)
        return (tensors and shaped) or any(_is_nested(x) for x in value)
    return False


def _numbered(value: Any, path: str, found: list[tuple[str, Any]]) -> Node | int:
    """The containers of a state with numbers in the places of its parts, which are appended to `found`."""
    if not _is_nested(value):
        found.append((path, value))
        return len(found) - 1
    keys: tuple[Hashable, ...] | None = None
    fields: tuple[str, ...] | None = None
    if isinstance(value, Mapping):
        keys = tuple(value)
        paths, children = tuple(f"[{key!r}]" for key in keys), [value[key] for key in keys]
        make = _dict_maker(value, keys)
    else:
        children = list(value)
        fields = getattr(value, "_fields", None)
        paths = tuple(f"[{i}]" for i in range(len(children))) if fields is None else tuple(f".{f}" for f in fields)
        make = type(value)._make if fields is not None else tuple if isinstance(value, tuple) else list
    numbered = tuple(_numbered(child, path + name, found) for name, child in zip(paths, children, strict=True))
    return Node(make, type(value).__name__, paths, keys, fields, numbered)


def _dict_maker(value: Mapping[Any, Any], keys: tuple[Hashable, ...]) -> Callable[[list[Any]], Any]:
    if type(value) is dict or not isinstance(value, dict):
        return lambda values: dict(zip(keys, values, strict=True))
    empty = copy.copy(value)  # a defaultdict keeps its default
    empty.clear()

    def make(values: list[Any]) -> Any:
        made = copy.copy(empty)
        made.update(zip(keys, values, strict=True))
        return made

    return make


def _built(node: Node | int, leaves: Sequence[Any]) -> Any:
    if isinstance(node, int):
        return leaves[node]
    return node.make([_built(child, leaves) for child in node.children])


def _collect(node: Node, value: object, leaves: list[Any]) -> bool:
    """Appends the leaves of a value in the order of the state's parts; False if its structure is another one."""
    values = node.values_of(value)
    if values is None:
        return False
    for child, inner in zip(node.children, values, strict=True):
        if isinstance(child, int):
            leaves.append(inner)
        elif not _collect(child, inner, leaves):
            return False
    return True


def _explain(node: Node, value: object, path: str, name: str) -> None:
    """Raises an error that says where the structure of what a field returned is not the state's."""
    values = node.values_of(value)
    if values is None:
        kind = ValueError if isinstance(value, (Mapping if node.keys is not None else (tuple, list))) else TypeError
        raise kind(
            f"{name}(t, y){path} is {_shown(value)}, but y{path} is {node.description}: return slopes in the "
            "structure of the state."
        )
    for child, inner, of_child in zip(node.children, values, node.paths, strict=True):
        if isinstance(child, Node):
            _explain(child, inner, path + of_child, name)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with the function's value in the place of every leaf; a leaf is what is no tuple, list or dict."""
    if isinstance(tree, Mapping):
        return _dict_maker(tree, tuple(tree))([tree_map(function, x) for x in tree.values()])
    if isinstance(tree, (tuple, list)):
        values = [tree_map(function, x) for x in tree]
        if hasattr(tree, "_fields"):
            return type(tree)._make(values)  # type: ignore[union-attr]  # a named tuple
        return tuple(values) if isinstance(tree, tuple) else values
    return function(tree)


def _kind(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    """A description of a value, for a message."""
    if isinstance(value, Mapping):
        return f"a {_kind(value)} with the keys {', '.join(map(repr, value))}" if value else f"an empty {_kind(value)}"
    if isinstance(value, (tuple, list)):
        return f"a {_kind(value)} of {len(value)}"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"of type {_kind(value)}"


# --- tensors -------------------------------------------------------------------------------------


def _together(paths: Sequence[str], values: Sequence[Any], half: bool) -> list[Tensor]:
    """The parts as tensors on one device. Numbers and integers take the precision and the device of the others."""
    if not values:
        raise ValueError("y0 has no parts: give one tensor or more.")
    tensors = [checked_state(value, f"y0{path}", half=half) for path, value in zip(paths, values, strict=True)]
    given = [(path, x) for path, x, value in zip(paths, tensors, values, strict=True) if isinstance(value, Tensor)]
    for path, x in given[1:]:
        if x.device != given[0][1].device:
            raise ValueError(
                f"y0{given[0][0]} is on {given[0][1].device}, y0{path} on {x.device}: the parts of a state must be on "
                "one device."
            )
    device = given[0][1].device if given else tensors[0].device
    precise = [x.dtype for x, value in zip(tensors, values, strict=True) if _is_precise(value)]
    real = (
        functools.reduce(torch.promote_types, precise, precise[0]).to_real() if precise else tensors[0].dtype.to_real()
    )
    weak = {False: real, True: real.to_complex()}
    return [
        x
        if _is_precise(value) and x.device == device
        else x.to(device, x.dtype if _is_precise(value) else weak[x.is_complex()])
        for x, value in zip(tensors, values, strict=True)
    ]


def _is_precise(value: Any) -> bool:
    """Whether a part has a precision of its own, as floating-point tensors and arrays do."""
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, np.ndarray) and value.dtype.kind in "fc"


def checked_state(y0: Tensor | ArrayLike, name: str = "y0", *, half: bool = False) -> Tensor:
    """A state of one tensor, or a part of one, as a floating-point or complex tensor.

    Args:
        y0: what the user gave.
        name: what messages call it.
        half: whether half precision is allowed.
    """
    try:
        state = _tensor(y0)
    except (RuntimeError, ValueError, TypeError) as problem:
        raise TypeError(
            f"{name} must be a tensor, what torch.as_tensor takes, or a tuple, list or dict of them, got {_kind(y0)}."
        ) from problem
    if state.is_meta or state.layout != torch.strided:
        kind = "on the meta device and holds no numbers" if state.is_meta else f"a {state.layout} tensor"
        raise TypeError(f"{name} is {kind}: give a dense tensor on a device that computes, such as 'cpu'.")
    if state.dtype in (torch.float16, torch.bfloat16) and not half:
        if torch.is_autocast_enabled(state.device.type):  # such a state comes out of the layer before
            return state.float()
        raise TypeError(
            f"{name} has dtype {state.dtype}, too coarse for error control: solve in float32, {name}.float(), "
            "and convert inside f or afterwards."
        )
    if not (state.is_floating_point() or state.is_complex()):
        state = state.to(torch.get_default_dtype())
    return state


def _tensor(values: Tensor | ArrayLike) -> Tensor:
    """What `torch.as_tensor` makes of the values, without its two traps.

    A list of tensors would lose their gradients, and an array that is read-only, reversed or of the
    other byte order would be refused or shared.
    """
    if isinstance(values, Tensor):
        return values  # `as_tensor` would move it to torch's default device
    if isinstance(values, np.ndarray):
        return torch.as_tensor(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    if isinstance(values, list) and _holds_tensors(values):
        return torch.stack([_tensor(value) for value in values])
    if isinstance(values, (list, tuple)) and any(isinstance(x, np.ndarray) for x in values):
        return torch.as_tensor(np.array(values))  # torch warns that it is slow with a list of them
    return torch.as_tensor(values)


def _holds_tensors(values: list[Any]) -> bool:
    return any(isinstance(x, Tensor) or (isinstance(x, list) and _holds_tensors(x)) for x in values)
