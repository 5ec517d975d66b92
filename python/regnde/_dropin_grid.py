"""torchdiffeq's methods of fixed step size: the grid they step along, and the states at times between its points."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regnde._dropin_methods import ADAMS_METHODS, EXPLICIT_METHODS
from regnde._dropin_options import GridOptions, options_of
from regnde._dropin_problem import Problem
from regnde._engines.base import StepRules
from regnde._event import Event
from regnde._grid_method import IMPLICIT_TABLEAUX, Adams, GridMethod
from regnde._solution import Solution
from regnde._solve import solve_by_rules
from regnde._solver import Solver
from regnde._times import Times, checked_times
from regnde._transforms import has_derivative

__all__ = ["grid_until_event", "odeint_on_grid"]

UNKNOWN = {"explicit": ("max_order", "max_iters"), "implicit": ("max_order",)}  # options, to kinds of methods
MOST_STEPS = 20_000  # to an event, as in torchdiffeq


def odeint_on_grid(problem: Problem, given: Mapping[str, Any] | None) -> Tensor:
    """Flat states at the times of a problem, by a method that steps along a grid, made as in torchdiffeq.

    Args:
        problem: what to solve.
        given: the user's options.
    """
    options = _options(problem, given)
    solver = Solver(method=_method(problem, options), gradient=problem.gradient, engine="torch")
    times = grid = checked_times(problem.t, "odeint: t")
    if options.grid_constructor is not None:
        given_grid = options.grid_constructor(problem.field, problem.y0, problem.t)
        grid = checked_times(given_grid, "odeint: the grid")
    elif options.step_size is not None:
        grid = _uniform(problem.t, times, options.step_size)
    saves, places = times.values, grid.values
    if not (places[0] == saves[0] and places[-1] == saves[-1]):
        raise ValueError(f"odeint: the grid goes from {places[0]} to {places[-1]}, t from {saves[0]} to {saves[-1]}.")
    ends = [places[0], *(b for a, b in itertools.pairwise(places) if a != b)]
    stops, rules = ends if options.perturb else (), StepRules(callbacks=problem.callbacks)

    def states_at(times: Times) -> Tensor:
        found: Tensor = solve_by_rules(problem.field, problem.y0, times, solver, rules, grid=ends, stops=stops).ys
        return found

    if grid is times or options.interp == "cubic" or set(saves) <= set(places):
        return states_at(times)
    chords = _Chords(saves, places)
    needed = Times(grid.tensor[chords.needed], tuple(places[i] for i in chords.needed))
    return chords.states(grid.tensor, times.tensor, states_at(needed))


def grid_until_event(problem: Problem, given: Mapping[str, Any] | None, event: Event) -> Solution:
    """The solve that stops at an event, in equal steps.

    Args:
        problem: what to solve, from its first time on; the second one tells the direction.
        given: the user's options.
        event: where to stop.
    """
    options = _options(problem, given)
    if options.step_size is None or options.perturb:
        raise ValueError("odeint: event_fn with a method of fixed steps needs the option step_size, and no perturb.")
    solver = Solver(method=_method(problem, options), gradient=problem.gradient, engine="torch", dt0=options.step_size)
    times = checked_times(problem.times_until(MOST_STEPS * options.step_size), "odeint: t")
    rules = StepRules(callbacks=problem.callbacks)
    return solve_by_rules(problem.field, problem.y0, times, solver, rules, events=[event])


def _options(problem: Problem, given: Mapping[str, Any] | None) -> GridOptions:
    return options_of(GridOptions, problem.method, given, without=UNKNOWN.get(problem.kind, ()))


def _method(problem: Problem, options: GridOptions) -> str | GridMethod:
    """The method under its name here, or with its options."""
    name = problem.method
    if problem.kind == "explicit":
        return EXPLICIT_METHODS[name]
    if problem.kind == "implicit":
        tableau = IMPLICIT_TABLEAUX[name]
        return tableau if options.max_iters is None else replace(tableau, max_iters=options.max_iters)
    rtol, atol = (float(np.min(np.asarray(tolerance))) for tolerance in (problem.rtol, problem.atol))
    adams = Adams(name=name, order=4, implicit=ADAMS_METHODS[name], rtol=rtol, atol=atol)
    iters = adams.max_iters if options.max_iters is None else options.max_iters
    order = adams.max_order if options.max_order is None else options.max_order
    return replace(adams, max_iters=iters, max_order=order)


def _uniform(t: Tensor, times: Times, step: float) -> Times:
    """A grid of this step from the first of the times, the last one cut at the last of them.

    Its points have the resolution of t, as in torchdiffeq, and move with these two times.
    """
    real: Any = np.float32 if t.dtype == torch.float32 else np.float64
    first, last = times.values[0], times.values[-1]
    span = last - first
    count = max(1, math.ceil(abs(span) / step * (1 - 4 * torch.finfo(t.dtype).eps)))
    inner = real(first) + np.arange(count, dtype=real) * real(math.copysign(step, span))
    values = (*inner.tolist(), last)
    points, moving = torch.tensor(values, dtype=torch.float64, device=t.device), times.tensor
    if has_derivative(moving):
        points = torch.cat([points[:-1] + (moving[0] - moving[0].detach()), moving[-1:]])
    return Times(points, values)


class _Chords:
    """Linear interpolation of states between the points of a grid.

    Args:
        saves: the times of the states, ordered.
        places: the points of the grid, in the same order.

    Attributes:
        needed: indices of the points that are the ends of chords.
    """

    def __init__(self, saves: Sequence[float], places: Sequence[float]) -> None:
        sign = 1.0 if places[-1] >= places[0] else -1.0
        last = [min(bisect_left(places, sign * s, key=lambda x: sign * x), len(places) - 1) for s in saves]
        first = [i if places[i] == s else max(i - 1, 0) for i, s in zip(last, saves, strict=True)]
        self.needed = sorted({*first, *last})
        where = {place: i for i, place in enumerate(self.needed)}
        self.exact = torch.tensor([i == j for i, j in zip(first, last, strict=True)])
        self.first, self.last = first, last
        self.rows = torch.tensor([[where[i] for i in first], [where[j] for j in last]])

    def states(self, grid: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """The states at the times, from those at the needed points of the grid."""
        exact = self.exact.to(t.device)
        width = (grid[self.last] - grid[self.first]).masked_fill(exact, 1.0)  # else the gradient were 0 / 0
        share = ((t - grid[self.first]) / width).masked_fill(exact, 1.0)
        before, after = (states.index_select(0, rows.to(states.device)) for rows in self.rows)
        return torch.lerp(before, after, share.view(-1, *[1] * (states.ndim - 1)).to(states.device, states.dtype))
