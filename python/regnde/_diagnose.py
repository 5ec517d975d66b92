"""Measures what the evaluations of a solve are spent on. The advice that follows from it is `_advice.RULES`."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regnde import _modules
from regnde._advice import advised
from regnde._bench import Bench, Metric, two_steps
from regnde._equation import SDE, Equation, JuliaField
from regnde._last_step import LastStep
from regnde._recording import unrecorded
from regnde._report import Diagnosis
from regnde._run import Run
from regnde._solution import Solution
from regnde._solver import Solver
from regnde._state import Structure
from regnde._tableau import TABLEAUX
from regnde._times import checked_times
from regnde._tolerance import Tolerance

__all__ = ["diagnose"]

FINER = 1e3  # the given tolerance over that of the reference
COARSER = (1e-8, 1e-6)  # tolerances of the reference if it does not succeed
REFERENCE_METHOD = "vern7"
REFERENCE_COST = 10  # largest number of steps of the reference, as a multiple of those of the given solver
LOOSEST = 0.1  # tolerance, relative to the state
IN_TURN = 3  # good runs at neighbouring tolerances after which a method needs no tighter one
TIGHTER = 2  # tolerances below the given one
MANY = 3000  # trial steps of a long solve, which is repeated at another tolerance only if that may save something
FLAT = 0.5  # share of the evaluations: a loosest tolerance that needs more than this saves little
LEFT = 0.9  # share of the evaluations: a looser tolerance that needs more than this saves nothing
FIRST = 0.5  # first step, as a share of the span; the error control rejects one that is too large
FIXED = (("heun2", 1), ("rk4", 1), ("heun2", 2), ("rk4", 2))  # methods and their numbers of steps
COARSE = (
    1e3  # in units of the resolution of the state's dtype: a larger rounding error means a field of lower precision
)
DIFFERENT = 1e-3  # relative difference of two values of the field; float32 has 1e-6, a coupled batch 0.1


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
        metric_slack: largest relative change of the metric, up or down, of a run that counts as good.
        error_allowed: largest error over the save times (root mean square over the entries of the state), relative to
            the root mean square of the states. The default of 1 % suits states that are classified or
            decoded afterwards. If the states are the result, give the error that you need.
        methods: adaptive methods to compare with that of the solver; by default all that the torch engine has.

    Returns:
        A `Diagnosis`: `print` it, `.plot()` it, solve with its `.recommended`.

    Raises:
        TypeError: for an SDE, and for arguments of the wrong type.
        ValueError: for a span of length 0, a state that is empty or not finite, a metric that is not finite, a
            field that draws random numbers, or a method that is not adaptive in `methods`.

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
    solver = Solver() if solver is None else solver
    if not isinstance(solver, Solver):
        hint = f": write Solver(method={solver!r})" if isinstance(solver, str) else ""
        raise TypeError(f"solver must be a Solver, got {solver!r}{hint}.")
    if isinstance(solver.rtol, Tolerance) or isinstance(solver.atol, Tolerance):
        raise ValueError("diagnose varies one tolerance for the whole state: give rtol and atol as numbers.")
    structure = Structure(y0, samples=solver.batch == "per-sample")
    f, state, metric = structure.on_flat(f), structure.flat.detach(), _of_flat(metric, structure)
    times = checked_times(ts)[0].detach()
    if state.numel() == 0:
        raise ValueError(f"diagnose needs a state with entries, but y0 has the shape {tuple(state.shape)}.")
    if bad := int((~torch.isfinite(state)).sum()):
        raise ValueError(
            f"diagnose needs a finite state, but {bad} of the {state.numel()} entries of y0 are not finite."
        )
    if times[0] == times[-1]:
        raise ValueError(f"diagnose needs a span of time, but ts goes from {float(times[0]):g} to itself.")
    for name, value in (("error_allowed", error_allowed), ("metric_slack", metric_slack)):
        if not value >= 0:
            raise ValueError(f"{name}={value!r}: give a number of at least 0.")
    adaptive = [name for name, tableau in TABLEAUX.items() if tableau.adaptive]
    if isinstance(methods, str):
        raise TypeError(f"methods={methods!r}: give a list of names, [{methods!r}].")
    for name in methods or ():
        if name not in adaptive:
            raise ValueError(f"methods: {name!r} is not one of the adaptive methods {', '.join(adaptive)}.")
    with unrecorded(), _modules.undisturbed((*_modules.found(f), *_modules.found(metric)), state):
        bench = Bench(f, state, times, metric, per_sample=solver.batch == "per-sample")
        _check_repeats(bench)
        return _diagnosis(bench, solver, adaptive if methods is None else methods, error_allowed, metric_slack)


def _of_flat(metric: Metric | None, structure: Structure) -> Metric | None:
    """The metric of solutions whose states are flat."""
    if metric is None or not structure.nested:
        return metric
    given = metric

    @functools.wraps(given, assigned=(), updated=())
    def of_flat(solution: Solution) -> float:
        return given(replace(solution, ys=structure.tree_of(solution.ys)))

    return of_flat


def _diagnosis(
    bench: Bench, solver: Solver, methods: Sequence[str], error_allowed: float, metric_slack: float
) -> Diagnosis:
    """All measures, one after the other: later ones need earlier ones."""
    given = solver.resolve(sde=False)
    tableau = given.tableau or TABLEAUX.get(given.method)
    fixed = tableau is not None and not tableau.adaptive
    if fixed:
        base = replace(solver, method="tsit5", rtol=1e-6, atol=1e-6, dt0=None)
    else:
        base = solver = replace(solver, rtol=given.rtol, atol=given.atol)
    solution = bench.solve(solver, record=True)  # errors of the field are raised to the user here
    now = bench.run(solver, solution)
    _check_metric(now)
    reference = _reference(bench, solver, now.steps)
    if reference is not None and not now.succeeded:
        _check_metric(reference)
    now = bench.run(solver, solution)  # with its error
    hopeless = reference is None and not now.succeeded
    own = [now] if fixed or hopeless else [now, *_at_other_tolerances(bench, now)]
    order = None if fixed or tableau is None else observed_order(own)
    report = Diagnosis(
        now=now,
        runs=tuple(own),
        reference=reference,
        problem=str(bench),
        error_allowed=error_allowed,
        metric_slack=metric_slack,
        trainable=bool(bench.parameters),
        kinks=bench.kinks,
        orders=None if order is None or tableau is None else (order, tableau.order),
    )
    limit = next((run.evaluations for run in (now, report.best) if report.good(run)), math.inf)
    for method in () if hopeless else methods:
        if method != now.method and two_steps(TABLEAUX[method], base) <= limit:
            others = _cheaper(bench, replace(base, method=method), limit, report.good)
            report = replace(report, runs=(*report.runs, *others))
    report = replace(report, starts=tuple(_given_starts(bench, report)))
    report = replace(report, fixed=tuple(_few_steps(bench, solver)) if report.chosen.at_floor else ())

    samples, why_not = _samples(bench, solver)
    rounding, roundoff = _rounding(bench, now)
    report = replace(
        report,
        smoothness=bench.smoothness(base),
        smoothness_then=None if report.chosen is now else bench.smoothness(report.recommended),
        stiff=_stiff_share(bench, report, solution, base),
        samples=samples,
        samples_why_not=why_not,
        rounding=rounding,
        roundoff=roundoff,
        **_without_kinks(bench, solver, base),
        solves=bench.solves,
    )
    return replace(report, advice=advised(report))


def _check_repeats(bench: Bench) -> None:
    """Raises an error for a field that draws noise. Other faults of the field show in the first solve."""
    try:
        once, again = bench.slope(bench.y0), bench.slope(bench.y0)
    except Exception:  # whatever the field raises
        return
    if float((once - again).abs().max()) > DIFFERENT * float(once.abs().max()):
        raise ValueError(
            "two calls of f at the same (t, y) differ: noise or dropout drawn inside a solve makes the error estimate "
            "meaningless. Draw it once per solve, or call .eval() on the module."
        )


def _check_metric(run: Run) -> None:
    """Raises an error for a metric that can not be compared with others."""
    if run.metric is not None and not math.isfinite(run.metric):
        raise ValueError(
            f"the metric is {run.metric} for {run.solver!r}, so that no solver can be compared with it. Look for the "
            "cause in the states and the data, or call diagnose without a metric."
        )


# --- runs ----------------------------------------------------------------------------------------


def _reference(bench: Bench, solver: Solver, steps: int) -> Run | None:
    """A solve at the tightest tolerance that succeeds, in float64 if the field can be converted."""
    unknown = isinstance(solver.method, str) and solver.method not in TABLEAUX
    tightest = max(min(1e-8, (solver.rtol or solver.atol or 1.0) / FINER), 1e-12)
    for tolerance, double in ((tightest, True), *((x, True) for x in COARSER), (COARSER[-1], False)):
        attempt = Solver(
            method=solver.method if unknown else REFERENCE_METHOD,
            rtol=tolerance,
            atol=tolerance * min(bench.size, 1.0),
            max_steps=REFERENCE_COST * min(steps, MANY) + steps + 1000,
            engine=solver.engine,
            batch=solver.batch,
        )
        if (solution := bench.tried(attempt, double=double)) is not None:
            bench.truth = solution.ys.detach()
            return bench.run(attempt, solution)
    return None


def _tolerances(solver: Solver, bench: Bench) -> list[Solver]:
    """The solver with tolerances from `TIGHTER` powers of ten below its own to 0.1 of the state; 10 x 1e-6 is 1e-5."""
    own = solver.rtol or (solver.atol or 0.0) / bench.size
    count = max(math.floor(math.log10(LOOSEST / own) + 1e-9), 0)
    largest = max(float(f"{LOOSEST * bench.size:.0e}"), solver.atol or 0.0)
    found = []
    for power in range(-TIGHTER, count + 1):
        rtol, atol = (float(f"{(x or 0.0) * 10.0**power:.12g}") for x in (solver.rtol, solver.atol))
        found.append(replace(solver, rtol=rtol, atol=min(atol, largest)))
    return found


def _at_other_tolerances(bench: Bench, now: Run) -> Iterator[Run]:
    """Runs of the given method at tighter and looser tolerances; of a long solve only while looser ones save."""
    solvers, long = _tolerances(now.solver, bench), now.steps > MANY
    smallest = max(10 * torch.finfo(bench.y0.dtype).eps, 1e-13)
    for solver in () if long else solvers[:TIGHTER]:
        if (solver.rtol or solver.atol or 0.0) >= smallest:
            yield bench.run(solver)
    for solver in solvers[TIGHTER + 1 :]:
        run = bench.run(solver)
        yield run
        if long and run.evaluations > LEFT * now.evaluations:
            return  # stability limits the steps: a looser tolerance will not help


def _cheaper(bench: Bench, base: Solver, limit: float, good: Callable[[Run], bool]) -> Iterator[Run]:
    """Runs of a method from the loosest tolerance on, until they cost more than the limit, or some in turn are good."""
    in_turn = 0
    with contextlib.suppress(ValueError):  # the engine that was asked for does not have the method
        for solver in reversed(_tolerances(base, bench)[0 if limit == math.inf else TIGHTER :]):
            run = bench.run(solver)
            if run.evaluations > limit:
                return
            yield run
            in_turn = in_turn + 1 if good(run) else 0
            if in_turn == IN_TURN:
                return


def _given_starts(bench: Bench, report: Diagnosis) -> Iterator[Run]:
    """The best run of each method, repeated with a long first step."""
    long = FIRST * bench.span
    if report.now.solver.dt_max is not None:
        long = min(long, report.now.solver.dt_max)
    for best in filter(None, map(report.best_of, report.methods)):
        given = best.solver.dt0
        if best.evaluations <= 2 * report.best.evaluations and (isinstance(given, LastStep) or (given or 0.0) < long):
            yield bench.run(replace(best.solver, dt0=long))


def _few_steps(bench: Bench, solver: Solver) -> Iterator[Run]:
    """Runs of two methods of fixed step size, with one step and with two."""
    with contextlib.suppress(ValueError):  # the engine that was asked for does not have them
        for method, count in FIXED if solver.batch == "joint" else ():
            dt0 = bench.span / count
            if solver.dt_max is not None and dt0 > solver.dt_max:
                continue
            yield bench.run(Solver(method=method, dt0=dt0, engine=solver.engine, gradient=solver.gradient))


# --- single measures -----------------------------------------------------------------------------


def observed_order(runs: Sequence[Run]) -> float | None:
    """The p of steps ~ tolerance^(-1/p) at the tightest three, by least squares; None for fewer than two solves."""
    tight = sorted((run for run in runs if run.succeeded), key=lambda run: run.tolerance)[:3]
    points = {math.log(run.tolerance): math.log(run.steps) for run in tight if run.steps > 2}
    if len(points) < 2:
        return None
    slope = statistics.linear_regression(list(points), list(points.values())).slope
    return -1 / slope if slope < -1e-9 else math.inf


def _stiff_share(bench: Bench, report: Diagnosis, solution: Solution, base: Solver) -> float | None:
    """Share of the accepted steps at the stability limit; by tsit5 if the given method estimates no stiffness.

    The larger one of two solves, if the loosest tolerance saves little: steps that stability limits there are a little
    shorter at a tight one, where the error of the stiff part sets them.
    """
    share = _limited(solution)
    if share is None:
        share = _limited(bench.solve(replace(base, method="tsit5"), record=True))
    now, own = report.now, [run for run in report.runs if run.method == report.now.method and run.succeeded]
    loosest = max(own, key=lambda run: run.tolerance, default=now)
    if share is None or loosest is now or loosest.at_floor or loosest.evaluations <= FLAT * now.evaluations:
        return share
    return max(share, _limited(bench.solve(loosest.solver, record=True)) or 0.0)


def _limited(solution: Solution) -> float | None:
    """Share of the accepted steps at the stability limit, or None without an estimate."""
    with contextlib.suppress(ValueError):
        steps = solution.steps
        if steps is not None and len(steps):
            return float((steps.stiff if steps.mask is None else steps.stiff[steps.mask]).double().mean())
    return None


def _rounding(bench: Bench, now: Run) -> tuple[float | None, float | None]:
    """Share of the evaluations that the same solve in float64 saves; the field's rounding error if it is large."""
    resolution, roundoff = torch.finfo(bench.y0.dtype).eps, bench.roundoff()
    late = float(bench.ts.abs().max()) / bench.span  # times far from 0 are rounded too
    coarse = roundoff is not None and roundoff > COARSE * resolution * max(late, 1.0)
    double = bench.tried(now.solver, double=True) if coarse or resolution > torch.finfo(torch.float64).eps else None
    if double is None:
        return None, None
    return max(1 - double.stats.nfe / max(now.evaluations, 1), 0.0), roundoff if coarse else None


def _without_kinks(bench: Bench, solver: Solver, base: Solver) -> dict[str, Any]:
    """Evaluations and the reproducibility of the gradient with smooth activations and the same weights."""
    with _modules.Activations(replace=True):
        if bench.kinks and (solution := bench.tried(solver)) is not None:
            return {"without_kinks": solution.stats.nfe, "smoothness_without": bench.smoothness(base)}
    return {}


def _samples(bench: Bench, solver: Solver) -> tuple[tuple[int, ...], str]:
    """Evaluations of each sample of a batch, or why there are none."""
    method = solver.method if solver.method is None or solver.method in TABLEAUX else "tsit5"
    fixed = isinstance(method, str) and not TABLEAUX[method].adaptive
    if (
        fixed
        or solver.batch == "per-sample"
        or bench.y0.ndim < 2
        or len(bench.y0) < 2
        or isinstance(bench.f, JuliaField)
    ):
        return (), ""
    try:
        if why := _why_coupled(bench):
            return (), why
        alone = replace(solver, method=method, batch="per-sample", compile=False, engine="torch")
        return tuple(sample.nfe for sample in bench.solve(alone, throw=True).stats.samples), ""
    except Exception as problem:  # the field was not written for such calls: any error may occur
        return (), f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]:.100}".rstrip(": ")


def _why_coupled(bench: Bench) -> str:
    """Why the samples of the leading dimension are not independent, found by evaluating the field on half of them."""
    half = len(bench.y0) // 2
    whole, part = bench.slope(bench.y0)[:half], bench.slope(bench.y0[:half], per_sample=True)
    if part.shape != whole.shape:
        return f"half a batch gives the shape {tuple(part.shape)}"
    if float((part - whole).abs().max()) > DIFFERENT * float(whole.abs().max()):
        return "its samples are not independent"
    return ""
