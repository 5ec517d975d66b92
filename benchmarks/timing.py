"""Timing rivals against one another in one process, so that what else the machine does hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["race"]


def race(rivals: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each rival; one warm-up call, then rounds in alternating order.

    Args:
        rivals: what to time, by name.
        repeats: rounds.

    Returns:
        Median wall time in seconds by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for run in rivals.values():
        run()
    order = list(rivals)
    for _ in range(repeats):
        for name in order:
            began = time.perf_counter()
            rivals[name]()
            seconds[name].append(time.perf_counter() - began)
        order.reverse()
    return {name: statistics.median(values) for name, values in seconds.items()}
