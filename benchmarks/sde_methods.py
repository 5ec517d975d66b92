"""Evaluations at equal error: the methods for SDEs on a handful of problems, each along one path.

Run: PYTHONPATH=python python benchmarks/sde_methods.py

The error is the root mean square of the state's error at the end time over 64 samples, relative to the root mean
square of the solution. Methods are run at tolerances (or step sizes) that fall by factors of 2; the evaluations of both
functions together at two errors are interpolated between runs. "< n": the loosest run is better, with n evaluations.
"> n": not reached within 6,000 steps or n evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regnde import SDE, BrownianPath, Solver, solve
from regnde._sde_method import SDE_METHODS, fits

__all__ = ["evaluations"]

SAMPLES, FINEST, MOST = 64, 12, 6000
ERRORS = (0.03, 0.01)
Exact = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """An equation with the method of its reference, or its solution at t = 1 from the initial state and W(1)."""

    name: str
    sde: SDE
    y0: Tensor
    reference: str | Exact


def _problems() -> list[Problem]:
    full = lambda *shape: torch.full((SAMPLES, *shape), 0.5, dtype=torch.float64)  # noqa: E731 - one line reads best
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double().requires_grad_(False)
    mix = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]], dtype=torch.float64)
    turn = torch.tensor([[[0.3, 0.4], [-0.2, 0.1]], [[0.1, -0.5], [0.3, 0.2]]], dtype=torch.float64)

    def crossed(t: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("mij,bj->bim", turn, y)

    def spiral(t: Tensor, y: Tensor) -> Tensor:
        cube = y**3
        return torch.stack([-0.1 * cube[:, 0] + 2 * cube[:, 1], -2 * cube[:, 0] - 0.1 * cube[:, 1]], 1)

    ito, stratonovich = "ito", "stratonovich"
    return [
        Problem("geometric", SDE(lambda t, y: 0.4 * y, lambda t, y: 0.5 * y), full(), _grown),
        Problem("Ornstein-Uhlenbeck", SDE(lambda t, y: 3 * (0.7 - y), lambda t, y: 0.4 + 0 * y), full(), "sosra"),
        Problem("spiral", SDE(spiral, lambda t, y: 0.2 * y), 2 * full(2), "sriw1"),
        Problem("network", SDE(lambda t, y: 3 * net(y), lambda t, y: 0.3 * torch.cos(y)), full(2), "sriw1"),
        Problem(
            "sine", SDE(lambda t, y: -y, lambda t, y: 0.6 * torch.sin(y), calculus=stratonovich), full(), "milstein"
        ),
        Problem(
            "rotation",
            SDE(lambda t, y: 0 * y, lambda t, y: torch.stack([-y[:, 1], y[:, 0]], 1), "scalar", stratonovich),
            full(2),
            _turned,
        ),
        Problem(
            "network, matrix",
            SDE(lambda t, y: 3 * net(y), lambda t, y: mix.expand(len(y), 2, 3), "additive"),
            full(2),
            "sosra",
        ),
        Problem("crossed", SDE(lambda t, y: -y, crossed, "general", ito), full(2), "em"),
        Problem("crossed", SDE(lambda t, y: -y, crossed, "general", stratonovich), full(2), "heun"),
    ]


def _grown(y0: Tensor, w: Tensor) -> Tensor:
    return y0 * torch.exp(0.275 + 0.5 * w)


def _turned(y0: Tensor, w: Tensor) -> Tensor:
    cos, sin = torch.cos(w[:, 0]), torch.sin(w[:, 0])
    return torch.stack([cos * y0[:, 0] - sin * y0[:, 1], sin * y0[:, 0] + cos * y0[:, 1]], 1)


def _runs(problem: Problem, method: str, path: BrownianPath, exact: Tensor) -> Iterator[tuple[float, int]]:
    """Relative error and evaluations of ever finer runs."""
    size = float(exact.square().mean().sqrt())
    for level in range(1, 16):
        adaptive = SDE_METHODS[method].adaptive
        fine = 2.0**-level
        options = {"rtol": fine, "atol": fine} if adaptive else {"dt0": fine}
        solver = Solver(method=method, engine="torch", max_steps=MOST, **options)
        sol = solve(problem.sde, problem.y0, [0.0, 1.0], solver, noise=path, throw=False)
        if sol.status != "success":
            return
        error = float((sol.y1 - exact).square().mean().sqrt()) / size
        yield error, sol.stats.nfe + sol.stats.nfe_diffusion
        if error < min(ERRORS) / 2 or sol.stats.accepted > MOST // 2:
            return


def _at(error: float, runs: list[tuple[float, int]]) -> str:
    """Evaluations at an error, interpolated between the last run above it and the first of the runs below it."""
    for i, (found, count) in enumerate(runs):
        if all(later <= error for later, _ in runs[i:]):
            if i == 0:
                return f"< {count}"
            above, before = runs[i - 1]
            share = math.log(above / error) / math.log(above / found) if found < above else 1.0
            return str(round(math.exp(math.log(before) + share * (math.log(count) - math.log(before)))))
    return f"> {runs[-1][1]}" if runs else "-"


@torch.no_grad()
def evaluations() -> list[dict[str, object]]:
    """A row for each problem, kind and error: evaluations of drift and diffusion together, by method."""
    rows = []
    for problem in _problems():
        sde, y0 = problem.sde, problem.y0
        columns = sde.diffusion(torch.tensor(0.0), y0).shape[-1] if sde.has_matrix else 1
        path = BrownianPath(0.0, 1.0, sde.path_shape(y0.shape, columns), seed=1)
        if isinstance(problem.reference, str):
            method, fine = problem.reference, 2.0**-FINEST
            limited = {"rtol": 1e9, "atol": 1e9, "dt_max": fine} if SDE_METHODS[method].adaptive else {}
            exact = solve(
                sde, y0, [0.0, 1.0], Solver(method=method, dt0=fine, engine="torch", **limited), noise=path
            ).y1
        else:
            exact = problem.reference(y0, path(1.0))
        depends = bool((sde.diffusion(torch.tensor(0.0), y0) - sde.diffusion(torch.tensor(0.0), y0 + 0.1)).any())
        names = [name for name in SDE_METHODS if fits(name, sde) and not (name == "sosra" and depends)]
        names = [name for name in names if name != "eulerheun"]  # the steps of heun
        runs = {name: list(_runs(problem, name, path, exact)) for name in names}
        for error in ERRORS:
            kind = f"{sde.calculus}, {sde.noise}"
            found = {name: _at(error, runs[name]) for name in names}
            rows.append({"problem": problem.name, "kind": kind, "error": error, **found})
    return rows


TABLES = {
    "Ito SDEs with diagonal or general noise": "ito",
    "Stratonovich SDEs": "stratonovich",
    "Additive noise": "additive",  # both calculi have the same methods
}


def main() -> None:
    """Prints a table for each kind of equation, with a column for each method that solves one of them."""
    torch.set_num_threads(1)
    rows = evaluations()
    for title, group in TABLES.items():
        chosen = [row for row in rows if _group(str(row["kind"])) == group]
        names = ["problem", "noise", "error", *(name for name in SDE_METHODS if any(name in row for row in chosen))]
        print(f"\n{title}:\n\n| {' | '.join(names)} |\n|---|---|{'--:|' * (len(names) - 2)}")
        for row in chosen:
            cells = {**row, "noise": str(row["kind"]).split(", ")[1]}
            print(f"| {' | '.join(str(cells.get(name, '')) for name in names)} |")


def _group(kind: str) -> str:
    """The group of TABLES to which a kind such as "ito, diagonal" belongs."""
    calculus, noise = kind.split(", ")
    return noise if noise == "additive" else calculus


if __name__ == "__main__":
    main()
