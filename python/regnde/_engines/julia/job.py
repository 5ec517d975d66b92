"""What every solve in Julia is given, of one state or of samples, and how its steps are read back."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.julia import runtime
from regnde._engines.julia.arguments import ArgumentBuffer
from regnde._engines.julia.code import Code
from regnde._engines.julia.handle import Handle
from regnde._engines.julia.methods import IMPLICIT, SIZES
from regnde._engines.julia.probe import ValueAt
from regnde._event import Event
from regnde._mass import Mass
from regnde._solver import ResolvedSolver
from regnde._stops import Segment

__all__ = [
    "RESULTS",
    "STATUSES",
    "Job",
    "Tolerances",
    "Weights",
    "call_for",
    "interpolant_of",
    "may_wait",
    "pieces_of",
    "records_like",
    "told",
]

Tolerances = tuple[float | Tensor, float | Tensor]
Weights = tuple[NDArray[np.float64], ...]
"""Of a method's interpolant; of an explicit method's, and an implicit one's."""

Options = tuple[str | float | bool, ...]
STATUSES = ("success", "non-finite", "underflow", "steps", "event")
RESULTS = 14
"""Numbers that Julia's `bridge_solve` tells of one solve."""

NO_CROSSINGS = torch.empty((0, 0), dtype=torch.float64)


@dataclass(eq=False, kw_only=True)
class Job:
    """The arguments that solves of one state and of samples have in common, and what is read back of both.

    Attributes:
        codes: the field, or drift and diffusion.
        times: save times.
        method: its name in Julia.
        solver: controller, sizes of steps.
        tolerances: relative and absolute: numbers, or tensors like the state.
        segments: of the span between the stops.
        record: whether estimates are recorded.
        keep: what Julia keeps of each step: `"nothing"`, `"states"` or `"stages"`.
        grid: ends of the steps of a fixed-step method.
        mass: the mass matrix; None for the identity.
        events: what to look for.
        conditions: their conditions, in Julia.
        pieces: how many tensors like the state the interpolant of a step is made of; 0 if none are asked for.
        times_need_gradient: whether the times carry a gradient.
        compared: values of the field, or of drift and diffusion, with which Julia compares its own; None to compare
            nothing.
        crossings: float64, a row for each step with events, as Julia's `bridge_crossings` has its columns.
        handle: of the saved solve.
    """

    codes: tuple[Code, ...]
    times: tuple[float, ...]
    method: str
    solver: ResolvedSolver
    tolerances: Tolerances
    segments: tuple[Segment, ...]
    record: bool
    keep: str
    grid: tuple[float, ...] = ()
    mass: Mass | None = None
    events: tuple[Event, ...] = ()
    conditions: tuple[Code, ...] = ()
    pieces: int = 0
    times_need_gradient: bool = False
    compared: Sequence[ValueAt | None] = (None, None)
    crossings: Tensor = field(init=False)
    handle: Handle = field(init=False)

    def arguments(
        self, y0: Tensor, ys: Tensor, results: Tensor | array[float], tensors: Sequence[Tensor]
    ) -> tuple[ArgumentBuffer, Options]:
        """The argument buffer, and the options that follow it in a call, up to whether estimates are recorded.

        Args:
            y0: the initial state.
            ys: where to write the states at the save times.
            results: where to write the numbers of the solve.
            tensors: of the fields, one field's after the other's.
        """
        arguments, solver = ArgumentBuffer(), self.solver
        arguments.tensor(y0)
        arguments.tensor(ys)
        arguments.doubles(array("d", self.times))
        arguments.doubles(results) if isinstance(results, array) else arguments.tensor(results)
        for value_at in self.compared:
            for tensor in value_at or (None, None):
                arguments.tensor(tensor)
        tolerances = arguments.tolerances(*self.tolerances)
        arguments.segments(self.segments)
        controller = arguments.controller(solver.controller)
        arguments.grid(self.grid)
        arguments.mass(self.mass)
        arguments.fields(self.codes, tensors)
        arguments.conditions(self.conditions, self.events, y0)
        dt0 = math.nan if solver.dt0 is None else solver.dt0
        sizes = dt0, solver.dt_min, solver.dt_max
        return arguments, (self.method, *tolerances, *sizes, controller, solver.max_steps, self.record)

    def crossings_of(self, julia: Any, number: int, count: int) -> Tensor:
        """The steps with events of a solve, on Julia's thread."""
        if not count:
            return NO_CROSSINGS
        found = torch.empty((count, 3 + 2 * len(self.events)), dtype=torch.float64)
        julia.bridge_crossings(number, found.data_ptr())
        return found


def pieces_of(julia: Any, number: int, pieces: Tensor) -> Tensor:
    """The tensor filled with the pieces of a solve's interpolants, on Julia's thread."""
    if pieces.numel():
        place = ArgumentBuffer()
        place.tensor(pieces)
        julia.bridge_pieces(number, *place.location)
    return pieces


def records_like(error: Tensor, stiffness: Tensor, y0: Tensor) -> tuple[Tensor, Tensor]:
    """The records on the state's device and in its real dtype."""
    device, real = y0.device, y0.dtype.to_real()
    return error.to(device, real), stiffness.to(device, real)


def interpolant_of(
    weights: Weights, t: float, h: float, y: Tensor, k: Sequence[Tensor], *, implicit: bool
) -> Interpolant:
    """The interpolant of the step of size h from (t, y); k may have more slopes than the step's method has."""
    own = weights[int(implicit)] if len(weights) > 1 else weights[0]
    return Interpolant(t, h, y, k[: len(own)], own)


def told(stiffness: Tensor, size: float | None, mass: Mass | None) -> Tensor | None:
    """The record of the stiffness; None of a method without a stability size, and with algebraic equations."""
    return None if size is None or (mass is not None and mass.singular) else stiffness


def may_wait(codes: Sequence[Code], method: str, y: Tensor) -> bool:
    """Whether steps may wait for tasks of Julia's or for its output: all but those of explicit methods and our code.

    Args:
        codes: the fields.
        method: its name in Julia.
        y: a state.
    """
    return not (method in SIZES and method not in IMPLICIT and len(codes) == 1 and codes[0].name and y.is_cpu)


def call_for(name: str, *arguments: object, waits: bool = True) -> None:
    """Calls a function of RegNDE for what it writes; `waits` as for `runtime.call`."""
    runtime.call(lambda julia: getattr(julia, name)(*arguments) and None, waits=waits)
