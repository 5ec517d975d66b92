"""Tensors that a field uses besides its arguments, found in the autograd graph of one of its values."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["explored", "leaves_of"]

HOPS = 3  # from a function to what it captures, and so on
LEAF = "torch::autograd::AccumulateGrad"  # torch's name of the node of a leaf


def explored(
    field: Callable[[Tensor, Tensor], Tensor], function: object, t: Tensor, y: Tensor
) -> tuple[Tensor, list[Tensor] | None]:
    """A field's value, and the leaves of autograd that it is a function of.

    Args:
        field: evaluated once, with a graph.
        function: what the user passed as field: parameters and leaves that it holds count, used or not.
        t: time, 0-dim.
        y: state.

    Returns:
        The value with its graph; and the leaves, or None if they do not tell the whole story: the
        field draws random numbers, or uses results of another computation that is itself to be
        differentiated.
    """
    before = _random_states(y.device)
    begun = torch.ones((), requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]  # it has one
    argument = y.view_as(y)  # a node at which to stop
    slope = field(t, argument)
    leaves = leaves_of([slope], known=[argument], begun=begun)
    drawn = any(not torch.equal(*pair) for pair in zip(before, _random_states(y.device), strict=True))
    if leaves is None or drawn:
        return slope, None
    found = {id(leaf): leaf for leaf in [*leaves, *_held(function)]}
    return slope, list(found.values())


def leaves_of(values: Sequence[Tensor], *, known: Sequence[Tensor], begun: int = 0) -> list[Tensor] | None:
    """The leaves besides `known` that the graph of `values` reaches.

    Args:
        values: tensors with a graph.
        known: tensors at which to stop: leaves not to be told, or results.
        begun: number of a node of this thread.

    Returns:
        The leaves; None if the graph reaches a node older than that, which is another computation's.
    """
    found = {id(value): value for value in values if value.is_leaf and value.requires_grad}
    seen: set[Any] = {value.grad_fn for value in known}
    waiting: list[Any] = [value.grad_fn for value in values if value.grad_fn not in seen | {None}]
    seen.update(waiting)
    while waiting:
        node = waiting.pop()
        edges = node.next_functions
        if not edges and node.name() == LEAF:
            found[id(node.variable)] = node.variable
        elif begun and node._sequence_nr() < begun:
            return None
        for further, _ in edges:
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)
    for leaf in known:
        found.pop(id(leaf), None)
    return list(found.values())


def _held(function: object) -> list[Tensor]:
    """Leaves that want gradients in what a function captures or names: it may use them later only."""
    leaves: list[Tensor] = []
    things, seen = [function], set[int]()
    for _ in range(HOPS):
        further: list[object] = []
        for thing in things:
            if id(thing) in seen:
                continue
            seen.add(id(thing))
            if isinstance(thing, torch.nn.Module):
                leaves += [p for p in thing.parameters() if p.requires_grad]
            elif isinstance(thing, Tensor):
                leaves += [thing] if thing.is_leaf and thing.requires_grad else []
            elif isinstance(thing, (list, tuple)):
                further += thing
            elif isinstance(thing, functools.partial):
                further += [thing.func, *thing.args, *thing.keywords.values()]
            elif inspect.ismethod(thing):
                further += [thing.__self__, thing.__func__]
            elif inspect.isfunction(thing):
                captured = inspect.getclosurevars(thing)
                further += [*captured.nonlocals.values(), *captured.globals.values(), *(thing.__defaults__ or ())]
        things = further
    return leaves


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
