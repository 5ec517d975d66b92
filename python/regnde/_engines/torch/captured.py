"""Finds what a field reads besides its arguments, as far as Python shows it, to restore it and to name changes."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

__all__ = ["Captured", "Surroundings"]

DEPTH = 4  # from a function to what it captures, and so on; submodules count as one with their module
MOST = 1000  # objects that are searched, not counting modules and their tensors
LARGE = 2**16  # entries of a tensor from which its version is compared, not its contents
SCALARS = (bool, int, float, complex, str, type(None))


class Surroundings:
    """What a field may change when it is evaluated: random states and tensors such as running statistics.

    Args:
        functions: the user's functions.
        device: of the state.
    """

    def __init__(self, functions: Sequence[Callable[..., object]], device: torch.device) -> None:
        self.device = device
        found = (thing for _, thing in _captured(functions) if isinstance(thing, Tensor) and not thing.requires_grad)
        self.tensors = [x for x in found if x.layout == torch.strided and x.device.type != "meta"]
        self._versions = [x._version for x in self.tensors]
        self._latest: list[Tensor] = [torch.empty(0)] * len(self.tensors)
        self._random: list[Tensor] = []

    def snapshot(self) -> tuple[list[Tensor], list[Tensor]]:
        """Random states and contents now; what did not change since the last time is no new copy."""
        for i, (x, old) in enumerate(zip(self.tensors, self._latest, strict=True)):
            if x.numel() < LARGE and not (old.shape == x.shape and torch.equal(x, old)):
                self._latest[i] = x.detach().clone()
            elif x.numel() >= LARGE and x._version != self._versions[i]:  # a large one is copied once it is written to
                self._latest[i], self._versions[i] = x.detach().clone(), x._version
        states = _random_states(self.device)
        if len(self._random) != len(states) or not all(map(torch.equal, states, self._random)):
            self._random = states
        return self._random, list(self._latest)

    def restore(self, then: tuple[list[Tensor], list[Tensor]]) -> None:
        """Makes them what they were; autograd does not see it."""
        random, contents = then
        torch.set_rng_state(random[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(random[1], self.device)
        for x, content in zip(self.tensors, contents, strict=True):
            if content.shape == x.shape and not torch.equal(x, content):
                x.data.copy_(content)

    @contextmanager
    def as_in(self, then: tuple[list[Tensor], list[Tensor]]) -> Iterator[None]:
        """Within, they are what they were."""
        known = zip(self.tensors, then[1], strict=True)
        now = _random_states(self.device), [x.detach().clone() if x.shape == y.shape else y for x, y in known]
        self.restore(then)
        try:
            yield
        finally:
            self.restore(now)


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


class Captured:
    """A fingerprint of what functions capture, to tell and to name what has changed since.

    Args:
        functions: the user's functions.
        names: of the functions, for the message if there are several.
    """

    def __init__(self, functions: Sequence[Callable[..., object]], names: Sequence[str]) -> None:
        self.functions, self.names = functions, names if len(names) > 1 else ("",)
        self.before = _fingerprint(functions, self.names)
        tensors = (thing for _, thing in _captured(functions) if isinstance(thing, Tensor))
        self._parameters = [(weakref.ref(x), _version_mark(x)) for x in tensors if x.is_leaf and x.requires_grad]

    def parameters_changed(self) -> bool:
        """Whether a tensor that requires a gradient was written to, or has other memory."""
        known = ((reference(), mark) for reference, mark in self._parameters)
        return any(x is not None and _version_mark(x) != mark for x, mark in known)

    def changes(self) -> str:
        """A sentence that names what has changed since."""
        now = _fingerprint(self.functions, self.names)
        names = [name for name in self.before.keys() | now.keys() if self.before.get(name) != now.get(name)]
        if not names:
            return "Something that the field reads was changed, or it draws random numbers outside torch."
        return f"Changed since the solve: {', '.join(sorted(names)[:5])}{' and more' if len(names) > 5 else ''}."


def _version_mark(x: Tensor) -> tuple[int, int, int]:
    """Values of which one differs after a change of the tensor."""
    return id(x), x.data_ptr() if x.layout == torch.strided else 0, x._version


def _fingerprint(functions: Sequence[Callable[..., object]], names: Sequence[str]) -> dict[str, object]:
    marks: dict[str, object] = {}
    for name, thing in _captured(functions, names):
        if isinstance(thing, Tensor):
            marks[name] = (*_version_mark(thing), thing.requires_grad)
        elif isinstance(thing, SCALARS):
            marks[name] = thing
    return marks


def _captured(functions: Sequence[Callable[..., object]], names: Sequence[str] = ()) -> Iterator[tuple[str, object]]:
    """All objects that the functions refer to, each once, the nearest first; names begin with the function's."""
    named = zip(names or [""] * len(functions), functions, strict=True)
    waiting: deque[tuple[str, object, int]] = deque((name, function, 0) for name, function in named)
    seen: set[int] = set()
    while waiting:
        name, thing, depth = waiting.popleft()
        if isinstance(thing, SCALARS):
            yield name, thing
        elif id(thing) not in seen and depth <= DEPTH:
            seen.add(id(thing))
            yield name, thing
            module = isinstance(thing, torch.nn.Module)
            room = None if module else max(MOST - len(waiting), 0)
            try:
                waiting.extend(
                    (f"{name}.{key}".lstrip("."), x, depth + (not module)) for key, x in islice(_parts(thing), room)
                )
            except Exception:  # a container of the user's that can not be read now is not looked into
                continue


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """The objects that an object refers to, by name."""
    if isinstance(thing, torch.nn.Module):
        for key, value in vars(thing).items():
            if key in ("_parameters", "_buffers", "_modules"):
                yield from value.items()
            elif not key.startswith("_"):
                yield key, value
    elif isinstance(thing, functools.partial):
        yield from (("func", thing.func), *_numbered(thing.args), *thing.keywords.items())
    elif inspect.ismethod(thing):
        yield from (("self", thing.__self__), ("function", thing.__func__))
    elif inspect.isfunction(thing):
        yield from _variables(thing)
    elif isinstance(thing, Mapping):
        yield from ((str(key), value) for key, value in thing.items())
    elif isinstance(thing, (list, tuple)):
        yield from _numbered(thing)
    elif not isinstance(thing, (Tensor, type, types.ModuleType)) and hasattr(thing, "__dict__"):
        yield from vars(thing).items()
        if callable(thing):
            yield from ((name, call) for name, call in vars(type(thing)).items() if name == "__call__")


def _numbered(values: Sequence[object]) -> Iterator[tuple[str, object]]:
    return ((str(i), value) for i, value in enumerate(values))


def _variables(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Closure variables (an empty cell has none yet), global names, defaults and a wrapped function."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:
            continue
    names = function.__globals__
    yield from ((name, names[name]) for name in function.__code__.co_names if name in names)
    yield from _numbered(function.__defaults__ or ())
    yield from (function.__kwdefaults__ or {}).items()
    if hasattr(function, "__wrapped__"):
        yield "wrapped", function.__wrapped__
