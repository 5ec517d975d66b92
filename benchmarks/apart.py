"""Large states with each solver in a process of its own: `python -m benchmarks.apart SOLVER` prints its times.

Large tensors come from the memory allocator of the process, whose state depends on what ran before. In a process of
its own a solver meets the state that it makes itself.
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys

import torch

from benchmarks.fields import FIELDS
from benchmarks.ode import Row, gradient_of
from benchmarks.peers import PEERS, SOLVERS, steps_of
from benchmarks.timing import race

__all__ = ["apart"]

SETUP = FIELDS[-1]
ROUNDS, REPEATS = 3, 5


def apart() -> list[Row]:
    """Milliseconds a trial step at the MNIST shape, and the ratios to the peers; medians over rounds of processes."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SOLVERS}
    order = list(SOLVERS)
    for _ in range(ROUNDS):
        for name in order:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.apart", name], capture_output=True, text=True, check=True
            )
            found[name].append(json.loads(done.stdout))
        order.reverse()
    rows: list[Row] = []
    for kind in ("forward", "training"):
        each = {name: statistics.median(times[kind] for times in found[name]) for name in SOLVERS}
        ratios = {
            name: [peer[kind] / ours[kind] for peer, ours in zip(found[name], found["regnde"], strict=True)]
            for name in PEERS
        }
        rows.append(
            {
                "field": SETUP.name,
                "pass": kind,
                **{f"{name} ms/step": round(1e3 * each[name], 1) for name in SOLVERS},
                **{
                    f"x {name}": f"{each[name] / each['regnde']:.2f} ({min(of):.2f} to {max(of):.2f})"
                    for name, of in ratios.items()
                },
            }
        )
    return rows


def _main(name: str) -> None:
    torch.set_num_threads(1)
    solve = SOLVERS[name]
    f, y0, ts = SETUP.make()
    steps, _ = steps_of(solve, f, y0, ts, SETUP.tolerance)
    with torch.no_grad():
        seconds = race({"forward": functools.partial(solve, f, y0, ts, SETUP.tolerance)}, REPEATS)
    seconds |= race({"training": gradient_of(solve, f, y0, ts, SETUP.tolerance)}, REPEATS)
    print(json.dumps({kind: time / steps for kind, time in seconds.items()}))


if __name__ == "__main__":
    _main(sys.argv[1])
