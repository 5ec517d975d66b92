"""The entry point: check the arguments, choose the engine, solve."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regnde._engines import choose
from regnde._engines.base import Request
from regnde._equation import SDE, Equation, JuliaField
from regnde._errors import EngineUnavailable, SolveError
from regnde._noise import BrownianPath
from regnde._solution import Solution, Status
from regnde._solver import Local, Record, ResolvedSolver, Solver

__all__ = ["checked_state", "checked_times", "solve"]

DEFAULT_SOLVER = Solver()
ROUNDED = 10.0  # of the times' resolution, about a tenth reaches the solution: the field's integral averages it
CLOCK = torch.finfo(torch.float64).eps  # resolution of the solver's clock


def solve(
    f: Equation,
    y0: Tensor | ArrayLike,
    ts: Tensor | ArrayLike,
    solver: Solver = DEFAULT_SOLVER,
    *,
    record: Record = "none",
    noise: BrownianPath | None = None,
    throw: bool = True,
) -> Solution:
    """Solves dy/dt = f(t, y) from ts[0] to ts[-1], saving the states at `ts`.

    Args:
        f: function of a 0-dim time tensor and a state, returning a tensor of the state's shape;
            or an `SDE`; or a `JuliaField`.
        y0: initial state at ts[0], any shape: a tensor, or anything `torch.as_tensor` takes.
            Integers become torch's default dtype. The whole array is one system with one step size.
        ts: one or more times, shape (T,), non-decreasing or non-increasing, in units of time. Numbers become
            float64 whatever the state's dtype; a floating-point tensor keeps its dtype.
        solver: method, tolerances, gradient, engine.
        record: `"none"`, `"all"` (every accepted step) or a `Local` (one random step).
        noise: the Brownian path of an `SDE`, of y0's shape, over [ts[0], ts[-1]] or more; by default
            a new one, drawn from torch's seed. Solves given the same path see the same noise.
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
    """
    sde = isinstance(f, SDE)
    if not (callable(f) or isinstance(f, (SDE, JuliaField))):
        raise TypeError(f"f must be callable as f(t, y), an SDE or a JuliaField, got {type(f).__name__}.")
    if record not in ("none", "all") and not isinstance(record, Local):
        raise ValueError(f"record={record!r}: choose 'none', 'all' or a Local(...).")
    if noise is not None and not sde:
        raise ValueError("noise is the Brownian path of an SDE, but f is an ODE.")
    if not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver, got {solver!r}{_as_solver(solver)}.")
    state = checked_state(y0)
    times, values = checked_times(ts)
    if noise is not None:
        _check_noise(noise, state, values)
    request = Request(
        equation=f,
        y0=state,
        ts=times,
        times=values,
        solver=solver.resolve(sde=sde),
        record=record,
        noise=noise,
        throw=throw,
    )
    return _run(request)


def solve_on_grid(
    f: Equation, y0: Tensor, ts: Tensor, grid: Sequence[float], solver: Solver, noise: BrownianPath | None = None
) -> Tensor:
    """States at `ts`, solved by a method of fixed step size, with steps that end at given times.

    Args:
        f: the right-hand side.
        y0: initial state.
        ts: save times, shape (T,), in the order of the grid.
        grid: the initial time and the ends of the steps; the first and the last are those of `ts`.
        solver: a method of fixed step size; its `dt0` is not used.
        noise: the Brownian path of an `SDE`.
    """
    state = checked_state(y0)
    times, values = checked_times(ts)
    request = Request(
        equation=f,
        y0=state,
        ts=times,
        times=values,
        solver=solver.resolve(sde=isinstance(f, SDE)),
        record="none",
        noise=noise,
        throw=True,
        grid=tuple(grid),
    )
    return _run(request).ys


def _run(request: Request) -> Solution:
    """Solves a request whose arguments are checked."""
    if torch.compiler.is_dynamo_compiling():  # the loop depends on numbers: what is around it is compiled, it is not
        run: Any = torch.compiler.disable(_run_uncompiled)  # type: ignore[no-untyped-call]  # torch does not type it
        return run(request)  # type: ignore[no-any-return]
    return _run_uncompiled(request)


def _run_uncompiled(request: Request) -> Solution:
    _warn_of_rounding(request.solver, request.y0, request.times)
    try:
        solution = choose(request).solve(request)
    except RuntimeError as problem:
        if not isinstance(problem, (SolveError, EngineUnavailable)):
            _note_dtypes(problem, request.equation, request.y0)
        raise
    last = request.solver.last_step
    if last is not None and solution.status == Status.SUCCESS and (size := solution.stats.dt_next) > 0:
        last.size = size
    return solution


def _as_solver(given: object) -> str:
    """How to say what was given in the place of a solver, for a message."""
    return f": write Solver(method={given!r})" if isinstance(given, str) else ""


def _note_dtypes(problem: RuntimeError, f: Equation, y0: Tensor) -> None:
    """Adds to an error that comes from the field that its parameters and the state differ in dtype, if they do."""
    for part in (f.drift, f.diffusion) if isinstance(f, SDE) else (f,):
        parameters = part.parameters() if isinstance(part, torch.nn.Module) else ()
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
        if dtype is not None and dtype != y0.real.dtype:
            problem.add_note(
                f"The state has dtype {y0.dtype}, the field's parameters {dtype}: convert one of them, "
                f"y0.to({dtype}) or field.to({y0.real.dtype})."
            )
            return


def _check_noise(noise: BrownianPath, y0: Tensor, times: Sequence[float]) -> None:
    """Refuses a path that does not fit the problem."""
    if not isinstance(noise, BrownianPath):
        raise TypeError(f"noise must be a BrownianPath, got {type(noise).__name__}.")
    if noise.shape != y0.shape:
        raise ValueError(
            f"the Brownian path has shape {tuple(noise.shape)}, the state {tuple(y0.shape)}: make them equal."
        )
    if not noise.t0 <= min(times) <= max(times) <= noise.t1:
        raise ValueError(f"the Brownian path spans [{noise.t0}, {noise.t1}], ts goes from {times[0]} to {times[-1]}.")


def checked_state(y0: Tensor | ArrayLike) -> Tensor:
    """The initial state as a floating-point or complex tensor."""
    try:
        state = _tensor(y0)
    except (RuntimeError, ValueError) as problem:
        raise TypeError(f"y0 must be a tensor or what torch.as_tensor takes, got {type(y0).__name__}.") from problem
    if state.is_meta or state.layout != torch.strided:
        kind = "on the meta device and holds no numbers" if state.is_meta else f"a {state.layout} tensor"
        raise TypeError(f"y0 is {kind}: give a dense tensor on a device that computes, such as 'cpu'.")
    if state.dtype in (torch.float16, torch.bfloat16):
        if torch.is_autocast_enabled(state.device.type):  # such a state comes out of the layer before
            return state.float()
        raise TypeError(
            f"y0 has dtype {state.dtype}, too coarse for error control: solve in float32, y0.float(), "
            "and convert inside f or afterwards."
        )
    if not (state.is_floating_point() or state.is_complex()):
        state = state.to(torch.get_default_dtype())
    return state


def _tensor(values: Tensor | ArrayLike) -> Tensor:
    """What `torch.as_tensor` makes of the values, without its two traps.

    A list of tensors would lose their gradients, and an array that is read-only, reversed or of the
    other byte order would be refused or shared.
    """
    if isinstance(values, Tensor):
        return values  # `as_tensor` would move it to torch's default device
    if isinstance(values, np.ndarray):
        return torch.as_tensor(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    if isinstance(values, Mapping):
        raise TypeError(
            f"y0 is a {type(values).__name__}: a state is one tensor. Concatenate the parts, and split them in f."
        )
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        parts = [value if isinstance(value, Tensor) else torch.as_tensor(value) for value in values]
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise TypeError(
                f"y0 is a {type(values).__name__} of tensors of shapes {shapes}: a state is one tensor. "
                "Concatenate the parts, and split them in f."
            )
        return torch.stack(parts)
    return torch.as_tensor(values)


def checked_times(ts: Tensor | ArrayLike) -> tuple[Tensor, tuple[float, ...]]:
    """The save times as a tensor and as floats, checked. Gradients stay; numbers become float64."""
    times = _time_tensor(ts)
    if times.is_complex() or times.dtype == torch.bool:
        raise TypeError(f"ts must be real times, got {times.dtype}.")
    if times.is_meta:
        raise TypeError("ts is on the meta device and holds no numbers.")
    if times.ndim == 0:
        raise ValueError(f"ts must be a sequence of times such as [0.0, 1.0], got the single time {times.item():g}.")
    if times.ndim != 1 or times.numel() == 0:
        raise ValueError(
            f"ts must be a sequence of one or more times, got shape {tuple(times.shape)}. "
            "Times of their own for each sample are not offered: solve on the union of the times."
        )
    if not times.is_floating_point():
        times = times.to(torch.float64)
    values = tuple(times.detach().to("cpu", torch.float64).tolist())
    if not all(map(_finite, values)):
        raise ValueError(f"ts must be finite, got {_short(values)}.")
    rising = all(a <= b for a, b in itertools.pairwise(values))
    falling = all(a >= b for a, b in itertools.pairwise(values))
    if not (rising or falling):
        raise ValueError(f"ts must be non-decreasing or non-increasing, got {_short(values)}.")
    return times, values


def _short(values: Sequence[float]) -> str:
    """The times around the first one that breaks the order or is not finite: there may be thousands."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    sign = next((step for step in steps if step), 0.0)
    place = next((i for i, step in enumerate(steps) if not sign * step >= 0 or not _finite(step)), 0)
    first, last = max(place - 1, 0), place + 3
    shown = ", ".join(map(repr, values[first:last]))
    return f"[{'..., ' if first else ''}{shown}{', ...' if last < len(values) else ''}]"


def _time_tensor(ts: Tensor | ArrayLike) -> Tensor:
    """The times as a tensor: one that is given as it is, anything else on the CPU, numbers in float64.

    Not on torch's default device, and not in its default dtype, in which clock times of today are minutes apart.
    """
    if isinstance(ts, Tensor):
        return ts
    if isinstance(ts, (list, tuple, torch.nn.ParameterList)):
        given = next((t for t in ts if isinstance(t, Tensor)), None)
        if given is not None:  # each keeps its gradient
            double, device = torch.float64, given.device
            parts = [t if isinstance(t, Tensor) else torch.tensor(t, dtype=double, device=device) for t in ts]
            return torch.stack([part.reshape(()) if part.numel() == 1 else part for part in parts])
        if all(type(t) is float for t in ts):
            return torch.tensor(ts, dtype=torch.float64, device="cpu")
    values = np.asarray(ts)
    if values.dtype.kind not in "bcfiu":
        raise TypeError(f"ts must be a sequence of times such as [0.0, 1.0], got {type(ts).__name__} {ts!r:.80}.")
    return torch.tensor(values if values.dtype.kind in "bc" else values.astype(np.float64), device="cpu")


def _finite(t: float) -> bool:
    return t - t == 0.0


def _warn_of_rounding(solver: ResolvedSolver, y0: Tensor, times: Sequence[float]) -> None:
    """Warns where rounding of the state, or of the times that the field is given, exceeds the tolerance."""
    resolution = torch.finfo(y0.dtype).eps
    tolerance = max(solver.rtol, solver.atol)
    far, span = max(abs(times[0]), abs(times[-1])), abs(times[-1] - times[0])
    if resolution > CLOCK and span and resolution * far > ROUNDED * max(tolerance, resolution) * span:
        warnings.warn(
            f"the field is given times in {y0.real.dtype}, as the state is: at |t| up to {far:g} they are "
            f"{resolution * far:.2g} apart, which is {resolution * far / span:.2g} of the span {span:g}, where "
            f"the tolerance is {tolerance:g}. If the field depends on t, solve in float64 (y0.double()), or shift the "
            "time so that it starts near 0.",
            stacklevel=3,
        )
    if tolerance < resolution:
        warnings.warn(
            f"rtol={solver.rtol:g}, atol={solver.atol:g} lie below the resolution {resolution:.2g} of {y0.dtype}: "
            "the error estimate and with it the NFE and any penalty are then mostly rounding noise. "
            "Use float64 or larger tolerances.",
            stacklevel=3,
        )
