"""Solves that stop where a function of torchdiffeq's `event_fn` kind is zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from regnde._arguments import check_time_first
from regnde._dropin_adaptive import adaptive_until_event
from regnde._dropin_grid import grid_until_event
from regnde._dropin_problem import Problem
from regnde._event import Event

__all__ = ["until_event"]


def until_event(
    problem: Problem, options: Mapping[str, Any] | None, event_fn: Callable[[Tensor, Any], Tensor]
) -> tuple[Tensor, Tensor]:
    """The time at which an entry of `event_fn` is zero first, and the flat states at the start and there, shape (2, N).

    Both have exact gradients. An entry that is zero at the start is an event there, as in torchdiffeq.

    Args:
        problem: what to solve; of its two times the second one tells the direction alone.
        options: the user's.
        event_fn: function of a time and the user's state.
    """
    if not callable(event_fn):
        raise TypeError(f"odeint: event_fn must be callable as event_fn(t, y), got {type(event_fn).__name__}.")
    check_time_first("event_fn", event_fn, by="odeint")
    if problem.kind == "scipy":
        raise ValueError("odeint: scipy_solver finds no events: choose another method, such as 'dopri5'.")
    if problem.t.shape != (2,) or problem.t[0] == problem.t[1]:
        raise ValueError(
            f"odeint: event_fn needs two times, the initial one and one in the direction of the solve, got {problem.t}."
        )
    t, y0, tree = problem.t, problem.y0, problem.structure.tree_of
    with torch.no_grad():
        signs = torch.as_tensor(event_fn(t[0].to(y0.device, y0.dtype.to_real()), tree(y0))).sign()
    if bool((signs == 0).any()):
        return t[0], torch.stack([y0, y0])

    def positive(t: Tensor, y: Tensor) -> Tensor:  # until the first entry changes its sign
        return (event_fn(t, tree(y)) * signs).min()

    event = Event(positive, direction=-1)
    until = adaptive_until_event if problem.kind == "adaptive" else grid_until_event
    solution = until(problem, options, event)
    if solution.events is None or not len(solution.events.t):
        raise RuntimeError(f"odeint: event_fn has no zero up to t={float(solution.ts[-1]):.6g}.")
    return solution.events.t[0].to(t), torch.stack([y0, solution.ys[-1]])
