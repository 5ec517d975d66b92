"""Drop-ins for torchdiffeq: `odeint` and `odeint_adjoint` over `solve` (`_dropin_sde` has torchsde's).

The arguments and their meaning are that package's; what is not covered raises an error that names it.
`docs/dropin.md` has the differences, and what became of torchdiffeq's own test suite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from regnde._solve import solve, solve_on_grid
from regnde._solver import Gradient, Solver

__all__ = ["odeint", "odeint_adjoint"]

State = TypeVar("State", Tensor, tuple[Tensor, ...])
Tolerance = float | Tensor

ADAPTIVE = {"dopri5": "dp5", "tsit5": "tsit5", "bosh3": "bs3", "adaptive_heun": "heun"}
FIXED = {"euler": "euler", "midpoint": "midpoint", "heun2": "heun2", "heun3": "heun3", "rk4": "rk38"}
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
    states: State = _odeint(func, y0, t, rtol, atol, method, options, event_fn, "discrete")
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
    adjoint_params: object = None,
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
    states: State = _odeint(func, y0, t, rtol, atol, method, options, event_fn, "checkpoint")
    return states


def _odeint(
    func: Callable[[Tensor, Any], Any],
    y0: object,
    t: Tensor,
    rtol: Tolerance,
    atol: Tolerance,
    method: str | None,
    options: Mapping[str, Any] | None,
    event_fn: object,
    gradient: Gradient,
) -> Any:
    """Both drop-ins: they differ in how the gradient is computed."""
    name = "dopri5" if method is None else method
    if event_fn is not None:
        raise ValueError("odeint: event_fn is not covered.")
    for callback in (*CALLBACKS, *(f"{name}_adjoint" for name in CALLBACKS)):
        if hasattr(func, callback):
            raise ValueError(f"odeint: func.{callback} is not covered; solve(..., record='all') records the steps.")
    if name not in ADAPTIVE and name not in FIXED:
        raise ValueError(f"odeint: method={name!r} is not covered; choose one of {', '.join((*ADAPTIVE, *FIXED))}.")
    given = dict(options or {})
    flat, field, shapes = _flattened(func, y0)
    times = torch.as_tensor(t)
    if name in FIXED:
        ys = _fixed(field, flat, times, name, given, gradient)
    else:
        inexact = flat.is_floating_point() or flat.is_complex()
        eps = torch.finfo(flat.dtype if inexact else torch.get_default_dtype()).eps
        relative, absolute = _tolerance("rtol", rtol), _tolerance("atol", atol)
        solver = Solver(
            method=ADAPTIVE[name],
            rtol=relative if absolute >= eps else max(relative, eps),
            atol=absolute,
            dt0=_optional_float(given.pop("first_step", None)),
            max_steps=int(given.pop("max_num_steps", 100_000)),
            gradient=gradient,
        )
        given.pop("dtype", None)
        _refuse_rest(name, given)
        ys = solve(field, flat, times, solver).ys
    return ys if shapes is None else tuple(_parts(ys, shapes))


def _flattened(
    func: Callable[[Tensor, Any], Any], y0: object
) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor], list[torch.Size] | None]:
    """The state as one tensor, the field on it, and the parts' shapes if it was a tuple."""
    if isinstance(y0, Tensor):
        return y0, func, None
    if not (isinstance(y0, tuple) and y0 and all(isinstance(part, Tensor) for part in y0)):
        raise TypeError(f"odeint: y0 must be a tensor or a tuple of tensors, got {type(y0).__name__}.")
    shapes = [part.shape for part in y0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        slopes = func(t, tuple(_parts(y, shapes)))
        if [slope.shape for slope in slopes] != shapes:
            got = [tuple(slope.shape) for slope in slopes]
            raise ValueError(f"odeint: func returned shapes {got} for parts of shapes {[tuple(s) for s in shapes]}.")
        return torch.cat([slope.reshape(-1) for slope in slopes])

    return torch.cat([part.reshape(-1) for part in y0]), field, shapes


def _parts(y: Tensor, shapes: Sequence[torch.Size]) -> Iterator[Tensor]:
    """The parts of a flat state, or of a stack of them."""
    begin = 0
    for shape in shapes:
        yield y.narrow(-1, begin, shape.numel()).reshape((*y.shape[:-1], *shape))
        begin += shape.numel()


def _tolerance(name: str, value: Tolerance) -> float:
    if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
        return float(value)
    raise ValueError(f"odeint: {name} must be one number; one for each part or entry is not covered.")


def _optional_float(value: Any) -> float | None:
    return None if value is None else abs(float(value))


def _refuse_rest(name: str, options: Mapping[str, object]) -> None:
    if options:
        raise ValueError(f"odeint: options {', '.join(map(repr, options))} of method {name!r} are not covered.")


def _fixed(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    t: Tensor,
    method: str,
    options: dict[str, Any],
    gradient: Gradient,
) -> Tensor:
    """States at `t` of a method that steps along a grid, as torchdiffeq's FixedGridODESolver makes it."""
    step, construct = options.pop("step_size", None), options.pop("grid_constructor", None)
    interpolation = options.pop("interp", "linear")
    if options.pop("perturb", False):
        options["perturb"] = True
    _refuse_rest(method, options)
    if step is not None and construct is not None:
        raise ValueError("odeint: step_size and grid_constructor exclude each other.")
    if interpolation not in ("linear", "cubic"):
        raise ValueError(f"odeint: interp={interpolation!r}: choose 'linear' or 'cubic'.")
    grid = t
    _check_order("t", t)
    if step is not None:
        if not float(step):
            raise ValueError("odeint: step_size=0 reaches no time.")
        grid = _uniform(t, float(step))
    elif construct is not None:
        grid = construct(field, y, t)
        _check_order("the grid", grid)
    places, saves = grid.tolist(), t.tolist()
    if not (places[0] == saves[0] and places[-1] == saves[-1]):
        raise ValueError(f"odeint: the grid goes from {places[0]} to {places[-1]}, t from {saves[0]} to {saves[-1]}.")
    solver = Solver(method=FIXED[method], gradient=gradient, engine="torch")
    ends = [places[0], *(b for a, b in itertools.pairwise(places) if a != b)]
    if grid is t or interpolation == "cubic":
        return solve_on_grid(field, y, _precise(t), ends, solver)
    return _on_chords(_precise(grid), _precise(t), lambda ts: solve_on_grid(field, y, ts, ends, solver))


def _precise(times: Tensor) -> Tensor:
    """Times for a clock of double precision, as everywhere."""
    return times.double() if times.dtype == torch.float32 else times


def _check_order(name: str, times: Tensor) -> None:
    values = times.tolist() if times.ndim == 1 else []
    pairs = list(itertools.pairwise(values))
    if not values or not (all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)):
        raise ValueError(f"odeint: {name} must be times of shape (T,), increasing or decreasing, got {times.detach()}.")


def _uniform(t: Tensor, step: float) -> Tensor:
    """A grid of this step from t[0], the last one cut at t[-1]."""
    span = float((t[-1] - t[0]).detach())
    count = max(1, math.ceil(abs(span) / abs(step) * (1 - 4 * torch.finfo(t.dtype).eps)))
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
