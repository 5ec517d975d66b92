"""Tensors that a field uses besides its arguments, found in the autograd graph of one of its values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["explored", "leaves_of"]

LEAF = "torch::autograd::AccumulateGrad"  # torch's name of the node of a leaf


def explored(
    field: Callable[[Tensor, Tensor], Tensor], function: object, t: Tensor, y: Tensor
) -> tuple[Tensor, list[Tensor] | None]:
    """A field's value, and the leaves of autograd that it is a function of.

    Args:
        field: evaluated once, with a graph.
        function: what the user passed as field: if a module, all its parameters count.
        t: time, 0-dim.
        y: state.

    Returns:
        The value with its graph; and the leaves, or None if they do not tell the whole story: the
        field draws random numbers, runs under autocast, or uses results of another computation
        that is itself to be differentiated.
    """
    before = _random_states(y.device)
    begun = torch.ones((), requires_grad=True).clone().grad_fn._sequence_nr()  # type: ignore[union-attr]  # it has one
    argument = y.view_as(y)  # a node at which to stop
    slope = field(t, argument)
    leaves = leaves_of([slope], known=[argument], begun=begun)
    drawn = any(not torch.equal(*pair) for pair in zip(before, _random_states(y.device), strict=True))
    if leaves is None or drawn or torch.is_autocast_enabled(y.device.type):
        return slope, None
    if isinstance(function, torch.nn.Module):
        found = {id(leaf) for leaf in leaves}
        leaves += [p for p in function.parameters() if p.requires_grad and id(p) not in found]
    return slope, leaves


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
        if node.name() == LEAF:
            found[id(node.variable)] = node.variable
        elif node._sequence_nr() < begun:
            return None
        for further, _ in node.next_functions:
            if further is not None and further not in seen:
                seen.add(further)
                waiting.append(further)
    for leaf in known:
        found.pop(id(leaf), None)
    return list(found.values())


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
