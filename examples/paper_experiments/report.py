"""The results as a Markdown table and a picture for each experiment."""

from __future__ import annotations

import statistics
from pathlib import Path

from paper_experiments import free
from paper_experiments.free import Line

LOOSE = (10.0, 100.0)  # factors of vanilla's tolerance in rows of their own
SAME = 0.05  # of the evaluations: a smaller difference is none


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

    The ratio of prediction times is left out where the evaluations are vanilla's: it would be the machine's noise.

    Args:
        lines: results of one experiment.
        quality: "accuracy" or "loss".
    """
    groups = grouped(lines)
    base = {line["seed"]: line for line in groups.get("vanilla", [])}
    best = _Best(base)
    accuracy = quality == "accuracy"
    text = [
        f"| row | seeds | {'accuracy % | ' if accuracy else ''}test loss | training NFE | test NFE | to vanilla "
        "| to free | own cheapest | kept | that to free | prediction time | training time |",
        "|---|--:|" + "--:|" * (10 + accuracy),
    ]

    def ratio(rows: list[Line], key: str) -> str:
        return _mean([line[key] / base[line["seed"]][key] for line in rows if line["seed"] in base])

    def row(name: str, rows: list[Line], nfe: str, ratios: list[str]) -> None:
        scored = [cell([100 * line[quality] for line in rows], 1)] if accuracy else []
        cells = [str(len(rows)), *scored, _loss([line["test_loss"] for line in rows]), nfe]
        cells += [cell([line["test_nfe"] for line in rows], 1), ratio(rows, "test_nfe"), best.over(rows), *ratios]
        text.append(f"| {name} | {' | '.join(cells)} |")

    for name, rows in groups.items():
        same = name != "vanilla" and rows_agree(rows, base)
        times = ["" if same else ratio(rows, "predict_seconds"), ratio(rows, "train_seconds")]
        row(name, rows, cell([line["train_nfe"] for line in rows], 1), [*best.cells(rows), *times])
        for factor in LOOSE if name == "vanilla" else ():
            if loose := [made for line in rows if (made := loosened(line, factor, quality))]:
                row(f"vanilla, tolerance x{factor:g}", loose, "", [""] * 5)
    return "\n".join(text)


def rows_agree(rows: list[Line], base: dict[int, Line]) -> bool:
    """Whether predictions take as many evaluations as vanilla's, so that a ratio of times would be noise alone."""
    ratios = [line["test_nfe"] / base[line["seed"]]["test_nfe"] for line in rows if line["seed"] in base]
    return bool(ratios) and abs(statistics.mean(ratios) - 1) <= SAME


def loosened(vanilla: Line, factor: float, quality: str) -> Line | None:
    """The line of the same model with its own solver at another tolerance, if that was measured."""
    by = next(entry["by"] for entry in vanilla["solved"] if entry["by"] != "own")  # the own method is the first
    for entry in vanilla["solved"]:
        if (entry["by"], entry["factor"]) == (by, factor):
            return vanilla | {quality: entry["quality"], "test_loss": entry["loss"], "test_nfe": entry["nfe"]}
    return None


class _Best:
    """What vanilla's best tolerance and method take at equal quality, and other rows beside it.

    Args:
        vanilla: its line of each seed.
    """

    def __init__(self, vanilla: dict[int, Line]) -> None:
        self.vanilla = vanilla
        self.margin = free.slack(list(vanilla.values())) if vanilla else 0.0
        found = {seed: free.cheapest(line, line, self.margin) for seed, line in vanilla.items()}
        self.nfe = {seed: entry["nfe"] for seed, entry in found.items() if entry}

    def over(self, rows: list[Line]) -> str:
        """Evaluations as the rows are solved, over the baseline's."""
        return _mean([line["test_nfe"] / self.nfe[line["seed"]] for line in rows if line["seed"] in self.nfe])

    def cells(self, rows: list[Line]) -> list[str]:
        """Evaluations with each row's own best tolerance and method, seeds that keep the quality, and the ratio."""
        paired = [line for line in rows if line["seed"] in self.nfe]
        found = [(line["seed"], free.cheapest(line, self.vanilla[line["seed"]], self.margin)) for line in paired]
        kept = [(seed, entry["nfe"]) for seed, entry in found if entry]
        nfe = cell([nfe for _, nfe in kept], 1) if kept else "-"
        return [nfe, f"{len(kept)}/{len(paired)}", _mean([nfe / self.nfe[seed] for seed, nfe in kept])]


def _mean(ratios: list[float]) -> str:
    return f"{statistics.mean(ratios):.2f}" if ratios else "-"


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
