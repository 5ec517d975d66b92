"""Time of a query of a Brownian path, on the CPU and on the GPU.

Run: python -m benchmarks --only noise
"""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from regnde import BrownianPath

__all__ = ["per_query"]

STEPS = 200  # of the span, about; a query is of the increment over the next one
PATHS = {  # resolution, and whether the ends of steps are rounded as those of a solve without `noise=`
    "2^24 leaves": (None, False),
    "2^24 leaves, rounded ends": (None, True),
    "256 leaves": (1 / STEPS, False),
}
ENTRIES = (100, 10_000, 1_000_000)
QUERIES = {100: 100, 10_000: 30, 1_000_000: 4}


def per_query() -> list[dict[str, object]]:
    """Microseconds of a query, the median: processor time on the CPU, on the GPU wall time until its work is done."""
    rows: list[dict[str, object]] = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for entries in ENTRIES:
        for name, (resolution, rounded) in PATHS.items():
            row: dict[str, object] = {"entries": f"{entries:,}", "path": name}
            for device, dtype in itertools.product(devices, (torch.float64, torch.float32)):
                path = BrownianPath(0.0, 1.0, (entries,), seed=0, resolution=resolution, device=device, dtype=dtype)
                seconds = statistics.median(_seconds(path, QUERIES[entries], device, rounded))
                row[f"{device}, {str(dtype).removeprefix('torch.')}, us"] = round(1e6 * seconds)
            if len(devices) == 2:
                row["largest difference"] = f"{_difference(entries, resolution):.1e}"
            rows.append(row)
    return rows


def _seconds(path: BrownianPath, queries: int, device: str, rounded: bool) -> list[float]:
    t, end = 0.0, 1 / STEPS
    path.increment(t, end)
    found = []
    for _ in range(queries):
        t, end = end, end + 1 / STEPS
        if rounded:
            end = path.cheaper(t, end)
        began = _now(device)
        path.increment(t, end)
        found.append(_now(device) - began)
    return found


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _difference(entries: int, resolution: float | None) -> float:
    """Between W at one time on both devices."""
    path = BrownianPath(0.0, 1.0, (entries,), seed=0, resolution=resolution)
    return float((path(0.3) - path.to("cuda")(0.3).cpu()).abs().max())
