"""The Julia code of fields; that of modules is found again.

To export a field takes one slow evaluation of it even when the source is found again (`export.py`). A module whose
submodules, settings and tensors are the same objects as before is taken to be the same field; its value beside the
first state, which Julia compares with torch's before it solves, is the check (`probe.py`). Functions are always
exported: nothing tells what they refer to.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from regnde._engines.julia.code import Code
from regnde._engines.julia.turn import held_here
from regnde._equation import takes_samples
from regnde._errors import UnsupportedField

__all__ = ["SAMPLE", "FieldChanged", "code_of", "one_sample"]

Field = Callable[[Tensor, Tensor], Tensor]
PLAIN = frozenset((bool, int, float, str, type(None)))
DICTIONARIES = frozenset((dict, OrderedDict))
CONTAINERS = DICTIONARIES | {list, tuple, set}

MAX_KNOWN = 32
"""Codes of one module: those of the shapes of states that came last."""


class FieldChanged(Exception):
    """A field's code is not what the field computes now."""


_tracing = threading.RLock()
"""Of the thread that exports a field: torch's tracer patches modules while it is at work, for all threads."""

_known: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, tuple[Hashable, Code]]] = weakref.WeakKeyDictionary()


SAMPLE = torch.zeros(1, dtype=torch.int64)
"""In the tensors of a field of one sample, the place of the sample's index."""


def one_sample(field: Callable[..., Tensor]) -> Field:
    """A field of samples, f(t, y) or f(t, y, samples), as one of a 0-dim time and one sample, y of shape (1, ...)."""
    with_samples = takes_samples(field)

    def of_one(t: Tensor, y: Tensor) -> Tensor:
        time = t.reshape([1] * y.dim())
        return field(time, y, SAMPLE) if with_samples else field(time, y)

    return of_one


def code_of(
    field: Field,
    y0: Tensor,
    name: str,
    *,
    again: bool = False,
    samples: bool = False,
    matrix: bool = False,
    tangents: bool = False,
) -> tuple[Code, bool]:
    """The field's code, and whether it is an earlier one of a module that looks unchanged.

    Args:
        field: function of t and y.
        y0: a state.
        name: of the Julia function.
        again: export the field even if it looks unchanged.
        samples: whether it is a field of samples, and `y0` one of them, of shape (1, ...).
        matrix: whether its value is a matrix for each sample.
        tangents: whether its Jacobian-vector product is asked for.
    """
    key = (name, samples, matrix, tangents, y0.shape, y0.dtype)
    fingerprint = _fingerprint(field) if isinstance(field, nn.Module) else None
    if isinstance(field, nn.Module) and not again:
        earlier, code = _known[field].get(key, (None, None)) if field in _known else (None, None)
        if code is not None and earlier == fingerprint and _trained_as_before(code):
            return code, True
    if held_here(_tracing):
        raise UnsupportedField(
            "a solve inside of a field, or in a signal's handler while a field is exported, runs on the torch "
            "engine: set Solver(engine='torch') there."
        )
    from regnde._engines.julia.export import export  # with sympy and torch.fx it is slow to import

    with _tracing, torch.inference_mode(mode=False), torch.enable_grad():
        y0 = y0.clone() if y0.is_inference() else y0
        function = one_sample(field) if samples else field
        code = export(function, y0, name=name, any_batch=not samples, matrix=matrix, tangents=tangents)
    if isinstance(field, nn.Module):
        own = {id(x) for x in _tensors(field)}
        if all(id(x) in own or not x.requires_grad for x in code.tensors):
            _keep(_known.setdefault(field, OrderedDict()), key, (fingerprint, code))
    return code, False


def _keep(codes: OrderedDict[Hashable, tuple[Hashable, Code]], key: Hashable, code: tuple[Hashable, Code]) -> None:
    """Adds a code, and forgets the oldest one if there are too many."""
    codes.pop(key, None)
    codes[key] = code
    if len(codes) > MAX_KNOWN:
        codes.popitem(last=False)


def _trained_as_before(code: Code) -> bool:
    """Whether the tensors that need a gradient are those that did."""
    return all(x.requires_grad == needed for x, needed in zip(code.tensors, code.needs_gradient, strict=True))


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters, buffers and tensors that are attributes."""
    found = [*module.parameters(), *module.buffers()]
    for part in module.modules():
        found += [value for value in vars(part).values() if isinstance(value, Tensor)]
    return found


def _fingerprint(module: nn.Module) -> Hashable:
    """What a module is made of: submodules, plain settings by value, everything else by identity."""
    marks: list[Hashable] = []
    parts, found = [module], {id(module)}
    for part in parts:
        for value in part.__dict__.values():
            kind = type(value)
            if kind in CONTAINERS:
                if value:  # most of a module's own dictionaries are empty
                    marks.append((kind, *map(_mark, value.values() if kind in DICTIONARIES else value)))
            else:
                marks.append(_mark(value))
        for child in part._modules.values():
            if child is not None and id(child) not in found:
                found.add(id(child))
                parts.append(child)
    return tuple(marks)


def _mark(value: object) -> Hashable:
    if type(value) in PLAIN:
        return value
    return (id(value), value.requires_grad) if isinstance(value, Tensor) else id(value)
