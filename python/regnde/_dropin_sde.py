"""Drop-ins for torchsde: `sdeint` and `sdeint_adjoint` over `solve`.

The arguments and their meaning are that package's; what is not covered raises an error that names it.
`docs/dropin.md` has the differences, and what became of torchsde's own test suite.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regnde._controller import PI
from regnde._dropin_sde_problem import equation_of, path_of
from regnde._engines.base import OWN_RULES
from regnde._equation import SDE
from regnde._noise import BrownianPath
from regnde._path_divergence import with_path_divergence
from regnde._recording import unrecordable
from regnde._sde_method import SDE_METHODS, Carried, Doubled, ReversibleHeun, SDEMethod, StochasticMethod
from regnde._solve import solve_by_rules
from regnde._solver import Gradient, Solver
from regnde._times import checked_times

__all__ = ["sdeint", "sdeint_adjoint"]

METHODS: Mapping[tuple[str, str], str] = {  # of a calculus
    ("euler", "ito"): "em",
    ("milstein", "ito"): "milstein",
    ("srk", "ito"): "sriw1",
    ("milstein", "stratonovich"): "milstein",
    ("euler_heun", "stratonovich"): "diffusionheun",
    ("heun", "stratonovich"): "heun",
    ("midpoint", "stratonovich"): "midpoint",
    ("log_ode", "stratonovich"): "midpoint",
    ("reversible_heun", "stratonovich"): "reversible_heun",
}
CONTROLLER = PI(
    beta1=1 / 4.5 + 0.13, beta2=0.13, safety=0.9 ** (1 / 4.5), min_factor=0.2, max_factor=1.4, first_max_factor=1.4
)
"""torchsde's, after an accepted step."""
WITHOUT_TOLERANCE = "sdeint without adaptive=True takes steps of dt and has no tolerance that errors are scaled by."


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
) -> Any:
    """Solves an SDE as `torchsde.sdeint` does, differentiably along the path.

    Args:
        sde: object with `sde_type` ("ito" or "stratonovich"), `noise_type` ("diagonal", "scalar", "additive" or
            "general") and `f(t, y)`, `g(t, y)`, or `f_and_g(t, y)`, or products `g_prod(t, y, v)`,
            `f_and_g_prod(t, y, v)`. g returns (batch, d) for diagonal noise, else (batch, d, m).
        y0: initial state, shape (batch, d).
        ts: times, increasing, shape (T,).
        bm: a `BrownianPath`, or a Brownian motion of torchsde's, whose increments are used, of shape (batch, m); by
            default a new path, drawn from torch's seed.
        method: Ito: `"srk"` (default; SRIW1, or SOSRA for additive noise), `"milstein"`, `"euler"` (default for
            general noise). Stratonovich: `"midpoint"` (default), `"heun"`, `"euler_heun"`, `"milstein"`,
            `"reversible_heun"`, and for noise that is not general `"log_ode"`.
        dt: step size, or the first one if `adaptive`.
        adaptive: control the error of the steps with `rtol` and `atol`: each is compared with two half steps, as
            torchsde does it.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the state.
        dt_min: an adaptive step of this size or below is taken whatever its error, with a warning.
        options: `{"grad_free": True}`: Milstein's method by a difference quotient.
        names: other names of the sde's methods, by their roles `"drift"`, `"diffusion"`, `"prior_drift"`, ...
        logqp: whether the divergence of the path's law from the prior's, whose drift is `h(t, y)`, is asked for.
            Adaptive steps do not control its error.
        extra: whether the method's carried values are asked for.
        extra_solver_state: those of a solve before, of "reversible_heun".

    Returns:
        The states at `ts`, shape (T, batch, d); then, if asked for, the divergence over each interval, shape
        (T - 1, batch), and the tuple of carried values: of "reversible_heun" drift, diffusion and second state.

    Raises:
        ValueError: for a type of SDE, a method or an argument that is not covered, or does not fit.
        SolveError: as `solve` does.

    Examples:
        >>> class Decay:
        ...     sde_type, noise_type = "ito", "diagonal"
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return 0.1 * y
        >>> sdeint(Decay(), torch.ones(4, 3), [0.0, 1.0], dt=0.1).shape
        torch.Size([2, 4, 3])
    """
    control = _Control(dt, adaptive, rtol, atol, dt_min)
    return _sdeint(sde, y0, ts, bm, method, control, options, names, logqp, extra, extra_solver_state, "discrete", ())


def sdeint_adjoint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    adjoint_method: str | None = None,
    dt: float | Tensor = 1e-3,
    adaptive: bool = False,
    adjoint_adaptive: bool = False,
    rtol: float | Tensor = 1e-5,
    adjoint_rtol: float | Tensor = 1e-5,
    atol: float | Tensor = 1e-4,
    adjoint_atol: float | Tensor = 1e-4,
    dt_min: float | Tensor = 1e-5,
    options: Mapping[str, Any] | None = None,
    adjoint_options: Mapping[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: Sequence[Tensor] | None = None,
) -> Any:
    """`sdeint` with memory for one state a step, or for none with "reversible_heun"; the gradient is exact.

    torchsde solves an adjoint SDE backwards along the path, whose result is off by that solve's own error. Here the
    steps themselves are differentiated (`Solver(gradient="checkpoint")`, or `"reversible"`), every tensor that `sde`
    uses gets its gradient, and nothing is solved backwards: the `adjoint_*` arguments are accepted and have nothing
    to set.

    Args:
        sde: as for `sdeint`, and so are the other arguments without `adjoint` in their names.
        y0: initial state.
        ts: times.
        bm: the Brownian motion.
        method: name of the method.
        adjoint_method: ignored, as the next four.
        dt: step size.
        adaptive: whether the error is controlled.
        adjoint_adaptive: ignored.
        rtol: relative tolerance.
        adjoint_rtol: ignored.
        atol: absolute tolerance.
        adjoint_atol: ignored.
        dt_min: least adaptive step size.
        options: of the method.
        adjoint_options: ignored.
        adjoint_params: tensors that get a gradient, of zeros where they are not used. Default: the parameters of a
            module `sde`.
        names: of the sde's methods.
        logqp: whether the divergence is asked for.
        extra: whether the carried values are.
        extra_solver_state: those of a solve before.

    Returns:
        As `sdeint`.

    Raises:
        ValueError, SolveError: as `sdeint` does.
    """
    control = _Control(dt, adaptive, rtol, atol, dt_min)
    gradient: Gradient = "reversible" if method == "reversible_heun" else "checkpoint"
    own = sde.parameters() if isinstance(sde, nn.Module) else ()
    parameters = tuple(own if adjoint_params is None else adjoint_params)
    return _sdeint(
        sde, y0, ts, bm, method, control, options, names, logqp, extra, extra_solver_state, gradient, parameters
    )


class _Control:
    """Step size and tolerances as numbers."""

    def __init__(self, dt: Any, adaptive: bool, rtol: Any, atol: Any, dt_min: Any) -> None:
        given = {"dt": dt, "rtol": rtol, "atol": atol, "dt_min": dt_min}
        for name, value in given.items():
            if isinstance(value, Tensor) and value.requires_grad:
                raise ValueError(f"sdeint: a gradient with respect to {name} is not covered: detach it.")
        self.dt, self.rtol, self.atol, self.dt_min = map(float, given.values())
        self.adaptive = bool(adaptive)
        if not self.dt > 0:
            raise ValueError(f"sdeint: dt={self.dt} must be above zero.")


def _sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any,
    method: str | None,
    control: _Control,
    options: Mapping[str, Any] | None,
    names: Mapping[str, str] | None,
    logqp: bool,
    extra: bool,
    start: Sequence[Tensor] | None,
    gradient: Gradient,
    parameters: tuple[Tensor, ...],
) -> Any:
    """Both drop-ins: they differ in how the gradient is computed."""
    if not isinstance(y0, Tensor) or y0.ndim != 2:
        raise ValueError("sdeint: y0 must be a tensor of shape (batch, channels).")
    times = _times(ts, y0)
    columns = None if bm is None or len(bm.shape) != 2 else bm.shape[1]
    equation, prior = equation_of(sde, names or {}, columns, with_prior=logqp)
    if logqp:
        assert prior is not None
        equation = with_path_divergence(equation, prior)
        y0 = torch.cat([y0, y0.new_zeros(len(y0), 1)], 1)
    chosen = _method(method, equation, control, options or {}, bm)
    name = chosen.name
    carried: list[Carried] = []
    if isinstance(chosen, ReversibleHeun):
        given = None if not start else _three(start)

        def keep(state: Carried) -> None:
            carried[:] = [state]

        chosen = dataclasses.replace(chosen, start=given, carried=keep)
    elif start:
        raise ValueError(f"sdeint: extra_solver_state is of the method 'reversible_heun', not of {name!r}.")
    t0, t1 = times[0].item(), times[-1].item()
    path = None if bm is None else path_of(bm, t0, t1, equation, y0, area=name in ("sriw1", "sosra"))
    if control.adaptive:
        ys = _adaptive(equation, y0, times, chosen, control, path, gradient, logqp)
    else:
        solver = Solver(method=chosen, gradient=gradient, engine="torch", max_steps=_count(t0, t1, control.dt))
        with unrecordable(WITHOUT_TOLERANCE):
            ys = solve_by_rules(
                equation, y0, checked_times(times), solver, noise=path, grid=_grid(times, control.dt)
            ).ys
    ys = _with_zeros(ys, parameters)
    answer: list[Any] = [ys]
    if logqp:
        answer = [ys[..., :-1], ys[1:, :, -1] - ys[:-1, :, -1]]
    if extra:
        answer.append(carried[0] if carried else ())
    return answer[0] if len(answer) == 1 else tuple(answer)


def _times(ts: Tensor | Sequence[float], y0: Tensor) -> Tensor:
    if isinstance(ts, Tensor):
        times = ts
    else:
        times = torch.tensor(ts, dtype=torch.float64 if y0.device.type != "mps" else y0.dtype)
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] > times[:-1]).all()):
        raise ValueError(f"sdeint: ts must be two or more strictly increasing times, got {times.detach()}.")
    if times.requires_grad:
        raise ValueError("sdeint: a gradient with respect to ts is not covered: detach ts.")
    return times


def _method(method: str | None, sde: SDE, control: _Control, options: Mapping[str, Any], bm: Any) -> StochasticMethod:
    """Our method for torchsde's name of one, with fixed steps or adaptive."""
    if unknown := [key for key in options if key != "grad_free"]:
        warnings.warn(f"sdeint: unknown options {', '.join(map(repr, unknown))} are ignored.", stacklevel=4)
    general = sde.noise == "general"
    default = "midpoint" if sde.calculus == "stratonovich" else "euler" if general else "srk"
    name = default if method is None else method
    if control.adaptive and name == "euler" and sde.noise != "additive":
        warnings.warn(
            "sdeint: Euler-Maruyama with adaptive steps converges slowly where the noise is not additive; 'srk' is of "
            "a higher order for diagonal and scalar noise.",
            stacklevel=4,
        )
    if (name, sde.calculus) not in METHODS:
        known = [known for known, calculus in METHODS if calculus == sde.calculus]
        raise ValueError(
            f"sdeint: method={name!r} is none for sde_type={sde.calculus!r}: choose one of "
            f"{', '.join(map(repr, known))}."
        )
    if name in ("srk", "milstein") and general:
        raise ValueError(f"sdeint: method={name!r} is not for general noise: choose 'euler', or 'midpoint'.")
    if name == "log_ode":
        _check_log_ode(general, bm)
    ours = METHODS[name, sde.calculus]
    if name == "milstein" and options.get("grad_free") and sde.noise != "additive":
        ours = "rkmil"
    if name == "srk" and sde.noise == "additive":
        ours = "sosra"
    fixed = _of_fixed_step(ours)
    if not control.adaptive:
        return fixed
    if name == "reversible_heun":
        raise ValueError(
            "sdeint: adaptive=True with method='reversible_heun' is not covered: choose 'heun' or 'midpoint'."
        )
    return Doubled(name=ours, order=fixed.order, of=fixed)


def _check_log_ode(general: bool, bm: Any) -> None:
    """The method is the midpoint's and a term of the Levy area, which is zero where the noise commutes."""
    area = getattr(bm, "levy_area_approximation", None)
    if area in ("none", "space-time"):
        raise ValueError("sdeint: method='log_ode' needs a bm with levy_area_approximation='davie' or 'foster'.")
    if general:
        raise ValueError(
            "sdeint: method='log_ode' with general noise is not covered: its approximate Levy areas do not add up over "
            "intervals, so that it does not converge faster along one path than 'midpoint'."
        )


@functools.cache
def _of_fixed_step(name: str) -> StochasticMethod:
    """A method's step without an error estimate."""
    method = SDE_METHODS[name]
    if not method.adaptive:
        return method
    if isinstance(method, SDEMethod):
        return dataclasses.replace(method, adaptive=False)
    return dataclasses.replace(method, delta=None)


def _three(start: Sequence[Tensor]) -> Carried:
    f, g, z = start
    return f, g, z


def _count(t0: float, t1: float, dt: float) -> int:
    return math.ceil((t1 - t0) / dt) + 2


def _grid(times: Tensor, dt: float) -> list[float]:
    """Step ends as torchsde adds them up in the times' dtype: a Brownian path tells apart times that rounding moves."""
    kind: Any = {torch.float32: np.float32}.get(times.dtype, np.float64)
    t, t1, size = kind(times[0].item()), kind(times[-1].item()), kind(dt)
    grid = [float(t)]
    while t < t1:
        if t + size == t:
            raise ValueError(f"sdeint: dt={dt:g} is below the resolution of ts in {times.dtype}: give ts in float64.")
        t = min(t + size, t1)
        grid.append(float(t))
    return grid


def _adaptive(
    sde: SDE,
    y0: Tensor,
    times: Tensor,
    method: StochasticMethod,
    control: _Control,
    path: BrownianPath | None,
    gradient: Gradient,
    logqp: bool,
) -> Tensor:
    """States at the times by controlled steps; the error of a divergence is not controlled."""
    rtol: Any = control.rtol
    atol: Any = control.atol
    if logqp:
        rtol, atol = (y0.new_full((y0.shape[1],), value) for value in (rtol, atol))
        rtol[-1], atol[-1] = 0.0, math.inf
    solver = Solver(
        method=method,
        rtol=rtol,
        atol=atol,
        dt0=max(control.dt, control.dt_min),
        dt_min=control.dt_min,
        controller=CONTROLLER,
        gradient=gradient,
        engine="torch",
    )
    rules = dataclasses.replace(OWN_RULES, accept_smallest=True)
    states: Tensor = solve_by_rules(sde, y0, checked_times(times), solver, rules, noise=path).ys
    return states


def _with_zeros(ys: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    """The states; a parameter that they do not depend on gets a gradient of zeros, as in torchsde."""
    empty = [p.reshape(-1)[:0].to(ys.device, ys.dtype) for p in parameters if p.requires_grad]
    return ys + torch.cat(empty).sum() if empty else ys
