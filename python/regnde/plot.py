"""Plots of records and trainings, on matplotlib axes that are returned. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from regnde._run import Run
from regnde._solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "diagnosis", "pareto", "progress", "steps"]

# Okabe and Ito's palette, told apart by colour-blind readers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

LABELS = {"dt": "step size |dt|", "error": "error estimate E", "stiffness": "stiffness estimate S"}


class Report(Protocol):
    """What is drawn of the `Diagnosis` that `regnde.diagnose` returns."""

    @property
    def runs(self) -> Sequence[Run]:
        """All measured solves."""

    @property
    def now(self) -> Run:
        """The one with the given solver."""

    @property
    def chosen(self) -> Run:
        """The recommended one."""

    @property
    def has_metric(self) -> bool:
        """Whether runs are judged by a metric."""

    @property
    def error_allowed(self) -> float:
        """The error up to which a run counts as good, without a metric."""


def _axes(axes: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as problem:
        raise ImportError("regnde.plot draws with matplotlib: pip install 'regnde[plot]'") from problem
    return pyplot.subplots(layout="constrained")[1]


def steps(
    solution: Solution,
    quantity: Literal["dt", "error", "stiffness"] = "dt",
    *,
    axes: Axes | None = None,
    label: str | None = None,
    colour: str = COLOURS[0],
    linestyle: str = "-",
) -> Axes:
    """Draws one record of a solution's steps over time, constant within each step, on a logarithmic scale.

    Args:
        solution: solved with `record="all"`. With `batch="per-sample"` there is a line for each sample.
        quantity: `"dt"`, `"error"` or `"stiffness"`.
        axes: where to draw; a new figure by default.
        label: legend entry.
        colour: any matplotlib colour.
        linestyle: any matplotlib line style.

    Returns:
        The axes.

    Raises:
        ValueError: if the solution has no records, or no such record.
    """
    if solution.steps is None or len(solution.steps) == 0:
        raise ValueError("plot.steps needs the records of the solver's steps: solve with record='all'.")
    if quantity not in LABELS:
        raise ValueError(f"quantity={quantity!r}: choose one of {', '.join(LABELS)}.")
    axes = _axes(axes)
    columns = [x.detach().cpu() for x in (solution.steps.t, solution.steps.dt, getattr(solution.steps, quantity))]
    mask = solution.steps.mask
    samples = [columns] if mask is None else [[x[m, i] for x in columns] for i, m in enumerate(mask.cpu().T)]
    width = 1.6 if len(samples) == 1 else 0.8
    for ends, sizes, values in samples:
        if len(ends):
            edges = [float(ends[0]) - float(sizes[0]), *ends.tolist()]
            heights = values.abs().numpy()
            axes.stairs(heights, edges, baseline=None, label=label, color=colour, linestyle=linestyle, linewidth=width)
            label = None  # one entry in the legend
    axes.set_yscale("log")
    axes.set_xlabel("t")
    axes.set_ylabel(LABELS[quantity])
    return axes


def progress(
    histories: Mapping[str, Sequence[float]], *, axes: Axes | None = None, ylabel: str = "NFE", window: int = 1
) -> Axes:
    """Draws one curve for each name over the iterations of a training, as running means.

    Args:
        histories: values per iteration, such as `[p.nfe for p in fit(...)]`, by name.
        axes: where to draw; a new figure by default.
        ylabel: what the values are.
        window: iterations in the running mean.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    for (name, values), colour in zip(histories.items(), _cycle(len(histories)), strict=True):
        smooth = [
            sum(part) / len(part) for part in (values[max(0, i - window + 1) : i + 1] for i in range(len(values)))
        ]
        axes.plot(smooth, label=name, color=colour, linewidth=1.6)
        if smooth:
            axes.annotate(name, (len(smooth) - 1, smooth[-1]), (4, 0), textcoords="offset points", va="center", size=8)
    axes.set_xlabel("iteration")
    axes.set_ylabel(ylabel)
    axes.margins(x=0.12)
    return axes


def pareto(
    results: Mapping[str, Sequence[tuple[float, float]]],
    *,
    axes: Axes | None = None,
    xlabel: str = "NFE of a prediction",
    ylabel: str = "accuracy",
    higher_is_better: bool = True,
) -> Axes:
    """Draws cost against quality: a small dot for each run, a large dot for each mean, a line through the Pareto front.

    Args:
        results: pairs of cost (less is better) and quality, one a run, by the name of what was run.
        axes: where to draw; a new figure by default.
        xlabel: what the cost is.
        ylabel: what the quality is.
        higher_is_better: False for a loss.

    Returns:
        The axes.
    """
    axes = _axes(axes)
    sign = 1.0 if higher_is_better else -1.0
    means = {}
    for (name, runs), colour in zip(results.items(), _cycle(len(results)), strict=True):
        means[name] = sum(x for x, _ in runs) / len(runs), sum(y for _, y in runs) / len(runs)
        axes.plot([x for x, _ in runs], [y for _, y in runs], "o", color=colour, markersize=3, alpha=0.5)
        axes.plot(*means[name], "o", color=colour, markersize=8)
        axes.annotate(name, means[name], (6, 4), textcoords="offset points", size=8)
    front: list[tuple[float, float]] = []
    for x, y in sorted(means.values(), key=lambda mean: (mean[0], -sign * mean[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    axes.plot([x for x, _ in front], [y for _, y in front], "-", color="#999999", linewidth=1, zorder=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(x=0.15, y=0.1)
    return axes


def diagnosis(report: Report, *, axes: Axes | None = None) -> Axes:
    """Draws evaluations against the true error: a line for each method, a dot for each tolerance, logarithmic scales.

    Args:
        report: from `regnde.diagnose`.
        axes: where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if no reference solution was found, so that no error is known.
    """
    known = [run for run in report.runs if run.succeeded and run.error is not None]
    if not known:
        raise ValueError("plot.diagnosis draws true errors, but the report has none: no reference solution was found.")
    axes = _axes(axes)
    methods = list(dict.fromkeys(run.method for run in known))
    for method, colour in zip(methods, _cycle(len(methods)), strict=True):
        runs = sorted((run for run in known if run.method == method), key=lambda run: run.tolerance)
        axes.plot(
            [run.evaluations for run in runs],
            [max(run.error or 0.0, 1e-16) for run in runs],
            "o-",
            color=colour,
            label=method,
            markersize=4,
            linewidth=1.4,
        )
    for run, marker, label in ((report.now, "s", "now"), (report.chosen, "D", "recommended")):
        if run.succeeded and run.error is not None:
            point = run.evaluations, max(run.error or 0.0, 1e-16)
            axes.plot(*point, marker, color="none", markeredgecolor=COLOURS[5], markeredgewidth=1.8, markersize=11)
            start = run.solver.dt0
            given = f"{start:g}" if isinstance(start, int | float) else repr(start)
            size = f"{run.tolerance:.1g}" + (f", dt0={given}" if start else "")
            text = label if run.tolerance == 0 else f"{label}: {run.method} at {size}"
            axes.annotate(text, point, (10, 8), textcoords="offset points", size=9)
    if not report.has_metric:
        axes.axhline(report.error_allowed, color="#999999", linewidth=1, linestyle="--", label="error allowed")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("evaluations of a solve")
    axes.set_ylabel("true error, relative to the state")
    axes.margins(x=0.2, y=0.1)
    axes.legend(frameon=False)
    return axes


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
