"""The output of the demo: its rows, their table, the conclusions, and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regnde._solver import Solver

__all__ = ["Prediction", "Row", "conclusion", "picture", "picture_types", "short", "table"]

PLAIN, FREE, PENALISED = "vanilla", "free", "budget"


@dataclass(frozen=True)
class Prediction:
    """A model's solve of all test images with one solver.

    Attributes:
        solver: what it was solved with.
        nfe: evaluations of the field.
        accuracy: as a fraction.
        loss: cross entropy.
        seconds: median of the processor time.
    """

    solver: Solver
    nfe: int
    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One trained model.

    Attributes:
        method: name of the row.
        seed: of parameters and batches.
        train_solver: what it was trained with.
        train_nfe: mean evaluations of a training solve.
        train_seconds: processor time of the training.
        prediction: with the solver that this row predicts with.
        cheapest: with the solver that `diagnose` recommends for this model.
        fixed: with the fewest steps of fixed size whose loss is as good; None if no tried number of steps is.
    """

    method: str
    seed: int
    train_solver: Solver
    train_nfe: float
    train_seconds: float
    prediction: Prediction
    cheapest: Prediction
    fixed: Prediction | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain numbers and names; the solver and the tolerance are those of the prediction."""
        p, c = self.prediction, self.cheapest
        return {
            "method": self.method,
            "seed": self.seed,
            "test_accuracy": p.accuracy,
            "test_loss": p.loss,
            "test_nfe": p.nfe,
            "train_nfe": self.train_nfe,
            "predict_seconds": p.seconds,
            "train_seconds": self.train_seconds,
            "solver": repr(p.solver),
            "tolerance": p.solver.rtol,
            "train_solver": repr(self.train_solver),
            "train_tolerance": self.train_solver.rtol,
            "cheapest_nfe": c.nfe,
            "cheapest_accuracy": c.accuracy,
            "cheapest_loss": c.loss,
            "cheapest_solver": repr(c.solver),
            "cheapest_tolerance": c.solver.rtol,
            "fixed_nfe": None if self.fixed is None else self.fixed.nfe,
            "fixed_solver": None if self.fixed is None else repr(self.fixed.solver),
        }


@dataclass(frozen=True)
class Mean:
    """The rows of one method, averaged over the seeds; a solver is named if all seeds have the same."""

    train_solver: str
    train_nfe: float
    train_seconds: float
    solver: str
    nfe: float
    milliseconds: float
    accuracy: float
    loss: float
    cheapest_solver: str
    cheapest_nfe: float
    fixed: str


def short(solver: Solver) -> str:
    """Method, tolerance and first step, such as "bs3 0.1, dt0=0.5"."""
    if solver.rtol is None:
        return f"{solver.method}, dt0={solver.dt0:g}"
    text = f"{solver.method} {solver.rtol:g}"
    return text if solver.dt0 is None else f"{text}, dt0={solver.dt0:g}"


def means(rows: Sequence[Row]) -> dict[str, Mean]:
    """One `Mean` for each method, in the order of the rows."""
    return {name: _mean([row for row in rows if row.method == name]) for name in dict.fromkeys(r.method for r in rows)}


def _mean(rows: Sequence[Row]) -> Mean:
    return Mean(
        train_solver=_named(row.train_solver for row in rows),
        train_nfe=statistics.mean(row.train_nfe for row in rows),
        train_seconds=statistics.mean(row.train_seconds for row in rows),
        solver=_named(row.prediction.solver for row in rows),
        nfe=statistics.mean(row.prediction.nfe for row in rows),
        milliseconds=1e3 * statistics.mean(row.prediction.seconds for row in rows),
        accuracy=100 * statistics.mean(row.prediction.accuracy for row in rows),
        loss=statistics.mean(row.prediction.loss for row in rows),
        cheapest_solver=_named(row.cheapest.solver for row in rows),
        cheapest_nfe=statistics.mean(row.cheapest.nfe for row in rows),
        fixed=_fixed([row.fixed for row in rows]),
    )


def _fixed(found: Sequence[Prediction | None]) -> str:
    """Evaluations with fixed steps and how, or "-" if a seed has none that are as good."""
    good = [p for p in found if p is not None]
    if len(good) < len(found):
        return "-"
    return f"{statistics.mean(p.nfe for p in good):.0f} ({_named(p.solver for p in good)})"


def _named(solvers: Iterable[Solver]) -> str:
    return "; ".join(dict.fromkeys(map(short, solvers)))


HEAD = (
    "row",
    "trained with",
    "NFE",
    "s",
    "predicts with",
    "NFE",
    "ms",
    "accuracy",
    "cross entropy",
    "NFE to vanilla",
    "NFE to free",
    "cheapest NFE",
    "fixed steps",
)
TEXT = ("row", "trained with", "predicts with", "cheapest NFE", "fixed steps")  # columns on the left


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table: means over the seeds, and ratios to vanilla and to free."""
    found = means(rows)
    lines = [_line(HEAD), _line(["---" if name in TEXT else "--:" for name in HEAD])]
    for name, m in found.items():
        ratios = []
        for other in (found.get(PLAIN), found.get(FREE)):
            pair = "-" if other is None else f"{m.train_nfe / other.train_nfe:.2f}, {m.nfe / other.nfe:.2f}"
            ratios.append(pair)
        cells = (
            name,
            m.train_solver,
            f"{m.train_nfe:.0f}",
            f"{m.train_seconds:.1f}",
            m.solver,
            f"{m.nfe:.0f}",
            f"{m.milliseconds:.0f}",
            f"{m.accuracy:.1f} %",
            f"{m.loss:.3f}",
            *ratios,
            f"{m.cheapest_nfe:.0f} ({m.cheapest_solver})",
            m.fixed,
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def conclusion(rows: Sequence[Row], images: int) -> list[str]:
    """What the solver saves, and what the penalty adds to it: a sentence each."""
    found = means(rows)
    plain, free, penalised = (found.get(name) for name in (PLAIN, FREE, PENALISED))
    lines = []
    if plain is not None and free is not None:
        lines.append(
            f"Free, by the solver alone: training NFE {plain.train_nfe:.0f} -> {free.train_nfe:.0f}, prediction NFE "
            f"{plain.nfe:.0f} -> {free.nfe:.0f}; {_quality(plain)} -> {_quality(free)}."
        )
    if free is not None and penalised is not None:
        lines.append(
            f"The penalty adds: training NFE {free.train_nfe:.0f} -> {penalised.train_nfe:.0f}, prediction NFE "
            f"{free.nfe:.0f} -> {penalised.nfe:.0f}; {_quality(free)} -> {_quality(penalised)}."
        )
    if plain is not None:
        spread = deviation(plain.accuracy, images)
        lines.append(f"The accuracy on {images:,} images has a standard deviation of {spread:.1f} points.")
    return lines


def deviation(accuracy: float, images: int) -> float:
    """Standard deviation of an accuracy, in points, that comes from the number of test images."""
    return math.sqrt(accuracy * (100 - accuracy) / images)


def _quality(m: Mean) -> str:
    return f"accuracy {m.accuracy:.1f} %, cross entropy {m.loss:.3f}"


def picture_types() -> list[str]:
    """Endings of the files that matplotlib can write, such as "png"."""
    from matplotlib.figure import Figure

    return sorted(Figure().canvas.get_supported_filetypes())


def picture(rows: Sequence[Row], images: int, path: Path) -> None:
    """Bars of the evaluations in training and prediction, and the accuracy with its standard deviation."""
    from matplotlib.figure import Figure

    from regnde import plot

    found = means(rows)
    names = list(found)
    figure = Figure(figsize=(11, 1.6 + 0.85 * len(names)), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1), sharey=True)
    bars = (
        ("training", [m.train_nfe for m in found.values()], plot.COLOURS[1]),
        ("prediction", [m.nfe for m in found.values()], plot.COLOURS[2]),
        ("prediction, cheapest solver as good", [m.cheapest_nfe for m in found.values()], plot.COLOURS[5]),
    )
    height = 0.26
    for i, (label, values, colour) in enumerate(bars):
        drawn = left.barh([k + (i - 1) * height for k in range(len(names))], values, height, label=label, color=colour)
        left.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3, fontsize=9)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("evaluations of a solve (NFE)")
    left.margins(x=0.1)
    left.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    for k, (name, m) in enumerate(found.items()):
        runs = [100 * row.prediction.accuracy for row in rows if row.method == name]
        right.plot(runs, [k] * len(runs), "o", color=plot.COLOURS[0], markersize=4, alpha=0.5)
        spread = deviation(m.accuracy, images)
        right.errorbar(m.accuracy, k, xerr=spread, fmt="o", color=plot.COLOURS[0], markersize=8, capsize=3)
        right.annotate(f"{m.accuracy:.1f} %", (m.accuracy, k), (0, 9), textcoords="offset points", ha="center", size=9)
    right.set_xlabel(f"test accuracy in %\nbars: standard deviation of {images:,} images")
    right.margins(x=0.1)
    right.grid(axis="x", color="#dddddd")
    right.set_axisbelow(True)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
