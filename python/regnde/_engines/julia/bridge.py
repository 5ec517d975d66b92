"""Solves between torch and Julia: one crossing forward, one backward (`arguments.py` says how they cross)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from regnde._engines.julia import runtime
from regnde._engines.julia.arguments import ArgumentBuffer, Handle, path_address, synchronize
from regnde._engines.julia.fields import Code
from regnde._noise import BrownianPath
from regnde._solver import ResolvedSolver

__all__ = ["LocalJob", "LocalStep", "Outcome", "Solve", "SolveJob"]

STATUSES = ("success", "non-finite", "underflow", "steps")


@dataclass(eq=False)
class Outcome:
    """What a solve gave beside the differentiable tensors.

    Attributes:
        status: `"success"`, `"non-finite"`, `"underflow"` or `"steps"`, with `reason`.
        saved: rows of `ys` that were reached.
        table: float64 (5, S): t, dt, error, stiffness, implicit of every accepted step.
        handle: of the saved solve.
    """

    status: str
    reason: str
    accepted: int
    saved: int
    rejected: int
    calls: tuple[int, int]
    dt_first: float
    t: float
    dt: float
    table: Tensor
    handle: Handle


@dataclass(eq=False)
class SolveJob:
    """The arguments of one solve.

    Attributes:
        codes: the field, or drift and diffusion.
        times: save times.
        solver: method and tolerances.
        record: whether estimates are recorded.
        keep: what Julia keeps of each step: `"nothing"`, `"states"` or `"stages"`.
        path: the noise of an SDE.
        local_start: whether `ys` has one more row behind those of the save times, for `save_local_start`.
        adjoint: name of SciMLSensitivity's adjoint for the way back, or "" for the discrete one.
        times_need_gradient: whether the times carry a gradient.
        first_slope: where to write the field's value at the start, or None.
    """

    codes: tuple[Code, ...]
    times: tuple[float, ...]
    solver: ResolvedSolver
    record: bool
    keep: str
    path: BrownianPath | None = None
    local_start: bool = False
    adjoint: str = ""
    times_need_gradient: bool = False
    first_slope: Tensor | None = None
    outcome: Outcome | None = None

    def run(self, y0: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """States at the save times, and error and stiffness records in the state's dtype."""
        ys = y0.new_empty((len(self.times) + self.local_start, *y0.shape))
        times = torch.tensor(self.times, dtype=torch.float64)
        results = torch.zeros(9, dtype=torch.float64)
        arguments = ArgumentBuffer()
        for tensor in (y0, ys, times, results, self.first_slope):
            arguments.tensor(tensor)
        arguments.fields(self.codes, tensors)
        solver, threads = self.solver, torch.get_num_threads()
        dt0 = math.nan if solver.dt0 is None else solver.dt0
        options = (solver.method, solver.rtol, solver.atol, dt0, solver.max_steps, self.record, self.keep)

        def solve(julia: Any) -> tuple[int, Tensor, str]:
            number = int(runtime.without_gil(julia.bridge_solve)(*arguments.location, *options, path, threads))
            table = torch.empty((5, int(results[1])), dtype=torch.float64)
            julia.bridge_records(number, table.data_ptr())
            return number, table, str(julia.bridge_reason(number)) if results[0] else ""

        synchronize(y0)
        with path_address(self.path, y0) as path:
            number, table, reason = runtime.call(solve)
        status, accepted, saved, rejected, first, second, dt_first, t, dt = results.tolist()
        self.outcome = Outcome(
            status=STATUSES[int(status)],
            reason=reason,
            accepted=int(accepted),
            saved=int(saved),
            rejected=int(rejected),
            calls=(int(first), int(second)),
            dt_first=dt_first,
            t=t,
            dt=dt,
            table=table,
            handle=Handle(number),
        )
        return ys, table[2].to(y0), table[3].to(y0)

    @property
    def number(self) -> int:
        """Of the saved solve."""
        assert self.outcome is not None
        return self.outcome.handle.number

    def save_local_start(self, step: int) -> float:
        """Writes the state at the start of a step (1, 2, ...) to the last row of `ys`; returns its time."""
        return runtime.call(lambda julia: float(julia.bridge_local_start(self.number, step)))

    def reverse(
        self,
        y0: Tensor,
        tensors: Sequence[Tensor],
        ys: Tensor | None,
        ysbar: Tensor | None,
        errorbar: Tensor | None,
        stiffnessbar: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        """Cotangents of the state, the times and the tensors."""
        y0bar = torch.zeros_like(y0)
        tbar = torch.zeros(len(self.times), dtype=torch.float64) if self.times_need_gradient else None
        arguments = ArgumentBuffer()
        arguments.tensor(y0bar)
        arguments.tensor(None if ysbar is None else ysbar.contiguous())
        for bar in (errorbar, stiffnessbar):
            arguments.tensor(None if bar is None else bar.to("cpu", torch.float64).contiguous())
        arguments.tensor(tbar)
        arguments.tensor(ys)
        gradients = arguments.gradients(self.codes, tensors)
        synchronize(y0bar)
        name, options = ("bridge_adjoint", (self.adjoint,)) if self.adjoint else ("bridge_backward", ())
        _call(name, self.number, *arguments.location, *options)
        return y0bar, tbar, gradients


def _call(name: str, *arguments: object) -> None:
    """Calls a function of RegNDE for what it writes."""
    runtime.call(lambda julia: runtime.without_gil(getattr(julia, name))(*arguments) and None)


class Solve(torch.autograd.Function):
    """A solve as one graph node: ys, error and stiffness from y0, the times and the fields' tensors."""

    @staticmethod
    def forward(ctx: Any, job: SolveJob, y0: Tensor, ts: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Solves, and saves what the reverse needs."""
        ys, error, stiffness = job.run(y0, tensors)
        ctx.job = job
        ctx.ts = ts.dtype, ts.device
        ctx.save_for_backward(y0, ys if job.times_need_gradient else None, *tensors)
        ctx.set_materialize_grads(False)
        return ys, error, stiffness

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ysbar: Tensor | None, errorbar: Tensor | None, stiffnessbar: Tensor | None) -> Any:
        """The reverse sweep over the accepted steps."""
        y0, ys, *tensors = ctx.saved_tensors
        if ys is not None and ysbar is None:
            ysbar = torch.zeros_like(ys)
        y0bar, tbar, gradients = ctx.job.reverse(y0, tensors, ys, ysbar, errorbar, stiffnessbar)
        dtype, device = ctx.ts
        return None, y0bar, None if tbar is None else tbar.to(device, dtype), *gradients


@dataclass(eq=False)
class LocalJob:
    """The arguments of one local step.

    Attributes:
        codes: the field, or drift and diffusion.
        t: where it starts.
        t_end: where it is cut at the latest.
        h: its size, or NaN for the first-step heuristic's.
        solver: method and tolerances.
        path: the step's noise.
        freeze: whether the first stage is a constant.
    """

    codes: tuple[Code, ...]
    t: float
    t_end: float
    h: float
    solver: ResolvedSolver
    path: BrownianPath | None = None
    freeze: bool = False
    handle: Handle | None = None
    end: float = 0.0
    size: float = 0.0
    calls: tuple[int, int] = (0, 0)

    def run(self, y: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Error and stiffness of the step, 0-dim."""
        results = torch.zeros(6, dtype=torch.float64)
        arguments = ArgumentBuffer()
        arguments.tensor(y)
        arguments.tensor(results)
        arguments.fields(self.codes, tensors)
        solver = self.solver
        options = (solver.method, solver.rtol, solver.atol, self.t, self.t_end, self.h)

        def step(julia: Any) -> int:
            return int(runtime.without_gil(julia.bridge_local)(*arguments.location, *options, path))

        synchronize(y)
        with path_address(self.path, y) as path:
            self.handle = Handle(runtime.call(step))
        self.end, self.size, error, stiffness, first, second = results.tolist()
        self.calls = int(first), int(second)
        return y.new_tensor(error), y.new_tensor(stiffness)


class LocalStep(torch.autograd.Function):
    """A local step as one graph node: error and stiffness from its initial state and the fields' tensors."""

    @staticmethod
    def forward(ctx: Any, job: LocalJob, y: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the step."""
        ctx.job = job
        ctx.save_for_backward(y, *tensors)
        return job.run(y, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, errorbar: Tensor, stiffnessbar: Tensor) -> Any:
        """Its reverse."""
        job: LocalJob = ctx.job
        assert job.handle is not None
        y, *tensors = ctx.saved_tensors
        arguments, ybar = ArgumentBuffer(), torch.zeros_like(y)
        arguments.tensor(ybar)
        gradients = arguments.gradients(job.codes, tensors)
        synchronize(ybar)
        bars = float(errorbar), float(stiffnessbar)
        _call("bridge_local_backward", job.handle.number, *arguments.location, *bars, job.freeze)
        return None, ybar, *gradients
