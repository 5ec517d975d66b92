"""The Julia engine: DifferentialEquations.jl steps, our Julia package records and differentiates."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._additive import check_additive, moved_by_noise
from regnde._controller import I
from regnde._dense import DenseOutput, Interpolant
from regnde._derivative_check import check_field
from regnde._engines.base import FAILURES, Engine, Request, StepRules, unsupported_everywhere
from regnde._engines.julia import availability, runtime
from regnde._engines.julia.bridge import LocalJob, SolveJob
from regnde._engines.julia.code import Code
from regnde._engines.julia.events import conditions_of, hits_of
from regnde._engines.julia.fields import FieldChanged, check_unchanged, code_of, one_sample
from regnde._engines.julia.node import run
from regnde._engines.julia.samples import SampleJob, SampleSolve
from regnde._equation import SDE, JuliaField
from regnde._event_locator import Hit, events_of
from regnde._last_step import FirstStep
from regnde._noise import BrownianPath
from regnde._rosenbrock_tableau import AUTOTSIT5, ROSENBROCK_TABLEAUX
from regnde._sde_method import SDE_METHODS, misfit
from regnde._solution import Events, Solution, Stats, Status, Steps
from regnde._solver import Local
from regnde._stops import Segment
from regnde._tableau import SDE_TABLEAUX, TABLEAUX

__all__ = ["JuliaEngine"]

# stability sizes along the negative real axis; None: the method has no stiffness estimate
_VERNER = {"vern6": 4.8553, "vern8": 5.8641, "vern9": 4.4762}
EXPLICIT: dict[str, float | None] = {
    name: _VERNER[name] if name in _VERNER else TABLEAUX[name].stability_size
    for name in ("tsit5", "bs3", "dp5", "heun", "vern6", "vern7", "vern8", "vern9")
}
ROSENBROCK = (*ROSENBROCK_TABLEAUX, AUTOTSIT5)
SDIRK = ("trbdf2", "kencarp4")
IMPLICIT: dict[str, float | None] = {**dict.fromkeys(ROSENBROCK, EXPLICIT["tsit5"]), **dict.fromkeys(SDIRK)}
FIXED = tuple(name for name, tableau in TABLEAUX.items() if not tableau.adaptive)
_SCHEMES = ("em", "rkmil", "lambaem", "lambaeulerheun", "eulerheun", "heun", "midpoint", "diffusionheun")
STOCHASTIC: dict[str, float | None] = {
    **{name: SDE_TABLEAUX[name].stability_size for name in ("sosri", "sosri2", "sriw1", "sosra")},
    **dict.fromkeys(_SCHEMES),
}
# of ODEs, as the step control has them, for what the next solve's first step may be
ORDERS = {
    **{name: float(name.removeprefix("vern")) if name in _VERNER else TABLEAUX[name].order for name in EXPLICIT},
    **{name: tableau.order for name, tableau in ROSENBROCK_TABLEAUX.items()},
    **dict(trbdf2=2.0, kencarp4=4.0, autotsit5=5.0),
}
SIZES = {**EXPLICIT, **dict.fromkeys(FIXED), **IMPLICIT}
EARLY = 1e-3  # of the first segment: how far the check of derivatives by the time looks
ADJOINTS = ("interpolating", "gauss", "quadrature", "backsolve", "tracker")


Weights = tuple[NDArray[np.float64], ...]  # of a method's interpolant; of an explicit method's, and an implicit one's


class JuliaEngine(Engine):
    """Runs fields that can be written as Julia code, on the CPU or, with CUDA.jl, on a CUDA device."""

    name = "julia"

    def unavailable(self) -> str | None:
        """Why Julia can not run here, and what to do."""
        return runtime.why_not()

    def missing_packages(self, request: Request) -> str | None:
        """CUDA.jl, for a state on a CUDA device; what SDIRK methods, adjoints and a `JuliaField`'s gradient need."""
        if request.y0.device.type == "cuda":
            return runtime.missing_cuda()
        if request.solver.method in SDIRK and (why := runtime.missing_sdirk(request.solver.method)) is not None:
            return why
        if request.solver.gradient in ADJOINTS:
            return runtime.missing_adjoints(request.solver.gradient)
        if isinstance(request.equation, JuliaField) and _needs_gradient(request, _codes(request)[0]):
            return runtime.missing_adjoints("")
        return None

    def why_unsupported(self, request: Request) -> str | None:
        """What this engine has no method, state or gradient for."""
        solver, y0 = request.solver, request.y0
        sde = isinstance(request.equation, SDE)
        if solver.tableau is not None:
            return f"the Tableau {solver.method!r} runs on the torch engine: set Solver(engine='torch')."
        if request.mass is not None:
            return "a mass matrix runs on the torch engine: set Solver(engine='torch')."
        if solver.grid_method is not None or (sde and request.grid is not None):
            return f"{solver.method!r} along given times runs on the torch engine: set Solver(engine='torch')."
        if request.rules != StepRules():
            return "another package's rules for steps run on the torch engine: set Solver(engine='torch')."
        if request.events and (why := self._unsupported_events(request)) is not None:
            return why
        if request.dense and (solver.method in SDIRK or solver.gradient in ADJOINTS):
            return (
                "the Julia engine has dense output with discrete gradients, and not of 'trbdf2' and 'kencarp4': "
                f"not for {solver.method!r} with gradient={solver.gradient!r}: give the times as ts."
            )
        if solver.sde_method is not None:
            return "the steps of another package run on the torch engine: set Solver(engine='torch')."
        known = tuple(STOCHASTIC) if sde else (*EXPLICIT, *FIXED, *IMPLICIT)
        if solver.method not in known:
            kind = "SDE" if sde else "ODE"
            return f"the Julia engine has no {kind} method {solver.method!r}; it has {', '.join(known)}."
        if isinstance(request.equation, SDE) and (why := _unsupported_noise(request.equation, request)) is not None:
            return why
        if y0.dtype not in (torch.float32, torch.float64):
            return f"the Julia engine solves float32 and float64 states, not {y0.dtype}: set Solver(engine='torch')."
        if y0.numel() == 0:
            return "the Julia engine solves states of one or more entries: set Solver(engine='torch')."
        if y0.device.type not in ("cpu", "cuda"):
            return f"the Julia engine solves on CPU and CUDA, but y0 lies on {y0.device}: set Solver(engine='torch')."
        if y0.device.type == "cuda" and (solver.method in IMPLICIT or solver.gradient in ADJOINTS):
            return (
                "on CUDA devices the Julia engine has explicit and stochastic methods with their discrete gradient, "
                f"not {solver.method!r} with gradient={solver.gradient!r}."
            )
        if solver.batch == "per-sample" and (y0.device.type == "cuda" or solver.gradient in ADJOINTS):
            return (
                "batch='per-sample' on the Julia engine is for states on the CPU and their discrete gradient: set "
                "Solver(engine='torch')."
            )
        return (
            unsupported_everywhere(request, adaptive=_adaptive(request))
            or self._unsupported_control(request)
            or self._unsupported_gradient(request)
        )

    def _unsupported_events(self, request: Request) -> str | None:
        """Methods and records with which events are not looked for."""
        sde = isinstance(request.equation, SDE)
        methods = (*EXPLICIT, *FIXED, *ROSENBROCK)
        if sde or request.solver.method not in methods or request.solver.gradient in ADJOINTS:
            return (
                "the Julia engine looks for events with explicit and Rosenbrock methods and their discrete gradient, "
                f"not with {request.solver.method!r}: set Solver(engine='torch')."
            )
        if request.solver.method == AUTOTSIT5 and request.solver.batch == "per-sample":
            return "events of 'autotsit5' with batch='per-sample' are not looked for: use 'rosenbrock23' or 'tsit5'."
        if isinstance(request.record, Local):
            return "a Local record of a solve with events runs on the torch engine: set Solver(engine='torch')."
        return None

    def _unsupported_control(self, request: Request) -> str | None:
        """Ways to choose steps that OrdinaryDiffEq's integrators do not have."""
        method, controller = request.solver.method, request.solver.controller
        if isinstance(controller, I) and controller.accepted_min_factor not in (None, controller.min_factor):
            return "I(accepted_min_factor=...) runs on the torch engine: set Solver(engine='torch')."
        if method in IMPLICIT and controller is not None:
            return f"{method!r} has a controller of its own: leave out controller=."
        if isinstance(request.equation, SDE) and request.solver.dt_min > 0:
            return "dt_min= of an SDE runs on the torch engine: set Solver(engine='torch')."
        if method in ROSENBROCK and isinstance(request.rtol, Tensor):
            return f"{method!r} takes one number as rtol; atol may differ between entries."
        return None

    def _unsupported_gradient(self, request: Request) -> str | None:
        """Combinations of method, gradient and record that have no gradient, or another one than asked for."""
        gradient, record = request.solver.gradient, request.record
        if gradient == "reversible":
            return "gradient='reversible' is for the torch engine's 'reversible_heun': set Solver(engine='torch')."
        if gradient in ADJOINTS:
            if not _adaptive(request) and not isinstance(request.equation, SDE):
                return f"gradient={gradient!r} is for methods that adapt their step: use 'discrete' or 'checkpoint'."
            if isinstance(request.equation, SDE):
                return (
                    f"gradient={gradient!r} is for ODEs: for an SDE SciMLSensitivity's adjoints "
                    "fail or are wrong. Use 'discrete' or 'checkpoint'."
                )
            if record == "all" and torch.is_grad_enabled():
                return (
                    f"gradient={gradient!r} is a continuous adjoint of the trajectory, in which the solver's estimates "
                    "do not occur: the records' gradient would be zero without a word. Use gradient='discrete', "
                    "record=Local(...), or torch.no_grad() to look at them."
                )
            controlled = request.solver.controller is not None or request.solver.dt_max < math.inf or request.stops
            if controlled or isinstance(request.rtol, Tensor) or isinstance(request.atol, Tensor):
                return (
                    f"gradient={gradient!r} solves again on the way back, with neither stops, a controller, dt_max nor "
                    "tolerances of each entry: use 'discrete' or 'checkpoint'."
                )
            if request.ts.requires_grad:
                return f"gradient={gradient!r} gives no derivative with respect to the times: use 'discrete'."
        return None

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
        if request.y0.device.type == "cuda":
            runtime.load(*availability.CUDA)
        if request.solver.method in SDIRK:
            runtime.load(*availability.SDIRK)
        with torch.no_grad():
            codes, known = _codes(request)
        solver = request.solver
        if solver.method in SDIRK and solver.gradient not in ADJOINTS and _needs_gradient(request, codes):
            raise ValueError(
                f"the steps of {solver.method!r} solve implicit equations and are not differentiated: use 'rodas5p', "
                "an explicit method, gradient='interpolating' (the trajectory's adjoint, with record=Local(...) for a "
                "penalty), or torch.no_grad()."
            )
        if solver.method in ROSENBROCK and isinstance(request.equation, JuliaField) and _needs_gradient(request, codes):
            raise ValueError(
                f"the gradient of {solver.method!r} needs derivatives that a JuliaField does not have: write the field "
                "in torch, use an explicit method, or torch.no_grad()."
            )
        if solver.method in ROSENBROCK and not known:
            _check_derivatives(request)
        this = _Run(request, codes)
        solution = this.of_samples if solver.batch == "per-sample" else this.solution
        try:
            return solution(check=known)
        except FieldChanged:
            with torch.no_grad():
                codes, _ = _codes(request, again=True)
            this.use(codes)
            return solution()


def _codes(request: Request, *, again: bool = False) -> tuple[tuple[Code, ...], bool]:
    """The fields as Julia code, and whether one of them was not exported again because it looked unchanged."""
    equation, samples = request.equation, request.solver.batch == "per-sample"
    y0 = request.y0[:1].detach() if samples else request.y0.detach()
    if isinstance(equation, JuliaField):
        tensors = tuple(equation.parameters)
        return (Code(equation.source, "", tensors, tuple(x.requires_grad for x in tensors)),), False
    if isinstance(equation, SDE):
        written = [
            code_of(equation.drift, y0, "f", again=again),
            code_of(equation.diffusion, y0, "g", again=again, matrix=equation.has_matrix),
        ]
    else:
        tangents = request.solver.method in ROSENBROCK
        written = [code_of(equation, y0, "f", again=again, samples=samples, tangents=tangents)]
    return tuple(code for code, _ in written), any(known for _, known in written)


def _check_derivatives(request: Request) -> None:
    """Warns of a field whose Jacobian, as PyTorch forms it, misses a part of it."""
    equation, y0 = request.equation, request.y0
    if isinstance(equation, JuliaField | SDE) or request.times[0] == request.times[-1]:
        return
    field, y0 = (one_sample(equation), y0[:1]) if request.solver.batch == "per-sample" else (equation, y0)
    t0 = _start(request)
    check_field(field, y0.new_tensor(t0), y0, y0.new_tensor(t0 + EARLY * (request.segments()[0].end - t0)))


def _start(request: Request) -> float:
    """The time that the field gets at the start."""
    t0, within = request.times[0], request.segments()[0].within
    return t0 if within is None else min(max(t0, within[0]), within[1])


def _adaptive(request: Request) -> bool:
    """Whether the method adapts its step."""
    method = request.solver.method
    return SDE_METHODS[method].adaptive if isinstance(request.equation, SDE) else method not in FIXED


def _unsupported_noise(sde: SDE, request: Request) -> str | None:
    """Equations that the method is not for, and diffusion matrices that StochasticDiffEq's integrators do not take."""
    method = request.solver.method
    if (why := misfit(method, sde)) is not None:
        return why
    if sde.has_matrix and request.y0.ndim == 0:
        return f"SDE(noise={sde.noise!r}) needs a state of one or more dimensions, (..., d)."
    if sde.has_matrix and request.y0.device.type != "cpu":
        return "diffusion matrices on CUDA devices run on the torch engine: set Solver(engine='torch')."
    return None


def _needs_gradient(request: Request, codes: Sequence[Code]) -> bool:
    moving = request.ts.requires_grad or request.moving_stops is not None
    needed = request.y0.requires_grad or moving or any(any(code.needs_gradient) for code in codes)
    return torch.is_grad_enabled() and needed


class _Run:
    """One request on its way through the engine."""

    def __init__(self, request: Request, codes: tuple[Code, ...]) -> None:
        self.request = request
        self.use(codes)
        self.local = request.record if isinstance(request.record, Local) else None
        self.segments, self.samples = request.segments(), request.solver.batch == "per-sample"
        self.conditions = (
            conditions_of(request.events, request.y0)
            if not self.samples
            else conditions_of(request.events, request.y0[:1], samples=True)
        )
        self.path = self._noise()
        self.random = self._random()
        self.drawn = math.nan
        if self.local and self.local.sampling == "time":
            t0, t1 = request.times[0], request.times[-1]
            self.drawn = t0 + self.random.random() * (t1 - t0)

    def use(self, codes: tuple[Code, ...]) -> None:
        """Sets the fields' code."""
        self.codes, self.graph = codes, _needs_gradient(self.request, codes)
        self.tensors = tuple(x.to(self.request.y0.device).contiguous() for code in codes for x in code.tensors)

    def _noise(self) -> BrownianPath | None:
        request, equation, columns = self.request, self.request.equation, self.codes[-1].columns
        if not isinstance(equation, SDE):
            return None
        if request.noise is None:
            t0, t1 = request.times[0], request.times[-1]
            shape = equation.path_shape(request.y0.shape, columns)
            return BrownianPath(t0, t1 if t1 > t0 else t0 + 1.0, shape)  # no step: any path will do
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

    def _random(self) -> random.Random:
        if self.local is None:
            return random.Random(0)
        seed = self.local.seed
        return random.Random(int(torch.randint(2**62, ()).item()) if seed is None else seed)

    def solution(self, *, check: bool = False) -> Solution:
        """Runs the solve and, if asked for, the local step.

        Raises:
            FieldChanged: with `check`, if the code and the field disagree at the start.
        """
        request = self.request
        times, row = self._times()
        solver, adjoint = request.solver, request.solver.gradient if request.solver.gradient in ADJOINTS else ""
        by_step = self.local is not None and self.local.sampling == "step"
        weights = self._interpolant() if request.dense or request.events else None
        job = SolveJob(
            codes=self.codes,
            times=times,
            method=self._method,
            solver=solver,
            tolerances=(request.rtol, request.atol),
            segments=self.segments,
            record=request.record == "all",
            keep=self._kept(adjoint, by_step),
            grid=() if isinstance(request.equation, SDE) or _adaptive(request) else self._grid(),
            events=request.events,
            conditions=self.conditions,
            pieces=0 if weights is None else 1 + max(map(len, weights)),
            dense=request.dense,
            path=self.path,
            local_start=by_step,
            adjoint=adjoint,
            times_need_gradient=request.ts.requires_grad and self.graph,
            drawn=row,
            first_slope=torch.empty_like(request.y0, memory_format=torch.contiguous_format) if check else None,
        )
        if adjoint:
            runtime.load("SciMLSensitivity", "ChainRulesCore", "Tracker", "Zygote")
        self._load()
        moving = [segment.start for segment in self.segments if segment.start is not None]
        stops = torch.stack(moving) if moving else torch.empty(0)
        inputs = (request.y0.contiguous(), request.ts, stops, *self.tensors)
        full, error, stiffness, pieces = run(job, *inputs, graph=self.graph)
        if job.first_slope is not None:
            self._check(job.first_slope)
        hits, stop = self._hits(job, pieces, weights)
        calls, steps = job.calls, None
        if isinstance(request.equation, SDE) and (solver.method == "sosra" or request.equation.noise == "additive"):
            calls = calls[0], calls[1] + self._check_additive(request.equation, job, full)
        if self.local is not None:
            steps, more = self._local_record(job, full, row)
            calls = calls[0] + more[0], calls[1] + more[1]
        elif request.record == "all":
            implicit = job.table[4] == 1 if solver.method in IMPLICIT else None
            steps = self._steps(job.table[0], job.table[1], error, stiffness, implicit)
        dense = None
        if request.dense:
            assert weights is not None
            places = range(job.accepted)
            dense = DenseOutput(
                [self._within(job, pieces, weights, *place) for place in zip(places, places, strict=True)],
                job.table[0].tolist(),
                times[0],
                job.t if stop is None else stop.at,
                request.y0,
            )
        ys = self._rows(full, row, job.saved)
        ts = request.ts[: len(ys)]
        if stop is not None:
            sign = math.copysign(1.0, times[-1] - times[0])
            before = sum(sign * time < sign * stop.at for time in times[: job.saved])
            ts = torch.cat([ts[:before], stop.t.to(ts).reshape(1)])
            ys = torch.cat([ys[:before], stop.y.unsqueeze(0)])
        events = events_of(hits, request.y0) if request.events else None
        return self._assemble(job, ts, ys, steps, calls, events, dense)

    def of_samples(self, *, check: bool = False) -> Solution:
        """Runs a solve for each sample.

        Raises:
            FieldChanged: with `check`, if the code and the field disagree at the start of the first one.
        """
        request, solver = self.request, self.request.solver
        weights = self._interpolant() if request.events else None
        job = SampleJob(
            codes=self.codes,
            times=request.times,
            solver=solver,
            tolerances=(request.rtol, request.atol),
            segments=self.segments,
            record=request.record == "all",
            keep=self._kept("", False),
            events=request.events,
            conditions=self.conditions,
            pieces=0 if weights is None else 1 + max(map(len, weights)),
            first_slope=torch.empty_like(request.y0[:1], memory_format=torch.contiguous_format) if check else None,
        )
        self._load()
        results = run(job, request.y0.contiguous(), *self.tensors, graph=self.graph)
        if job.first_slope is not None:
            self._check(job.first_slope)
        solved = SampleSolve(request, job, None if weights is None else weights[0], results)
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
        texts = runtime.call(lambda julia: [str(julia.bridge_interpolant(name)).split() for name in methods])
        return tuple(np.array(weights, np.float64).reshape(int(rows), -1) for rows, *weights in texts)

    def _within(self, job: SolveJob, pieces: Tensor, weights: Weights, step: int, row: int) -> Interpolant:
        """The interpolant of a step, from what it is made of, that row of the pieces."""
        t0 = self.request.times[0] if step == 0 else float(job.table[0, step - 1])
        h, (y, *k) = float(job.table[1, step]), pieces[row].unbind()
        k = [(k[0] - y) / h] if isinstance(self.request.equation, SDE) else k
        own = weights[int(job.table[4, step])] if len(weights) > 1 else weights[0]
        return Interpolant(t0, h, y, k[: len(own)], own)

    def _hits(self, job: SolveJob, pieces: Tensor, weights: Weights | None) -> tuple[list[Hit], Hit | None]:
        """The events that occurred, and the terminal one of them."""
        hits: list[Hit] = []
        stop = None
        for row, crossing in enumerate(job.crossings.tolist()):
            assert weights is not None
            step = int(crossing[1]) - 1
            within = self._within(job, pieces, weights, step, step if job.dense else row)
            found, stop = hits_of(self.request.events, crossing, within, float(job.table[0, step]))
            hits += found
        return hits, stop

    def _check(self, value: Tensor) -> None:
        equation, y0 = self.request.equation, self.request.y0
        assert not isinstance(equation, JuliaField)
        t0, part = _start(self.request), equation.drift if isinstance(equation, SDE) else equation
        if self.samples:
            check_unchanged(one_sample(part), t0, y0[:1], value)
        else:
            check_unchanged(part, t0, y0, value)

    def _check_additive(self, sde: SDE, job: SolveJob, full: Tensor) -> int:
        """Checks beside the start and at the end that the diffusion does not depend on the state; its evaluations."""
        request = self.request
        t0, y0 = _start(request), request.y0.detach()
        with torch.no_grad():
            time = torch.tensor(t0, dtype=y0.dtype, device=y0.device)
            here = sde.diffusion(time, y0)
            states = [moved_by_noise(y0, here, math.sqrt(job.dt_first))]
            if job.status == "success" and job.accepted:
                states.append(full[job.saved - 1].detach())
            for y in states:
                check_additive(request.solver.method, y, here, sde.diffusion(time, y))
        return len(states) + (not _adaptive(self.request) or request.solver.dt0 is not None)

    def _times(self) -> tuple[tuple[float, ...], int | None]:
        """The save times with the drawn one among them, and its row."""
        times = self.request.times
        if math.isnan(self.drawn) or times[0] == times[-1]:
            return times, None
        rising = times[-1] > times[0]
        row = sum(t <= self.drawn if rising else t >= self.drawn for t in times)
        return (*times[:row], self.drawn, *times[row:]), row

    def _rows(self, full: Tensor, row: int | None, saved: int) -> Tensor:
        """The states at the save times that were reached."""
        if row is None:
            return full[:saved] if full.shape[0] != saved else full
        return torch.cat([full[:row], full[row + 1 : max(saved, row)]])[:saved]

    def _steps(self, t: Tensor, dt: Tensor, error: Tensor, stiffness: Tensor, implicit: Tensor | None = None) -> Steps:
        method, device = self.request.solver.method, self.request.y0.device
        sizes = STOCHASTIC if isinstance(self.request.equation, SDE) else SIZES
        size = sizes["tsit5" if self.local and method in IMPLICIT else method]
        return Steps(
            t=t.to(device),
            dt=dt.to(device),
            error=error if _adaptive(self.request) else None,
            stiffness=None if size is None else stiffness,
            method=method,
            stability_size=size,
            implicit=implicit,
        )

    # --- the local record ------------------------------------------------------------------------

    def _local_record(self, job: SolveJob, full: Tensor, row: int | None) -> tuple[Steps, tuple[int, int]]:
        """The step at the drawn place, and the evaluations that it took."""
        request, local = self.request, self.local
        assert local is not None
        ends, sizes = job.table[0], job.table[1]
        if job.status != "success" or not job.accepted:
            empty = full.reshape(-1)[:0].abs()  # no step: an empty record that is part of the graph
            return self._steps(ends[:0], sizes[:0], empty, empty), (0, 0)
        if row is None:
            step = self._reservoir(job.accepted)
            t, y = job.save_local_start(step), full[-1]
        else:
            inside = (ends > self.drawn) if request.times[-1] > request.times[0] else (ends < self.drawn)
            step = 1 + int(inside.to(torch.uint8).argmax())
            t, y = self.drawn, full[row]
        here = LocalJob(
            codes=self.codes,
            t=t,
            segment=self._segment(float(ends[step - 1])),
            h=math.nan if local.step_size == "initial" else float(sizes[step - 1]),
            method=self._local_method(step, job),
            solver=request.solver,
            tolerances=(request.rtol, request.atol),
            path=None if self.path is None else self.path.independent(),
            freeze=local.freeze_first_stage,
        )
        start = (y.detach() if local.detach_state else y).contiguous()
        error, stiffness = run(here, start, *self.tensors, graph=self.graph)
        clock = torch.tensor([here.end, here.size], dtype=torch.float64)
        return self._steps(clock[:1], clock[1:], error.reshape(1), stiffness.reshape(1)), here.calls

    def _local_method(self, step: int, job: SolveJob) -> str:
        """The method that made that step."""
        if self.request.solver.method != AUTOTSIT5:
            return self._method
        return "rosenbrock23" if bool(job.table[4, step - 1]) else "tsit5"

    def _segment(self, end: float) -> Segment:
        """The segment in which a step that ends there lies."""
        sign = math.copysign(1.0, self.request.times[-1] - self.request.times[0])
        return next(segment for segment in self.segments if sign * end <= sign * segment.end)

    def _reservoir(self, accepted: int) -> int:
        """One of the steps 1 to `accepted`, each equally likely: the torch engine's draw."""
        chosen = 1
        for step in range(1, accepted + 1):
            if self.random.random() * step < 1.0:
                chosen = step
        return chosen

    # --- the outcome -----------------------------------------------------------------------------

    def _first_step(self, job: SolveJob) -> FirstStep | None:
        method = self.request.solver.method
        if not _adaptive(self.request) or not job.accepted:
            return None
        order = SDE_METHODS[method].order + 0.5 if isinstance(self.request.equation, SDE) else ORDERS[method]
        return FirstStep(float(job.table[1, 0]), job.first_error, job.accepted, order)

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
