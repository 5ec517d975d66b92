"""Free alternatives: a trained model solved at looser tolerances and by other methods, which needs no training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from regnde import SolveError

Line = dict[str, Any]

ODE = ("tsit5", "bs3", "dp5", "heun")
SDE = ("sosri", "sosri2", "sriw1")
LOOSEST = 0.1  # tolerance, but for an experiment whose own is near it
ALLOWED = 0.02  # of a loss, as a share of its size: what counts as equal


def factors(tolerance: float, least: int = 1) -> list[float]:
    """Powers of ten from 1 on, up to the first that makes the tolerance `LOOSEST`; `least` of them or more."""
    made = [1.0]
    while len(made) < least or made[-1] * tolerance < LOOSEST * (1 - 1e-9):
        made.append(10 * made[-1])
    return made


def solved(by: str, factors: list[float], score: Callable[[str, float], Line], most: float = math.inf) -> list[Line]:
    """The scores of one alternative at several factors of the tolerances, in their order.

    Args:
        by: the alternative.
        factors: rising.
        score: solves the test data by an alternative at a factor; gives at least "loss", "quality" and "nfe".
        most: evaluations that are of interest: the tolerances are tightened up to there. One at which the
            solver fails is left out.
    """
    found: list[Line] = []
    for factor in reversed(factors):
        try:
            scored = score(by, factor)
        except SolveError:
            continue
        if scored["nfe"] > most:
            break
        found.insert(0, {"by": by, "factor": factor} | scored)
    return found


def slack(vanilla: list[Line]) -> float:
    """What a loss may differ by and count as equal: a share of vanilla's, or what its seeds scatter if that is more."""
    losses: list[float] = [line["test_loss"] for line in vanilla]
    scatter = statistics.stdev(losses) if len(losses) > 1 else 0.0
    return max(ALLOWED * abs(statistics.mean(losses)), scatter)


def cheapest(line: Line, vanilla: Line, margin: float, *, given: bool = True) -> Line | None:
    """The alternative of fewest evaluations that solves a model at equal quality, or None if its quality is lost.

    The loss may be above vanilla's by the margin, and may differ from the model's own by the margin to either side: a
    loose tolerance that makes a likelihood better makes it wrong.

    Args:
        line: of the model.
        vanilla: of the same seed.
        margin: what counts as equal.
        given: whether a given first step counts, or tolerance and method alone.
    """
    equal = [
        entry
        for entry in line["solved"]
        if (given or ":" not in entry["by"])
        and entry["loss"] <= vanilla["test_loss"] + margin
        and (entry["by"] == "own" or abs(entry["loss"] - line["test_loss"]) <= margin)
    ]
    if line["test_loss"] > vanilla["test_loss"] + margin or not equal:
        return None
    return min(equal, key=lambda entry: (entry["nfe"], entry["factor"]))
