"""Solves between torch and Julia: one crossing forward, one backward (`arguments.py` says how they cross)."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regnde._engines.julia import runtime
from regnde._engines.julia.arguments import ArgumentBuffer, in_memory, path_address, synchronize
from regnde._engines.julia.code import Code
from regnde._engines.julia.fields import FieldChanged
from regnde._engines.julia.handle import Handle
from regnde._engines.julia.job import RESULTS, STATUSES, Job, Tolerances, call_for, may_wait, pieces_of, records_like
from regnde._mass import Mass
from regnde._noise import BrownianPath
from regnde._solver import ResolvedSolver
from regnde._stops import Segment

__all__ = ["LocalJob", "SolveJob"]


@dataclass(eq=False, kw_only=True)
class SolveJob(Job):
    """The arguments of one solve, and what `run` finds beside the differentiable tensors.

    Attributes:
        reads_steps: whether anything is read of the steps.
        dense: whether the interpolants of all steps are asked for, or those of the steps with events alone.
        path: the noise of an SDE.
        local_start: whether `ys` has one more row behind those of the save times, for `save_local_start`.
        adjoint: name of SciMLSensitivity's adjoint for the way back, or "" for the discrete one.
        drawn: index of the save time that is not the caller's, or None.
        status: `"success"`, `"non-finite"`, `"underflow"` or `"steps"`, with `reason`, or `"event"`.
        saved: rows of `ys` that were reached.
        calls: evaluations of the first and the second field.
        first_error: estimate of the first accepted step; NaN without one.
        first_size: its size; NaN without one.
        jacobians: of an implicit method, each with its derivative by the time.
        factorisations: of an implicit method.
        ends: of every accepted step, float64 (S,), and so are the following, if `reads_steps`.
        sizes: of the steps, signed.
        implicit: whether an implicit method made the step, 0 or 1.
        waits: whether its steps may wait for Julia's tasks or output.
    """

    reads_steps: bool = True
    dense: bool = False
    path: BrownianPath | None = None
    local_start: bool = False
    adjoint: str = ""
    drawn: int | None = None
    status: str = ""
    reason: str = ""
    accepted: int = 0
    saved: int = 0
    rejected: int = 0
    calls: tuple[int, int] = (0, 0)
    dt_first: float = 0.0
    t: float = 0.0
    dt: float = 0.0
    first_error: float = math.nan
    first_size: float = math.nan
    jacobians: int = 0
    factorisations: int = 0
    ends: Tensor = field(init=False)
    sizes: Tensor = field(init=False)
    implicit: Tensor = field(init=False)
    waits: bool = field(init=False)

    def run(self, y0: Tensor, ts: Tensor, stops: Tensor, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        """States at the save times, error and stiffness records in its real dtype, pieces (S, pieces, *y0.shape).

        None stands for what is not asked for.

        Raises:
            FieldChanged: if the code and the field disagree beside the first state.
        """
        ys = y0.new_empty((len(self.times) + self.local_start, *y0.shape))
        results = array("d", bytes(8 * RESULTS))
        arguments, options = self.arguments(y0, ys, results, tensors)
        further = self.dense, self.keep
        self.waits = may_wait(self.codes, self.method, y0)
        threads, handle = torch.get_num_threads(), Handle()
        number = handle.number

        def solve(julia: Any) -> tuple[list[Tensor], Tensor, Tensor | None, str]:
            if not julia.bridge_solve(handle.number, *arguments.location, *options, *further, path, threads):
                raise FieldChanged
            rows = [torch.from_numpy(row) for row in np.empty((5, int(results[1]) if self.reads_steps else 0))]
            if self.reads_steps:
                julia.bridge_records(number, rows[0].data_ptr())
            crossings, pieces = self.crossings_of(julia, number, int(results[10])), None
            if self.pieces:
                steps = len(rows[0]) if self.dense else len(crossings)
                pieces = pieces_of(julia, number, y0.new_empty((steps, self.pieces, *y0.shape)))
            return rows, crossings, pieces, str(julia.bridge_reason(number, 1)) if results[0] else ""

        synchronize(y0)
        with path_address(self.path, y0, matrix=self.codes[-1].columns > 0) as path:
            rows, self.crossings, pieces, self.reason = runtime.call(solve, waits=self.waits)
        self.handle = handle
        status, self.accepted, self.saved, self.rejected, *calls = map(int, results[:6])
        self.status, self.calls = STATUSES[status], (calls[0], calls[1])
        self.dt_first, self.t, self.dt, self.first_error = results[6:10]
        self.jacobians, self.factorisations = map(int, results[11:13])
        self.first_size = results[13]
        self.ends, self.sizes, error, stiffness, self.implicit = rows
        if not self.record:
            return ys, None, None, pieces
        return ys, *records_like(error, stiffness, y0), pieces

    def save_local_start(self, step: int) -> float:
        """Writes the state at the start of a step (1, 2, ...) to the last row of `ys`; returns its time."""
        return runtime.call(lambda julia: float(julia.bridge_local_start(self.handle.number, step)), waits=self.waits)

    def reverse(
        self,
        inputs: Sequence[Tensor],
        ys: Tensor | None,
        ysbar: Tensor | None,
        errorbar: Tensor | None,
        stiffnessbar: Tensor | None,
        piecesbar: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of the inputs of `run`; `ys`, its first result, if the times need gradients."""
        y0, ts, stops, *tensors = inputs
        y0bar, tbar = torch.zeros_like(y0), None
        stopsbar = torch.zeros(len(stops), dtype=torch.float64) if stops.numel() else None
        if ys is not None:
            tbar = torch.zeros(len(self.times), dtype=torch.float64)
            ysbar = torch.zeros_like(ys) if ysbar is None else ysbar
        arguments = ArgumentBuffer()
        arguments.tensor(y0bar)
        arguments.tensor(None if ysbar is None else in_memory(ysbar))
        for bar in (errorbar, stiffnessbar):
            arguments.tensor(None if bar is None else bar.to("cpu", torch.float64).contiguous())
        arguments.tensor(None if piecesbar is None or not self.pieces else in_memory(piecesbar))
        arguments.tensor(tbar)
        arguments.tensor(ys)
        arguments.tensor(stopsbar)
        gradients = arguments.gradients(self.codes, tensors)
        synchronize(y0bar)
        place = self.handle.number, *arguments.location
        call_for("bridge_backward", *place, self.adjoint, waits=self.waits or self.adjoint != "")
        if tbar is not None and self.drawn is not None:
            tbar = torch.cat([tbar[: self.drawn], tbar[self.drawn + 1 :]])
        of_times = (None if bar is None else bar.to(like) for bar, like in ((tbar, ts), (stopsbar, stops)))
        return y0bar, *of_times, *gradients


@dataclass(eq=False)
class LocalJob:
    """The arguments of one local step.

    Attributes:
        codes: the field, or drift and diffusion.
        t: where it starts.
        segment: in which it lies.
        h: its size, or NaN for the first-step heuristic's.
        method: its name in Julia.
        solver: longest step.
        tolerances: as for a solve.
        path: the step's noise.
        freeze: whether the first stage is a constant.
        mass: the mass matrix; None for the identity.
        times_need_gradient: never.
    """

    codes: tuple[Code, ...]
    t: float
    segment: Segment
    h: float
    method: str
    solver: ResolvedSolver
    tolerances: Tolerances
    path: BrownianPath | None = None
    freeze: bool = False
    mass: Mass | None = None
    times_need_gradient: bool = False
    handle: Handle = field(init=False)
    end: float = 0.0
    size: float = 0.0
    calls: tuple[int, int] = (0, 0)

    def run(self, y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Error and stiffness of the step, 0-dim."""
        results = array("d", bytes(8 * 6))
        arguments = ArgumentBuffer()
        arguments.tensor(y)
        arguments.doubles(results)
        tolerances = arguments.tolerances(*self.tolerances)
        arguments.segments((self.segment,))
        arguments.mass(self.mass)
        arguments.fields(self.codes, tensors)
        solver = self.solver
        options = (self.method, *tolerances, self.t, self.segment.end, self.h, solver.dt_max)

        handle = Handle()

        def step(julia: Any) -> None:
            julia.bridge_local(handle.number, *arguments.location, *options, path)

        synchronize(y)
        with path_address(self.path, y, matrix=self.codes[-1].columns > 0) as path:
            runtime.call(step, waits=may_wait(self.codes, self.method, y))
        self.handle = handle
        self.end, self.size, error, stiffness, first, second = results
        self.calls = int(first), int(second)
        return y.real.new_tensor(error), y.real.new_tensor(stiffness)

    def reverse(
        self, inputs: Sequence[Tensor], _: Tensor | None, errorbar: Tensor | None, stiffnessbar: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of the inputs of `run`."""
        y, *tensors = inputs
        arguments, ybar = ArgumentBuffer(), torch.zeros_like(y)
        arguments.tensor(ybar)
        gradients = arguments.gradients(self.codes, tensors)
        synchronize(ybar)
        bars = (0.0 if bar is None else float(bar) for bar in (errorbar, stiffnessbar))
        place = self.handle.number, *arguments.location
        call_for("bridge_local_backward", *place, *bars, self.freeze, waits=may_wait(self.codes, self.method, y))
        return ybar, *gradients
