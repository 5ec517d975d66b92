"""Timing rivals against one another in one process, so that what else the machine does affects all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["race"]

TURN = 0.02
"""Seconds that a turn of a rival lasts at least: in a loop a solver finds its own data in the caches."""


def race(rivals: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, float]:
    """Median seconds of a call of each rival; two warm-up calls, then rounds of turns in alternating order.

    In a turn a rival is called as often as fills `TURN`.

    Args:
        rivals: what to time, by name.
        repeats: rounds.
        device: where they compute.

    Returns:
        Median seconds by name: processor time on the CPU, which other jobs disturb less; on a GPU wall time until
        its work is done.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    calls: dict[str, int] = {}
    for name, run in rivals.items():
        run()
        calls[name] = math.ceil(TURN / max(_seconds(run, 1, device), 1e-6))
    order = list(rivals)
    for _ in range(repeats):
        for name in order:
            seconds[name].append(_seconds(rivals[name], calls[name], device) / calls[name])
        order.reverse()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(run: Callable[[], object], calls: int, device: str) -> float:
    """What so many calls take together."""
    began = _now(device)
    for _ in range(calls):
        run()
    return _now(device) - began


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
