"""Runs the benchmarks, prints Markdown tables, writes the rows as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import apart, detest, floor, jax_peer, methods, noise, ode, sde_methods, sde_step, tf32

Row = dict[str, object]
NUMBER = re.compile(r"[-+]?\d[\d.e+-]*( %| \(.*\))?")


def start_up() -> list[Row]:
    """What `import regnde` costs beyond torch's own import, best of five fresh interpreters."""
    code = "import time, torch; t = time.perf_counter(); import regnde; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return [{"import regnde, s beyond torch": round(min(float(run.stdout) for run in runs), 3)}]


BENCHMARKS: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    **ode.SETUPS,
    "methods": ("Milliseconds a step against torchdiffeq, float32", methods.methods),
    "tf32": ("Evaluations where a GPU rounds products of float32 to 10 bits, tsit5", tf32.rounded_products),
    "apart": ("A large state, each solver in a process of its own, Dormand-Prince, float32", apart.apart),
    "sde": ("Microseconds an SDE step of fixed size against torchsde, float32", sde_step.fixed_steps),
    "sde-adaptive": ("An SDE step against torchsde's srk, adaptive", sde_step.per_step),
    "noise": ("Microseconds of a query of a Brownian path", noise.per_query),
    "sde-methods": ("Evaluations of drift and diffusion at equal error, one path, float64", sde_methods.evaluations),
    "detest": ("25 classic problems on [0, 20], float64", detest.accuracy),
    "floor": ("Evaluations (error) at loose tolerances, float32", floor.floor),
    "diffrax": ("Against compiled code, 4-32-4, B=64", jax_peer.against_diffrax),
    "start-up": ("Start-up", start_up),
}


def markdown(rows: list[Row]) -> str:
    """The rows as a Markdown table, numbers aligned right; a missing value is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [["" if row.get(c) is None else str(row[c]) for c in columns] for row in rows]
    aligned = (
        "--:" if all(not cell or NUMBER.fullmatch(cell) for cell in column) else "---"
        for column in zip(*cells, strict=True)
    )
    head = [f"| {' | '.join(columns)} |", f"|{'|'.join(aligned)}|"]
    return "\n".join(head + [f"| {' | '.join(cell)} |" for cell in cells])


def machine() -> str:
    """The hardware and versions that the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, one thread{gpu}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="comma-separated (default: all)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks.json"))
    options = parser.parse_args()
    os.environ["REGNDE_ENGINE"] = "torch"  # also for the drop-ins, which name no engine
    torch.set_num_threads(1)
    print(machine())
    results: dict[str, object] = {"machine": machine()}
    for name in options.only.split(","):
        title, run = BENCHMARKS[name]
        began = time.perf_counter()
        rows = run()
        results[name] = rows
        print(f"\n### {title}\n\n{markdown(rows)}\n\n({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
