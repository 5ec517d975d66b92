"""What `diagnose` reports: its measures, and the rules that turn them into advice.

The rules are the functions in `RULES`. Each reads the measures of a `Diagnosis` and returns an `Advice` or None.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from regnde._solution import Status
from regnde._solver import Solver

__all__ = ["RULES", "Advice", "Diagnosis", "Run", "Samples", "Smoothness"]

WORTH = 0.9
"""A change is named if it leaves at most this share of the evaluations. One step more or less is not worth one."""

FLOOR = 1.5
"""At most this multiple of the floor is at the floor: two steps, or three short ones. No penalty can save there."""

NOISE = 1e-2
"""Relative change of the penalty's gradient, for a change of y0 by 1e-6, above which kinks act on it. Smooth fields
have 1e-6 to 1e-5, ELU at 1e-7 has 4e-2, ReLU 0.04 at 1e-5 and 1.3 at 1e-7."""

ALIGNED = 0.9
"""Least cosine of the two gradients for a penalty to train anything."""

WIDTH = 110  # of printed advice
KINKS = 0.6
"""A smooth activation is named if it leaves at most this share with the weights that are there. The new training takes
half of the saving back, in logarithms: three models were measured at 0.42, 0.53, 0.65 and ended at 0.66, 0.76, 0.91."""

STIFF = 0.3
"""Share of steps at the stability limit from which stability sets the cost. A non-stiff field has less than 0.1."""

REJECTED = 0.1
"""Share of rejected steps from which they are named. A smooth field has less than 0.05."""

ROUNDED = 0.1
"""Share of the evaluations that float64 saves, from which rounding is worth a change of the dtype."""

SAMPLES = 0.6
"""A step size for each sample is named if it leaves at most this share: steps of shrinking batches cost more."""

SAFE = 0.1
"""Share of the error allowed that a method of fixed step size may have: nothing holds its error on other data."""

PENALTY = 0.8
"""Share of the evaluations that `ErrorPenalty("mean")` left in nine small models of public kinds, trained at the
loosest tolerance that their loss allows: the geometric mean, between 0.45 and 1."""


@dataclass(frozen=True)
class Run:
    """One measured solve.

    Attributes:
        solver: what it was solved with; tolerances filled in.
        method: name of the method.
        evaluations: evaluations of the field (NFE).
        accepted: accepted steps.
        rejected: rejected steps.
        error: true error, relative to the size of the state; None if it is not known.
        metric: the user's metric of the solution; None without a metric.
        status: how the solve ended.
    """

    solver: Solver
    method: str
    evaluations: int
    accepted: int
    rejected: int
    error: float | None = None
    metric: float | None = None
    status: Status = Status.SUCCESS

    @property
    def tolerance(self) -> float:
        """The relative tolerance, or the absolute one where that is 0."""
        return self.solver.rtol or self.solver.atol or 0.0

    @property
    def succeeded(self) -> bool:
        """Whether the solve reached the end time."""
        return self.status == Status.SUCCESS


class Smoothness(NamedTuple):
    """How much the gradient of `ErrorPenalty("mean")` depends on a relative change of y0 by 1e-6.

    Attributes:
        change: norm of its change, relative to its norm.
        cosine: cosine of the angle between the two gradients.
    """

    change: float
    cosine: float

    @property
    def reproducible(self) -> bool:
        """Whether a penalty can train with it."""
        return self.change < NOISE or self.cosine > ALIGNED

    def __str__(self) -> str:
        return f"changes by {self.change:.0e} (cosine {self.cosine:.3f})"


class Samples(NamedTuple):
    """A solve with `batch="per-sample"`.

    Attributes:
        hardest: index of the sample that needs most evaluations.
        most: its evaluations.
        median: evaluations of the sample in the middle.
        mean: mean evaluations of a sample.
        calls: calls of the field, each with the samples that still run.
    """

    hardest: int
    most: int
    median: int
    mean: float
    calls: int


@dataclass(frozen=True)
class Advice:
    """One change, and what it saves.

    Attributes:
        text: what to do, and the numbers it follows from.
        before: evaluations of a solve without the change.
        evaluations: evaluations with it, measured or expected; None if nobody can tell before it is done.
        rule: name of the rule.
    """

    text: str
    before: int
    evaluations: int | None
    rule: str

    @property
    def saving(self) -> int:
        """Evaluations saved; 0 if not known."""
        return 0 if self.evaluations is None else self.before - self.evaluations

    def __str__(self) -> str:
        return self.text if self.evaluations is None else f"{self.before} -> {self.evaluations}: {self.text}"


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. `print` shows it, `plot` draws it.

    Attributes:
        now: the solve with the given solver.
        runs: all measured solves of adaptive methods, `now` among them.
        starts: the best run of each method, with a first step that is given.
        fixed: solves of fixed step size; measured only where a solve is at the floor.
        reference: the solve that errors are measured against; None if none succeeded.
        floors: evaluations of two steps, by method.
        problem: dtype, shape and span, in words.
        error_allowed: error up to which a run counts as good, without a metric.
        metric_slack: relative change of the metric up to which a run counts as good.
        trainable: whether parameters of the field were found.
        kinks: names of activations that have kinks.
        without_kinks: evaluations with SiLU in their place, at the given tolerance and the same weights.
        order: order by which the steps of the given method grow with the tolerance; None if it can not be told.
        method_order: order of the given method.
        smoothness: reproducibility of the penalty's gradient with the given solver; None if it has none.
        smoothness_then: the same with the recommended solver.
        smoothness_without: the same with SiLU in the place of kinks and the given solver.
        stiff: share of steps that stability limits; None if no estimate is there.
        rounding: share of evaluations that float64 saves; None in float64, or if it can not be told.
        samples: step sizes for each sample; None without a batch.
        samples_why_not: why the field can not be solved sample by sample; "" if it can, or has no batch.
        solves: number of solves that were made.
    """

    now: Run
    runs: tuple[Run, ...]
    reference: Run | None
    floors: dict[str, int]
    problem: str
    error_allowed: float
    metric_slack: float
    starts: tuple[Run, ...] = ()
    fixed: tuple[Run, ...] = ()
    trainable: bool = False
    kinks: tuple[str, ...] = ()
    without_kinks: int | None = None
    order: float | None = None
    method_order: int | None = None
    smoothness: Smoothness | None = None
    smoothness_then: Smoothness | None = None
    smoothness_without: Smoothness | None = None
    stiff: float | None = None
    rounding: float | None = None
    samples: Samples | None = None
    samples_why_not: str = ""
    solves: int = 0

    # --- which run is good enough ----------------------------------------------------------------

    @property
    def has_metric(self) -> bool:
        """Whether runs are judged by the user's metric."""
        return self.now.metric is not None or (self.reference is not None and self.reference.metric is not None)

    def good(self, run: Run) -> bool:
        """Whether a run is as good as asked: by the metric of the present solve, or by the error allowed."""
        if not run.succeeded:
            return False
        if not self.has_metric:
            return run.error is not None and run.error <= self.error_allowed
        given = self.now if self.now.succeeded else self.reference
        present = None if given is None else given.metric
        return run.metric is not None and present is not None and self.same_metric(run.metric, present)

    def same_metric(self, a: float, b: float) -> bool:
        """Whether two metrics agree within the slack."""
        return abs(a - b) <= self.metric_slack * abs(b)

    def usable(self, method: str) -> list[Run]:
        """Good runs of a method of which every tighter run is good too: a lucky one does not count."""
        now, found = self.now, list[Run]()
        tightest = now.tolerance if self.has_metric and now.succeeded else 0.0
        for run in sorted((r for r in self.runs if r.method == method), key=lambda r: r.tolerance):
            if run.tolerance < tightest or (not run.succeeded and run.tolerance < now.tolerance):
                continue
            if not self.good(run):
                break
            found.append(run)
        return found

    def best_of(self, method: str) -> Run | None:
        """The cheapest usable run of a method; the present one if no other is worth a change."""
        found = self.usable(method)
        best = min(found, key=lambda r: (r.evaluations, r.error or 0.0), default=None)
        if best is not None and self.now in found and best.evaluations > WORTH * self.now.evaluations:
            return self.now
        return best

    @cached_property
    def best(self) -> Run:
        """The cheapest run that is good enough; of two that cost the same, the one with the given method."""
        best = self.best_of(self.now.method)
        for method in dict.fromkeys(run.method for run in self.runs):
            other = self.best_of(method)
            if other is not None and (best is None or other.evaluations <= WORTH * best.evaluations):
                best = other
        return self.now if best is None else best

    @cached_property
    def chosen(self) -> Run:
        """The best run, with a given first step if that is worth it: what is recommended."""
        start = min(filter(self.good, self.starts), key=lambda r: (r.evaluations, r.error or 0.0), default=self.best)
        return start if start.evaluations <= WORTH * self.best.evaluations else self.best

    @property
    def recommended(self) -> Solver:
        """The cheapest solver that is good enough."""
        return self.chosen.solver

    @property
    def rejected(self) -> float:
        """Share of the steps of the given solver that are rejected."""
        return self.now.rejected / max(self.now.accepted + self.now.rejected, 1)

    @property
    def floor(self) -> int | None:
        """Evaluations of two steps of the given method."""
        return self.floor_of(self.now)

    @property
    def headroom(self) -> float | None:
        """Evaluations of the given solver, over the floor."""
        return None if self.floor is None else self.now.evaluations / self.floor

    def floor_of(self, run: Run) -> int | None:
        """Evaluations of two steps of a run's method; a given first step saves the two that choose it."""
        floor, given = self.floors.get(run.method), run.solver.dt0 is not None and self.now.solver.dt0 is None
        return None if floor is None else floor - 2 * given

    def at_floor(self, run: Run) -> bool:
        """Whether a run is at the floor of its method."""
        floor = self.floor_of(run)
        return run.succeeded and floor is not None and run.evaluations <= FLOOR * floor

    @cached_property
    def advice(self) -> tuple[Advice, ...]:
        """What to do: first what makes the solution wrong, then by what it saves, then what follows on a change."""
        now = self.now.evaluations
        found = [advice for rule in RULES if (advice := rule(self)) is not None]
        return tuple(sorted(found, key=lambda a: (a.rule != "inaccurate", a.before != now, -a.before, -a.saving)))

    # --- showing ---------------------------------------------------------------------------------

    def plot(self, axes: Any = None) -> Any:
        """Draws evaluations against the true error on matplotlib's axes, and returns these: `regnde.plot.diagnosis`."""
        from regnde import plot

        return plot.diagnosis(self, axes=axes)

    def __repr__(self) -> str:
        return f"Diagnosis({self.now.evaluations} evaluations now, recommended {self.recommended!r})"

    def __str__(self) -> str:
        return "\n".join([*self._head(), "", *self._table(), "", *self._facts(), "", *self._to_do()])

    def _head(self) -> list[str]:
        now = self.now
        floor = "" if self.floor is None else f"; two steps of {now.method} cost {self.floor}"
        lines = [
            f"{now.method} {_sizes(now.solver)}, {self.problem}",
            f"now: {now.evaluations} evaluations, {now.accepted} steps and {now.rejected} rejected{floor}",
        ]
        if not now.succeeded:
            lines.append(f"the solve fails: {now.status.value}")
        return lines

    def _table(self) -> list[str]:
        methods = list(dict.fromkeys(run.method for run in self.runs))
        cells = {(run.method, run.tolerance): self._cell(run) for run in self.runs}
        tolerances = sorted({run.tolerance for run in self.runs})
        width = max(len(cell) for cell in [*cells.values(), *methods])
        content = "evaluations, true error" + (", metric" if self.has_metric else "")
        lines = [f"{content} (< now, * cheapest good one, - not measured: not needed, or dearer than now)"]
        lines.append("tolerance  " + "  ".join(method.ljust(width) for method in methods).rstrip())
        for tolerance in tolerances:
            row = [cells.get((method, tolerance), "-").ljust(width) for method in methods]
            label = f"{tolerance:.1g}" if tolerance else "fixed"
            lines.append((f"{label:<9}  " + "  ".join(row)).rstrip())
        if self.chosen is not self.best:
            lines.append(f"recommended: {self.recommended!r}: {self._cell(self.chosen).strip()}")
        if self.reference is None:
            lines.append("no reference solution: errors are not known")
        else:
            metric = "" if self.reference.metric is None else f", metric {self.reference.metric:.4g}"
            run = self.reference
            lines.append(f"reference: {run.method} at {run.tolerance:.0e}, {run.evaluations} evaluations{metric}")
        return lines

    def _cell(self, run: Run) -> str:
        mark = "<" if run is self.now else ""
        mark += "*" if run is self.best else ""
        if not run.succeeded:
            return f"{run.status.value}{mark}"
        shown = [f"{run.evaluations:>4}", "?" if run.error is None else f"{run.error:.0e}"]
        if self.has_metric:
            shown.append("?" if run.metric is None else f"{run.metric:.4g}")
        return " ".join(shown) + mark

    def _facts(self) -> list[str]:
        lines = []
        shares = [] if self.stiff is None else [f"{self.stiff:.0%} limited by stability"]
        shares += [f"{self.rejected:.0%} rejected"]
        shares += [] if self.rounding is None else [f"{self.rounding:.0%} of the evaluations due to rounding"]
        lines.append(f"steps: {', '.join(shares)}")
        if self.order is not None and self.method_order is not None:
            order = f"{self.order:.1f}" if self.order < 20 else "above 20"
            lines.append(f"smoothness: steps grow with order {order}, the method has {self.method_order}")
        if self.smoothness is not None:
            lines.append(f"penalty: its gradient {self.smoothness} when y0 changes by 1e-6")
            if self.smoothness_then is not None:
                lines.append(f"         with the recommended solver it {self.smoothness_then}")
        if self.kinks:
            lines.append(f"kinks: {', '.join(self.kinks)}")
        if self.samples is not None:
            s = self.samples
            lines.append(
                f"batch: alone, sample {s.hardest} needs {s.most} evaluations, the median {s.median}, "
                f"the mean {s.mean:.0f}"
            )
        elif self.samples_why_not:
            lines.append(f"batch: can not be solved sample by sample: {self.samples_why_not}")
        return lines

    def _to_do(self) -> list[str]:
        if self.has_metric:
            lines = [f"what to do (as good: the metric changes by at most {self.metric_slack:.2g} of its value)"]
        else:
            lines = [f"what to do (as good: an error of at most {self.error_allowed:.2g} of the state's size)"]
        numbered = (f"{i}. {advice}" for i, advice in enumerate(self.advice, 1))
        return lines + [
            textwrap.fill(line, WIDTH, subsequent_indent="   ", break_long_words=False) for line in numbered
        ]


def _sizes(solver: Solver) -> str:
    if solver.rtol is None or solver.atol is None:
        return f"with steps of {solver.dt0:g}"
    if solver.rtol == solver.atol:
        return f"at {solver.rtol:.1g}"
    return f"at rtol {solver.rtol:.1g}, atol {solver.atol:.1g}"


# --- the rules -----------------------------------------------------------------------------------

TRAIN = "Try it in training too, and compare"
"""Of the nine models one, a diffusion on a graph, learnt worse at the loose tolerance in a short training."""

Rule = Callable[[Diagnosis], Advice | None]


def _quality(d: Diagnosis, run: Run) -> str:
    if d.has_metric and run.metric is not None:
        return f"metric {run.metric:.4g}"
    return "error not known" if run.error is None else f"error {run.error:.0e}"


def inaccurate(d: Diagnosis) -> Advice | None:
    """The present solve is not as good as asked."""
    now, best = d.now, d.best
    if d.good(now):
        reference = d.reference.metric if d.reference is not None else None
        if now.metric is None or reference is None or d.same_metric(reference, now.metric):
            return None
        text = (
            f"the metric is {now.metric:.4g}, but {reference:.4g} with the reference: the model has learnt the error "
            "of this solver. Change the solver only together with a training."
        )
        return Advice(text, now.evaluations, None, "inaccurate")
    if now.succeeded and now.error is None and not d.has_metric:
        return None
    was = now.status.value if not now.succeeded else _quality(d, now)
    if best is now:
        return Advice(f"{was}, which is not good enough, and no run is.", now.evaluations, None, "inaccurate")
    text = f"{was} is not good enough: {best.solver!r} is, {_quality(d, best)}"
    return Advice(text, now.evaluations, best.evaluations, "inaccurate")


def looser_tolerance(d: Diagnosis) -> Advice | None:
    """The given method at a looser tolerance is as good."""
    best = d.best_of(d.now.method)
    if best is None or best is d.now or not d.good(d.now) or best.evaluations > WORTH * d.now.evaluations:
        return None
    text = f"a looser tolerance: {best.solver!r}, {_quality(d, best)}. {TRAIN}"
    return Advice(text, d.now.evaluations, best.evaluations, "looser_tolerance")


def other_method(d: Diagnosis) -> Advice | None:
    """Another method is as good."""
    best = d.best
    if best.method == d.now.method or not d.good(d.now) or best.evaluations > WORTH * d.now.evaluations:
        return None
    text = f"another method: {best.solver!r}, {_quality(d, best)}. {TRAIN}"
    return Advice(text, d.now.evaluations, best.evaluations, "other_method")


def first_step(d: Diagnosis) -> Advice | None:
    """A first step that is given saves its choice, and the small steps at the start."""
    if d.chosen is d.best:
        return None
    text = f"a first step that is given: {d.chosen.solver!r}, {_quality(d, d.chosen)}"
    return Advice(text, d.best.evaluations, d.chosen.evaluations, "first_step")


def fewer_steps(d: Diagnosis) -> Advice | None:
    """A few steps of fixed size are as good, where the adaptive methods are at their floor."""
    good = [run for run in d.fixed if d.good(run) and (d.has_metric or (run.error or 0.0) <= SAFE * d.error_allowed)]
    if not good:
        return None
    run = min(good, key=lambda r: (r.evaluations, r.error or 0.0))
    if run.evaluations > WORTH * d.chosen.evaluations:
        return None
    text = f"{run.solver!r} at prediction, {_quality(d, run)}; it controls no error: measure again after each training"
    return Advice(text, d.chosen.evaluations, run.evaluations, "fewer_steps")


def rounding(d: Diagnosis) -> Advice | None:
    """Evaluations are spent on resolving rounding errors."""
    if d.rounding is None or d.rounding < ROUNDED:
        return None
    left = round(d.now.evaluations * (1 - d.rounding))
    text = f"float64, or a tolerance of 1e-5 or more: float32's rounding takes {d.rounding:.0%} of the evaluations"
    return Advice(text, d.now.evaluations, left, "rounding")


def smooth_activations(d: Diagnosis) -> Advice | None:
    """Kinks cost steps, or make the penalty's gradient noise."""
    noisy = d.smoothness is not None and not d.smoothness.reproducible
    if noisy and d.smoothness_without is not None and not d.smoothness_without.reproducible:
        noisy = False  # something else makes it noise
    cheaper = d.without_kinks is not None and d.without_kinks <= KINKS * d.now.evaluations
    if not d.kinks or not (noisy or cheaper):
        return None
    text = f"a smooth activation (SiLU, tanh, softplus) in the place of {', '.join(d.kinks)}, and a new training"
    if noisy and d.smoothness_without is not None:
        text += f"; with SiLU the gradient of the penalty {d.smoothness_without}"
    expected = None
    if cheaper and d.without_kinks is not None:
        text += f" (SiLU with the present weights: {d.without_kinks})"
        expected = round(math.sqrt(d.now.evaluations * d.without_kinks))
    return Advice(text, d.now.evaluations, expected, "smooth_activations")


def per_sample(d: Diagnosis) -> Advice | None:
    """A few hard samples set the steps of all others."""
    s = d.samples
    if s is None or s.mean > SAMPLES * d.now.evaluations:
        return None
    text = (
        f"Solver(batch='per-sample'): mean of the evaluations of a sample. Sample {s.hardest} needs {s.most}, the "
        f"median {s.median}. The field is called {s.calls} times: it saves time where large batches cost more"
    )
    return Advice(text, d.now.evaluations, round(s.mean), "per_sample")


def stiffness(d: Diagnosis) -> Advice | None:
    """Stability sets the steps."""
    if d.stiff is None or d.stiff < STIFF:
        return None
    what = "train with StiffnessPenalty('max'), or use an implicit method" if d.trainable else "use an implicit method"
    text = f"{what} (Julia engine: 'autotsit5', 'rodas5p'): {d.stiff:.0%} of the steps are at the stability limit"
    return Advice(text, d.now.evaluations, None, "stiffness")


def rejections(d: Diagnosis) -> Advice | None:
    """Many steps are rejected: the field changes abruptly."""
    if d.rejected < REJECTED or not d.now.succeeded:
        return None
    left = round(d.now.evaluations * (1 - d.rejected))
    text = (
        f"{d.rejected:.0%} of the steps are rejected: the field jumps or bends abruptly. If it does so at times that "
        "you know (the knots of a path), let steps end there; if it does so in the state, see the kinks"
    )
    return Advice(text, d.now.evaluations, left, "rejections")


def error_penalty(d: Diagnosis) -> Advice | None:
    """The dynamics have room to become cheaper, and the penalty's gradient can tell how."""
    run, floor = d.chosen, d.floor_of(d.chosen)
    gradient = d.smoothness if run is d.now else d.smoothness_then
    if not d.trainable or floor is None or d.at_floor(run) or gradient is None or not gradient.reproducible:
        return None
    expected = max(floor, round(PENALTY * run.evaluations))
    text = (
        "train with ErrorPenalty('mean') and a LossBudget, at the recommended solver (expected: "
        f"{PENALTY}x, not below {floor})"
    )
    return Advice(text, run.evaluations, expected, "error_penalty")


def at_floor(d: Diagnosis) -> Advice | None:
    """The solver makes two or three steps: there is nothing to gain."""
    if not d.at_floor(d.now):
        return None
    text = f"{d.now.method} is at its floor: no tolerance and no penalty can save"
    if d.best.method != d.now.method:
        text += "; a method of fewer stages can"
    return Advice(text, d.now.evaluations, None, "at_floor")


RULES: Sequence[Rule] = (
    inaccurate,
    looser_tolerance,
    other_method,
    first_step,
    fewer_steps,
    rounding,
    smooth_activations,
    per_sample,
    stiffness,
    rejections,
    error_penalty,
    at_floor,
)


def observed_order(tolerances: Sequence[float], steps: Sequence[int]) -> float | None:
    """The p of steps ~ tolerance^(-1/p), by least squares; None for fewer than two solves or three steps."""
    points = [(math.log(tol), math.log(n)) for tol, n in zip(tolerances, steps, strict=True) if n > 2 and tol > 0]
    if len(points) < 2:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    slope = sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)
    return math.inf if slope >= 0 else -1 / slope
