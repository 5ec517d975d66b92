"""One request on its way through the Julia engine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._additive import check_additive, moved_by_noise
from regnde._dense import DenseOutput, Interpolant
from regnde._engines.base import FAILURES, Request
from regnde._engines.julia import runtime
from regnde._engines.julia.arguments import in_memory
from regnde._engines.julia.bridge import SolveJob
from regnde._engines.julia.code import Code
from regnde._engines.julia.events import conditions_of, hits_of
from regnde._engines.julia.fields import one_sample
from regnde._engines.julia.job import Weights, interpolant_of, told
from regnde._engines.julia.local_record import LocalRecord
from regnde._engines.julia.methods import ADJOINTS, IMPLICIT, ORDERS, SIZES, STOCHASTIC, adaptive
from regnde._engines.julia.node import run
from regnde._engines.julia.probe import ValueAt, probe_time, time_within, value_beside
from regnde._engines.julia.samples import SampleJob, SampleSolve
from regnde._equation import SDE, JuliaField
from regnde._event_locator import Hit, events_of
from regnde._last_step import FirstStep
from regnde._mass import Mass
from regnde._noise import BrownianPath, drawn_path
from regnde._rosenbrock_tableau import AUTOTSIT5
from regnde._sde_method import SDE_METHODS
from regnde._solution import Events, Solution, Stats, Status, Steps
from regnde._solver import Local

__all__ = ["Run", "needs_gradient"]

NO_STOPS = torch.empty(0)


def needs_gradient(request: Request, codes: Sequence[Code]) -> bool:
    """Whether anything that the solution depends on needs a gradient."""
    moving = request.ts.requires_grad or request.moving_stops is not None
    needed = request.y0.requires_grad or moving or any(any(code.needs_gradient) for code in codes)
    return torch.is_grad_enabled() and needed


class Run:
    """One request on its way through the engine."""

    def __init__(self, request: Request, codes: tuple[Code, ...]) -> None:
        self.request = request
        self.use(codes)
        self.segments, self.samples = request.segments(), request.solver.batch == "per-sample"
        self.mass = None if request.mass is None else Mass.of(request.mass)
        self.conditions = (
            conditions_of(request.events, request.y0)
            if not self.samples
            else conditions_of(request.events, request.y0[:1], samples=True)
        )
        self.path = self._noise()
        self.weights = self._interpolant() if request.dense or request.events else None
        self.pieces = 0 if self.weights is None else 1 + max(map(len, self.weights))
        self.local = LocalRecord(request, request.record) if isinstance(request.record, Local) else None

    def use(self, codes: tuple[Code, ...]) -> None:
        """Sets the fields' code."""
        self.codes, self.graph, device = codes, needs_gradient(self.request, codes), self.request.y0.device
        tensors = [x if x.device == device else x.to(device) for code in codes for x in code.tensors]
        self.tensors = tuple(map(in_memory, tensors))

    def _noise(self) -> BrownianPath | None:
        request, equation, columns = self.request, self.request.equation, self.codes[-1].columns
        if not isinstance(equation, SDE):
            return None
        if request.noise is None:
            shape = equation.path_shape(request.y0.shape, columns)
            return drawn_path(request.times[0], request.times[-1], shape, request.y0.real.dtype)
        if equation.has_matrix and request.noise.shape[-1] != columns:
            raise ValueError(
                f"the diffusion has {columns} columns, but the Brownian path has {request.noise.shape[-1]} processes."
            )
        return request.noise

    @property
    def _method(self) -> str:
        """The method's name in Julia."""
        equation, method = self.request.equation, self.request.solver.method
        if not isinstance(equation, SDE):
            return method
        matrix, stratonovich = equation.has_matrix, equation.calculus == "stratonovich"
        if method in ("lambaeulerheun", "sosra") and matrix:
            return f"{method}_matrix"
        if method == "midpoint" or (method == "rkmil" and stratonovich):
            return f"{method}_stratonovich"
        return "eulerheun" if method == "heun" else method

    def solution(self, *, check: bool = False) -> Solution:
        """Runs the solve and, if asked for, the local step.

        Raises:
            FieldChanged: with `check`, if the code and the field disagree beside the first state.
        """
        request = self.request
        job = self._job(check=check)
        if job.adjoint:
            runtime.load("SciMLSensitivity", "ChainRulesCore", "Tracker", "Zygote")
        self._load()
        moving = [segment.start for segment in self.segments if segment.start is not None]
        stops = torch.stack(moving) if moving else NO_STOPS
        inputs = (in_memory(request.y0), request.ts, stops, *self.tensors)
        full, error, stiffness, pieces = run(job, *inputs, graph=self.graph)
        hits, stop = self._hits(job, pieces)
        ts, ys = self._saved(job, full, stop)
        steps, further = self._recorded(job, full, error, stiffness)
        return self._assemble(
            job,
            ts,
            ys,
            steps,
            (job.calls[0] + further[0], job.calls[1] + further[1] + self._check_additive(job, full)),
            events_of(hits, request.y0) if request.events else None,
            self._dense(job, pieces, stop) if request.dense else None,
        )

    def _job(self, *, check: bool) -> SolveJob:
        """The solve; with `check` the field's value is compared first."""
        request, local = self.request, self.local
        adjoint = request.solver.gradient if request.solver.gradient in ADJOINTS else ""
        by_step = local is not None and local.by_step
        return SolveJob(
            codes=self.codes,
            times=request.times if local is None else local.times,
            method=self._method,
            solver=request.solver,
            tolerances=(request.rtol, request.atol),
            segments=self.segments,
            record=request.record == "all",
            keep=self._kept(adjoint, by_step),
            grid=() if isinstance(request.equation, SDE) or adaptive(request) else self._grid(),
            mass=self.mass,
            events=request.events,
            conditions=self.conditions,
            pieces=self.pieces,
            reads_steps=request.record != "none" or self.pieces > 0,
            dense=request.dense,
            path=self.path,
            local_start=by_step,
            adjoint=adjoint,
            times_need_gradient=request.ts.requires_grad and self.graph,
            drawn=None if local is None else local.row,
            compared=self._compared() if check else (None, None),
        )

    def _saved(self, job: SolveJob, full: Tensor, stop: Hit | None) -> tuple[Tensor, Tensor]:
        """The save times that were reached, and the states there; the last of them the event that stopped the solve."""
        reached = full if job.saved == full.shape[0] else full[: job.saved]
        ys = reached if self.local is None else self.local.saved(full, job.saved)
        count = ys.shape[0]
        ts = self.request.ts if count == len(self.request.times) else self.request.ts[:count]
        if stop is not None:
            sign = math.copysign(1.0, job.times[-1] - job.times[0])
            before = sum(sign * time < sign * stop.at for time in job.times[: job.saved])
            ts = torch.cat([ts[:before], stop.t.to(ts).reshape(1)])
            ys = torch.cat([ys[:before], stop.y.unsqueeze(0)])
        return ts, ys

    def _recorded(
        self, job: SolveJob, full: Tensor, error: Tensor, stiffness: Tensor
    ) -> tuple[Steps | None, tuple[int, int]]:
        """The recorded steps, and the evaluations that they took beside those of the solve."""
        if self.local is not None:
            return self._local_steps(self.local, job, full)
        if not job.record:
            return None, (0, 0)
        implicit = job.implicit == 1 if self.request.solver.method in IMPLICIT else None
        return self._steps(job.ends, job.sizes, error, stiffness, implicit), (0, 0)

    def _dense(self, job: SolveJob, pieces: Tensor, stop: Hit | None) -> DenseOutput:
        """The interpolants of all steps."""
        return DenseOutput(
            [self._within(job, pieces, step, step) for step in range(job.accepted)],
            job.ends.tolist(),
            job.times[0],
            job.t if stop is None else stop.at,
            self.request.y0,
        )

    def of_samples(self, *, check: bool = False) -> Solution:
        """Runs a solve for each sample.

        Raises:
            FieldChanged: with `check`, if the code and the field disagree beside the first of them.
        """
        request, solver = self.request, self.request.solver
        job = SampleJob(
            codes=self.codes,
            times=request.times,
            method=self._method,
            solver=solver,
            tolerances=(request.rtol, request.atol),
            segments=self.segments,
            record=request.record == "all",
            keep=self._kept("", False),
            mass=self.mass,
            events=request.events,
            conditions=self.conditions,
            pieces=self.pieces,
            compared=self._compared() if check else (None, None),
        )
        self._load()
        results = run(job, in_memory(request.y0), *self.tensors, graph=self.graph)
        solved = SampleSolve(request, job, self.weights, results)
        return solved.solution(ORDERS[solver.method], SIZES[solver.method], implicit=solver.method in IMPLICIT)

    def _load(self) -> None:
        """Loads what the gradient of a `JuliaField` needs."""
        if isinstance(self.request.equation, JuliaField) and self.graph:
            runtime.load("Zygote")

    def _kept(self, adjoint: str, by_step: bool) -> str:
        """What Julia keeps of each step."""
        if not (self.graph and not adjoint) and not by_step:
            return "nothing"
        return "stages" if self.graph and self.request.solver.gradient == "discrete" else "states"

    def _grid(self) -> tuple[float, ...]:
        """Ends of the steps of a fixed-step method, up to the limit of steps."""
        request, t0 = self.request, self.request.times[0]
        if t0 == request.times[-1]:
            return ()
        size = request.solver.dt0 if request.grid is None else abs(request.grid[1] - request.grid[0])
        assert size is not None  # else it is refused
        distance = self.segments[0].end - t0
        h = math.copysign(min(size, abs(distance)), distance)
        return tuple(itertools.islice(request.step_ends(self.segments, h), request.solver.max_steps))

    def _interpolant(self) -> Weights:
        """Weights of the method's interpolant, as an `Interpolant` has them."""
        if isinstance(self.request.equation, SDE):
            return (np.ones((1, 1)),)  # a straight line
        method = self.request.solver.method
        methods = ("tsit5", "rosenbrock23") if method == AUTOTSIT5 else (method,)
        texts = runtime.call(
            lambda julia: [str(julia.bridge_interpolant(name)).split() for name in methods], waits=False
        )
        return tuple(np.array(weights, np.float64).reshape(int(rows), -1) for rows, *weights in texts)

    def _within(self, job: SolveJob, pieces: Tensor, step: int, row: int) -> Interpolant:
        """The interpolant of a step, from what it is made of, that row of the pieces."""
        assert self.weights is not None
        t0 = self.request.times[0] if step == 0 else float(job.ends[step - 1])
        h, (y, *k) = float(job.sizes[step]), pieces[row].unbind()
        k = [(k[0] - y) / h] if isinstance(self.request.equation, SDE) else k
        return interpolant_of(self.weights, t0, h, y, k, implicit=bool(job.implicit[step] == 1))

    def _hits(self, job: SolveJob, pieces: Tensor) -> tuple[list[Hit], Hit | None]:
        """The events that occurred, and the terminal one of them."""
        hits: list[Hit] = []
        stop = None
        for row, crossing in enumerate(job.crossings.tolist()):
            step = int(crossing[1]) - 1
            within = self._within(job, pieces, step, step if job.dense else row)
            found, stop = hits_of(self.request.events, crossing, within, float(job.ends[step]))
            hits += found
        return hits, stop

    def _compared(self) -> tuple[ValueAt, ValueAt | None]:
        """Values of the field, or of drift and diffusion, beside the first state (of the first sample)."""
        equation, y0 = self.request.equation, self.request.y0
        assert not isinstance(equation, JuliaField)
        time = probe_time(self.request.times[0], self.segments)
        if isinstance(equation, SDE):
            columns = self.codes[-1].columns
            shape = (*y0.shape, columns) if columns else y0.shape
            return value_beside(equation.drift, time, y0, y0.shape), value_beside(equation.diffusion, time, y0, shape)
        field, y0 = (one_sample(equation), y0[:1]) if self.samples else (equation, y0)
        return value_beside(field, time, y0, y0.shape), None

    def _check_additive(self, job: SolveJob, full: Tensor) -> int:
        """Checks beside the start and at the end that an additive diffusion is one; the diffusion's evaluations."""
        request, sde = self.request, self.request.equation
        if not (isinstance(sde, SDE) and (request.solver.method == "sosra" or sde.noise == "additive")):
            return 0
        t0, y0 = time_within(request.times[0], self.segments), request.y0.detach()
        with torch.no_grad():
            time = torch.tensor(t0, dtype=y0.dtype, device=y0.device)
            here = sde.diffusion(time, y0)
            states = [moved_by_noise(y0, here, math.sqrt(job.dt_first))]
            if job.status == "success" and job.accepted:
                states.append(full[job.saved - 1].detach())
            for y in states:
                check_additive(request.solver.method, y, here, sde.diffusion(time, y))
        return len(states) + (not adaptive(self.request) or request.solver.dt0 is not None)

    def _steps(self, t: Tensor, dt: Tensor, error: Tensor, stiffness: Tensor, implicit: Tensor | None = None) -> Steps:
        method, device = self.request.solver.method, self.request.y0.device
        sizes = STOCHASTIC if isinstance(self.request.equation, SDE) else SIZES
        size = sizes["tsit5" if self.local and method in IMPLICIT else method]
        return Steps(
            t=t.to(device),
            dt=dt.to(device),
            error=error if adaptive(self.request) else None,
            stiffness=told(stiffness, size, self.mass),
            method=method,
            stability_size=size,
            implicit=implicit,
        )

    def _local_steps(self, local: LocalRecord, job: SolveJob, full: Tensor) -> tuple[Steps, tuple[int, int]]:
        """The step of a local record, and the evaluations that it took."""
        if job.status != "success" or not job.accepted:
            empty = full.reshape(-1)[:0].abs()  # no step: an empty record that is part of the graph
            return self._steps(job.ends[:0], job.sizes[:0], empty, empty), (0, 0)
        here, start = local.job(job, full)
        error, stiffness = run(here, start, *self.tensors, graph=self.graph)
        clock = torch.tensor([here.end, here.size], dtype=torch.float64)
        return self._steps(clock[:1], clock[1:], error.reshape(1), stiffness.reshape(1)), here.calls

    # --- the outcome -----------------------------------------------------------------------------

    def _first_step(self, job: SolveJob) -> FirstStep | None:
        method = self.request.solver.method
        if not adaptive(self.request) or not job.accepted:
            return None
        order = SDE_METHODS[method].order + 0.5 if isinstance(self.request.equation, SDE) else ORDERS[method]
        return FirstStep(job.first_size, job.first_error, job.accepted, order)

    def _assemble(
        self,
        job: SolveJob,
        ts: Tensor,
        ys: Tensor,
        steps: Steps | None,
        calls: tuple[int, int],
        events: Events | None,
        dense: DenseOutput | None,
    ) -> Solution:
        request = self.request
        ended = {"success": Status.SUCCESS, "event": Status.EVENT}
        solution = Solution(
            ts=ts,
            ys=ys,
            stats=Stats(
                nfe=calls[0],
                accepted=job.accepted,
                rejected=job.rejected,
                dt_first=job.dt_first,
                nfe_diffusion=calls[1],
                njac=job.jacobians,
                nfactorisations=job.factorisations,
                first_step=self._first_step(job),
            ),
            steps=steps,
            engine="julia",
            solver=request.solver,
            events=events,
            dense=dense,
            status=ended[job.status] if job.status in ended else FAILURES[job.status].status,
        )
        if job.status not in ended and request.throw:
            reason, bad = job.reason, int((~torch.isfinite(request.y0)).sum())
            if bad:  # whatever was seen later, it began here
                reason = f"y0 is not finite: {bad} of {request.y0.numel()} components"
            raise FAILURES[job.status](reason, t=job.t, dt=job.dt, solution=solution)
        return solution
