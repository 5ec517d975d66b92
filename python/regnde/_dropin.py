"""Drop-ins for torchdiffeq's functions, with their arguments and meaning (`_dropin_sde` has torchsde's).

`docs/dropin.md` has the differences, and what became of torchdiffeq's own test suite.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from regnde._dropin_adaptive import dense_output, odeint_adaptive
from regnde._dropin_event import until_event
from regnde._dropin_grid import odeint_on_grid
from regnde._dropin_problem import problem_of
from regnde._dropin_scipy import Backwards, odeint_by_scipy
from regnde._solve import uncompiled
from regnde._solver import Gradient

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

State = TypeVar("State", Tensor, tuple[Tensor, ...])
EventFunction = Callable[[Tensor, Any], Tensor]


def odeint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: EventFunction | None = None,
) -> Any:
    """Solves dy/dt = func(t, y) as `torchdiffeq.odeint` does, differentiably through the accepted steps.

    Args:
        func: function of a 0-dim time and a state, returning the slope. Its methods `callback_step`,
            `callback_accept_step` and `callback_reject_step`, if it has them, are called as (t0, y0, dt).
        y0: initial state at t[0], any shape, or a tuple of tensors.
        t: times, shape (T,), increasing or decreasing; may require a gradient.
        rtol: relative tolerance: one number, one for each part of a tuple, or numbers for entries.
        atol: absolute tolerance, in units of the state; likewise.
        method: `"dopri5"` (default), `"tsit5"`, `"bosh3"`, `"dopri8"`, `"adaptive_heun"`, `"fehlberg2"` adapt their
            step. On a fixed grid: `"euler"`, `"midpoint"`, `"heun2"`, `"heun3"`, `"rk4"` (as in torchdiffeq, the 3/8
            rule), `"explicit_adams"`, `"implicit_adams"` (or `"fixed_adams"`), and the implicit `"implicit_euler"`,
            `"implicit_midpoint"`, `"trapezoid"`, `"radauIIA3"`, `"gl4"`, `"radauIIA5"`, `"gl6"`, `"sdirk2"`,
            `"trbdf2"`. `"scipy_solver"` steps by scipy, without a gradient.
        options: of the method, as in torchdiffeq; unknown ones are warned about. `docs/dropin.md` lists them.
        event_fn: function of a time and a state: the solve stops where an entry of it is zero first, and of `t` only
            the first time and the direction count.

    Returns:
        The states at `t`, shape (T, *y0.shape), or a tuple of them. With `event_fn`: the time of the event, and the
        states at the start and there, shape (2, *y0.shape).

    Raises:
        ValueError: for a method, option or tolerance that can not be used.
        SolveError: as `solve` does.

    Examples:
        >>> odeint(lambda t, y: -y, torch.tensor([1.0]), torch.tensor([0.0, 1.0]))[-1]
        tensor([0.3679])
    """
    return uncompiled(_odeint)(func, y0, t, rtol, atol, method, options, event_fn, "discrete", None)


def odeint_adjoint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: EventFunction | None = None,
    adjoint_rtol: Any = None,
    adjoint_atol: Any = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """`odeint` with memory for one state a step: the gradient is exact and recomputes one step at a time.

    torchdiffeq solves an adjoint equation backwards, whose result is off by that solve's own error and
    misses parameters that `func` does not own. Here the accepted steps themselves are differentiated
    (`Solver(gradient="checkpoint")`), every tensor that `func` uses gets its gradient, and nothing is
    solved backwards: the `adjoint_*` arguments are accepted and have no effect. Only `"scipy_solver"`, whose
    steps are scipy's, has an adjoint solve.

    Args:
        func: as for `odeint`, and so are the arguments up to `event_fn`. Its methods `callback_step_adjoint` and
            `callback_accept_step_adjoint` are called for each step of the backward pass.
        y0: initial state.
        t: times, shape (T,).
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: name of the method.
        options: options of the method.
        event_fn: where to stop.
        adjoint_rtol: of the adjoint solve of `"scipy_solver"`; else ignored, as the next three.
        adjoint_atol: likewise.
        adjoint_method: ignored.
        adjoint_options: ignored.
        adjoint_params: tensors that get a gradient, of zeros where they are not used. Default: the parameters of a
            module `func`.

    Returns:
        As `odeint`.

    Raises:
        ValueError, SolveError: as `odeint` does.
    """
    module = isinstance(func, torch.nn.Module)
    if adjoint_params is None and not module and method == "scipy_solver":
        raise ValueError("odeint_adjoint: method='scipy_solver' needs adjoint_params=, or a torch.nn.Module as func.")
    own = func.parameters() if isinstance(func, torch.nn.Module) else ()
    backwards = Backwards(
        rtol=rtol if adjoint_rtol is None else adjoint_rtol,
        atol=atol if adjoint_atol is None else adjoint_atol,
        parameters=tuple(own if adjoint_params is None else adjoint_params),
    )
    return uncompiled(_odeint)(func, y0, t, rtol, atol, method, options, event_fn, "checkpoint", backwards)


def odeint_event(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: Tensor,
    *,
    event_fn: EventFunction,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """The time of an event and the states at the start and there, as `torchdiffeq.odeint_event`, with exact gradients.

    Args:
        func: as for `odeint`.
        y0: initial state at t0.
        t0: initial time, 0-dim.
        event_fn: as for `odeint`.
        reverse_time: whether the solve goes back in time.
        odeint_interface: `odeint` or `odeint_adjoint`.
        kwargs: further arguments of that function.

    Returns:
        The time, 0-dim, and states of shape (2, *y0.shape), or a tuple of them.

    Raises:
        ValueError: for torchdiffeq's own functions, which leave the gradient to its `odeint_event`.

    Examples:
        >>> falling = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -9.81)])
        >>> t, y = odeint_event(falling, torch.tensor([10.0, 0.0]), torch.tensor(0.0), event_fn=lambda t, y: y[0])
        >>> round(float(t), 3)
        1.428
    """
    interface: Any = odeint_interface
    while isinstance(interface, functools.partial):
        interface = interface.func
    ours = getattr(interface, "__code__", None) in (odeint.__code__, odeint_adjoint.__code__)
    if not ours and str(getattr(interface, "__module__", "")).startswith("torchdiffeq"):
        raise ValueError(
            f"odeint_event: give regnde's odeint or odeint_adjoint as odeint_interface, not {interface!r}."
        )
    start = torch.as_tensor(t0).reshape(-1)
    t = torch.cat([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    time, states = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    return time, states


def odeint_dense(
    func: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Tensor], Tensor]:
    """The solution as a function of time, as `torchdiffeq.odeint_dense`, by any adaptive method.

    Args:
        func: as for `odeint`.
        y0: initial state at t0.
        t0: initial time.
        t1: end time.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: name of the method.
        options: options of the method.

    Returns:
        A function of times between t0 and t1, of any shape, that returns the states there.
    """
    t = torch.stack([torch.as_tensor(t0), torch.as_tensor(t1)]).detach()
    problem = problem_of(func, y0, t, "dopri5" if method is None else method, rtol, atol, "discrete")
    if problem.kind != "adaptive":
        raise ValueError(f"odeint_dense: {method!r} has a fixed grid: choose a method that adapts its step.")
    solution = dense_output(problem, options)

    def states(t: Tensor) -> Tensor:
        found: Tensor = solution(t)
        return problem.structure.tree_of(found)  # type: ignore[no-any-return]  # of one tensor here

    return states


def _odeint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: EventFunction | None,
    gradient: Gradient,
    backwards: Backwards | None,
) -> Any:
    """Both drop-ins: they differ in how the gradient is computed."""
    problem = problem_of(func, y0, t, "dopri5" if method is None else method, rtol, atol, gradient)
    tree = problem.structure.tree_of
    parameters = () if backwards is None or problem.kind == "scipy" else backwards.parameters
    if event_fn is not None:
        time, states = until_event(problem, options, event_fn)
        return time, tree(_with_zeros(states, parameters))
    if problem.kind == "scipy":
        ys = odeint_by_scipy(problem, options, backwards)
    else:
        ys = (odeint_adaptive if problem.kind == "adaptive" else odeint_on_grid)(problem, options)
    return tree(_with_zeros(ys, parameters))


def _with_zeros(ys: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The states; a parameter that they do not depend on gets a gradient of zeros, as in torchdiffeq."""
    empty = [p.reshape(-1)[:0].to(ys.device, ys.dtype) for p in parameters if p.requires_grad]
    return ys + torch.cat(empty).sum() if empty else ys
