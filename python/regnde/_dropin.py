"""Drop-ins for torchdiffeq: `odeint` and `odeint_adjoint` over `solve` (`_dropin_sde` has torchsde's).

The arguments and their meaning are that package's; what is not covered raises an error that names it.
`docs/dropin.md` has the differences, and what became of torchdiffeq's own test suite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from regnde._dropin_adaptive import odeint_adaptive
from regnde._dropin_event import until_event
from regnde._dropin_grid import odeint_on_grid
from regnde._dropin_problem import problem_of
from regnde._dropin_scipy import Backwards, odeint_by_scipy
from regnde._solver import Gradient

__all__ = ["odeint", "odeint_adjoint"]

State = TypeVar("State", Tensor, tuple[Tensor, ...])
Tolerance = float | Tensor

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def odeint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: None = None,
) -> State:
    """Solves dy/dt = func(t, y) as `torchdiffeq.odeint` does, differentiably through the accepted steps.

    Args:
        func: function of a 0-dim time and a state, returning the slope.
        y0: initial state at t[0], any shape, or a tuple of tensors. A tuple is solved as one system:
            its error norm is the RMS over all entries, where torchdiffeq takes the largest part's.
        t: times, shape (T,), increasing or decreasing; may require a gradient.
        rtol: relative tolerance, at least the resolution of the state's dtype.
        atol: absolute tolerance, in units of the state.
        method: adaptive `"dopri5"` (default), `"tsit5"`, `"bosh3"`, `"adaptive_heun"`; or `"euler"`,
            `"midpoint"`, `"heun2"`, `"heun3"`, `"rk4"` (as in torchdiffeq, the 3/8 rule), which step
            from each time in `t` to the next.
        options: adaptive: `first_step`, `max_num_steps`, `dtype` (ignored: the clock has double
            precision). Fixed: `step_size` or `grid_constructor`, and `interp`, `"linear"` or `"cubic"`.
        event_fn: not covered.

    Returns:
        The states at `t`, shape (T, *y0.shape), or a tuple of them.

    Raises:
        ValueError: for a method, option, callback or tolerance that is not covered.
        SolveError: as `solve` does.

    Examples:
        >>> odeint(lambda t, y: -y, torch.tensor([1.0]), torch.tensor([0.0, 1.0]))[-1]
        tensor([0.3679])
    """
    states: State = _odeint(func, y0, t, rtol, atol, method, options, event_fn, "discrete", None)
    return states


def odeint_adjoint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: None = None,
    adjoint_rtol: Tolerance | None = None,
    adjoint_atol: Tolerance | None = None,
    adjoint_method: str | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> State:
    """`odeint` with memory for one state a step: the gradient is exact and recomputes one step at a time.

    torchdiffeq solves an adjoint equation backwards, whose result is off by that solve's own error and
    misses parameters that `func` does not own. Here the accepted steps themselves are differentiated
    (`Solver(gradient="checkpoint")`), every tensor that `func` uses gets its gradient, and nothing is
    solved backwards: the `adjoint_*` arguments are accepted and have nothing to set.

    Args:
        func: as for `odeint`, and so are the arguments up to `event_fn`.
        y0: initial state.
        t: times, shape (T,).
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: name of the method.
        options: options of the method.
        event_fn: not covered.
        adjoint_rtol: ignored.
        adjoint_atol: ignored.
        adjoint_method: ignored.
        adjoint_options: ignored.
        adjoint_params: ignored.

    Returns:
        The states at `t`, shape (T, *y0.shape), or a tuple of them.

    Raises:
        ValueError, SolveError: as `odeint` does.
    """
    if adjoint_params is not None:
        parameters = tuple(adjoint_params)
    else:
        parameters = tuple(func.parameters()) if isinstance(func, torch.nn.Module) else ()
    if method == "scipy_solver" and adjoint_params is None and not isinstance(func, torch.nn.Module):
        raise ValueError("odeint_adjoint: method='scipy_solver' needs adjoint_params=, or a torch.nn.Module as func.")
    backwards = Backwards(
        rtol if adjoint_rtol is None else adjoint_rtol, atol if adjoint_atol is None else adjoint_atol, parameters
    )
    states: State = _odeint(func, y0, t, rtol, atol, method, options, event_fn, "checkpoint", backwards)
    return states


def _odeint(
    func: Callable[[Tensor, Any], Any],
    y0: Any,
    t: Tensor,
    rtol: Any,
    atol: Any,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: Callable[[Tensor, Any], Tensor] | None,
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
