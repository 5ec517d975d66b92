"""The report of `diagnose`: its measurements, the run that they recommend, and their printed form."""

from __future__ import annotations

import statistics
import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from regnde import plot
from regnde._run import Run
from regnde._solver import Solver

__all__ = ["Advice", "Diagnosis", "Smoothness"]

NOISE, ALIGNED = 1e-2, 0.9
"""What a change of y0 by 1e-6 may do to the penalty's gradient for a penalty to train: change it by this share of its
norm, or leave this cosine. Smooth fields have 1e-6 to 1e-5, ELU at 1e-7 has 4e-2, ReLU 4e-2 at 1e-5 and 1.3 at 1e-7."""

WIDTH = 110  # of printed advice


class Smoothness(NamedTuple):
    """How much the gradient of `ErrorPenalty("mean")` changes for a relative change of y0 by 1e-6.

    Attributes:
        change: norm of its change, relative to its norm.
        cosine: cosine of the angle between the two gradients.
    """

    change: float
    cosine: float

    @property
    def reproducible(self) -> bool:
        """Whether the gradient is reproducible enough for training with a penalty."""
        return self.change < NOISE or self.cosine > ALIGNED

    def __str__(self) -> str:
        return f"changes by {self.change:.0e} (cosine {self.cosine:.3f})"


@dataclass(frozen=True)
class Advice:
    """One change, and what it saves.

    Attributes:
        text: what to do, and the numbers it follows from.
        before: evaluations of a solve without the change.
        evaluations: evaluations with the change, measured or expected; None if they are not known.
        rule: name of the rule.
    """

    text: str
    before: int
    evaluations: int | None
    rule: str

    def __str__(self) -> str:
        return self.text if self.evaluations is None else f"{self.before} -> {self.evaluations}: {self.text}"


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. `print` shows it, `plot` draws it.

    Attributes:
        now: the solve with the given solver.
        runs: all measured solves of adaptive methods, `now` among them.
        reference: the solve that errors are measured against; None if none succeeded.
        problem: dtype, shape and span, as text.
        error_allowed: error up to which a run counts as good, without a metric.
        metric_slack: relative change of the metric up to which a run counts as good.
        advice: what to do, in order.
        starts: the best run of each method, with a first step that is given.
        fixed: solves of fixed step size; measured only where a solve makes two steps.
        trainable: whether parameters of the field were found.
        kinks: activations that have kinks, and how often an evaluation calls each.
        without_kinks: evaluations with smooth ones in their place, at the given tolerance and the same weights.
        orders: the observed order of the given method (how its steps grow as the tolerance falls), and its nominal one.
        smoothness: reproducibility of the penalty's gradient with the given solver; None if it has none.
        smoothness_then: the same with the recommended solver, if that is another one.
        smoothness_without: the same without kinks and the given solver.
        stiff: share of steps that stability limits; None if no estimate is there.
        rounding: share of evaluations that float64 saves; None in float64, or if it can not be told.
        roundoff: relative rounding error of the field, if that is far above the resolution of the state; else None.
        samples: evaluations of each sample of a batch with a step size of its own; empty if there is no batch.
        samples_why_not: why the field can not be solved sample by sample; "" if it can, or has no batch.
        solves: number of solves that were made.
    """

    now: Run
    runs: tuple[Run, ...]
    reference: Run | None
    problem: str
    error_allowed: float
    metric_slack: float
    advice: tuple[Advice, ...] = ()
    starts: tuple[Run, ...] = ()
    fixed: tuple[Run, ...] = ()
    trainable: bool = False
    kinks: tuple[str, ...] = ()
    without_kinks: int | None = None
    orders: tuple[float, int] | None = None
    smoothness: Smoothness | None = None
    smoothness_then: Smoothness | None = None
    smoothness_without: Smoothness | None = None
    stiff: float | None = None
    rounding: float | None = None
    roundoff: float | None = None
    samples: tuple[int, ...] = ()
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
        present = self.now.metric if self.now.succeeded or self.reference is None else self.reference.metric
        return run.metric is not None and present is not None and self.same_metric(run.metric, present)

    def same_metric(self, a: float, b: float) -> bool:
        """Whether two metrics agree within the slack."""
        return abs(a - b) <= self.metric_slack * abs(b)

    def best_of(self, method: str) -> Run | None:
        """The cheapest good run of a method such that every tighter run is good too, so that it is not good by chance.

        It is the present run if no other is worth a change. A run tighter than that does not count where it fails, nor
        with a metric, which differs where the model has learnt the error of the present solver.
        """
        now, found = self.now, list[Run]()
        for run in sorted((r for r in self.runs if r.method == method), key=lambda r: r.tolerance):
            if run.tolerance < now.tolerance and (not run.succeeded or (self.has_metric and now.succeeded)):
                continue
            if not self.good(run):
                break
            found.append(run)
        best = min(found, key=lambda r: r.cost, default=None)
        return now if now in found and best is not None and not best.is_worth(now) else best

    @cached_property
    def best(self) -> Run:
        """The cheapest run that is good enough; of two that cost the same, the one with the given method."""
        best = self.best_of(self.now.method)
        for other in filter(None, map(self.best_of, self.methods)):
            if best is None or other.is_worth(best):
                best = other
        return best or self.now

    @cached_property
    def chosen(self) -> Run:
        """The best run, with a given first step if that is worth it: what is recommended."""
        start = min(filter(self.good, self.starts), key=lambda r: r.cost, default=self.best)
        return start if start.is_worth(self.best) else self.best

    @property
    def recommended(self) -> Solver:
        """The cheapest solver that is good enough."""
        return self.chosen.solver

    @property
    def methods(self) -> list[str]:
        """The methods that were measured, the present one first."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @property
    def rejected(self) -> float:
        """Share of the steps of the given solver that are rejected."""
        return self.now.rejected / max(self.now.steps, 1)

    # --- showing ---------------------------------------------------------------------------------

    def plot(self, axes: Any = None) -> Any:
        """Draws evaluations against the true error on matplotlib's axes, and returns these: `regnde.plot.diagnosis`."""
        return plot.diagnosis(self, axes=axes)

    def __repr__(self) -> str:
        return f"Diagnosis({self.now.evaluations} evaluations now, recommended {self.recommended!r})"

    def __str__(self) -> str:
        good = f"an error of at most {self.error_allowed:.2g} of the state's size"
        if self.has_metric:
            good = f"the metric changes by at most {self.metric_slack:.2g} of its value"
        items = [f"{i}. {advice}" for i, advice in enumerate(self.advice, 1)]
        filled = [textwrap.fill(item, WIDTH, subsequent_indent="   ", break_long_words=False) for item in items]
        to_do = [f"what to do (as good: {good})", *(filled or ["nothing: no change saves a tenth of the evaluations"])]
        return "\n".join([*self._head(), "", *self._table(), "", *self._facts(), "", *to_do])

    def quality(self, run: Run) -> str:
        """The metric or the error of a run, as text."""
        if self.has_metric and run.metric is not None:
            return f"metric {run.metric:.4g}"
        return "error not known" if run.error is None else f"error {run.error:.0e}"

    def spread(self) -> str:
        """The evaluations of the samples, as text."""
        most, median = max(self.samples), int(statistics.median(self.samples))
        mean = statistics.fmean(self.samples)
        return f"sample {self.samples.index(most)} needs {most} evaluations, the median {median}, the mean {mean:.0f}"

    def _head(self) -> list[str]:
        now, solver = self.now, self.now.solver
        sizes = f"at {solver.rtol:.1g}" if now.tolerance else f"with steps of {solver.dt0:g}"
        if solver.rtol != solver.atol:
            sizes = f"at rtol {solver.rtol:.1g}, atol {solver.atol:.1g}"
        floor = "" if now.floor is None else f"; two steps of {now.method} cost {now.floor}"
        return [
            f"{now.method} {sizes}, {self.problem}",
            f"now: {now.evaluations} evaluations, {now.accepted} steps and {now.rejected} rejected{floor}",
            *([] if now.succeeded else [f"the solve fails: {now.status.value}"]),
        ]

    def _table(self) -> list[str]:
        methods = self.methods
        cells = {(run.method, run.tolerance): self._cell(run) for run in self.runs}
        rows = [("tolerance", methods)]
        for tolerance in sorted({run.tolerance for run in self.runs}):
            row = [cells.get((method, tolerance), "-") for method in methods]
            rows.append((f"{tolerance:.1g}" if tolerance else "fixed", row))
        width = max(map(len, [*cells.values(), *methods]))
        content = "evaluations, true error" + (", metric" if self.has_metric else "")
        lines = [f"{content} (< now, * cheapest good one, - not measured: not needed, or dearer than now)"]
        lines += ["  ".join([f"{label:<9}", *(cell.ljust(width) for cell in row)]).rstrip() for label, row in rows]
        if self.chosen is not self.best:
            lines.append(f"recommended: {self.recommended!r}: {self._cell(self.chosen).strip()}")
        if self.reference is None:
            return [*lines, "no reference solution: errors are not known"]
        run = self.reference
        metric = "" if run.metric is None else f", metric {run.metric:.4g}"
        return [*lines, f"reference: {run.method} at {run.tolerance:.0e}, {run.evaluations} evaluations{metric}"]

    def _cell(self, run: Run) -> str:
        mark = "<" * (run is self.now) + "*" * (run is self.best and self.good(run))
        if not run.succeeded:
            return f"{run.status.value}{mark}"
        metric = "" if not self.has_metric else " ?" if run.metric is None else f" {run.metric:.4g}"
        return f"{run.evaluations:>4} " + ("?" if run.error is None else f"{run.error:.0e}") + metric + mark

    def _facts(self) -> list[str]:
        shares = [] if self.stiff is None else [f"{self.stiff:.0%} limited by stability"]
        shares += [f"{self.rejected:.0%} rejected"]
        shares += [] if self.rounding is None else [f"{self.rounding:.0%} of the evaluations due to rounding"]
        lines = [f"steps: {', '.join(shares)}"]
        if self.orders is not None:
            order = f"{self.orders[0]:.1f}" if self.orders[0] < 20 else "above 20"
            lines.append(f"smoothness: steps grow with order {order}, the method has {self.orders[1]}")
        if self.smoothness is not None:
            lines.append(f"penalty: its gradient {self.smoothness} when y0 changes by 1e-6")
            if self.smoothness_then is not None:
                lines.append(f"         with the recommended solver it {self.smoothness_then}")
        if self.kinks:
            lines.append(f"kinks: {', '.join(self.kinks)}")
        if self.samples:
            lines.append(f"batch: alone, {self.spread()}")
        elif self.samples_why_not:
            lines.append(f"batch: can not be solved sample by sample: {self.samples_why_not}")
        return lines
