"""Arguments of `solve` that can not be right, or are in the order of another package: refused, with what to give."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

from torch import nn

from regnde._equation import SDE, Equation, JuliaField

__all__ = ["ORDER", "check_arguments", "check_field_arguments", "check_order", "check_time_first", "is_span"]

STATES = frozenset(("y", "x", "z", "u", "h", "q", "y0", "x_t", "state"))
TIMES = frozenset(("t", "time"))
ORDER = "The order is solve(f, y0, ts), the state before the times; scipy's solve_ivp has the span before the state."


def check_field_arguments(equation: Equation, *, samples: bool) -> None:
    """Refuses fields that can not be called as f(t, y), and those whose arguments are called (y, t), scipy's order.

    The values of the latter do not tell: for a 0-dim state both arguments have the same shape. With `samples` a field
    may take a third argument.
    """
    if isinstance(equation, JuliaField):
        return
    most = 3 if samples else 2
    if isinstance(equation, SDE):
        check_arguments("drift", equation.drift, most=most)
        check_arguments("diffusion", equation.diffusion, most=most)
    else:
        check_arguments("f", equation, most=most)


def check_arguments(name: str, field: Any, *, by: str = "solve", most: int = 2) -> None:
    """Refuses a function that can not be called with a time and a state; it may need at most so many arguments.

    `name` and `by` are for messages: what the function is called, and what calls it.
    """
    if isinstance(field, type):
        raise TypeError(f"{name} is the class {field.__name__}: give an object of it, {field.__name__}(...).")
    taken = _arguments(field)
    if taken is None:
        return
    _refuse_state_first(name, taken, by)
    names, required, rest = taken
    given = f"{name} takes ({', '.join(names)})"
    if len(names) < 2 and not rest:
        module = "a module with forward(self, t, y), or to solve " if isinstance(field, nn.Module) else ""
        raise TypeError(
            f"{given}, but {by} calls it with the time and the state, {name}(t, y): give {module}lambda t, y: "
            f"{name}({'y' if names else ''})."
        )
    if names[:1] and names[0] in STATES and names[1:2] == ("ts",):
        raise TypeError(f"{given}: it is a layer, which solves by itself. Call it, {name}(y0), or give {name}.field.")
    if required > most:
        others = ", ".join(names[2:required])
        raise TypeError(
            f"{given}, but {by} calls it with the time and the state, {name}(t, y): give lambda t, y: "
            f"{name}(t, y, {others})."
        )


def check_time_first(name: str, field: Any, *, by: str) -> None:
    """Refuses a function whose arguments are called (y, t)."""
    taken = _arguments(field)
    if taken is not None:
        _refuse_state_first(name, taken, by)


def _refuse_state_first(name: str, taken: _Arguments, by: str) -> None:
    first, second = (*taken.names, "", "")[:2]
    if first in STATES and second in TIMES:
        raise ValueError(
            f"{name} takes ({', '.join(taken.names)}), but {by} calls it with the time first, "
            f"{name}(t, y): define it as {name}({second}, {first}), or give lambda t, y: {name}(y, t)."
        )


class _Arguments(NamedTuple):
    """Names of the positional arguments, how many have no default, and whether any number of others may follow."""

    names: Sequence[str]
    required: int
    rest: bool


def _arguments(field: Any) -> _Arguments | None:
    """What a function, a method or a module takes; None if it is not written in Python."""
    if isinstance(field, functools.partial):
        inner = _arguments(field.func)
        if inner is None:
            return None
        left = [(name, i < inner.required) for i, name in enumerate(inner.names)][len(field.args) :]
        left = [(name, needed) for name, needed in left if name not in field.keywords]
        return _Arguments(tuple(name for name, _ in left), sum(needed for _, needed in left), inner.rest)
    method = field.forward if isinstance(field, nn.Module) else field
    function = getattr(method, "__func__", method)
    if not hasattr(function, "__code__"):  # an object that is called
        function = type(field).__call__
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    names = code.co_varnames[function is not method : code.co_argcount]
    required = len(names) - len(getattr(function, "__defaults__", None) or ())
    return _Arguments(names, required, bool(code.co_flags & inspect.CO_VARARGS))


def check_order(y0: object, ts: object, times: Sequence[float]) -> None:
    """Refuses a span in the place of the state, or warns of it.

    A tuple of two increasing numbers may be a state, but with times that do not begin with 0 it is rarely one. Where
    both begin with 0, the way they are written is all that tells: a span is a tuple, a state a list. A list of two
    increasing numbers is refused too if all times are one number other than 0, so that nothing would be solved.
    """
    if not is_span(y0):
        return
    assert isinstance(y0, (tuple, list))
    if isinstance(y0, list) and not (len(times) > 1 and times[0] == times[-1] != 0):
        return
    plain = f"a list, {list(y0)}" if isinstance(y0, tuple) else f"a tensor, torch.tensor({y0})"
    problem = (
        f"y0={y0} looks like a span of time, and ts={list(times[:3])} like a state. {ORDER} If {y0} is the state, "
        f"write it as {plain}."
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
