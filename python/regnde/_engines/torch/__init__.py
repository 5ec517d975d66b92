"""The embedded engine: DifferentialEquations.jl's methods, step for step, in plain PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from regnde._dense import DenseOutput
from regnde._engines.base import (
    Engine,
    Request,
    exporting,
)
from regnde._engines.torch.autocast import under_present_autocast
from regnde._engines.torch.autoswitch import AutoSwitch
from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.event import EventDetector
from regnde._engines.torch.failure import Failure
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import NonFiniteStart
from regnde._engines.torch.grid import solve_for_export
from regnde._engines.torch.grid_noise import GridNoise
from regnde._engines.torch.grid_stepper import GridStepper
from regnde._engines.torch.loop import Path, integrate
from regnde._engines.torch.observed import Observed
from regnde._engines.torch.ode import RungeKutta
from regnde._engines.torch.per_sample import PerSample
from regnde._engines.torch.rosenbrock import Rosenbrock
from regnde._engines.torch.sample_method import Explicit, LinearlyImplicit
from regnde._engines.torch.sample_stepper import SampleStepper
from regnde._engines.torch.sde import Noise, SDEStepper
from regnde._engines.torch.sde_kernel import uses_area
from regnde._engines.torch.sde_reversible import ReversibleStepper
from regnde._engines.torch.solution import finished, steps_of
from regnde._engines.torch.step import all_finite, stage_times
from regnde._engines.torch.stepper import MethodStepper
from regnde._engines.torch.support import method_of, why_unsupported
from regnde._equation import SDE, JuliaField
from regnde._event_locator import events_of
from regnde._grid_method import GridMethod
from regnde._last_step import FirstStep
from regnde._mass import Mass
from regnde._noise import drawn_path
from regnde._rosenbrock_tableau import AUTOTSIT5, ROSENBROCK_TABLEAUX, RosenbrockTableau
from regnde._sde_method import SDEMethod
from regnde._solution import SampleStats, Solution, Stats, Steps
from regnde._solver import Local
from regnde._stops import Segment
from regnde._tableau import StochasticTableau, Tableau
from regnde._transforms import has_derivative, transformed

__all__ = ["TorchEngine"]

AnyStepper = RungeKutta | Rosenbrock | AutoSwitch | SDEStepper | GridStepper


class TorchEngine(Engine):
    """Runs any callable on any torch device."""

    name = "torch"

    def unavailable(self) -> str | None:
        """Never: torch is a dependency of the package."""
        return None

    def why_unsupported(self, request: Request) -> str | None:
        """What this engine has no method, equation or gradient for."""
        return why_unsupported(request)

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
        tableau = method_of(request)
        if exporting() and not isinstance(tableau, RosenbrockTableau):
            return solve_for_export(request, tableau)
        kind = request.y0.device.type
        if not torch.is_autocast_enabled(kind):
            return self._solve(request)
        equation = under_present_autocast(request.equation, kind)
        with torch.autocast(kind, enabled=False):
            return self._solve(replace(request, equation=equation))

    def _solve(self, request: Request) -> Solution:
        """The same with autocast disabled."""
        y0, times, solver = request.y0, request.times, request.solver
        if solver.batch == "per-sample":
            return _solve_per_sample(request)
        segments = request.segments()
        stepper = _stepper(request, segments[0])
        start = y0
        moves = has_derivative(request.ts) and (torch.is_grad_enabled() or transformed())
        if moves:  # moving t0 by s moves the trajectory by -s f(t0, y0)
            start = stepper.moved(y0, times[0], request.ts[0], -1.0)

        local = request.record if isinstance(request.record, Local) else None
        path = Path(t=times[0])
        if times[0] == times[-1]:
            path.chunks += [start.unsqueeze(0)] * len(times)
            path.saved = len(times)
        else:
            try:
                if solver.dt0 is not None and not all_finite(y0):  # else the heuristic notices
                    raise NonFiniteStart("y0 is not finite")
                dt0 = solver.dt0 if request.grid is None else abs(request.grid[1] - request.grid[0])
                h = stepper.first_step(start, times[0], segments[0].end, dt0)
                grid = request.step_ends(segments, h) if stepper.controller is None else None
                detector = EventDetector(request.events, times[0], start) if request.events else None
                callbacks = request.rules.callbacks
                observed = stepper if callbacks is None else Observed(stepper, callbacks)
                path = integrate(
                    observed,
                    start,
                    times,
                    segments,
                    h,
                    max_steps=solver.max_steps,
                    local=local,
                    grid=grid,
                    detector=detector,
                    dense=request.dense,
                )
                if isinstance(observed, Observed):
                    observed.close()
                if path.failure is None:
                    stepper.finish()
            except NonFiniteStart as problem:
                path.saved = times.count(times[0])
                path.chunks += [start.unsqueeze(0)] * path.saved
                path.failure = Failure("non-finite", str(problem), 0.0)

        ys, ts = torch.cat(path.chunks), request.ts[: path.saved]
        if moves and path.failure is None:
            ys = _moved(request, stepper, segments, ys)
        if path.stopped is not None:
            ys, ts = torch.cat([ys, path.stopped.y.unsqueeze(0)]), torch.cat([ts, path.stopped.t.to(ts).reshape(1)])
        steps = steps_of(request, stepper, path, local)
        stats = Stats(
            accepted=path.accepted,
            rejected=path.rejected,
            dt_first=path.dt_first,
            first_step=FirstStep(path.sizes[0] if path.sizes else 0.0, path.first_error, path.accepted, stepper.order),
            **stepper.counts()._asdict(),
        )
        events = events_of(path.hits, y0) if request.events else None
        dense = DenseOutput(path.interpolants, path.ends, times[0], path.t, start) if request.dense else None
        stopped = path.stopped is not None
        return finished(request, ts, ys, stats, steps, path.failure, path.t, events, dense, stopped=stopped)


def _solve_per_sample(request: Request) -> Solution:
    """Solves a batch with per-sample step sizes."""
    y0, solver, tableau = request.y0, request.solver, method_of(request)
    assert isinstance(tableau, (Tableau, RosenbrockTableau))
    assert not isinstance(request.equation, (SDE, JuliaField))  # unsupported
    method = (
        LinearlyImplicit(tableau, None if request.mass is None else Mass.of(request.mass))
        if isinstance(tableau, RosenbrockTableau)
        else Explicit(tableau)
    )
    record, segments = request.record == "all", request.segments()
    stepper = SampleStepper(
        request.equation,
        method,
        solver,
        (request.rtol, request.atol),
        y0,
        segments,
        record=record,
        checkpoint=_checkpoint(request, CountedField(request.equation)),
    )
    batch = PerSample(stepper, solver, y0, request.times, segments, events=request.events)
    batch.run()
    steps = None
    if record:
        error, stiffness = batch.outputs.records()
        t, dt, mask = (torch.as_tensor(x).to(y0.device) for x in batch.outputs.clocks())
        steps = Steps(
            t=t,
            dt=dt,
            error=error,
            stiffness=stiffness if tableau.stiffness_pair and not (method.mass and method.mass.singular) else None,
            method=tableau.name,
            stability_size=tableau.stability_size,
            mask=mask,
        )
    counts = zip(stepper.evaluations.tolist(), batch.accepted.tolist(), batch.rejected.tolist(), strict=True)
    stats = Stats(
        nfe=stepper.calls,
        accepted=int(batch.accepted.sum()),
        rejected=int(batch.rejected.sum()),
        dt_first=float(min(batch.dt_first, key=abs, default=0.0)),
        njac=method.jacobian.calls if isinstance(method, LinearlyImplicit) else 0,
        nfactorisations=stepper.factorisations,
        samples=tuple(SampleStats(*count) for count in counts),
        first_step=FirstStep(batch.first_sizes, batch.first_errors, batch.accepted, tableau.order),
    )
    ys = batch.outputs.states()
    events, stopped = None, False
    if batch.events is not None:
        found = sorted(batch.events.hits, key=lambda pair: pair[0])
        events = events_of([hit for _, hit in found], y0[0] if len(y0) else y0.new_zeros(y0.shape[1:]))
        events = events._replace(
            sample=torch.tensor([sample for sample, _ in found], dtype=torch.long, device=y0.device)
        )
        stopped = len(y0) > 0 and bool(batch.events.stopped.all())
    return finished(request, request.ts[: len(ys)], ys, stats, steps, batch.failure, batch.t, events, stopped=stopped)


def _checkpoint(request: Request, *fields: CountedField) -> Checkpoint | None:
    """The checkpoint that evaluates the steps; None if the graph is to save all it needs, or no graph is built."""
    wanted = request.solver.gradient == "checkpoint" and torch.is_grad_enabled()
    return Checkpoint(fields, request.y0.device) if wanted and not transformed() else None


def _stepper(request: Request, segment: Segment) -> AnyStepper:
    """The method applied to the problem, and to a Brownian path if it is an SDE."""
    equation, y0, times, solver = request.equation, request.y0, request.times, request.solver
    record, tableau, tolerances = request.record == "all", method_of(request), (request.rtol, request.atol)
    if isinstance(equation, SDE):
        assert isinstance(tableau, (StochasticTableau, SDEMethod))
        drift, diffusion = CountedField(equation.drift, "drift"), CountedField(equation.diffusion, "diffusion")
        drawn = request.noise is None
        if request.noise is not None:
            noise: Noise = request.noise.to(y0.device) if y0.is_cuda else request.noise
            if equation.has_matrix:
                diffusion.inner = (request.noise.shape[-1],)
        else:
            if equation.has_matrix:
                diffusion.inner = (_columns(equation, request, segment),)
                diffusion.calls = 1
            noise = _drawn_noise(request, tableau, equation.path_shape(y0.shape, *diffusion.inner))
        checkpoint = _checkpoint(request, drift, diffusion)
        arguments = (equation, drift, diffusion, tableau, solver, tolerances, y0, segment, noise)
        smallest = request.rules.accept_smallest
        if tableau.name == "reversible_heun":
            back = solver.gradient == "reversible" and torch.is_grad_enabled() and not transformed()
            return ReversibleStepper(
                *arguments, drawn=drawn, record=record, checkpoint=checkpoint, t0=times[0], reversible=back
            )
        return SDEStepper(*arguments, drawn=drawn, record=record, accept_smallest=smallest, checkpoint=checkpoint)
    assert not isinstance(equation, JuliaField)  # unsupported
    field = CountedField(equation)
    checkpoint = _checkpoint(request, field)
    if isinstance(tableau, GridMethod):
        return GridStepper(field, tableau, segment, checkpoint)
    rosenbrock = functools.partial(
        Rosenbrock,
        field,
        solver=solver,
        tolerances=tolerances,
        segment=segment,
        record=record,
        mass=None if request.mass is None else Mass.of(request.mass),
        checkpoint=checkpoint,
    )
    if isinstance(tableau, RosenbrockTableau):
        return rosenbrock(tableau)
    assert isinstance(tableau, Tableau)
    explicit = RungeKutta(
        field, tableau, solver, tolerances, y0, segment, record=record, rules=request.rules, checkpoint=checkpoint
    )
    switching = solver.method == AUTOTSIT5 and solver.tableau is None
    return AutoSwitch(explicit, rosenbrock(ROSENBROCK_TABLEAUX["rosenbrock23"])) if switching else explicit


def _drawn_noise(request: Request, method: StochasticTableau | SDEMethod, shape: Sequence[int]) -> Noise:
    """New noise, by torch's seed."""
    y0, times, solver = request.y0, request.times, request.solver
    if not method.adaptive:
        steps = (times[-1] - times[0]) / solver.dt0 if solver.dt0 else 0.0
        count = math.ceil(steps) if request.grid is None else len(request.grid) - 1
        return GridNoise(shape, y0, min(count, solver.max_steps), area=uses_area(method))
    return drawn_path(times[0], times[-1], shape, y0.real.dtype, y0.device if y0.is_cuda else "cpu")


def _columns(sde: SDE, request: Request, segment: Segment) -> int:
    """How many Wiener processes a diffusion matrix multiplies, by one evaluation at the start."""
    y0 = request.y0
    with torch.no_grad():
        time = stage_times((0.0,), request.times[0], 0.0, request.times[0], y0, segment.within)[0]
        value = sde.diffusion(time, y0.detach().clone())
    if not isinstance(value, Tensor):
        raise TypeError(f"diffusion(t, y) must return a tensor of shape (..., d, m), got {type(value).__name__}.")
    if value.ndim != y0.ndim + 1 or value.shape[:-1] != y0.shape:
        raise ValueError(
            f"diffusion(t, y) returned shape {tuple(value.shape)} for a state of shape {tuple(y0.shape)}; with "
            f"noise={sde.noise!r} it must be a matrix of shape {(*y0.shape, 'm')} (nothing is broadcast)."
        )
    return value.shape[-1]


def _moved(request: Request, stepper: MethodStepper, segments: Sequence[Segment], ys: Tensor) -> Tensor:
    """The states with their derivatives by the save times; at a stop, by that of the field before it."""
    forward, at, rows = request.times[-1] > request.times[0], 0, []
    for y, t, moving in zip(ys, request.times, request.ts[: len(ys)], strict=False):
        while t > segments[at].end if forward else t < segments[at].end:
            at += 1
        stepper.restart(segments[at])
        rows.append(stepper.moved(y, t, moving, 1.0))
    return torch.stack(rows)
