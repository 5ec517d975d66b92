"""Timing rivals against one another in one process, so that what else the machine does affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["race"]


def race(rivals: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of each rival; one warm-up call, then rounds in alternating order.

    Args:
        rivals: what to time, by name.
        repeats: rounds.
        device: where they compute.

    Returns:
        Median seconds by name: processor time on the CPU, which other jobs disturb less; on a GPU wall time until
        its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for run in rivals.values():
        run()
    order = list(rivals)
    for _ in range(repeats):
        for name in order:
            began = _now(device)
            rivals[name]()
            seconds[name].append(_now(device) - began)
        order.reverse()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
