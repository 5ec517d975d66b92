"""The modules of a user's field in `diagnose`: found, in evaluation mode, in float64, with smooth activations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["Activations", "found", "in_double", "undisturbed"]

DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}

KINKED = "relu leaky_relu rrelu prelu relu6 elu selu celu hardswish threshold softshrink hardshrink"
SMOOTH = dict.fromkeys(KINKED.split(), functional.silu) | {"hardtanh": torch.tanh, "hardsigmoid": torch.sigmoid}
"""A smooth function for each activation that has a kink in its value or in its first derivative."""


def found(f: Any) -> tuple[nn.Module, ...]:
    """The modules that a function is, is a method of, has as arguments, or refers to by name.

    They are also looked for in lists, tuples and dicts, in the functions of the same file that it calls, and in the
    attributes of objects whose class is of that file.
    """
    f = inspect.unwrap(f) if callable(f) else f
    innermost = f
    while isinstance(innermost, functools.partial):
        innermost = innermost.func
    parts = (f,) if isinstance(f, nn.Module) else (f, *getattr(f, "__dict__", {}).values())
    modules = _inside(parts, getattr(innermost, "__module__", None), set())
    return tuple({id(x): x for x in modules}.values())


def _inside(parts: Iterable[Any], file: str | None, seen: set[int]) -> Iterator[nn.Module]:
    """The modules in some objects, where functions and objects of one file are looked into."""
    for x in parts:
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, nn.Module):
            yield x
        elif isinstance(x, functools.partial):
            yield from _inside((x.func, *x.args, *x.keywords.values()), file, seen)
        elif isinstance(x, list | tuple | dict):
            yield from _inside(x.values() if isinstance(x, dict) else x, file, seen)
        elif inspect.ismethod(x):
            yield from _inside((x.__self__, x.__func__), file, seen)
        elif inspect.isfunction(x) and x.__module__ == file:
            names = inspect.getclosurevars(x)
            yield from _inside((*names.nonlocals.values(), *names.globals.values()), file, seen)
        elif not isinstance(x, type) and type(x).__module__ == file:
            yield from _inside(getattr(x, "__dict__", {}).values(), file, seen)


class Activations(TorchFunctionMode):
    """Counts the calls of activations that have kinks, and calls smooth functions in their place if asked.

    Attributes:
        calls: how often each was called, by name.
    """

    def __init__(self, *, replace: bool = False) -> None:
        super().__init__()
        self.replace = replace
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name: str = getattr(func, "__name__", "")
        kinked = name.strip("_")
        if kinked in SMOOTH:
            self.calls[kinked] += 1
            if self.replace:
                x = args[0] if args else (kwargs or {})["input"]
                smooth = SMOOTH[kinked](x)
                return x.copy_(smooth) if name.endswith("_") else smooth
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def undisturbed(modules: Iterable[nn.Module], y0: Tensor) -> Iterator[None]:
    """Evaluation mode and no warnings; afterwards the modes and torch's random numbers are as they were."""
    training = [m for module in modules for m in module.modules() if m.training]
    devices = [y0.device] if y0.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tolerances below the resolution are a finding here
        try:
            for m in training:
                m.training = False
            yield
        finally:
            for m in training:
                m.training = True


@contextlib.contextmanager
def in_double(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In this context copies in float64 replace parameters, buffers and tensors that are plain attributes.

    The tensors themselves are not changed: with another dtype they would lose their graphs and hooks.
    """
    parts = {id(m): m for module in modules for m in module.modules()}.values()
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (attributes, name, x)
        for m in parts
        for attributes in (m._parameters, m._buffers, vars(m))
        for name, x in attributes.items()
        if isinstance(x, Tensor) and x.dtype in DOUBLE
    ]
    copies = {id(x): x.detach().to(DOUBLE[x.dtype]) for _, _, x in places}  # shared ones stay shared
    try:
        for attributes, name, x in places:
            attributes[name] = copies[id(x)]
        yield
    finally:
        for attributes, name, x in places:
            attributes[name] = x
