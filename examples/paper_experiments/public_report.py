"""Tables of the experiment `public`: each client's rows, and one line a client and a row."""

from __future__ import annotations

import itertools
import math
import statistics

from paper_experiments.free import ALLOWED, Line, cheapest, slack
from paper_experiments.public import CLIENTS, ROWS
from paper_experiments.report import cell

CHANGES = ("looser_tolerance", "other_method", "error_penalty")
WORTH = 0.9  # of the evaluations: two changes that differ by less save as much


def sections(lines: list[Line]) -> str:
    """A table of each client, and the summary before them."""
    parts = [summary(lines), scatter(lines), diagnoses(lines)]
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


def scatter(lines: list[Line]) -> str:
    """For each client the deviation of vanilla's losses, and how often one seed keeps the quality of another."""
    text = [
        "Two trainings of vanilla that differ in the seed alone: how often the second keeps the quality of the first.",
        "",
        "| client | deviation of the test loss, % | pairs that keep it |",
        "|---|--:|--:|",
    ]
    for name in CLIENTS:
        base = [line for line in lines if line["client"] == name and line["method"] == "vanilla"]
        losses = [line["test_loss"] for line in base]
        if len(losses) > 1:
            pairs = [later - first <= slack(base) for first, later in itertools.permutations(losses, 2)]
            share = 100 * statistics.stdev(losses) / abs(statistics.mean(losses))
            text.append(f"| {name} | {share:.1f} | {sum(pairs)}/{len(pairs)} |")
    return "\n".join(text)


def diagnoses(lines: list[Line]) -> str:
    """For each client what `diagnose` names first and recommends, beside what saves most by the other rows."""
    text = [
        "What `diagnose` says of vanilla's solve of the test batch. Measured, each alone, at equal quality: "
        "evaluations of vanilla at its best tolerance, at its best tolerance and method, and of `cheapen` with the "
        "client's own solver. Right: seeds whose first advice is the one of these that saves most, or nearly so.",
        "",
        "| client | NFE now | first advice | tolerance | tolerance and method | penalty alone | right "
        "| recommended NFE | best free NFE |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in CLIENTS:
        mine = [line for line in lines if line["client"] == name]
        base = {line["seed"]: line for line in mine if line["method"] == "vanilla"}
        penalised = {line["seed"]: line for line in mine if line["method"] == "cheapen"}
        if not base:
            continue
        margin = slack(list(base.values()))
        found = [_changes(line, penalised.get(seed), margin) for seed, line in base.items()]
        first = [next((rule for rule, before, then in d["advice"] if then), "-") for d in _diagnosed(base)]
        right = sum(
            changes.get(rule, math.inf) <= min(changes.values()) / WORTH
            for rule, changes in zip(first, found, strict=True)
        )
        cells = [
            cell([line["test_nfe"] for line in base.values()], 1),
            ", ".join(dict.fromkeys(first)),
            *(cell(known, 1) if (known := [c[rule] for c in found if rule in c]) else "-" for rule in CHANGES),
            f"{right}/{len(base)}",
            cell([d["nfe"] for d in _diagnosed(base)], 1),
            cell([best["nfe"] for line in base.values() if (best := cheapest(line, line, margin))], 1),
        ]
        text.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(text)


def _diagnosed(base: dict[int, Line]) -> list[Line]:
    return [line["diagnosis"] for line in base.values()]


def _changes(vanilla: Line, penalised: Line | None, margin: float) -> dict[str, int]:
    """Evaluations at equal quality after each single change, by the name of the rule that advises it."""
    made = {}
    own = {**vanilla, "solved": [entry for entry in vanilla["solved"] if entry["by"] in ("own", "tsit5")]}
    for rule, line in (("looser_tolerance", own), ("other_method", vanilla)):
        if best := cheapest(line, vanilla, margin, given=False):
            made[rule] = best["nfe"]
    if penalised and penalised["test_loss"] <= vanilla["test_loss"] + margin:
        made["error_penalty"] = penalised["test_nfe"]
    return made


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
