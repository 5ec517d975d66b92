"""Time of an SDE step against torchsde in one run: fixed steps of every method, and adaptive ones.

Run: python -m benchmarks --only sde,sde-adaptive
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

import regnde
from benchmarks.timing import race

__all__ = ["fixed_steps", "per_step"]


class Spiral(nn.Module):
    """The papers' spiral: drift 2-50-2 on cubes, diffusion linear; 100 trajectories."""

    noise_type, sde_type = "diagonal", "ito"
    start = (100, 2)

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        self.diffusion = nn.Linear(2, 2)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return self.drift(y**3)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self.diffusion(y)


class Digits(Spiral):
    """The papers' MNIST SDE: 512 states of 32, drift 32-64-32, diffusion linear."""

    start = (512, 32)

    def __init__(self) -> None:
        super().__init__()
        self.drift = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        self.diffusion = nn.Linear(32, 32)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return self.drift(y)


class Counted(nn.Module):
    """A problem that counts the calls of its drift and of its diffusion."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: Spiral) -> None:
        super().__init__()
        self.problem = problem
        self.calls = self.diffusions = 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        self.calls += 1
        return self.problem.f(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        self.diffusions += 1
        return self.problem.g(t, y)


# Processor time of one thread, not wall time: other jobs on the machine disturb it less.


def ours(problem: Spiral, y0: Tensor, tolerance: float, backward: bool, seed: int) -> tuple[float, int, int]:
    """Seconds, trial steps and drift evaluations."""
    solver = regnde.Solver(method="sosri", rtol=tolerance, atol=tolerance, engine="torch")
    torch.manual_seed(seed)
    began = time.process_time()
    sol = regnde.solve(regnde.SDE(problem.f, problem.g), y0, [0.0, 1.0], solver)
    if backward:
        torch.autograd.backward(sol.y1.square().mean())
    return time.process_time() - began, sol.stats.accepted + sol.stats.rejected, sol.stats.nfe


DRIFTS = {regnde: 3 * 2, torchsde: 3 * 10}  # evaluations in a trial step of srk: one full and two half steps


def compared(
    package: Any, problem: Spiral, y0: Tensor, tolerance: float, backward: bool, seed: int
) -> tuple[float, int, int]:
    """The same for a package's `sdeint` with srk."""
    counted = Counted(problem)
    ts = torch.tensor([0.0, 1.0], dtype=y0.dtype)
    torch.manual_seed(seed)
    began = time.process_time()
    ys = package.sdeint(
        counted, y0, ts, method="srk", adaptive=True, rtol=tolerance, atol=tolerance, dt=1e-2, dt_min=1e-6
    )
    if backward:
        torch.autograd.backward(ys[-1].square().mean())
    seconds = time.process_time() - began
    return seconds, counted.calls // DRIFTS[package], counted.calls


def per_step(repeats: int = 3) -> list[dict[str, object]]:
    """Milliseconds per trial step with default noise, the fastest of some runs, at about equal step sizes.

    sosri is that of `solve`, srk that of both packages' `sdeint`, which compare a step with two of half its size.
    """
    rows: list[dict[str, object]] = []
    tolerances = {Spiral: (0.01, 1e-3), Digits: (0.1, 3e-3)}
    for kind, dtype in itertools.product(tolerances, (torch.float32, torch.float64)):
        ours_tolerance, theirs_tolerance = tolerances[kind]
        torch.manual_seed(0)
        problem = kind().to(dtype)
        y0 = torch.randn(kind.start, dtype=torch.float64).to(dtype)
        for mode, backward in (("forward", False), ("forward + backward", True)):
            runs: dict[str, list[tuple[float, int, int]]] = {"sosri": [], "srk": [], "torchsde": []}
            with torch.set_grad_enabled(backward):
                for seed in range(repeats):  # in turns, so that all meet the same load
                    runs["sosri"].append(ours(problem, y0, ours_tolerance, backward, seed))
                    runs["srk"].append(compared(regnde, problem, y0, theirs_tolerance, backward, seed))
                    runs["torchsde"].append(compared(torchsde, problem, y0, theirs_tolerance, backward, seed))
            sosri, srk, other = (min(results, key=_per_step) for results in runs.values())
            rows.append(
                {
                    "problem": kind.__name__,
                    "dtype": str(dtype).removeprefix("torch."),
                    "mode": mode,
                    "sosri: steps": sosri[1],
                    "ms/step": round(1e3 * _per_step(sosri), 3),
                    "srk: steps": srk[1],
                    "srk ms/step": round(1e3 * _per_step(srk), 3),
                    "torchsde srk: steps": other[1],
                    "torchsde ms/step": round(1e3 * _per_step(other), 3),
                    "ratio, sosri": round(_per_step(sosri) / _per_step(other), 3),
                    "ratio, srk": round(_per_step(srk) / _per_step(other), 3),
                }
            )
    return rows


def _per_step(result: tuple[float, int, int]) -> float:
    return result[0] / result[1]


METHODS = {
    "ito": ("euler", "milstein", "srk"),
    "stratonovich": ("heun", "midpoint", "euler_heun", "milstein", "reversible_heun"),
}
STEPS = (20, 200)


def fixed_steps(repeats: int = 5) -> list[dict[str, object]]:
    """Microseconds a step of both packages' `sdeint` with default noise, float32, without a graph: the medians.

    A solve's set-up is counted with its steps. "fields" is the time of the drift's and the diffusion's evaluations in a
    step, which both packages make, as many of each.
    """
    rows: list[dict[str, object]] = []
    for kind in (Spiral, Digits):
        for calculus, methods in METHODS.items():
            torch.manual_seed(0)
            problem = kind()
            problem.sde_type = calculus  # type: ignore[misc]  # this instance's
            y0 = torch.randn(kind.start)
            for method in methods:
                row: dict[str, object] = {"problem": kind.__name__, "calculus": calculus, "method": method}
                for steps in STEPS:
                    run = functools.partial(_sdeint, problem, y0, method, steps)
                    seconds = race({"a": lambda: run(regnde), "b": lambda: run(torchsde)}, repeats)  # noqa: B023
                    a, b = (1e6 * seconds[name] / steps for name in "ab")
                    row |= {f"regnde, {steps} steps": round(a), f"torchsde, {steps}": round(b)}
                    row[f"ratio, {steps}"] = f"{a / b:.2f}"
                row["fields"] = round(1e6 * _fields(problem, y0, method))
                rows.append(row)
    return rows


@torch.no_grad()
def _sdeint(problem: Spiral, y0: Tensor, method: str, steps: int, package: Any) -> None:
    package.sdeint(problem, y0, torch.tensor([0.0, 1.0]), method=method, dt=1 / steps)


@torch.no_grad()
def _fields(problem: Spiral, y0: Tensor, method: str, steps: int = 20) -> float:
    """Seconds of the evaluations of drift and diffusion in a step."""
    counted = Counted(problem)
    counted.sde_type = problem.sde_type  # type: ignore[misc]  # this instance's
    regnde.sdeint(counted, y0, [0.0, 1.0], method=method, dt=1 / steps)
    time_now, drifts, diffusions = torch.zeros(()), counted.calls / steps, counted.diffusions / steps

    def seconds(f: Callable[[Tensor, Tensor], Tensor]) -> float:
        return race({"f": lambda: [f(time_now, y0) for _ in range(steps)]}, 5)["f"] / steps

    return drifts * seconds(problem.f) + diffusions * seconds(problem.g)
