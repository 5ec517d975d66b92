"""How to solve: the method with its tolerances, and what to record (see `_solution` for results)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
from torch import Tensor

from regnde._controller import PI, PID, Controller, I
from regnde._equation import SDE
from regnde._grid_method import GridMethod
from regnde._last_step import LastStep
from regnde._options import keyword_only
from regnde._sde_method import SDEMethod, StochasticMethod, default_method
from regnde._tableau import StochasticTableau, Tableau
from regnde._tolerance import Tolerance

__all__ = ["OTHER_NAMES", "Gradient", "Local", "Record", "ResolvedSolver", "Solver", "hint"]

Gradient = Literal[
    "discrete", "checkpoint", "reversible", "interpolating", "gauss", "quadrature", "backsolve", "tracker"
]
GRADIENTS: tuple[str, ...] = Gradient.__args__  # type: ignore[attr-defined]  # typing has no public way
ENGINES = ("auto", "torch", "julia")

ODE_METHOD, ODE_TOLERANCE = "tsit5", 1e-6
PLAIN_SDE = SDE(lambda t, y: y, lambda t, y: y)
SDE_TOLERANCE = 1e-2  # StochasticDiffEq.jl's default

OTHER_NAMES = {
    "dopri5": "dp5",
    "dormand_prince": "dp5",
    "ode45": "dp5",
    "rk45": "dp5",
    "bosh3": "bs3",
    "bogacki_shampine": "bs3",
    "ode23": "bs3",
    "rk23": "bs3",
    "tsitouras5": "tsit5",
    "verner7": "vern7",
    "explicit_euler": "euler",
    "forward_euler": "euler",
    "explicit_midpoint": "midpoint",
    "adaptive_heun": "heun",
    "heun_euler": "heun",
    "heun21": "heun",
    "euler_maruyama": "em",
    "eulermaruyama": "em",
}
"""Methods under the names that torchdiffeq, torchode, diffrax, scipy and others give them."""

SDE_NAMES = {"euler": "em", "euler_heun": "diffusionheun"}
"""Methods for SDEs under the names that torchsde gives them, where a method for ODEs has the name too or none has."""

NEAREST = {
    "dopri8": "vern7",
    "dop853": "vern7",
    "fehlberg2": "bs3",
    "srk": "sriw1",
    "lsoda": "autotsit5",
    "radau": "rodas5p",
    "bdf": "kencarp4",
    "kvaerno5": "kencarp4",
    "rodas5": "rodas5p",
}
"""Methods that no engine has, and the nearest to them that one has."""


def hint(method: str, *, sde: bool = False) -> str:
    """What a method is called here, as a sentence for a message; empty for a name that is not known."""
    name = method.lower().replace("-", "_").replace(" ", "_")
    if sde and name in SDE_NAMES:
        return f"{method!r} is called {SDE_NAMES[name]!r} here."
    if name in OTHER_NAMES:
        return f"{method!r} is called {OTHER_NAMES[name]!r} here."
    if name in NEAREST:
        return f"There is no {method!r} here; the nearest method is {NEAREST[name]!r}."
    return ""


@keyword_only
@dataclass(frozen=True, kw_only=True)
class Solver:
    """Method, tolerances and gradient of a solve. Immutable; vary it with `dataclasses.replace`.

    Args:
        method: name of the method. ODE: `"tsit5"` (default), `"bs3"`, `"heun"`, `"dp5"`, `"vern7"` adapt
            their step, `"euler"`, `"midpoint"`, `"rk4"` need `dt0`; for stiff ones `"rodas5p"`, `"rodas4"`,
            `"rosenbrock23"`, and `"autotsit5"`, which switches. SDE: `"sriw1"` (default for Ito's calculus and
            diagonal or scalar noise), `"sosri"`, `"sosri2"` (estimates stiffness too), `"sosra"` (a diffusion that
            does not depend on the state), `"rkmil"`, `"lambaem"` and `"lambaeulerheun"` (every kind of noise) adapt
            their step, `"em"`, `"milstein"`, `"heun"`, `"midpoint"`, `"reversible_heun"` need `dt0`. `docs/sde.md`
            says which is for which, `docs/engines.md` lists what each engine has. Or a `Tableau`: an explicit
            Runge-Kutta method of your own (torch engine).
        rtol: relative tolerance, dimensionless. Default 1e-6 for an ODE, 1e-2 for an SDE. A number; or numbers for
            entries, a tensor or array that broadcasts against y0; or for the parts of a state of several tensors,
            in its structure: `{"x": 1e-6, "v": math.inf}`. An infinite tolerance leaves entries without control.
            The error of a step is the root mean square over all entries; entries without control count as 0.
        atol: absolute tolerance, in units of the state. Same defaults and forms.
        dt0: size (> 0, in units of time) of the first step, or of every step for a fixed-step
            method. Default: chosen from the field at the start, which costs two evaluations. A `LastStep`
            takes it from the solve before (adaptive methods).
        dt_min: least size (>= 0, in units of time) of a step of an adaptive method, except for steps that the end
            time or a stop shortens. If the error control asks for less, the solve fails with `StepSizeUnderflow`.
            Default: 0.
        dt_max: largest size (> 0) of a step of an adaptive method. A field that acts only in a short interval
            is seen if `dt_max` is shorter than it. Default: the span.
        controller: how the next step size follows from the error: `PI(...)` (default), `I(...)` or `PID(...)`.
        max_steps: trial steps (accepted and rejected) after which a solve gives up.
        gradient: `"discrete"`: back-propagation through the accepted steps, step sizes constant.
            `"checkpoint"`: the same numbers with less memory; the backward pass evaluates one step at a
            time again, and raises a `RuntimeError` if it does not end where it ended. `"reversible"`: the same for
            the method "reversible_heun", whose way back needs no states of the steps either. The Julia engine adds
            SciMLSensitivity's continuous adjoints: `"interpolating"`, `"gauss"`, `"quadrature"`,
            `"backsolve"`, and `"tracker"` as a cross-check.
        batch: `"joint"`: the whole state is one system with one step size. `"per-sample"`: every sample of
            the leading dimension has its own clock, steps and records (adaptive methods of ODEs). The
            field is then called as f(t, y), or f(t, y, samples) if it takes three arguments, with the
            samples that have not reached the end time: t has shape (b, 1, ..., 1) and broadcasts against y.
        compile: run each step as one program made by torch.compile (torch engine, joint batches). Pays for
            many solves of one field with fixed shapes; the first step waits for the compiler.
        engine: `"auto"`, `"torch"` or `"julia"`. The environment variable `REGNDE_ENGINE` replaces `"auto"`.

    Raises:
        ValueError: for a tolerance, step size, limit or name that can not be used.
        TypeError: for a method that is neither a name nor a `Tableau`, or a controller that is none of the three.

    Examples:
        >>> Solver(rtol=1e-3)
        Solver(rtol=0.001)
    """

    method: str | Tableau | GridMethod | StochasticMethod | None = None
    rtol: Any = None  # a number, None or a Tolerance; Any, as most read a number
    atol: Any = None
    dt0: float | LastStep | None = None
    dt_min: float | None = None
    dt_max: float | None = None
    controller: Controller | None = None
    max_steps: int = 100_000
    gradient: Gradient = "discrete"
    engine: Literal["auto", "torch", "julia"] = "auto"
    batch: Literal["joint", "per-sample"] = "joint"
    compile: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.method, str):
            object.__setattr__(self, "method", self.method.lower())
        elif self.method is not None and not isinstance(
            self.method, (Tableau, GridMethod, StochasticTableau, SDEMethod)
        ):
            raise TypeError(f"Solver(method={self.method!r}): give the name of a method or a regnde.Tableau.")
        for name in ("rtol", "atol", "dt0", "dt_min", "dt_max"):
            value = getattr(self, name)
            if value is None or (name == "dt0" and isinstance(value, LastStep)):
                continue
            if name != "dt0" and not _is_number(value):
                object.__setattr__(self, name, value if isinstance(value, Tolerance) else Tolerance(name, value))
                continue
            try:
                usable = not isinstance(value, str) and math.isfinite(value) and value >= 0
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"Solver({name}={value!r}): give one number.") from None
            if not usable or (name in ("dt0", "dt_max") and value == 0):
                other = ", or a regnde.LastStep()" if name == "dt0" else ""
                raise ValueError(f"Solver({name}={value!r}): give a finite number above zero{other}.")
            if isinstance(value, (Tensor, np.ndarray)):  # so that equal solvers are equal
                object.__setattr__(self, name, float(value))
        if self.rtol == 0 and self.atol == 0:
            raise ValueError("Solver(rtol=0, atol=0): one of the two tolerances must be above zero.")
        self._check_sizes()
        if self.controller is not None and not isinstance(self.controller, (PI, I, PID)):
            raise TypeError(f"Solver(controller={self.controller!r}): give regnde.PI(...), I(...) or PID(...).")
        if self.max_steps < 1:
            raise ValueError(f"Solver(max_steps={self.max_steps}): give at least 1.")
        if self.gradient not in GRADIENTS:
            raise ValueError(f"Solver(gradient={self.gradient!r}): choose one of {', '.join(GRADIENTS)}.")
        if self.compile and (self.gradient == "checkpoint" or self.batch == "per-sample"):
            raise ValueError(
                "Solver(compile=True) goes with gradient='discrete' and batch='joint': a recomputed step and a "
                "shrinking batch would be compiled again and again."
            )
        if self.batch not in ("joint", "per-sample"):
            raise ValueError(f"Solver(batch={self.batch!r}): choose 'joint' or 'per-sample'.")
        if self.engine not in ENGINES:
            raise ValueError(f"Solver(engine={self.engine!r}): choose one of {', '.join(ENGINES)}.")

    def _check_sizes(self) -> None:
        """Raises a ValueError for step sizes that contradict each other."""
        named = (("dt_min", self.dt_min), ("dt0", self.dt0), ("dt_max", self.dt_max))
        given = [(name, value) for name, value in named if value is not None and not isinstance(value, LastStep)]
        for (low, a), (high, b) in itertools.pairwise(given):
            if a > b:
                raise ValueError(f"Solver({low}={a!r}, {high}={b!r}): {low} must not be above {high}.")

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"Solver({', '.join(shown)})"

    def resolve(self, *, sde: SDE | bool) -> ResolvedSolver:
        """The same choices with every default filled in for an ODE or an SDE; True is one as `SDE` has by default."""
        method = default_method(sde if isinstance(sde, SDE) else PLAIN_SDE) if sde else ODE_METHOD
        tolerance = SDE_TOLERANCE if sde else ODE_TOLERANCE
        sde_method = self.method if isinstance(self.method, (StochasticTableau, SDEMethod)) else None
        tableau = self.method if isinstance(self.method, Tableau) else None
        grid_method = self.method if isinstance(self.method, GridMethod) else None
        given = tableau or grid_method or sde_method
        last = self.dt0 if isinstance(self.dt0, LastStep) else None
        dt0 = self.dt0 if last is None else last.size
        return ResolvedSolver(
            method=self.method if isinstance(self.method, str) else method if given is None else given.name,
            tableau=tableau,
            grid_method=grid_method,
            sde_method=sde_method,
            rtol=_resolved(self.rtol, tolerance),
            atol=_resolved(self.atol, tolerance),
            dt0=None if dt0 is None else float(dt0),  # type: ignore[arg-type]  # no LastStep
            dt_min=0.0 if self.dt_min is None else float(self.dt_min),
            dt_max=math.inf if self.dt_max is None else float(self.dt_max),
            controller=self.controller,
            max_steps=self.max_steps,
            gradient=self.gradient,
            engine=self.engine,
            batch=self.batch,
            compile=self.compile,
            last_step=last,
        )


def _is_number(value: object) -> bool:
    """Whether a tolerance is one for all entries, or is meant as one."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 0
    return not isinstance(value, (Tolerance, Mapping, tuple, list))


def _resolved(tolerance: Any, default: float) -> float | Tolerance:
    if isinstance(tolerance, Tolerance):
        return tolerance
    return default if tolerance is None else float(tolerance)


@dataclass(frozen=True, kw_only=True)
class ResolvedSolver:
    """A `Solver` whose defaults are filled in: what an engine is given and a solution reports.

    `method` is the name: of a named method, of the user's own `tableau`, or of a drop-in's `grid_method` or
    `sde_method` (else None).
    `dt0` is the size that a `LastStep` had for this solve; `last_step` is that object (else None). `controller` is None
    for the default one, whose constants belong to the method.
    """

    method: str
    rtol: float | Tolerance
    atol: float | Tolerance
    dt0: float | None
    max_steps: int
    gradient: Gradient
    engine: str
    batch: str = "joint"
    compile: bool = False
    tableau: Tableau | None = None
    grid_method: GridMethod | None = None
    sde_method: StochasticMethod | None = None
    dt_min: float = 0.0
    dt_max: float = math.inf
    controller: Controller | None = None
    last_step: LastStep | None = dataclasses.field(default=None, repr=False, compare=False)


@keyword_only
@dataclass(frozen=True, kw_only=True)
class Local:
    """Record one step, taken at a random place of the trajectory (Pal et al., ICML 2023).

    The step is not a part of the trajectory. It starts from the state at the drawn time, so that
    any way of differentiating the trajectory will do and its memory does not grow with the steps.

    Args:
        sampling: `"time"` draws the time uniformly in the span (the paper's unbiased form);
            `"step"` draws one of the solver's accepted steps (biased towards where steps are short).
        step_size: `"solver"` takes the size of the accepted step that holds the drawn time, cut at
            the end time; `"initial"` takes the first-step heuristic's, as the paper's code does.
        freeze_first_stage: treat the first stage as a constant, as the paper's code does. Its
            gradient is then of order dt instead of the error's order (`docs/heuristics.md` shows it). Means
            nothing for an SDE, whose methods carry no stage over: the paper's code differentiates all.
        detach_state: treat the state from which the step starts as a constant.
        seed: seed of the draw; by default a number drawn from torch's generator.
    """

    sampling: Literal["time", "step"] = "time"
    step_size: Literal["solver", "initial"] = "solver"
    freeze_first_stage: bool = False
    detach_state: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.sampling not in ("time", "step"):
            raise ValueError(f"Local(sampling={self.sampling!r}): choose 'time' or 'step'.")
        if self.step_size not in ("solver", "initial"):
            raise ValueError(f"Local(step_size={self.step_size!r}): choose 'solver' or 'initial'.")
        if not isinstance(self.seed, Integral | None):
            raise TypeError(f"Local(seed={self.seed!r}): give a whole number, or None.")


Record = Literal["none", "all"] | Local
