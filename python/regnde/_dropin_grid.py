"""torchdiffeq's methods of fixed step size: the grid they step along, and the states at times between its points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regnde._dropin_options import GridOptions, options_of
from regnde._grid_method import IMPLICIT_TABLEAUX, Adams, GridMethod
from regnde._solve import solve_on_grid
from regnde._solver import Gradient, Solver

__all__ = ["GRID_METHODS", "odeint_on_grid"]

EXPLICIT = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4": "rk38"}
ADAMS = {"explicit_adams": False, "implicit_adams": True, "fixed_adams": True}
GRID_METHODS = (*EXPLICIT, *ADAMS, *IMPLICIT_TABLEAUX)


def odeint_on_grid(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t: Tensor,
    name: str,
    given: Mapping[str, Any] | None,
    rtol: float,
    atol: float,
    gradient: Gradient,
) -> Tensor:
    """States at `t`, by a method that steps along a grid as torchdiffeq's FixedGridODESolver makes it.

    Args:
        field: the right-hand side.
        y: the state at the first time.
        t: times, shape (T,).
        name: of the method.
        given: the user's options.
        rtol: relative tolerance of an Adams corrector.
        atol: absolute tolerance of an Adams corrector.
        gradient: how it is computed.
    """
    unknown = () if name in ADAMS else ("max_order",) if name in IMPLICIT_TABLEAUX else ("max_order", "max_iters")
    options = options_of(GridOptions, name, given, without=unknown)
    solver = Solver(method=_method(name, options, rtol, atol), gradient=gradient, engine="torch")
    _check_order("t", t)
    grid = t
    if options.step_size is not None:
        grid = _uniform(t, options.step_size)
    elif options.grid_constructor is not None:
        grid = options.grid_constructor(field, y, t)
        _check_order("the grid", grid)
    places, saves = grid.tolist(), t.tolist()
    if not (places[0] == saves[0] and places[-1] == saves[-1]):
        raise ValueError(f"odeint: the grid goes from {places[0]} to {places[-1]}, t from {saves[0]} to {saves[-1]}.")
    ends = [places[0], *(b for a, b in itertools.pairwise(places) if a != b)]
    if grid is t or options.interp == "cubic":
        return solve_on_grid(field, y, _precise(t), ends, solver)
    return _on_chords(_precise(grid), _precise(t), lambda ts: solve_on_grid(field, y, ts, ends, solver))


def _method(name: str, options: GridOptions, rtol: float, atol: float) -> str | GridMethod:
    """The method under its name here, or with its options."""
    if name in EXPLICIT:
        return EXPLICIT[name]
    if name in IMPLICIT_TABLEAUX:
        tableau = IMPLICIT_TABLEAUX[name]
        return tableau if options.max_iters is None else replace(tableau, max_iters=options.max_iters)
    adams = Adams(name=name, order=4, implicit=ADAMS[name], rtol=rtol, atol=atol)
    iters = adams.max_iters if options.max_iters is None else options.max_iters
    order = adams.max_order if options.max_order is None else options.max_order
    return replace(adams, max_iters=iters, max_order=order)


def _precise(times: Tensor) -> Tensor:
    """Times for a clock of double precision, as everywhere."""
    return times.double() if times.dtype in (torch.float16, torch.bfloat16, torch.float32) else times


def _check_order(name: str, times: Tensor) -> None:
    values = times.tolist() if times.ndim == 1 else []
    pairs = list(itertools.pairwise(values))
    if not values or not (all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)):
        raise ValueError(f"odeint: {name} must be times of shape (T,), increasing or decreasing, got {times.detach()}.")


def _uniform(t: Tensor, step: float) -> Tensor:
    """A grid of this step from t[0], the last one cut at t[-1]."""
    span = float((t[-1] - t[0]).detach())
    count = max(1, math.ceil(abs(span) / step * (1 - 4 * torch.finfo(t.dtype).eps)))
    inner = torch.arange(count, dtype=t.dtype, device=t.device) * math.copysign(step, span)
    return torch.cat([t[0] + inner, t[-1:]])


def _on_chords(grid: Tensor, t: Tensor, states_at: Callable[[Tensor], Tensor]) -> Tensor:
    """The states at t on the chords between those at the grid points, of which only the needed ones are asked for."""
    sign = 1.0 if grid[-1] >= grid[0] else -1.0
    last = torch.searchsorted(sign * grid.detach(), sign * t.detach()).clamp(max=len(grid) - 1)
    exact = grid[last] == t
    first = torch.where(exact, last, (last - 1).clamp(min=0))
    needed, places = torch.unique(torch.cat([first, last]), return_inverse=True)
    states = states_at(grid[needed])
    if bool(exact.all()):
        return states if len(needed) == len(t) else states.index_select(0, places[len(t) :].to(states.device))
    width = (grid[last] - grid[first]).masked_fill(exact, 1.0)  # else the gradient were 0 / 0
    share = ((t - grid[first]) / width).masked_fill(exact, 1.0)
    before, after = (states.index_select(0, i.to(states.device)) for i in places.chunk(2))
    return torch.lerp(before, after, share.view(-1, *[1] * (states.ndim - 1)).to(states.device, states.dtype))
