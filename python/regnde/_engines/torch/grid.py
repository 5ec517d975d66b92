"""Steps along a given grid, without control, checks or records: nothing depends on numbers, so it can be exported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from regnde._engines.base import Request
from regnde._engines.torch.step import Field, dense_output, extra_stages, stage_times, take_step
from regnde._equation import SDE, JuliaField
from regnde._grid_method import GridMethod
from regnde._sde_method import SDEMethod, StochasticMethod
from regnde._solution import Solution, Stats
from regnde._stops import Segment
from regnde._tableau import StochasticTableau, Tableau

__all__ = ["evaluations", "solve_for_export", "walk"]


def walk(
    field: Field,
    tableau: Tableau,
    y: Tensor,
    ends: Sequence[float],
    times: Sequence[float],
    segments: Sequence[Segment] = (),
) -> Tensor:
    """States at the save times, shape (len(times), *y.shape), by steps that end at given times.

    Args:
        field: f(t, y).
        tableau: the method.
        y: state at the first time.
        ends: the initial time and the ends of the steps, increasing or decreasing without repetition.
        times: save times within them, in the same order; they may repeat.
        segments: of the span, if there are stops; a step ends at each stop.
    """
    saved = [y for time in times if time == ends[0]]
    first: Tensor | None = None
    at = 0
    for t, t1 in itertools.pairwise(ends):
        if segments and t == segments[at].end:
            at, first = at + 1, None
        within = segments[at].within if segments else None
        h = t1 - t
        step = take_step(field, tableau, y, first, h, stage_times(tableau.c, t, h, t1, y, within))
        inside = [time for time in times if min(t, t1) < time < max(t, t1)]
        if inside:
            k = extra_stages(field, tableau, step, stage_times(tableau.extra_c, t, h, t1, y, within))
            saved += dense_output(tableau, step.y, h, k, [(time - t) / h for time in inside]).unbind()
        y, first = step.y1, step.k[-1] if tableau.fsal else None
        saved += [y for time in times if time == t1]
    return torch.stack(saved)


def evaluations(tableau: Tableau, ends: Sequence[float], times: Sequence[float]) -> int:
    """Evaluations of the field in `walk`."""
    steps = len(ends) - 1
    inside = sum(any(min(t, t1) < time < max(t, t1) for time in times) for t, t1 in itertools.pairwise(ends))
    stages = steps * (tableau.stages - 1) + 1 if tableau.fsal else steps * tableau.stages
    return stages + inside * len(tableau.extra_a)


def solve_for_export(request: Request, tableau: Tableau | StochasticMethod | GridMethod) -> Solution:
    """A solve with fixed steps as a plain sequence of evaluations.

    Raises:
        ValueError: for a method that adapts its steps, an SDE, events, records, or times with a gradient.
    """
    equation, times, solver, y0 = request.equation, request.times, request.solver, request.y0
    if isinstance(equation, (SDE, JuliaField)) or isinstance(tableau, (StochasticTableau, SDEMethod)):
        raise ValueError("torch.export: the solve of an SDE can not be exported, only that of an ODE with fixed steps.")
    if not isinstance(tableau, Tableau):
        raise ValueError(
            f"torch.export: {solver.method!r} decides by numbers: choose an explicit method such as 'rk4'."
        )
    if tableau.adaptive:
        raise ValueError(
            f"torch.export: {solver.method!r} adapts its steps to numbers, and a graph has none: choose fixed steps "
            "with regnde.fixed_grid, or a method such as 'rk4' with its dt0."
        )
    if request.record != "none":
        raise ValueError("torch.export: a graph has no records: set record='none', or call .eval() on the layer.")
    if request.events:
        raise ValueError("torch.export: an event is found by numbers, and a graph has none: leave event= out.")
    if request.dense:
        raise ValueError("torch.export: a graph has no dense output: give the times as ts.")
    if request.ts.requires_grad or request.moving_stops is not None:
        raise ValueError("torch.export: times in a graph are numbers: give ts and stops without a gradient.")
    with _disable_current_modes():  # their bounds are numbers, not a part of the graph
        segments = request.segments()
    ends: tuple[float, ...] = times[:1]
    if request.grid is not None:
        ends = request.grid
    elif times[0] != times[-1]:
        h = math.copysign(solver.dt0 or 0.0, times[-1] - times[0])
        ends += tuple(request.step_ends(segments, h))
    stats = Stats(
        nfe=evaluations(tableau, ends, times) if len(ends) > 1 else 0,
        accepted=len(ends) - 1,
        rejected=0,
        dt_first=ends[1] - ends[0] if len(ends) > 1 else 0.0,
    )
    ys = walk(equation, tableau, y0, ends, times, segments)
    return Solution(ts=request.ts, ys=ys, stats=stats, steps=None, engine="torch", solver=solver)
