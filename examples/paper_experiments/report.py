"""The results as a Markdown table and a picture for each experiment."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def label(line: Line) -> str:
    """A row's name: the method, and what was changed for it."""
    settings = line.get("settings", {})
    factor, fraction = settings.get("factor", 1.0), settings.get("balance", 0.0)
    name = line["method"] if factor == 1.0 else f"{line['method']} x{factor:g}"
    return f"{name} auto {fraction:g}" if fraction else name


def grouped(lines: list[Line]) -> dict[str, list[Line]]:
    """The lines by row, in the order in which rows first appear, vanilla first."""
    groups: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["method"] != "vanilla"):
        groups.setdefault(label(line), []).append(line)
    return groups


def table(lines: list[Line], quality: str) -> str:
    """Means and sample standard deviations over the seeds; ratios to vanilla, seed by seed.

    Args:
        lines: results of one experiment.
        quality: "accuracy" or "loss".
    """
    groups = grouped(lines)
    base = {line["seed"]: line for line in groups.get("vanilla", [])}

    def ratio(rows: list[Line], key: str) -> str:
        pairs = [line[key] / base[line["seed"]][key] for line in rows if line["seed"] in base]
        return f"{statistics.mean(pairs):.2f}" if pairs else "-"

    shown = "test accuracy %" if quality == "accuracy" else "test loss"
    text = [
        f"| method | seeds | {shown} | test NFE | training NFE | predict ms | train s "
        "| NFE ratio | predict ratio | train ratio |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, rows in groups.items():
        values = [row[quality] for row in rows]
        measured = cell([100 * v for v in values], 1) if quality == "accuracy" else _loss(values)
        cells = [
            str(len(rows)),
            measured,
            cell([row["test_nfe"] for row in rows], 1),
            cell([row["train_nfe"] for row in rows], 1),
            cell([1e3 * row["predict_seconds"] for row in rows], 1),
            cell([row["train_seconds"] for row in rows], 1),
            *(ratio(rows, key) for key in ("test_nfe", "predict_seconds", "train_seconds")),
        ]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(text)


def cell(values: list[float], digits: int) -> str:
    """Mean and spread with so many digits behind the point."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _loss(values: list[float]) -> str:
    """Mean and spread with three significant digits."""
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def picture(lines: list[Line], quality: str, title: str, path: Path) -> None:
    """Training NFE of each row's first seed, beside test NFE against accuracy or loss of all runs."""
    from matplotlib.figure import Figure

    from regnde import plot

    groups = grouped(lines)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    plot.progress({name: rows[0]["nfe_history"] for name, rows in groups.items()}, axes=left)
    left.set(title=f"{title}: NFE over training", xlabel="training, in fiftieths", ylabel="NFE of a training solve")
    left.set_ylim(bottom=0)
    points = {name: [(row["test_nfe"], row[quality]) for row in rows] for name, rows in groups.items()}
    plot.pareto(points, axes=right, ylabel=f"test {quality}", higher_is_better=quality == "accuracy")
    right.set_title("every run, and the means that no other row beats")
    figure.savefig(path, dpi=110)
