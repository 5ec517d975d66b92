"""Time of one accepted SDE step against torchsde (srk, adaptive), on the same problems in one run.

Run: PYTHONPATH=python python benchmarks/sde_step.py
"""

from __future__ import annotations

import argparse
import time

import torch
import torchsde
from torch import Tensor, nn

import regnde


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
    """A problem that counts the calls of its drift."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: Spiral) -> None:
        super().__init__()
        self.problem = problem
        self.calls = 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        self.calls += 1
        return self.problem.f(t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion."""
        return self.problem.g(t, y)


def ours(problem: Spiral, y0: Tensor, tolerance: float, backward: bool, seed: int) -> tuple[float, int, int]:
    """Seconds, trial steps and drift evaluations."""
    solver = regnde.Solver(method="sosri", rtol=tolerance, atol=tolerance, engine="torch")
    began = time.perf_counter()
    noise = regnde.BrownianPath(0.0, 1.0, y0.shape, seed=seed)
    sol = regnde.solve(regnde.SDE(problem.f, problem.g), y0, [0.0, 1.0], solver, noise=noise)
    if backward:
        torch.autograd.backward(sol.y1.square().mean())
    return time.perf_counter() - began, sol.stats.accepted + sol.stats.rejected, sol.stats.nfe


def theirs(problem: Spiral, y0: Tensor, tolerance: float, backward: bool, seed: int) -> tuple[float, int, int]:
    """The same for torchsde, whose trial step is one full and two half steps of ten drift evaluations."""
    counted = Counted(problem)
    ts = torch.tensor([0.0, 1.0], dtype=y0.dtype)
    began = time.perf_counter()
    noise = torchsde.BrownianInterval(
        0.0, 1.0, size=tuple(y0.shape), dtype=y0.dtype, entropy=seed, levy_area_approximation="space-time"
    )
    ys = torchsde.sdeint(
        counted, y0, ts, bm=noise, method="srk", adaptive=True, rtol=tolerance, atol=tolerance, dt=1e-2, dt_min=1e-6
    )
    if backward:
        torch.autograd.backward(ys[-1].square().mean())
    seconds = time.perf_counter() - began
    return seconds, counted.calls // 30, counted.calls


def main() -> None:
    """Prints a table of milliseconds per trial step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the fastest counts")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print("| problem | mode | regnde: steps | ms/step | torchsde: steps | ms/step | ratio |")
    print("|---|---|---|---|---|---|---|")
    for kind, ours_tolerance, theirs_tolerance in ((Spiral, 0.02, 1e-3), (Digits, 0.1, 3e-3)):
        torch.manual_seed(0)
        problem = kind().double()
        y0 = torch.randn(kind.start, dtype=torch.float64)
        for mode, backward in (("forward", False), ("forward + backward", True)):
            with torch.set_grad_enabled(backward):
                a = min((ours(problem, y0, ours_tolerance, backward, s) for s in range(repeats)), key=_per_step)
                b = min((theirs(problem, y0, theirs_tolerance, backward, s) for s in range(repeats)), key=_per_step)
            ratio = _per_step(a) / _per_step(b)
            print(
                f"| {kind.__name__} | {mode} | {a[1]} | {1e3 * _per_step(a):.3f} "
                f"| {b[1]} | {1e3 * _per_step(b):.3f} | {ratio:.2f} |"
            )


def _per_step(result: tuple[float, int, int]) -> float:
    return result[0] / result[1]


if __name__ == "__main__":
    main()
