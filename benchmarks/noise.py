"""Time of a query of a Brownian path, on the CPU and on the GPU.

Run: python -m benchmarks --only noise
"""

from __future__ import annotations

import statistics
import time

import torch

from regnde import BrownianPath

__all__ = ["per_query"]

STEPS = 200  # of the span; a query is of the increment over the next one
ENTRIES = (100, 10_000, 1_000_000)
QUERIES = {100: 100, 10_000: 30, 1_000_000: 4}


def per_query() -> list[dict[str, object]]:
    """Microseconds of a query, the median: processor time on the CPU, on the GPU wall time until its work is done."""
    rows: list[dict[str, object]] = []
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for entries in ENTRIES:
        for resolution, leaves in ((None, "2^24 leaves"), (1 / STEPS, "256 leaves")):
            row: dict[str, object] = {"entries": f"{entries:,}", "path": leaves}
            for device in devices:
                path = BrownianPath(0.0, 1.0, (entries,), seed=0, resolution=resolution, device=device)
                row[f"{device}, us"] = round(1e6 * statistics.median(_seconds(path, QUERIES[entries], device)))
            if len(devices) == 2:
                row["largest difference"] = f"{_difference(entries, resolution):.1e}"
            rows.append(row)
    return rows


def _seconds(path: BrownianPath, queries: int, device: str) -> list[float]:
    path.increment(0.0, 1 / STEPS)
    found = []
    for k in range(1, queries + 1):
        began = _now(device)
        path.increment(k / STEPS, (k + 1) / STEPS)
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
