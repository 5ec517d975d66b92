"""The embedded engine: DifferentialEquations.jl's methods, step for step, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from regnde._engines.base import FAILURES, Engine, Request, unsupported_everywhere
from regnde._engines.torch.autocast import under_present_autocast
from regnde._engines.torch.checkpoint import with_graph
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Failure, Path, integrate
from regnde._engines.torch.ode import NonFiniteStart, RungeKutta
from regnde._engines.torch.per_sample import PerSample
from regnde._engines.torch.records import Records
from regnde._engines.torch.sde import StochasticRungeKutta
from regnde._engines.torch.sde_tableaux import SDE_TABLEAUX, StochasticTableau
from regnde._engines.torch.step import stage_times
from regnde._engines.torch.tableaux import TABLEAUX, Tableau
from regnde._equation import SDE, JuliaField
from regnde._noise import BrownianPath
from regnde._solution import SampleStats, Solution, Stats, Steps
from regnde._solver import Local

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
        if solver.method not in known:
            kind = "SDE" if sde else "ODE"
            return f"the torch engine has no {kind} method {solver.method!r}; it has {', '.join(known)}."
        if solver.gradient not in ("discrete", "checkpoint"):
            return f"gradient={solver.gradient!r} is SciMLSensitivity's: set Solver(engine='julia')."
        if sde and solver.compile:
            return "compile=True is for ODEs."
        if solver.batch == "per-sample" and (why := _unsupported_per_sample(request)) is not None:
            return why
        return unsupported_everywhere(request, adaptive=known[solver.method].controller is not None)

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
        kind = request.y0.device.type
        if not torch.is_autocast_enabled(kind):
            return self._solve(request)
        equation = under_present_autocast(request.equation, kind)
        with torch.autocast(kind, enabled=False):
            return self._solve(replace(request, equation=equation))

    def _solve(self, request: Request) -> Solution:
        """The same outside autocast."""
        y0, times, solver = request.y0, request.times, request.solver
        if solver.batch == "per-sample":
            return _solve_per_sample(request)
        stepper = _stepper(request)
        start = y0
        if request.ts.requires_grad:  # moving t0 by s moves the trajectory by -s f(t0, y0)
            start = y0 - _shift(stepper.field, request, 0, y0)

        local = request.record if isinstance(request.record, Local) else None
        path = Path(t=times[0])
        if times[0] == times[-1]:
            path.chunks.append(start.unsqueeze(0).expand(len(times), *y0.shape))
            path.saved = len(times)
        else:
            try:
                if solver.dt0 is not None and not bool(torch.isfinite(y0).all()):  # else the heuristic notices
                    raise NonFiniteStart("y0 is not finite")
                h = stepper.first_step(start, times[0], times[-1], solver.dt0)
                kept = stepper.kept
                with nullcontext() if kept is None else torch.no_grad():
                    path = integrate(stepper, start, times, h, solver, local)
                if kept is not None:
                    anchor = path.anchor if local is not None and not local.detach_state else None
                    with_graph(path, kept, start, times, anchor=anchor)
                if isinstance(stepper, StochasticRungeKutta) and path.failure is None:
                    stepper.warn_if_unresolved()
            except NonFiniteStart as problem:
                path.saved = times.count(times[0])
                path.chunks.append(start.unsqueeze(0).expand(path.saved, *y0.shape))
                path.failure = Failure("non-finite", str(problem), 0.0)

        ys = torch.cat(path.chunks)
        if request.ts.requires_grad and path.failure is None:
            rows = [ys[i] + _shift(stepper.field, request, i, ys[i]) for i in range(len(times))]
            ys = torch.stack(rows)
        steps = _steps(request, stepper, path, local)
        stats = Stats(
            nfe=stepper.field.calls,
            accepted=path.accepted,
            rejected=path.rejected,
            dt_first=path.dt_first,
            nfe_diffusion=stepper.diffusion.calls if isinstance(stepper, StochasticRungeKutta) else 0,
        )
        return _finished(request, ys, stats, steps, path.failure, path.t)


def _unsupported_per_sample(request: Request) -> str | None:
    """What can not be done with a step size for each sample."""
    if isinstance(request.equation, SDE):
        return "batch='per-sample' is for ODEs: the samples of an SDE share one Brownian path's clock."
    if request.y0.ndim == 0:
        return "batch='per-sample' needs a leading dimension of samples, but y0 has no dimension."
    if TABLEAUX[request.solver.method].controller is None:
        return f"batch='per-sample' needs an adaptive method; {request.solver.method!r} has a fixed step."
    if isinstance(request.record, Local):
        return "batch='per-sample' records 'none' or 'all': a Local step belongs to one system with one clock."
    if request.ts.requires_grad:
        return "batch='per-sample' gives no gradient with respect to the times: detach ts."
    return None


def _solve_per_sample(request: Request) -> Solution:
    """Solves a batch whose samples step apart."""
    y0, solver, tableau = request.y0, request.solver, TABLEAUX[request.solver.method]
    assert not isinstance(request.equation, (SDE, JuliaField))  # refused
    record = request.record == "all"
    path = PerSample(request.equation, tableau, solver, y0, request.times, record=record).run()
    steps = None
    if record:
        error, stiffness = path.estimates()
        t, dt, mask = (torch.as_tensor(x).to(y0.device) for x in path.clocks())
        steps = Steps(
            t=t.to(y0.real.dtype),
            dt=dt.to(y0.real.dtype),
            error=error,
            stiffness=stiffness if tableau.stiffness_pair else None,
            method=tableau.name,
            stability_size=tableau.stability_size,
            mask=mask,
        )
    counts = zip(path.evaluations.tolist(), path.accepted.tolist(), path.rejected.tolist(), strict=True)
    stats = Stats(
        nfe=path.calls,
        accepted=int(path.accepted.sum()),
        rejected=int(path.rejected.sum()),
        dt_first=float(min(path.dt_first, key=abs, default=0.0)),
        samples=tuple(SampleStats(*count) for count in counts),
    )
    return _finished(request, path.outputs(), stats, steps, path.failure, path.t)


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
        status="success" if failure is None else FAILURES[failure.kind].status,
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


def _stepper(request: Request) -> RungeKutta | StochasticRungeKutta:
    """The method applied to the problem, and to a Brownian path if it is an SDE."""
    equation, y0, times, solver = request.equation, request.y0, request.times, request.solver
    record = request.record == "all"
    if isinstance(equation, SDE):
        drift, diffusion = CountedField(equation.drift, "drift"), CountedField(equation.diffusion, "diffusion")
        end = times[-1] if times[-1] > times[0] else times[0] + 1.0  # no step: any path will do
        noise = BrownianPath(times[0], end, y0.shape) if request.noise is None else request.noise
        tableau = SDE_TABLEAUX[solver.method]
        return StochasticRungeKutta(drift, diffusion, tableau, solver, y0, noise, record=record)
    assert not isinstance(equation, JuliaField)  # refused
    local = isinstance(request.record, Local)
    field = CountedField(equation, copied=not (torch.is_grad_enabled() or local))  # BufferStages copies
    return RungeKutta(field, TABLEAUX[solver.method], solver, y0, record=record)


def _shift(field: CountedField, request: Request, index: int, y: Tensor) -> Tensor:
    """f(t_i, y) (t_i - value of t_i): zero, with the gradient of a state with respect to its time."""
    t = request.times[index]
    (time,) = stage_times((0.0,), t, 0.0, t, y)
    moved = request.ts[index] - request.ts[index].detach()
    return field(time, y) * moved.to(y.device, y.real.dtype)


def _steps(
    request: Request, stepper: RungeKutta | StochasticRungeKutta, path: Path, local: Local | None
) -> Steps | None:
    """The records as tensors of the state's real dtype and device."""
    if request.record == "none":
        return None
    tableau, y0 = stepper.tableau, request.y0
    ends, sizes, records = path.ends, path.sizes, path.records
    if local:
        ends, sizes, records = [], [], Records()
        if path.anchor is not None and path.failure is None:
            end, size, *estimates = stepper.local_step(path.anchor, request.times[-1], local)
            ends, sizes = [end], [size]
            records.add(*estimates)

    def some(values: Tensor | None) -> Tensor:
        # No step taken: an empty record that still hangs on y0's graph, so that a penalty has a gradient (0).
        return y0.reshape(-1)[:0].abs() if values is None else values

    def clock(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=y0.real.dtype, device=y0.device)

    stiffness: Tensor | Callable[[], Tensor] | None = None
    if tableau.stiffness_pair:  # formed when it is asked for only where it waits: a function can not be pickled
        stiffness = (lambda: some(records.stiffnesses())) if records.postponed else some(records.stiffnesses())
    return Steps(
        t=clock(ends),
        dt=clock(sizes),
        error=some(records.errors()) if tableau.estimates_error else None,
        stiffness=stiffness,
        method=tableau.name,
        stability_size=tableau.stability_size,
    )
