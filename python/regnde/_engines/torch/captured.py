"""What a field reads besides its arguments, as far as Python shows it: to restore it, and to say what changed."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

__all__ = ["Captured", "buffers_in_training", "random_states", "with_contents", "with_random_states"]

DEPTH = 4  # from a function to what it captures, and so on; submodules count as one with their module
MOST = 1000  # entries of one thing
SCALARS = (bool, int, float, complex, str, type(None))


def buffers_in_training(functions: Sequence[Callable[..., object]]) -> list[Tensor]:
    """Buffers of the captured modules in training mode: an evaluation may write to them (batch norm)."""
    modules = (thing for _, thing in _captured(functions) if isinstance(thing, torch.nn.Module) and thing.training)
    return list({id(buffer): buffer for module in modules for buffer in module.buffers(recurse=False)}.values())


class Captured:
    """A fingerprint of what functions capture, to name what has changed since.

    Args:
        functions: the user's functions.
    """

    def __init__(self, functions: Sequence[Callable[..., object]]) -> None:
        self.functions = functions
        self.before = _fingerprint(functions)

    def changes(self) -> str:
        """A sentence that names what has changed since."""
        now = _fingerprint(self.functions)
        names = [name for name in self.before.keys() | now.keys() if self.before.get(name) != now.get(name)]
        if not names:
            return "Something that the field reads was changed, or it draws random numbers outside torch."
        return f"Changed since the solve: {', '.join(sorted(names)[:5])}{' and more' if len(names) > 5 else ''}."


def _fingerprint(functions: Sequence[Callable[..., object]]) -> dict[str, object]:
    marks: dict[str, object] = {}
    for name, thing in _captured(functions):
        if isinstance(thing, Tensor):
            marks[name] = (id(thing), thing.data_ptr(), thing._version, thing.requires_grad)
        elif isinstance(thing, SCALARS):
            marks[name] = thing
    return marks


def _captured(functions: Sequence[Callable[..., object]]) -> Iterator[tuple[str, object]]:
    """Everything that the functions capture, each thing once, with a name."""
    waiting: list[tuple[str, object, int]] = [("", function, 0) for function in functions]
    seen: set[int] = set()
    while waiting:
        name, thing, depth = waiting.pop()
        if isinstance(thing, SCALARS):
            yield name, thing
        elif id(thing) not in seen and depth <= DEPTH:
            seen.add(id(thing))
            yield name, thing
            deeper = depth + (not isinstance(thing, torch.nn.Module))
            waiting += [(f"{name}.{key}" if name else key, value, deeper) for key, value in islice(_parts(thing), MOST)]


def _parts(thing: object) -> Iterator[tuple[str, object]]:
    """What a thing holds, by name."""
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
    if hasattr(function, "__wrapped__"):
        yield "wrapped", function.__wrapped__


def random_states(device: torch.device) -> list[Tensor]:
    """States of the generators that a field on this device draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def with_random_states(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as they were then."""
    present = random_states(device)
    _set_generators(states, device)
    try:
        yield
    finally:
        _set_generators(present, device)


def _set_generators(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def with_contents(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Buffers, such as running statistics, with the contents that they had then. Autograd does not record it."""
    present = [buffer.clone() for buffer in buffers]
    for buffer, value in zip(buffers, values, strict=True):
        buffer.data.copy_(value)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, present, strict=True):
            buffer.data.copy_(value)
