"""Measures what the evaluations of a solve are spent on. The advice that follows from it is `_advice.RULES`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from regnde._advice import Diagnosis, Run, Samples, Smoothness, observed_order
from regnde._equation import SDE, Equation, JuliaField
from regnde._last_step import LastStep
from regnde._penalty import ErrorPenalty
from regnde._recording import unrecorded
from regnde._solution import Solution
from regnde._solve import checked_times, solve
from regnde._solver import Solver
from regnde._state import Structure
from regnde._tableau import TABLEAUX, Tableau
from regnde._tolerance import Tolerance

__all__ = ["diagnose"]

Metric = Callable[[Solution], float]

FINER = 1e3  # the given tolerance over that of the reference
COARSER = (1e-8, 1e-6)  # tolerances of the reference if it does not succeed
REFERENCE_METHOD = "vern7"
REFERENCE_COST = 10  # steps of the reference, as a multiple of those of the given solver, before it gives up
LOOSEST = 0.1
IN_TURN = 3  # good runs at neighbouring tolerances after which a method needs no tighter one
TIGHTER = 2  # tolerances below the given one
MANY = 3000  # trial steps of a solve that is not repeated at each tolerance without hope of a saving
LEFT = 0.9  # share of the evaluations: a looser tolerance that leaves more saves nothing
PERTURBATION = 1e-6  # relative change of y0
FIRST = 0.5  # first step, as a share of the span: what is too large is rejected
FIXED = (("heun2", 1), ("rk4", 1), ("heun2", 2), ("rk4", 2))  # methods and their numbers of steps
INDEPENDENT = 1e-3  # relative difference of the field on half of a batch; float32 has 1e-6, a coupled batch 0.1

DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}

KINKED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.silu,
    "relu_": functional.silu,
    "leaky_relu": functional.silu,
    "rrelu": functional.silu,
    "prelu": functional.silu,
    "relu6": functional.silu,
    "elu": functional.silu,
    "selu": functional.silu,
    "celu": functional.silu,
    "hardswish": functional.silu,
    "hardtanh": torch.tanh,
    "hardsigmoid": torch.sigmoid,
    "threshold": functional.silu,
    "softshrink": functional.silu,
    "hardshrink": functional.silu,
}
"""Activations that have a kink in the value or in the first derivative, and a smooth one for each."""

KINKED_MODULES = tuple(
    getattr(nn, name)
    for name in (
        *("ReLU", "LeakyReLU", "RReLU", "PReLU", "ReLU6", "ELU", "SELU", "CELU", "Hardswish", "Hardtanh"),
        *("Hardsigmoid", "Threshold", "Softshrink", "Hardshrink"),
    )
)


def diagnose(
    f: Equation | Callable[[Tensor, Any], Any],
    y0: Any,
    ts: Tensor | ArrayLike,
    solver: Solver | None = None,
    *,
    metric: Metric | None = None,
    metric_slack: float = 0.02,
    error_allowed: float = 1e-2,
    methods: Sequence[str] | None = None,
) -> Diagnosis:
    """Measures what the evaluations of an ODE's solve are spent on, and says what to change first.

    It solves the problem about 30 times: with the given method at tighter and looser tolerances, with the other
    adaptive methods, and once very accurately. A run counts as good if its metric is that of the given solver, or
    without a metric if its true error is at most `error_allowed`. The modules of field and metric run in evaluation
    mode, without a graph; modes, parameters, gradients and torch's random numbers are left as they were.

    Args:
        f: function of a 0-dim time tensor and a state, or a `JuliaField`; best a module, or a function that refers to
            its modules by name, so that parameters and activations are found.
        y0: initial state at ts[0], such as a batch of the training data.
        ts: save times, in units of time.
        solver: how you solve now; `Solver()` by default.
        metric: function of a `Solution` that returns a number, such as the loss on these data.
        metric_slack: relative change of the metric, up or down, up to which a run counts as good.
        error_allowed: largest error over the save times (root mean square over the entries of the state), relative to
            the root mean square of the states. The default of 1 % suits states whose use is to be classified or
            decoded. Give what you need where the states are the result.
        methods: adaptive methods to compare; by default all that are known for the torch engine.

    Returns:
        A `Diagnosis`: `print` it, `.plot()` it, solve with its `.recommended`.

    Raises:
        TypeError: for an SDE, and for arguments of the wrong type.
        ValueError: for a span of length 0, an empty state, or a method that is not adaptive in `methods`.

    Examples:
        >>> import regnde
        >>> report = regnde.diagnose(lambda t, y: -y, [1.0], [0.0, 1.0], error_allowed=1e-3)
        >>> report.now.evaluations > report.best.evaluations, report.best.error <= 1e-3
        (True, True)
    """
    if isinstance(f, SDE):
        raise TypeError(
            "diagnose is for ODEs: an SDE's error is dominated by its noise. Compare tolerances yourself, with one "
            "BrownianPath for all solves."
        )
    solver = solver or Solver()
    if isinstance(solver.rtol, Tolerance) or isinstance(solver.atol, Tolerance):
        raise ValueError("diagnose varies one tolerance for the whole state: give rtol and atol as numbers.")
    structure = Structure(y0, samples=solver.batch == "per-sample")
    f, state, metric = structure.on_flat(f), structure.flat.detach(), _of_flat(metric, structure)
    times = checked_times(ts)[0].detach()
    if state.numel() == 0:
        raise ValueError(f"diagnose needs a state with entries, but y0 has the shape {tuple(state.shape)}.")
    if times[0] == times[-1]:
        raise ValueError(f"diagnose needs a span of time, but ts goes from {float(times[0]):g} to itself.")
    for name, value in (("error_allowed", error_allowed), ("metric_slack", metric_slack)):
        if not value >= 0:
            raise ValueError(f"{name}={value!r}: give a number of at least 0.")
    adaptive = [name for name, tableau in TABLEAUX.items() if tableau.adaptive]
    for name in methods or ():
        if name not in adaptive:
            raise ValueError(f"methods: {name!r} is not one of the adaptive methods {', '.join(adaptive)}.")
    modules = _modules(f)
    with unrecorded(), _undisturbed((*modules, *_modules(metric)), state):
        bench = _Bench(f, state, times, metric, modules)
        return _diagnosis(bench, solver, tuple(methods or adaptive), error_allowed, metric_slack)


def _of_flat(metric: Metric | None, structure: Structure) -> Metric | None:
    """The metric of solutions whose states are flat."""
    if metric is None or not structure.nested:
        return metric
    given = metric

    @functools.wraps(given, assigned=(), updated=())
    def of_flat(solution: Solution) -> float:
        return given(dataclasses.replace(solution, ys=structure.tree_of(solution.ys)))

    return of_flat


class _Bench:
    """The problem, and the ways in which it is solved."""

    def __init__(
        self, f: Equation, y0: Tensor, ts: Tensor, metric: Metric | None, modules: tuple[nn.Module, ...]
    ) -> None:
        self.f, self.y0, self.ts, self.metric, self.modules = f, y0, ts, metric, modules
        self.parameters: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
        self.kinks: tuple[str, ...] = ()
        self.needs_graph = False
        if not isinstance(f, JuliaField):
            self.kinks, self.needs_graph = _first_call(f, ts[0], y0, modules)
        self.span = abs(float(ts[-1]) - float(ts[0]))
        self.truth: Tensor | None = None  # states of the reference
        self.solves = 0

    def solve(self, solver: Solver, y0: Tensor | None = None, *, record: bool = False, throw: bool = False) -> Solution:
        """A solve without a graph, unless the field needs one."""
        self.solves += 1
        y0 = self.y0 if y0 is None else y0
        solver = self._settled(solver, y0)
        with torch.set_grad_enabled(self.needs_graph):
            return solve(self.f, y0, self.ts, solver, record="all" if record else "none", throw=throw)

    def _settled(self, solver: Solver, y0: Tensor) -> Solver:
        """With a `LastStep`: one like it that has seen this solve, so that no run depends on those before it."""
        if not isinstance(solver.dt0, LastStep):
            return solver
        solver = dataclasses.replace(solver, dt0=LastStep(solver.dt0.size))
        with torch.set_grad_enabled(self.needs_graph):
            solve(self.f, y0, self.ts, solver, throw=False)
        return solver

    def run(self, solver: Solver) -> Run:
        """One row of the table."""
        return self.measured(solver, self.solve(solver))

    def measured(self, solver: Solver, solution: Solution) -> Run:
        """A solve with its error and its metric."""
        stats, done = solution.stats, len(solution.ys) == len(self.ts)
        metric = None
        if done and self.metric is not None:
            with torch.no_grad():
                metric = float(self.metric(dataclasses.replace(solution, ys=solution.ys.detach().to(self.y0.dtype))))
        return Run(
            solver=solver,
            method=solution.solver.method,
            evaluations=stats.nfe,
            accepted=stats.accepted,
            rejected=stats.rejected,
            error=self._error(solution.ys.detach()) if done else None,
            metric=metric,
            status=solution.status,
        )

    def _error(self, ys: Tensor) -> float | None:
        """Largest rms over the save times of the difference from the reference, over the rms of the reference."""
        if self.truth is None:
            return None
        difference = (ys.to(self.truth.dtype) - self.truth).abs().reshape(len(ys), -1)
        size = float(self.truth.abs().square().mean().sqrt())
        error = float(difference.square().mean(1).sqrt().max()) / (size or 1.0)
        return error if math.isfinite(error) else math.inf

    def penalty_gradient(self, solver: Solver, y0: Tensor) -> Tensor | None:
        """The gradient of the mean error by the parameters, or by y0 if there are none; None if there is none."""
        self.solves += 1
        try:
            with torch.enable_grad():
                start = y0 if self.parameters else y0.clone().requires_grad_()
                settled = self._settled(solver, start.detach())
                solution = solve(self.f, start, self.ts, settled, record="all")
                penalty = ErrorPenalty("mean")(solution)
                slopes = torch.autograd.grad(penalty, self.parameters or [start], allow_unused=True)
        except (RuntimeError, ValueError, TypeError):
            return None
        found = [torch.view_as_real(x) if x.is_complex() else x for x in slopes if x is not None]
        return torch.cat([x.flatten().double() for x in found]) if found else None

    def smoothness(self, solver: Solver) -> Smoothness | None:
        """How reproducible that gradient is."""
        gradient = self.penalty_gradient(solver, self.y0)
        if gradient is None:
            return None
        changed = self.penalty_gradient(solver, self.y0 * (1 + PERTURBATION))
        if changed is None:
            return None
        size = float(gradient.norm())
        if size == 0:
            return Smoothness(float(changed.norm() > 0), 1.0)
        cosine = float(gradient @ changed) / (size * float(changed.norm()) or 1.0)
        return Smoothness(float((changed - gradient).norm()) / size, cosine)

    def in_double(self, *solvers: Solver) -> list[Solution] | None:
        """The same solves in float64; None if the field can not be converted."""
        dtype = torch.complex128 if self.y0.is_complex() else torch.float64
        try:
            with _double(self.modules):
                found = []
                for solver in solvers:
                    found.append(self.solve(solver, self.y0.to(dtype)))
                    if len(found[-1].ys) == len(self.ts):
                        break
                return found
        except (RuntimeError, TypeError, ValueError):
            return None


def _diagnosis(
    bench: _Bench, solver: Solver, methods: tuple[str, ...], error_allowed: float, metric_slack: float
) -> Diagnosis:
    """All measures, one after the other: later ones need earlier ones."""
    given = solver.resolve(sde=False)
    tableau = given.tableau or TABLEAUX.get(given.method)
    fixed = tableau is not None and not tableau.adaptive
    if not fixed:
        solver = dataclasses.replace(solver, rtol=given.rtol, atol=given.atol)
    single = torch.finfo(bench.y0.dtype).eps > 1e-10
    solution = bench.solve(solver, record=True)  # whatever the field raises here is the user's to see
    steps = solution.stats.accepted + solution.stats.rejected
    reference = _reference(bench, solver, steps)
    now = bench.measured(solver, solution)
    base = dataclasses.replace(solver, method="tsit5", rtol=1e-6, atol=1e-6, dt0=None) if fixed else solver

    runs = [now]
    hopeless = reference is None and not now.succeeded
    if not fixed and not hopeless:
        smallest = max(10 * torch.finfo(bench.y0.dtype).eps, 1e-13)
        for factor in _factors(base, bench):
            changed = _times(base, factor, bench)
            if factor > 10 and steps > MANY and runs[-1].evaluations > LEFT * now.evaluations:
                break  # stability sets the steps, at looser tolerances too
            finer = steps <= MANY and (changed.rtol or changed.atol or 0.0) >= smallest
            if factor > 1 or (factor < 1 and finer):
                runs.append(bench.run(changed))
    tables = {name: TABLEAUX[name] for name in methods} | ({} if tableau is None else {now.method: tableau})
    report = Diagnosis(
        now=now,
        runs=tuple(runs),
        reference=reference,
        floors={name: _two_steps(entry, solver) for name, entry in tables.items()},
        problem=_problem(bench),
        error_allowed=error_allowed,
        metric_slack=metric_slack,
        trainable=bool(bench.parameters),
        kinks=bench.kinks,
        method_order=None if tableau is None or fixed else tableau.order,
    )

    limit = now.evaluations if report.good(now) else (report.best.evaluations if report.good(report.best) else math.inf)
    for method in () if hopeless else methods:
        if method != now.method and report.floors[method] <= limit:
            runs += _cheaper(bench, dataclasses.replace(base, method=method), limit, report.good)
    report = dataclasses.replace(report, runs=tuple(runs))
    report = dataclasses.replace(report, starts=tuple(_given_starts(bench, report)))
    if report.at_floor(report.chosen):
        report = dataclasses.replace(report, fixed=tuple(_few_steps(bench, solver)))

    probe = base if base.gradient in ("discrete", "checkpoint") else dataclasses.replace(base, gradient="discrete")
    tight = sorted((r for r in runs if r.method == now.method and r.succeeded), key=lambda r: r.tolerance)[:3]
    return dataclasses.replace(
        report,
        order=None if fixed else observed_order([r.tolerance for r in tight], [r.accepted + r.rejected for r in tight]),
        smoothness=bench.smoothness(probe),
        smoothness_then=None if report.chosen is now else bench.smoothness(report.recommended),
        **(_without_kinks(bench, solver, probe) if bench.kinks else {}),
        stiff=_stiff_share(bench, solution, base),
        rounding=_rounding_share(bench, solver, now) if single else None,
        **_samples(bench, solver),
        solves=bench.solves,
    )


# --- single measures -----------------------------------------------------------------------------


def _reference(bench: _Bench, solver: Solver, steps: int) -> Run | None:
    """A solve at the tightest tolerance that succeeds, in float64 if the field can be converted."""
    limit = REFERENCE_COST * min(steps, MANY) + steps + 1000
    unknown = isinstance(solver.method, str) and solver.method not in TABLEAUX
    size = min(_size(bench.y0), 1.0)
    given = solver.rtol or solver.atol or 1.0
    tries = [
        Solver(
            method=solver.method if unknown else REFERENCE_METHOD,
            rtol=tolerance,
            atol=tolerance * size,
            max_steps=limit,
            engine=solver.engine,
            batch=solver.batch,
        )
        for tolerance in (max(min(1e-8, given / FINER), 1e-12), *COARSER)
    ]
    found = bench.in_double(*tries) or []
    if not found and bench.y0.dtype.to_real() != torch.float64:
        found = [bench.solve(tries[-1])]
    for attempt, solution in zip(tries, found, strict=False):
        if len(solution.ys) == len(bench.ts):
            bench.truth = solution.ys.detach()
            return bench.measured(attempt, solution)
    return None


def _factors(solver: Solver, bench: _Bench) -> Iterator[float]:
    """Factors of the tolerances: looser ones up to 0.1 (relative), the given one, tighter ones."""
    tolerance = solver.rtol or (solver.atol or 0.0) / _size(bench.y0)
    count = max(math.floor(math.log10(LOOSEST / tolerance) + 1e-9), 0)
    return (10.0**i for i in range(-TIGHTER, count + 1))


def _times(solver: Solver, factor: float, bench: _Bench) -> Solver:
    """The solver with its tolerances multiplied, the absolute one up to 0.1 of the state; 10 times 1e-6 is 1e-5."""
    largest = float(f"{LOOSEST * _size(bench.y0):.0e}")
    rtol, atol = (float(f"{(x or 0.0) * factor:.12g}") for x in (solver.rtol, solver.atol))
    return dataclasses.replace(solver, rtol=rtol, atol=min(atol, max(largest, solver.atol or 0.0)))


def _cheaper(bench: _Bench, base: Solver, limit: float, good: Callable[[Run], bool]) -> Iterator[Run]:
    """Runs of a method from the loosest tolerance on, until they cost more than the limit or some in turn are good."""
    in_turn = 0
    for factor in sorted(_factors(base, bench), reverse=True):
        if in_turn == IN_TURN or (factor < 1 and limit < math.inf):
            return
        try:
            run = bench.run(_times(base, factor, bench))
        except ValueError:  # the engine that was asked for lacks the method
            return
        if run.evaluations > limit:
            return
        in_turn = in_turn + 1 if good(run) else 0
        yield run


def _given_starts(bench: _Bench, report: Diagnosis) -> Iterator[Run]:
    """The best run of each method, with a long first step that is given."""
    for method in dict.fromkeys(run.method for run in report.runs):
        best = report.best_of(method)
        if best is None or best.evaluations > 2 * report.best.evaluations:
            continue
        given = best.solver.dt0
        if isinstance(given, LastStep) or (given or 0.0) < FIRST * bench.span:
            yield bench.run(dataclasses.replace(best.solver, dt0=FIRST * bench.span))


def _few_steps(bench: _Bench, solver: Solver) -> Iterator[Run]:
    """Two methods of fixed step size with one step and two."""
    for method, count in FIXED if solver.batch == "joint" else ():
        with contextlib.suppress(ValueError):
            yield bench.run(
                Solver(method=method, dt0=bench.span / count, engine=solver.engine, gradient=solver.gradient)
            )


def _two_steps(tableau: Tableau, solver: Solver) -> int:
    """Evaluations of two steps and of the start."""
    carried = tableau.fsal and tableau.adaptive
    start = (2 if tableau.adaptive and solver.dt0 is None else 0) + carried
    return start + 2 * (tableau.stages - carried)


def _stiff_share(bench: _Bench, solution: Solution, base: Solver) -> float | None:
    """Share of the accepted steps at the stability limit; of tsit5 if the given method estimates no stiffness."""
    try:
        try:
            steps = solution.steps
            flags = None if steps is None else steps.stiff
        except ValueError:
            steps = bench.solve(dataclasses.replace(base, method="tsit5"), record=True).steps
            flags = None if steps is None else steps.stiff
    except ValueError:
        return None
    if flags is None or steps is None or not flags.numel():
        return None
    flags = flags if steps.mask is None else flags[steps.mask]
    return float(flags.double().mean())


def _rounding_share(bench: _Bench, solver: Solver, now: Run) -> float | None:
    """Share of the evaluations that the same solve in float64 saves."""
    found = bench.in_double(solver)
    if not found or len(found[0].ys) != len(bench.ts):
        return None
    return max(1 - found[0].stats.nfe / max(now.evaluations, 1), 0.0)


def _without_kinks(bench: _Bench, solver: Solver, probe: Solver) -> dict[str, Any]:
    """Evaluations and the reproducibility of the gradient with smooth activations and the same weights."""
    with contextlib.suppress(RuntimeError, ValueError, TypeError), _Activations(replace=True):
        solution = bench.solve(solver)
        if len(solution.ys) == len(bench.ts):
            return {"without_kinks": solution.stats.nfe, "smoothness_without": bench.smoothness(probe)}
    return {}


def _samples(bench: _Bench, solver: Solver) -> dict[str, Any]:
    """Evaluations of each sample of a batch, or why there are none."""
    if solver.batch == "per-sample" or bench.y0.ndim < 2 or len(bench.y0) < 2 or isinstance(bench.f, JuliaField):
        return {}
    try:
        if (why := _why_coupled(bench.f, bench.ts[0], bench.y0)) is not None:
            return {"samples_why_not": why}
        method = solver.method if solver.method is None or solver.method in TABLEAUX else "tsit5"
        if isinstance(method, str) and not TABLEAUX[method].adaptive:
            return {}
        alone = dataclasses.replace(solver, method=method, batch="per-sample", compile=False, engine="torch")
        stats = bench.solve(alone, throw=True).stats
    except Exception as problem:  # the field is called as it never was before: anything may come
        return {"samples_why_not": f"{type(problem).__name__}: {str(problem).splitlines()[0]:.100}"}
    counts = np.array([sample.nfe for sample in stats.samples])
    hardest = int(counts.argmax())
    median = int(np.median(counts))
    return {"samples": Samples(hardest, int(counts[hardest]), median, float(counts.mean()), stats.nfe)}


def _why_coupled(f: Any, t: Tensor, y0: Tensor) -> str | None:
    """Why the leading dimension holds no samples that are independent, judged by the field on half of them."""
    half = len(y0) // 2
    t = t.to(y0.dtype.to_real()).to(y0.device)
    column = t.reshape((1,) * y0.ndim).expand(half, *(1,) * (y0.ndim - 1))
    with torch.no_grad():
        whole, part = f(t.clone(), y0.clone())[:half], f(column.clone(), y0[:half].clone())
    if part.shape != whole.shape:
        return f"half a batch gives the shape {tuple(part.shape)}"
    if float((part - whole).abs().max()) > INDEPENDENT * float(whole.abs().max()):
        return "its samples are not independent"
    return None


def _size(y: Tensor) -> float:
    """Root mean square of the entries, or 1 where that is 0."""
    return float(y.abs().square().mean().sqrt()) or 1.0


def _problem(bench: _Bench) -> str:
    """Dtype, shape and span, in words."""
    dtype = str(bench.y0.dtype).removeprefix("torch.")
    return f"{dtype} state {tuple(bench.y0.shape)}, t from {float(bench.ts[0]):g} to {float(bench.ts[-1]):g}"


# --- the field -----------------------------------------------------------------------------------


class _Activations(TorchFunctionMode):
    """Notes the activations with kinks that are called, and replaces them if asked."""

    def __init__(self, *, replace: bool = False) -> None:
        super().__init__()
        self.replace = replace
        self.called: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in KINKED:
            self.called.setdefault(name.rstrip("_"))
            if self.replace:
                return KINKED[name](args[0] if args else (kwargs or {})["input"])
        return func(*args, **(kwargs or {}))


def _first_call(f: Any, t: Tensor, y0: Tensor, modules: Sequence[nn.Module]) -> tuple[tuple[str, ...], bool]:
    """Names of the activations with kinks, and whether the field fails without a graph."""
    t = t.to(y0.dtype.to_real()).to(y0.device)
    kinked = [m for module in modules for m in module.modules() if isinstance(m, KINKED_MODULES)]
    called: dict[int, str] = {}
    activations, needs_graph = _Activations(), False

    def note(module: nn.Module, _: Any) -> None:
        called[id(module)] = type(module).__name__

    hooks = [module.register_forward_pre_hook(note) for module in kinked]
    try:
        for graph in (False, True):
            with contextlib.suppress(Exception):  # the solve will say what is wrong, if it is not the missing graph
                with torch.set_grad_enabled(graph), activations:
                    f(t.clone(), y0.clone())
                needs_graph = graph
                break
    finally:
        for hook in hooks:
            hook.remove()
    names = list(called.values())
    counted = tuple(f"nn.{name} ({names.count(name)})" for name in dict.fromkeys(names))
    return counted or tuple(activations.called), needs_graph


def _modules(f: Any) -> tuple[nn.Module, ...]:
    """The modules that a field is, belongs to, or refers to by name."""
    if isinstance(f, nn.Module):
        return (f,)
    f = inspect.unwrap(f) if callable(f) else f
    if isinstance(f, functools.partial):
        parts = (*_modules(f.func), *(x for x in (*f.args, *f.keywords.values()) if isinstance(x, nn.Module)))
        return tuple({id(module): module for module in parts}.values())
    found = [getattr(f, "__self__", None), *getattr(f, "__dict__", {}).values()]
    with contextlib.suppress(TypeError, ValueError):  # not a Python function
        names = inspect.getclosurevars(f)
        found += [*names.nonlocals.values(), *names.globals.values()]
    modules = [x for x in found if isinstance(x, nn.Module)]
    return tuple({id(module): module for module in modules}.values())


@contextlib.contextmanager
def _undisturbed(modules: Iterable[nn.Module], y0: Tensor) -> Iterator[None]:
    """Evaluation mode, no warnings, and torch's random numbers as they were afterwards."""
    training = [m for module in modules for m in module.modules() if m.training]
    devices = [y0.device] if y0.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tolerances below the resolution are a finding here
        try:
            for m in training:
                m.training = False
            yield
        finally:
            for m in training:
                m.training = True


@contextlib.contextmanager
def _double(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Parameters, buffers and tensors that are plain attributes in float64 for a while."""
    parts = list({id(m): m for module in modules for m in module.modules()}.values())
    tensors = {id(x): x for m in parts for x in (*m.parameters(recurse=False), *m.buffers(recurse=False))}
    data = [(x, x.data) for x in tensors.values() if x.dtype in DOUBLE]
    plain = [(m, key, x) for m in parts for key, x in vars(m).items() if isinstance(x, Tensor) and x.dtype in DOUBLE]
    try:
        for x, single in data:
            x.data = single.to(DOUBLE[single.dtype])
        for m, key, x in plain:
            vars(m)[key] = x.detach().to(DOUBLE[x.dtype])
        yield
    finally:
        for x, single in data:
            x.data = single
        for m, key, x in plain:
            vars(m)[key] = x
