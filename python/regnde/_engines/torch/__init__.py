"""The embedded engine: DifferentialEquations.jl's methods, step for step, in plain PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regnde._engines.base import FAILURES, Engine, Request, unsupported_everywhere
from regnde._engines.torch.autocast import under_present_autocast
from regnde._engines.torch.checkpoint import Checkpoint, transformed
from regnde._engines.torch.failure import Failure
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Path, integrate, uniform
from regnde._engines.torch.ode import NonFiniteStart, RungeKutta
from regnde._engines.torch.per_sample import PerSample
from regnde._engines.torch.sde import StochasticRungeKutta
from regnde._engines.torch.step import all_finite, stage_times, take_step
from regnde._equation import SDE, JuliaField
from regnde._last_step import FirstStep
from regnde._noise import BrownianPath
from regnde._solution import SampleStats, Solution, Stats, Status, Steps
from regnde._solver import Local, hint
from regnde._tableau import SDE_TABLEAUX, TABLEAUX, StochasticTableau, Tableau

__all__ = ["TorchEngine"]


class TorchEngine(Engine):
    """Runs any callable on any torch device."""

    name = "torch"

    def unavailable(self) -> str | None:
        """Never: torch is a dependency of the package."""
        return None

    def why_unsupported(self, request: Request) -> str | None:
        """What this engine has no method, equation or gradient for."""
        solver = request.solver
        if isinstance(request.equation, JuliaField):
            return "a JuliaField runs on the Julia engine alone: set Solver(engine='julia')."
        sde = isinstance(request.equation, SDE)
        known: Mapping[str, Tableau | StochasticTableau] = SDE_TABLEAUX if sde else TABLEAUX
        if sde and solver.tableau is not None:
            return f"the Tableau {solver.method!r} is a method for ODEs: for an SDE give the name of an SDE method."
        if solver.tableau is None and solver.method not in known:
            kind = "SDE" if sde else "ODE"
            text = f"the torch engine has no {kind} method {solver.method!r}; it has {', '.join(known)}."
            return f"{text} {hint(solver.method)}".rstrip()
        if solver.gradient not in ("discrete", "checkpoint"):
            return f"gradient={solver.gradient!r} is SciMLSensitivity's: set Solver(engine='julia')."
        if sde and solver.compile:
            return "compile=True is for ODEs."
        if solver.batch == "per-sample" and (why := _why_not_per_sample(request)) is not None:
            return why
        return unsupported_everywhere(request, adaptive=_tableau(request).adaptive)

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
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
        stepper = _stepper(request)
        start = y0
        if _moves(request.ts):  # moving t0 by s moves the trajectory by -s f(t0, y0)
            start = _moved(stepper.field, y0, times[0], request.ts[0], -1.0)

        local = request.record if isinstance(request.record, Local) else None
        path = Path(t=times[0])
        if times[0] == times[-1]:
            path.chunks.append(start.unsqueeze(0).expand(len(times), *y0.shape))
            path.saved = len(times)
        else:
            try:
                if solver.dt0 is not None and not all_finite(y0):  # else the heuristic notices
                    raise NonFiniteStart("y0 is not finite")
                dt0 = solver.dt0 if request.grid is None else abs(request.grid[1] - request.grid[0])
                h = stepper.first_step(start, times[0], times[-1], dt0)
                grid = _grid(request, stepper, h)
                path = integrate(stepper, start, times, h, max_steps=solver.max_steps, local=local, grid=grid)
                if isinstance(stepper, StochasticRungeKutta) and path.failure is None:
                    stepper.warn_if_unresolved()
            except NonFiniteStart as problem:
                path.saved = times.count(times[0])
                path.chunks.append(start.unsqueeze(0).expand(path.saved, *y0.shape))
                path.failure = Failure("non-finite", str(problem), 0.0)

        ys = torch.cat(path.chunks)
        if _moves(request.ts) and path.failure is None:
            rows = zip(ys, times, request.ts, strict=True)
            ys = torch.stack([_moved(stepper.field, y, t, moving, 1.0) for y, t, moving in rows])
        steps = _steps(request, stepper, path, local)
        first_size, order = path.sizes[0] if path.sizes else 0.0, stepper.tableau.order
        if isinstance(stepper, StochasticRungeKutta):
            order += 0.5
        stats = Stats(
            nfe=stepper.field.calls,
            accepted=path.accepted,
            rejected=path.rejected,
            dt_first=path.dt_first,
            nfe_diffusion=stepper.diffusion.calls if isinstance(stepper, StochasticRungeKutta) else 0,
            first_step=FirstStep(first_size, path.first_error, path.accepted, order),
        )
        return _finished(request, ys, stats, steps, path.failure, path.t)


def _tableau(request: Request) -> Tableau | StochasticTableau:
    solver = request.solver
    if isinstance(request.equation, SDE):
        return SDE_TABLEAUX[solver.method]
    return TABLEAUX[solver.method] if solver.tableau is None else solver.tableau


def _grid(request: Request, stepper: RungeKutta | StochasticRungeKutta, h: float) -> Iterator[float] | None:
    """Ends of the steps of a fixed-step method."""
    if stepper.controller is not None:
        return None
    return uniform(request.times[0], request.times[-1], h) if request.grid is None else iter(request.grid[1:])


def _why_not_per_sample(request: Request) -> str | None:
    """What can not be done with a step size for each sample."""
    if isinstance(request.equation, SDE):
        return "batch='per-sample' is for ODEs: the samples of an SDE share one Brownian path's clock."
    if request.y0.ndim == 0:
        return "batch='per-sample' needs a leading dimension of samples, but y0 has no dimension."
    if not _tableau(request).adaptive:
        return f"batch='per-sample' needs an adaptive method; {request.solver.method!r} has a fixed step."
    if isinstance(request.record, Local):
        return "batch='per-sample' records 'none' or 'all': a Local step belongs to one system with one clock."
    if _moves(request.ts):
        return "batch='per-sample' gives no gradient with respect to the times: detach ts."
    return None


def _solve_per_sample(request: Request) -> Solution:
    """Solves a batch with per-sample step sizes."""
    y0, solver, tableau = request.y0, request.solver, _tableau(request)
    assert isinstance(tableau, Tableau)
    assert not isinstance(request.equation, (SDE, JuliaField))  # unsupported
    record, checkpoint = request.record == "all", _checkpoint(request, CountedField(request.equation))
    batch = PerSample(request.equation, tableau, solver, y0, request.times, record=record, checkpoint=checkpoint)
    batch.run()
    steps = None
    if record:
        error, stiffness = batch.outputs.records()
        t, dt, mask = (torch.as_tensor(x).to(y0.device) for x in batch.outputs.clocks())
        steps = Steps(
            t=t,
            dt=dt,
            error=error,
            stiffness=stiffness if tableau.stiffness_pair else None,
            method=tableau.name,
            stability_size=tableau.stability_size,
            mask=mask,
        )
    counts = zip(batch.evaluations.tolist(), batch.accepted.tolist(), batch.rejected.tolist(), strict=True)
    stats = Stats(
        nfe=batch.calls,
        accepted=int(batch.accepted.sum()),
        rejected=int(batch.rejected.sum()),
        dt_first=float(min(batch.dt_first, key=abs, default=0.0)),
        samples=tuple(SampleStats(*count) for count in counts),
        first_step=FirstStep(batch.first_sizes, batch.first_errors, batch.accepted, tableau.order),
    )
    return _finished(request, batch.outputs.states(), stats, steps, batch.failure, batch.t)


def _finished(
    request: Request, ys: Tensor, stats: Stats, steps: Steps | None, failure: Failure | None, t: float
) -> Solution:
    """The solution up to time t; a failure is raised or told by its status."""
    solution = Solution(
        ts=request.ts[: len(ys)],
        ys=ys,
        stats=stats,
        steps=steps,
        engine=TorchEngine.name,
        solver=request.solver,
        status=Status.SUCCESS if failure is None else FAILURES[failure.kind].status,
    )
    if failure is None or not request.throw:
        return solution
    y0, reason = request.y0, failure.reason
    bad = int((~torch.isfinite(y0)).sum())
    if bad:  # whatever was seen later, it began here
        reason = f"y0 is not finite: {bad} of {y0.numel()} components"
    raise FAILURES[failure.kind](
        reason,
        t=t,
        dt=failure.dt,
        solution=solution,
        error_ratio=failure.error,
        component=failure.diagnosis.component,
        stiffness=failure.diagnosis.stiffness,
    )


def _checkpoint(request: Request, *fields: CountedField) -> Checkpoint | None:
    """The checkpoint that evaluates the steps; None if the graph is to save all it needs, or no graph is built."""
    wanted = request.solver.gradient == "checkpoint" and torch.is_grad_enabled()
    return Checkpoint(fields, request.y0.device) if wanted and not transformed() else None


def _stepper(request: Request) -> RungeKutta | StochasticRungeKutta:
    """The method applied to the problem, and to a Brownian path if it is an SDE."""
    equation, y0, times, solver = request.equation, request.y0, request.times, request.solver
    record, tableau = request.record == "all", _tableau(request)
    if isinstance(equation, SDE):
        assert isinstance(tableau, StochasticTableau)
        drift, diffusion = CountedField(equation.drift, "drift"), CountedField(equation.diffusion, "diffusion")
        end = times[-1] if times[-1] > times[0] else times[0] + 1.0  # no step: any path will do
        noise = BrownianPath(times[0], end, y0.shape) if request.noise is None else request.noise
        checkpoint = _checkpoint(request, drift, diffusion)
        return StochasticRungeKutta(drift, diffusion, tableau, solver, y0, noise, record=record, checkpoint=checkpoint)
    assert isinstance(tableau, Tableau)
    assert not isinstance(equation, JuliaField)  # unsupported
    field = CountedField(equation)
    return RungeKutta(field, tableau, solver, y0, record=record, checkpoint=_checkpoint(request, field))


def _moves(ts: Tensor) -> bool:
    """Whether the times carry a gradient, or a tangent of forward mode."""
    return ts.requires_grad or (transformed() and _has_tangent(ts))


def _has_tangent(ts: Tensor) -> bool:
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(ts)
    dual: Any = torch.autograd.forward_ad.unpack_dual(ts)  # type: ignore[no-untyped-call]  # torch does not type it
    return wrapped or dual.tangent is not None


def _moved(field: CountedField, y: Tensor, t: float, moving: Tensor, sign: float) -> Tensor:
    """The state y, with its derivatives by a time whose value is t: exact up to the fourth.

    It is a step whose size is 0 and carries the gradient: for sign 1 from t to `moving`, else back.
    """
    by = (moving - t).to(y.device, y.dtype.to_real())
    (start,) = stage_times((0.0,), t, 0.0, t, y)
    origin = start if sign > 0 else start + by
    tableau = TABLEAUX["rk4"]
    return take_step(field, tableau, y, None, sign * by, [origin + (sign * c) * by for c in tableau.c]).y1


def _steps(
    request: Request, stepper: RungeKutta | StochasticRungeKutta, path: Path, local: Local | None
) -> Steps | None:
    """The records; clocks in double precision, estimates in the state's real dtype."""
    if request.record == "none":
        return None
    tableau, y0 = stepper.tableau, request.y0
    ends, sizes = (path.ends, path.sizes) if local is None else ([], [])
    error, stiffness = (None, None) if stepper.recorder is None else stepper.recorder.records()
    if local and path.local_start is not None and path.failure is None:
        end, size, (error, stiffness) = stepper.local_step(path.local_start, request.times[-1], local)
        ends, sizes = [end], [size]

    def present(values: Tensor | None) -> Tensor:
        # No step taken: an empty record with y0's graph, so that a penalty has a gradient (0).
        return y0.reshape(-1)[:0].abs() if values is None else values

    clock = functools.partial(torch.tensor, dtype=torch.float64, device=y0.device)
    return Steps(
        t=clock(ends),
        dt=clock(sizes),
        error=present(error) if tableau.adaptive else None,
        stiffness=present(stiffness) if tableau.stiffness_pair else None,
        method=tableau.name,
        stability_size=tableau.stability_size,
    )
