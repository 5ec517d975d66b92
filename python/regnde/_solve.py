"""The entry point: check the arguments, choose the engine, solve."""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regnde._arguments import ORDER, check_field_arguments, check_order, is_span
from regnde._engines import choose
from regnde._engines.base import OWN_RULES, Engine, Request, StepRules
from regnde._equation import ODE, SDE, Equation, JuliaField
from regnde._errors import EngineUnavailable, SolveError, UnsupportedField
from regnde._event import Event, checked_events
from regnde._noise import BrownianPath
from regnde._recording import Recording, open_recordings, record_asked
from regnde._solution import Solution
from regnde._solver import Local, Record, Solver
from regnde._state import Structure
from regnde._times import Times, checked_stops, checked_times
from regnde._tolerance import Entries, entries
from regnde._transforms import has_derivative, mapped, transformed

__all__ = ["Parts", "solve", "solve_by_rules", "uncompiled"]

DEFAULT_SOLVER = Solver()
ROUNDED = 10.0  # about a tenth of the times' rounding reaches the solution: the integral of the field averages it
CLOCK = torch.finfo(torch.float64).eps  # resolution of the solver's clock


Parts = TypeVar("Parts", bound=tuple[Any, ...] | Mapping[Any, Any])


@overload
def solve(
    f: Equation,
    y0: Tensor | float | Sequence[float] | Sequence[Sequence[float]] | NDArray[Any],
    ts: Tensor | ArrayLike,
    solver: Solver = ...,
    *,
    record: Record = ...,
    noise: BrownianPath | None = ...,
    stops: Tensor | ArrayLike = ...,
    event: Event | Sequence[Event] | None = ...,
    dense: bool = ...,
    throw: bool = ...,
) -> Solution: ...


@overload
def solve(
    f: Callable[[Tensor, Parts], Any] | SDE,
    y0: Parts,
    ts: Tensor | ArrayLike,
    solver: Solver = ...,
    *,
    record: Record = ...,
    noise: BrownianPath | None = ...,
    stops: Tensor | ArrayLike = ...,
    event: Event | Sequence[Event] | None = ...,
    dense: bool = ...,
    throw: bool = ...,
) -> Solution[Parts]: ...


@overload
def solve(
    f: Callable[[Tensor, Any], Any] | Equation,
    y0: list[Tensor],
    ts: Tensor | ArrayLike,
    solver: Solver = ...,
    *,
    record: Record = ...,
    noise: BrownianPath | None = ...,
    stops: Tensor | ArrayLike = ...,
    event: Event | Sequence[Event] | None = ...,
    dense: bool = ...,
    throw: bool = ...,
) -> Solution[Any]: ...


def solve(
    f: Callable[[Tensor, Any], Any] | Equation,
    y0: Any,
    ts: Tensor | ArrayLike,
    solver: Solver = DEFAULT_SOLVER,
    *,
    record: Record = "none",
    noise: BrownianPath | None = None,
    stops: Tensor | ArrayLike = (),
    event: Event | Sequence[Event] | None = None,
    dense: bool = False,
    throw: bool = True,
) -> Solution[Any]:
    """Solves dy/dt = f(t, y) from ts[0] to ts[-1], saving the states at `ts`.

    Args:
        f: function of a 0-dim time tensor and a state, returning a slope of the state's shape and structure;
            or an `SDE`; or a `JuliaField`.
        y0: initial state at ts[0]. A tensor of any shape, or anything `torch.as_tensor` takes; integers become
            torch's default dtype. Or several tensors in a tuple, list, named tuple or dict, nested as you like:
            f is given the same structure and returns it, and so do the solution's states. Either way it is one
            system with one step size. A list of 0-dim tensors is one tensor; a tuple of them is not.
        ts: one or more times, shape (T,), non-decreasing or non-increasing, in units of time. They become float64
            whatever their dtype and the state's.
        solver: method, tolerances, gradient, engine; by default `Solver()`.
        record: `"none"`, `"all"` (every accepted step) or a `Local` (one random step).
        noise: the Brownian path of an `SDE`, over [ts[0], ts[-1]] or more; by default a new one, a function of torch's
            seed and of the steps. Solves given the same path see the same noise, whatever their steps. Its shape for a
            state (..., d) is (..., d) for diagonal noise, (..., 1) for scalar noise and (..., m) for a diffusion matrix
            (..., d, m). For a state of several parts, whose noise is diagonal, it is (N,): one channel for each of the
            N entries, in their order.
        stops: times at which `f` may jump or bend, shape (S,), in any order: knots of a control path, doses, switches.
            Steps end there, and `f` is evaluated just before and just after each, never at it. Times outside the span
            are ignored. Stops that require a gradient get the solution's derivative by them.
        event: an `Event`, or several, whose zeros are looked for. A terminal one stops the solve: `ts` and `ys` then
            hold the save times before it and, as the last, the event itself.
        dense: whether the solution can be called, `sol(t)`, at any times in its span. It then keeps the stages of all
            steps; methods whose interpolant has further stages evaluate these in every step.
        throw: raise a `SolveError` when the end time can not be reached; False returns the partial
            solution with its `status` instead.

    Returns:
        A `Solution`: `ys` of shape (T, *y0.shape), `stats`, and `steps` if recorded.

    Raises:
        TypeError: for arguments or values of `f` of the wrong type.
        ValueError: for times out of order, shapes that disagree, or a choice that the engine does not support.
        NonFiniteDynamics, StepSizeUnderflow, MaxStepsReached: see `SolveError`.
        EngineUnavailable: if the engine asked for can not run here.

    Examples:
        >>> import regnde
        >>> sol = regnde.solve(lambda t, y: -y, [1.0], [0.0, 1.0], regnde.Solver(rtol=1e-8), record="all")
        >>> round(float(sol.y1), 4), sol.stats.accepted == len(sol.steps)
        (0.3679, True)
        >>> y0 = {"x": torch.ones(3), "v": torch.zeros(3)}
        >>> sol = regnde.solve(lambda t, y: {"x": y["v"], "v": -y["x"]}, y0, [0.0, 1.0])
        >>> sol.ys["x"].shape
        torch.Size([2, 3])
    """
    return uncompiled(_solve)(f, y0, ts, solver, record, noise, stops, event, dense, throw)  # type: ignore[no-any-return]  # as _solve


def _solve(
    f: Callable[[Tensor, Any], Any] | Equation,
    y0: Any,
    ts: Tensor | ArrayLike,
    solver: Solver,
    record: Record,
    noise: BrownianPath | None,
    stops: Tensor | ArrayLike,
    event: Event | Sequence[Event] | None,
    dense: bool,
    throw: bool,
) -> Solution[Any]:
    mass, f = (f.mass, f.field) if isinstance(f, ODE) else (None, f)
    sde = isinstance(f, SDE)
    if not (callable(f) or isinstance(f, (SDE, JuliaField))):
        other = " An object of torchsde's kind is for regnde.sdeint." if hasattr(f, "sde_type") else ""
        raise TypeError(
            "f must be callable as f(t, y), an ODE, an SDE(drift, diffusion) or a JuliaField, got "
            f"{type(f).__name__}.{other}"
        )
    if record not in ("none", "all") and not isinstance(record, Local):
        raise ValueError(f"record={record!r}: choose 'none', 'all' or a Local(...).")
    if noise is not None and not sde:
        raise ValueError("noise is the Brownian path of an SDE, but f is an ODE.")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, got {solver!r}{_as_solver(solver)}.")
    check_field_arguments(f, samples=solver.batch == "per-sample")
    structure = Structure(y0, samples=solver.batch == "per-sample")
    try:
        times, values = checked_times(ts)
    except (TypeError, ValueError) as problem:
        if is_span(y0):
            problem.add_note(ORDER)
        raise
    check_order(y0, ts, values)
    if noise is not None:
        assert isinstance(f, SDE)
        _check_noise(noise, f, structure.flat, values)
    stop_tensor, stop_values = checked_stops(stops)
    resolved = solver.resolve(sde=f if isinstance(f, SDE) else False)
    allowed = entries(resolved.rtol, resolved.atol, structure)
    request = Request(
        equation=structure.on_flat(f),
        y0=structure.flat,
        ts=times,
        times=values,
        solver=resolved,
        record=record,
        noise=noise,
        throw=throw,
        stops=stop_values,
        events=tuple(
            dataclasses.replace(each, condition=structure.condition_on_flat(each.condition))
            for each in checked_events(event)
        ),
        dense=bool(dense),
        moving_stops=stop_tensor
        if has_derivative(stop_tensor) and (torch.is_grad_enabled() or transformed())
        else None,
        tolerances=(allowed.rtol, allowed.atol),
        mass=None if mass is None else _checked_mass(mass, structure.flat, solver.batch),
    )
    _warn_of_times(request, min(allowed.tightest, default=math.inf))
    _warn_of_tolerances(request, structure, allowed)
    return _run(request, structure)


def _checked_mass(mass: Tensor, y0: Tensor, batch: str) -> Tensor:
    """The mass matrix for the entries of the flat state, or of one of its samples."""
    entries = y0[0].numel() if batch == "per-sample" and y0.ndim and len(y0) else y0.numel()
    if len(mass) != entries or y0.is_complex() or mass.is_complex():
        of = "a sample" if batch == "per-sample" else "the state"
        raise ValueError(
            f"ODE(mass=...) has shape {tuple(mass.shape)}, but {of} has {entries} entries of {y0.dtype}: give a real "
            f"matrix of shape {(entries, entries)} for a real state."
        )
    return mass.to(y0.device, y0.dtype)


def solve_by_rules(
    f: Equation,
    y0: Tensor,
    ts: Times,
    solver: Solver,
    rules: StepRules = OWN_RULES,
    *,
    record: Record = "none",
    noise: BrownianPath | None = None,
    grid: Sequence[float] | None = None,
    stops: Sequence[float] = (),
    events: Sequence[Event] = (),
    dense: bool = False,
) -> Solution:
    """Solves for a state of one tensor, as `solve` does, with the steps of another package or along a grid.

    Args:
        f: the right-hand side.
        y0: initial state.
        ts: save times.
        solver: method and tolerances.
        rules: another package's.
        record: as for `solve`, and so are the other arguments not named here.
        noise: likewise.
        grid: for a method of fixed step size, whose `dt0` is not used: the initial time and the ends of the steps; the
            first and the last are those of `ts`.
        stops: likewise.
        events: conditions whose zeros are looked for.
        dense: likewise.
    """
    structure = Structure(y0, half=True)
    resolved = solver.resolve(sde=f if isinstance(f, SDE) else False)
    allowed = entries(resolved.rtol, resolved.atol, structure)
    request = Request(
        equation=f,
        y0=structure.flat,
        ts=ts.tensor,
        times=ts.values,
        solver=resolved,
        record=record,
        noise=noise,
        throw=True,
        grid=None if grid is None else tuple(grid),
        stops=tuple(stops),
        events=tuple(events),
        dense=dense,
        rules=rules,
        tolerances=(allowed.rtol, allowed.atol),
    )
    _warn_of_times(request, min(allowed.tightest))
    return uncompiled(_run)(request, structure)  # type: ignore[no-any-return]  # as _run


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, excluded from torch.compile: a solve depends on numbers. Code around it is still compiled."""
    if not torch.compiler.is_dynamo_compiling():
        return function
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]  # torch does not type it


def _run(request: Request, structure: Structure) -> Solution[Any]:
    """Solves a request whose arguments are checked, of the flat state; the solution has the structure of the state."""
    recordings = open_recordings()
    return _recorded(request, structure, recordings) if recordings else _solved(request, structure, choose(request))


def _recorded(request: Request, structure: Structure, recordings: Sequence[Recording]) -> Solution[Any]:
    """Solves with the record of the open recordings if the request has none; adds the solution to the recordings."""
    wanted, why = request, None
    if request.record == "none":
        record, why = record_asked(recordings)
        wanted = dataclasses.replace(request, record=record)
    try:
        engine = choose(wanted)
    except (EngineUnavailable, ValueError) as problem:
        if wanted.record == request.record:
            raise
        engine = choose(request)
        wanted, why = request, engine.why_unsupported(wanted) or str(problem)
    try:
        solution = _solved(wanted, structure, engine)
    except SolveError as problem:
        for log in recordings:
            log.add_failed(problem.nfe)
        raise
    for log in recordings:
        log.add(solution, why)
    return solution if wanted.record == request.record else dataclasses.replace(solution, steps=None)


def _solved(request: Request, structure: Structure, engine: Engine) -> Solution[Any]:
    """Solves; the solution, or a failure's, has the structure of the state."""
    try:
        solution: Solution[Any] = engine.solve(request)
    except SolveError as problem:
        if structure.nested:
            problem.solution = _in_structure(problem.solution, structure)
            if problem.component is not None:
                problem.add_note(f"Component {problem.component} is {structure.entry(problem.component)}.")
        raise
    except (RuntimeError, UnsupportedField) as problem:
        if mapped():
            problem.add_note(
                "A solve decides by numbers, which torch.func.vmap does not give. Solve the batch as one state, or "
                "with Solver(batch='per-sample'): the field gets the samples together."
            )
        if not isinstance(problem, EngineUnavailable):
            _note_mismatch(problem, request.equation, request.y0)
        raise
    last = request.solver.last_step
    if last is not None and not solution.status.failed and (size := solution.stats.dt_next) > 0:
        last.size = size
    return _in_structure(solution, structure) if structure.nested else solution


def _in_structure(solution: Solution[Tensor], structure: Structure) -> Solution[Any]:
    """The solution with states of the structure of y0."""
    events = solution.events
    if events is not None:
        events = events._replace(y=structure.tree_of(events.y))
    return dataclasses.replace(solution, ys=structure.tree_of(solution.ys), events=events)


def _as_solver(given: object) -> str:
    """A hint for a message about what was given as the solver."""
    if given is Solver:
        return ": write Solver()"
    return f": write Solver(method={given!r})" if isinstance(given, str) else ""


def _note_mismatch(problem: Exception, f: Equation, y0: Tensor) -> None:
    """Adds to an error of the field that its parameters and the state differ in dtype or device, if they do."""
    for field in (f.drift, f.diffusion) if isinstance(f, SDE) else (f,):
        part = inspect.unwrap(field) if callable(field) else field
        parameters = list(part.parameters()) if isinstance(part, torch.nn.Module) else []
        device = next((p.device for p in parameters), y0.device)
        if device != y0.device:
            problem.add_note(
                f"The state is on the device {y0.device}, the field's parameters on {device}: move one of them, "
                f"y0.to('{device}') or field.to('{y0.device}')."
                if device.type != "meta"
                else "The field's parameters are on the meta device and hold no numbers."
            )
            return
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
        if dtype is not None and dtype != y0.real.dtype:
            problem.add_note(
                f"The state has dtype {y0.dtype}, the field's parameters {dtype}: convert one of them, "
                f"y0.to({dtype}) or field.to({y0.real.dtype})."
            )
            return


def _check_noise(noise: BrownianPath, sde: SDE, y0: Tensor, times: Sequence[float]) -> None:
    """Raises an error for a path that does not fit the problem."""
    if not isinstance(noise, BrownianPath):
        raise TypeError(f"noise must be a BrownianPath, got {type(noise).__name__}.")
    columns = noise.shape[-1] if sde.has_matrix and noise.shape else 1
    wanted = sde.path_shape(y0.shape, columns)
    if noise.shape != wanted:
        shown = str(wanted) if not sde.has_matrix else f"({', '.join(map(str, wanted[:-1]))}, m)".replace("(, ", "(")
        raise ValueError(
            f"the Brownian path has shape {tuple(noise.shape)}, but {sde.noise} noise of a state of shape "
            f"{tuple(y0.shape)} needs {shown}."
        )
    if not noise.t0 <= min(times) <= max(times) <= noise.t1:
        raise ValueError(f"the Brownian path spans [{noise.t0}, {noise.t1}], ts goes from {times[0]} to {times[-1]}.")


def _warn_of_times(request: Request, tolerance: float) -> None:
    """Warns where the rounding of the times that the field is given exceeds the tolerance."""
    times, clock = request.times, torch.finfo(request.y0.dtype).eps  # the field is given times in the state's dtype
    far, span = max(abs(times[0]), abs(times[-1])), abs(times[-1] - times[0])
    if clock > CLOCK and span and clock * far > ROUNDED * max(tolerance, clock) * span:
        warnings.warn(
            f"the field is given times in {request.y0.real.dtype}, as the state is: at |t| up to {far:g} they are "
            f"{clock * far:.2g} apart, which is {clock * far / span:.2g} of the span {span:g}, where "
            f"the tolerance is {tolerance:g}. If the field depends on t, solve in float64 (y0.double()), or shift the "
            "time so that it starts near 0.",
            stacklevel=4,
        )


def _warn_of_tolerances(request: Request, structure: Structure, allowed: Entries) -> None:
    """Warns where the rounding of a part of the state exceeds its tolerance."""
    parts = zip(structure.parts, allowed.tightest, strict=True)
    for dtype in dict.fromkeys(part.dtype for part, tolerance in parts if tolerance < torch.finfo(part.dtype).eps):
        warnings.warn(
            f"rtol={request.solver.rtol}, atol={request.solver.atol} lie below the resolution "
            f"{torch.finfo(dtype).eps:.2g} of {dtype}: the error estimate and with it the NFE and any penalty are then "
            "mostly rounding noise. Use float64 or larger tolerances.",
            stacklevel=4,
        )
