"""The solution of a request, made of what its loop gathered."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from regnde._dense import DenseOutput
from regnde._engines.base import FAILURES, Request
from regnde._engines.torch.failure import Failure
from regnde._engines.torch.loop import Path
from regnde._engines.torch.stepper import MethodStepper
from regnde._engines.torch.support import method_of
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._solution import Events, Solution, Stats, Status, Steps
from regnde._solver import Local

__all__ = ["finished", "steps_of"]


def steps_of(request: Request, stepper: MethodStepper, path: Path, local: Local | None) -> Steps | None:
    """The records; clocks in double precision, estimates in the state's real dtype."""
    if request.record == "none":
        return None
    tableau, y0 = method_of(request), request.y0
    ends, sizes = (path.ends, path.sizes) if local is None else ([], [])
    error, stiffness = stepper.records()
    if local and path.local_start is not None and path.failure is None:
        end, size, (error, stiffness) = stepper.local_step(path.local_start, local)
        ends, sizes = [end], [size]

    tells_stiffness = tableau.stiffness_pair and not (stepper.mass and stepper.mass.singular)

    def present(values: Tensor | None) -> Tensor:
        # No step taken: an empty record with y0's graph, so that a penalty has a gradient (0).
        return y0.reshape(-1)[:0].abs() if values is None else values

    clock = functools.partial(torch.tensor, dtype=torch.float64, device=y0.device)
    implicits = [True] * len(ends) if isinstance(tableau, RosenbrockTableau) else stepper.implicits
    return Steps(
        t=clock(ends),
        dt=clock(sizes),
        error=present(error) if tableau.adaptive else None,
        stiffness=present(stiffness) if tells_stiffness else None,
        method=tableau.name,
        stability_size=tableau.stability_size,
        implicit=None if implicits is None or local else torch.tensor(implicits, dtype=torch.bool, device=y0.device),
    )


def finished(
    request: Request,
    ts: Tensor,
    ys: Tensor,
    stats: Stats,
    steps: Steps | None,
    failure: Failure | None,
    t: float,
    events: Events | None = None,
    dense: DenseOutput | None = None,
    *,
    stopped: bool = False,
) -> Solution:
    """The solution up to time t; a failure is raised or told by its status."""
    status = Status.EVENT if stopped else Status.SUCCESS
    solution = Solution(
        ts=ts,
        ys=ys,
        stats=stats,
        steps=steps,
        engine="torch",
        solver=request.solver,
        status=status if failure is None else FAILURES[failure.kind].status,
        events=events,
        dense=dense,
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
