"""What torchdiffeq's functions are given, with the state as one tensor."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regnde._arguments import check_time_first
from regnde._dropin_callbacks import callbacks_of
from regnde._dropin_methods import Kind, kind_of
from regnde._engines.base import StepCallbacks
from regnde._solver import Gradient, Solver
from regnde._state import Structure
from regnde._tolerance import Entries, entries

__all__ = ["Problem", "problem_of", "root_mean_square"]

Field = Callable[[Tensor, Tensor], Tensor]
HALF: tuple[Kind, ...] = ("explicit", "adams")  # take states of half precision; the others control or solve something
STEP, ALL = ("callback_step",), ("callback_step", "callback_accept_step", "callback_reject_step")
CALLBACKS: Mapping[Kind, tuple[str, ...]] = {
    "adaptive": ALL,
    "explicit": STEP,
    "adams": STEP,
    "implicit": STEP,
    "scipy": (),
}


@dataclass(frozen=True, eq=False)
class Problem:
    """An initial value problem.

    Attributes:
        method: torchdiffeq's name of the method.
        kind: of the method.
        field: the right-hand side, of the flat state.
        y0: the flat state at t[0].
        t: times, shape (T,).
        structure: how the state is put together.
        rtol, atol: as they were given.
        gradient: how it is computed.
        callbacks: what is called at each step.
    """

    method: str
    kind: Kind
    field: Field
    y0: Tensor
    t: Tensor
    structure: Structure
    rtol: Any
    atol: Any
    gradient: Gradient
    callbacks: StepCallbacks | None

    def tolerances(self) -> Entries:
        """The tolerances of the flat state's entries."""
        resolved = Solver(rtol=self.rtol, atol=self.atol).resolve(sde=False)
        return entries(resolved.rtol, resolved.atol, self.structure)

    def times_until(self, span: float) -> Tensor:
        """The first time, and one that is this span away in the direction of the second one; in double precision."""
        first = self.t[:1].double()
        return torch.cat([first, first.detach() + (span if self.t[1] >= self.t[0] else -span)])

    def norm(self, given: Callable[[Any], Tensor] | None) -> Callable[[Tensor], Tensor] | None:
        """The norm of a flat state: the given one, of the user's state, or of several parts the largest part's RMS.

        None is the root mean square over all entries.
        """
        tree = self.structure.tree_of
        if given is not None:
            return lambda x: _one_number(given(tree(x)))
        return (lambda x: largest_part(tree(x))) if self.structure.nested else None


def problem_of(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Any,
    method: str,
    rtol: Any,
    atol: Any,
    gradient: Gradient,
) -> Problem:
    """The problem that the user's arguments pose; `gradient` is how its gradient is computed."""
    kind = kind_of(method)
    if not callable(func):
        raise TypeError(f"odeint: func must be callable as func(t, y), got {type(func).__name__}.")
    if not isinstance(y0, Tensor) and not (isinstance(y0, tuple) and y0):
        raise TypeError(f"odeint: y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}.")
    check_time_first("func", func, by="odeint")
    times = torch.as_tensor(t)
    if times.ndim != 1 or len(times) == 0:
        given = f"the single time {times.item():g}" if times.ndim == 0 else f"shape {tuple(times.shape)}"
        raise ValueError(f"odeint: t must be a sequence of times such as [0.0, 1.0], got {given}.")
    structure = Structure(y0, half=kind in HALF)
    field: Any = structure.on_flat(_with_shapes_of(func) if structure.nested else func)
    callbacks = callbacks_of(func, method, CALLBACKS[kind], structure, adjoint=gradient == "checkpoint")
    return Problem(method, kind, field, structure.flat, times, structure, rtol, atol, gradient, callbacks)


def _with_shapes_of(func: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Any], Any]:
    """A field of several parts, whose slopes may have other dimensions of size 1 than the parts, as in torchdiffeq."""

    @functools.wraps(func, assigned=(), updated=())
    def field(t: Tensor, y: Any) -> Any:
        slopes = func(t, y)
        if not isinstance(slopes, (tuple, list)) or len(slopes) != len(y):
            return slopes
        return tuple([_shaped(slope, part) for slope, part in zip(slopes, y, strict=True)])

    return field


def _shaped(slope: Any, part: Any) -> Any:
    if not (isinstance(slope, Tensor) and isinstance(part, Tensor)) or slope.shape == part.shape:
        return slope
    same = [n for n in slope.shape if n != 1] == [n for n in part.shape if n != 1]
    return slope.reshape(part.shape) if same else slope


def _one_number(norm: object) -> Tensor:
    """What a norm of the user's returned."""
    if not isinstance(norm, Tensor) or norm.numel() != 1:
        given = f"shape {tuple(norm.shape)}" if isinstance(norm, Tensor) else type(norm).__name__
        raise TypeError(f"odeint: norm must return a 0-dim tensor, got {given}.")
    return norm.reshape(())


def largest_part(state: tuple[Any, ...]) -> Tensor:
    """The largest root mean square of the parts of a state."""
    return torch.stack([root_mean_square(part) for part in _leaves(state)]).amax()


def root_mean_square(x: Tensor) -> Tensor:
    """Over all entries; 0 where there are none, with gradient 0 where it is 0."""
    size: Tensor = torch.linalg.vector_norm(x)
    return size / math.sqrt(max(x.numel(), 1))


def _leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state.values() if isinstance(state, dict) else state:
            yield from _leaves(part)
