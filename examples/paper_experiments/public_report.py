"""Tables of the experiment `public`: each client's rows, and one line a client and a row."""

from __future__ import annotations

import statistics

from paper_experiments.free import ALLOWED, Line, cheapest, slack
from paper_experiments.public import CLIENTS, ROWS
from paper_experiments.report import cell


def sections(lines: list[Line]) -> str:
    """A table of each client, and the summary before them."""
    parts = [summary(lines)]
    for name, client in CLIENTS.items():
        rows = [line for line in lines if line["client"] == name]
        if any(line["method"] == "vanilla" for line in rows):
            title = (
                f"## {name}: rtol {client.rtol:g}, atol {client.atol:g}, {rows[0]['settings']['iterations']} iterations"
            )
            parts.append(f"{title}\n\n{table(rows)}")
    return "\n\n".join(parts)


def table(lines: list[Line]) -> str:
    """The rows of one client: means and sample standard deviations over the seeds, ratios seed by seed."""
    base = {line["seed"]: line for line in lines if line["method"] == "vanilla"}
    margin = slack(list(base.values()))
    text = [
        f"| row | seeds | trained at | train NFE | train s | test loss | {lines[0]['measure']} | test NFE | ratio "
        "| equal | NFE at equal quality | by | ratio to best free |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|",
    ]
    for method in ROWS:
        rows = [line for line in lines if line["method"] == method and line["seed"] in base]
        if not rows:
            continue
        best = [cheapest(row, base[row["seed"]], margin) for row in rows]
        found = [entry for entry in best if entry]
        cells = [
            str(len(rows)),
            ", ".join(dict.fromkeys(f"x{row['factor']:g}" for row in rows)),
            cell([row["train_nfe"] for row in rows], 1),
            cell([row["train_seconds"] for row in rows], 1),
            cell([row["test_loss"] for row in rows], 4),
            cell([row["quality"] for row in rows], 4),
            cell([row["test_nfe"] for row in rows], 1),
            f"{statistics.mean(row['test_nfe'] / base[row['seed']]['test_nfe'] for row in rows):.2f}",
            f"{len(found)}/{len(rows)}",
            cell([entry["nfe"] for entry in found], 1) if found else "-",
            ", ".join(dict.fromkeys(f"{entry['by']} x{entry['factor']:g}" for entry in found)) or "-",
            _ratio(_over(rows, base, margin, "all")),
        ]
        text.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(text)


def summary(lines: list[Line]) -> str:
    """For each baseline a line a client: evaluations of each row over the baseline's, and seeds of kept quality."""
    methods = [method for method in ROWS if any(line["method"] == method for line in lines)]
    text = [
        f"Equal quality: a test loss within {100 * ALLOWED:g} % of vanilla's, or within what vanilla's seeds scatter. "
        "Every model is solved with its own cheapest alternative. In brackets the seeds that keep the quality."
    ]
    titles = {
        "vanilla": "Evaluations over those of vanilla as its client solves it",
        "tolerance and method": "Evaluations over those of vanilla at its best tolerance and method",
        "all": "Evaluations over those of vanilla at its best tolerance, method and given first step",
    }
    for baseline, title in titles.items():
        text += ["", f"{title}:", "", f"| client | {' | '.join(methods)} |", "|---|" + "--:|" * len(methods)]
        over: dict[str, list[float]] = {}
        for name in CLIENTS:
            mine = [line for line in lines if line["client"] == name]
            base = {line["seed"]: line for line in mine if line["method"] == "vanilla"}
            if not base:
                continue
            margin = slack(list(base.values()))
            cells = []
            for method in methods:
                rows = [line for line in mine if line["method"] == method and line["seed"] in base]
                ratios = _over(rows, base, margin, baseline)
                cells.append(f"{_ratio(ratios)} ({len(ratios)}/{len(rows)})")
                if rows:
                    lost = [1.0] * (len(rows) - len(ratios))
                    over.setdefault(method, []).append(statistics.mean(ratios + lost))
            text.append(f"| {name} | {' | '.join(cells)} |")
        means = [_ratio(over.get(method, [])) for method in methods]
        text.append(f"| mean, 1 for a seed whose quality is lost | {' | '.join(means)} |")
    return "\n".join(text)


def _over(rows: list[Line], base: dict[int, Line], margin: float, baseline: str) -> list[float]:
    """Evaluations at equal quality over those of a baseline, of the seeds that keep the quality."""
    found = []
    for row in rows:
        vanilla = base[row["seed"]]
        mine = cheapest(row, vanilla, margin)
        free = cheapest(vanilla, vanilla, margin, given=baseline == "all")
        if mine and free:
            found.append(mine["nfe"] / (vanilla["test_nfe"] if baseline == "vanilla" else free["nfe"]))
    return found


def _ratio(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}" if values else "-"
