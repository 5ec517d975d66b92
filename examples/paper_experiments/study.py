"""Several weights a method: which gives the fewest evaluations at an accuracy that may fall by so much."""

from __future__ import annotations

import statistics
from pathlib import Path

from paper_experiments.free import Line, slack
from paper_experiments.methods import SWEPT
from paper_experiments.report import grouped

ALLOWED = 0.005  # of accuracy, as a fraction: half a point


def means(lines: list[Line], quality: str) -> dict[str, list[tuple[str, float, float]]]:
    """For each method, its rows' names with mean test NFE and mean quality, from the smallest weight to the largest."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    groups = grouped(lines)
    for name in sorted(
        groups, key=lambda name: tuple(groups[name][0]["settings"][key] for key in ("factor", "balance"))
    ):
        rows = groups[name]
        nfe, value = (statistics.mean(row[key] for row in rows) for key in ("test_nfe", quality))
        method = f"{rows[0]['method']} auto" if rows[0]["settings"]["balance"] else rows[0]["method"]
        found.setdefault(method, []).append((name, nfe, value))
    return found


def best(lines: list[Line]) -> str:
    """A Markdown table: each method's row of fewest evaluations that is as accurate as vanilla less `ALLOWED`."""
    found = means(lines, "accuracy")
    _, base, accuracy = found["vanilla"][0]
    text = ["| method | its best row | test NFE | NFE ratio | accuracy, points |", "|---|---|--:|--:|--:|"]
    for method, rows in found.items():
        good = [row for row in rows if row[2] >= accuracy - ALLOWED - 1e-12]
        if good and method != "vanilla":
            name, nfe, value = min(good, key=lambda row: row[1])
            text.append(f"| {method} | {name} | {nfe:.1f} | {nfe / base:.2f} | {100 * (value - accuracy):+.1f} |")
        elif method != "vanilla":
            text.append(f"| {method} | none | - | - | - |")
    return "\n".join(text)


def chosen(lines: list[Line]) -> dict[str, float]:
    """The factor of the weight of each method in `SWEPT`, by its runs of seed 0 that are in the lines.

    It is the one of fewest evaluations at vanilla's loss; where none keeps that, the one of the lowest loss.
    """
    vanilla = [line for line in lines if line["method"] == "vanilla"]
    limit = next(line["test_loss"] for line in vanilla if line["seed"] == 0) + slack(vanilla)

    def rank(line: Line) -> tuple[bool, float, float]:
        lost = line["test_loss"] > limit
        return lost, line["test_loss"] if lost else line["test_nfe"], line["test_loss"]

    swept = {name: [line for line in lines if line["method"] == name and line["seed"] == 0] for name in SWEPT}
    return {name: min(rows, key=rank)["settings"]["factor"] for name, rows in swept.items() if rows}


def sweep(lines: list[Line]) -> str:
    """A Markdown table: evaluations and loss of seed 0 of the methods in `SWEPT` at each weight."""
    first = [line for line in lines if line["seed"] == 0]
    rows = {name: [line for line in first if line["method"] == name] for name in SWEPT}
    factors = sorted({line["settings"]["factor"] for part in rows.values() for line in part})
    text = [f"| weight, times | {' | '.join(f'{factor:g}' for factor in factors)} |", "|---|" + "--:|" * len(factors)]
    for name, part in rows.items():
        cells = {line["settings"]["factor"]: f"{line['test_nfe']:.1f} ({line['test_loss']:.3g})" for line in part}
        if cells:
            text.append(f"| {name} | {' | '.join(cells.get(factor, '-') for factor in factors)} |")
    return "\n".join(text)


def picture(lines: list[Line], path: Path) -> None:
    """Accuracy over test NFE: a line a method through its rows' means, each marked with what it is called."""
    from matplotlib.figure import Figure

    from regnde.plot import COLOURS

    axes = Figure(figsize=(9, 6), layout="constrained").subplots()
    found = means(lines, "accuracy")
    for i, (method, rows) in enumerate(found.items()):
        colour = COLOURS[i % len(COLOURS)]
        nfe, accuracy = [row[1] for row in rows], [100 * row[2] for row in rows]
        style = "s" if method == "vanilla" else "o-" if i < len(COLOURS) else "o--"
        axes.plot(nfe, accuracy, style, color=colour, label=method, markersize=6, linewidth=1)
        for name, x, y in rows:
            note = name.removeprefix(method.removesuffix(" auto")).strip().removeprefix("auto ")
            axes.annotate(
                note or ("" if method == "vanilla" else "x1"),
                (x, 100 * y),
                (5, 4),
                size=7,
                color=colour,
                textcoords="offset points",
            )
    limit = 100 * (found["vanilla"][0][2] - ALLOWED)
    axes.axhline(limit, color="#999999", linewidth=1, linestyle=":")
    axes.set(
        xlabel="NFE of a prediction",
        ylabel="test accuracy %",
        title="Every penalty and weight; dotted: half a point below vanilla",
    )
    axes.legend(fontsize=8)
    axes.figure.savefig(path, dpi=110)
