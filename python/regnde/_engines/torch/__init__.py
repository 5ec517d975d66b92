"""The embedded engine: DifferentialEquations.jl's methods, step for step, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from regnde._engines.base import Engine, Request
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Failure, Path, integrate
from regnde._engines.torch.ode import NonFiniteStart, RungeKutta
from regnde._engines.torch.step import stage_times
from regnde._engines.torch.tableaux import TABLEAUX
from regnde._equation import SDE, JuliaField
from regnde._errors import MaxStepsReached, NonFiniteDynamics, SolveError, StepSizeUnderflow
from regnde._solution import Solution, Stats, Steps
from regnde._solver import Local

__all__ = ["TorchEngine"]

FAILURES: dict[str, type[SolveError]] = {
    "non-finite": NonFiniteDynamics,
    "underflow": StepSizeUnderflow,
    "steps": MaxStepsReached,
}


class TorchEngine(Engine):
    """Runs any callable on any torch device."""

    name = "torch"

    def unavailable(self) -> str | None:
        """Never: torch is a dependency of the package."""
        return None

    def refuses(self, request: Request) -> str | None:
        """What this engine has no method, equation or gradient for."""
        solver = request.solver
        if isinstance(request.equation, JuliaField):
            return "a JuliaField runs on the Julia engine alone: set Solver(engine='julia')."
        if isinstance(request.equation, SDE):
            return "the torch engine solves no SDE yet."
        if solver.method not in TABLEAUX:
            return f"the torch engine has no method {solver.method!r}; it has {', '.join(TABLEAUX)}."
        if solver.gradient not in ("discrete", "checkpoint"):
            return f"gradient={solver.gradient!r} is SciMLSensitivity's: set Solver(engine='julia')."
        if TABLEAUX[solver.method].controller is None:
            if solver.dt0 is None:
                return f"{solver.method!r} has a fixed step: give its size, Solver(dt0=...)."
            if isinstance(request.record, Local):
                return f"{solver.method!r} estimates no error, so there is nothing for a local record."
        return None

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
        assert not isinstance(request.equation, (SDE, JuliaField))
        field = CountedField(request.equation)
        y0, times, solver = request.y0, request.times, request.solver
        tableau = TABLEAUX[solver.method]
        start = y0
        if request.ts.requires_grad:  # moving t0 by s moves the trajectory by -s f(t0, y0)
            start = y0 - _shift(field, request, 0, y0)

        local = request.record if isinstance(request.record, Local) else None
        stepper = RungeKutta(field, tableau, solver, y0, record=request.record == "all")
        path = Path(t=times[0])
        if times[0] == times[-1]:
            path.chunks.append(start.unsqueeze(0).expand(len(times), *y0.shape))
            path.saved = len(times)
        else:
            try:
                h = stepper.first_step(start, times[0], times[-1], solver.dt0)
                path = integrate(stepper, start, times, h, solver, local)
            except NonFiniteStart as problem:
                path.failure = Failure("non-finite", str(problem), 0.0)

        ys = torch.cat(path.chunks) if path.chunks else y0.new_empty((0, *y0.shape))
        if request.ts.requires_grad and path.failure is None:
            rows = [ys[i] + _shift(field, request, i, ys[i]) for i in range(len(times))]
            ys = torch.stack(rows)
        steps = _steps(request, stepper, path, local)
        stats = Stats(nfe=field.calls, accepted=path.accepted, rejected=path.rejected, dt_first=path.dt_first)
        solution = Solution(
            ts=request.ts[: path.saved],
            ys=ys,
            stats=stats,
            steps=steps,
            engine=self.name,
            solver=solver,
            status="success" if path.failure is None else FAILURES[path.failure.kind].status,
        )
        if path.failure is not None and request.throw:
            failure = path.failure
            raise FAILURES[failure.kind](failure.reason, t=path.t, dt=failure.dt, solution=solution)
        return solution


def _shift(field: CountedField, request: Request, index: int, y: Tensor) -> Tensor:
    """f(t_i, y) (t_i - value of t_i): zero, with the gradient of a state with respect to its time."""
    t = request.times[index]
    (time,) = stage_times((0.0,), t, 0.0, t, y)
    moved = request.ts[index] - request.ts[index].detach()
    return field(time, y) * moved.to(y.device, y.real.dtype)


def _steps(request: Request, stepper: RungeKutta, path: Path, local: Local | None) -> Steps | None:
    """The records as tensors of the state's real dtype and device."""
    if request.record == "none":
        return None
    tableau, y0 = stepper.tableau, request.y0
    ends, sizes = path.ends, path.sizes
    errors, stiffnesses = path.errors, path.stiffnesses
    if local:
        ends, sizes, errors, stiffnesses = [], [], [], []
        if path.anchor is not None and path.failure is None:
            end, size, error, stiffness = stepper.local_step(path.anchor, request.times[-1], local)
            ends, sizes, errors = [end], [size], [error]
            stiffnesses = [] if stiffness is None else [stiffness]

    def stack(values: list[Tensor]) -> Tensor:
        # No step taken: an empty record that still hangs on y0's graph, so that a penalty has a gradient (0).
        return torch.stack(values) if values else y0.reshape(-1)[:0].abs()

    def clock(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=y0.real.dtype, device=y0.device)

    return Steps(
        t=clock(ends),
        dt=clock(sizes),
        error=stack(errors) if tableau.btilde is not None else None,
        stiffness=stack(stiffnesses) if tableau.stiffness_pair else None,
        method=tableau.name,
        stability_size=tableau.stability_size,
    )
