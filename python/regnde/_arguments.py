"""Arguments of `solve` that are in the order of another package: refused where nothing else is likely to be meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import nn

from regnde._equation import SDE, Equation, JuliaField

__all__ = ["ORDER", "check_field_arguments", "check_order", "is_span"]

STATES = frozenset(("y", "x", "z", "u", "h", "q", "y0", "x_t", "state"))
TIMES = frozenset(("t", "time"))
ORDER = "The order is solve(f, y0, ts), the state before the times; scipy's solve_ivp has the span before the state."


def check_field_arguments(equation: Equation) -> None:
    """Refuses fields whose arguments are called (y, t), the order of scipy's `odeint`.

    Their values do not tell: for a 0-dim state both arguments have the same shape.
    """
    if isinstance(equation, JuliaField):
        return
    parts = {"drift": equation.drift, "diffusion": equation.diffusion} if isinstance(equation, SDE) else {"f": equation}
    for name, field in parts.items():
        first, second = (*_argument_names(field), "", "")[:2]
        if first in STATES and second in TIMES:
            raise ValueError(
                f"{name} takes ({first}, {second}), but solve calls it with the time first, {name}(t, y): define it "
                f"as {name}({second}, {first}), or give lambda t, y: {name}(y, t)."
            )


def _argument_names(field: Any) -> Sequence[str]:
    """Names of the positional arguments of a function, a method or a module; empty for anything else."""
    method = field.forward if isinstance(field, nn.Module) else field
    function = getattr(method, "__func__", method)
    if not hasattr(function, "__code__"):  # an object that is called
        function = type(field).__call__
    code = getattr(function, "__code__", None)
    return () if code is None else code.co_varnames[function is not method : code.co_argcount]


def check_order(y0: object, ts: object, times: Sequence[float]) -> None:
    """Refuses a span in the place of the state, or warns of it.

    A tuple of two increasing numbers may be a state, but with times that do not begin with 0 it is rarely one. Where
    both begin with 0, the way they are written is all that tells: a span is a tuple, a state a list.
    """
    if not (isinstance(y0, tuple) and is_span(y0)):
        return
    problem = (
        f"y0={y0} looks like a span of time, and ts={list(times[:3])} like a state. {ORDER} If {y0} is the state, "
        f"write it as a list, {list(y0)}."
    )
    if times[0] != 0:
        raise ValueError(problem)
    if y0[0] == 0 and isinstance(ts, list):
        warnings.warn(problem, stacklevel=4)


def is_span(y0: object) -> bool:
    """Whether it is two increasing numbers."""
    if not isinstance(y0, (tuple, list)) or len(y0) != 2 or not all(isinstance(x, Real) for x in y0):
        return False
    return bool(y0[0] < y0[1])
