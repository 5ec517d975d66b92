"""Fixed steps against adaptive ones at equal error: the demo's classifier of MNIST images, and the papers' spiral.

For each problem `regnde.fixed_grid` chooses steps on some samples. On others each row tells the evaluations of a solve,
its processor time, and the error that 95 % and 100 % of the samples do not exceed, in units of the tolerance. The row
"adaptive, equal error" is the cheapest adaptive solve, over methods and tolerances, with which 95 % of these samples
are within the tolerance: it is searched on the very samples that it is measured on, which a user can not do. "Beyond"
is the share of the samples that `FixedGrid.beyond` tells.

Run: python examples/fixed_grid.py            (trains the classifier: about three minutes on one core)
     python examples/fixed_grid.py --quick    (a few iterations: some seconds, other numbers)
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde
from regnde import Solver, fixed_grid
from regnde._demo import Settings, load_data, train

TOLERANCE, SHARE = 1e-3, 0.95
ADAPTIVE = ("heun", "bs3", "tsit5", "dp5", "vern7")
METHODS = (*ADAPTIVE, "euler", "midpoint", "rk4")
TIMED = 11  # solves, of which the median is told
TIGHTENED = 10 ** (1 / 4)  # from one tolerance that is tried to the next
TRIED = 21


@dataclass(frozen=True)
class Problem:
    """A field with samples to choose on, others to measure on, and a sentence about the states at the end."""

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    ts: tuple[float, float]
    chosen_on: Tensor
    others: Tensor
    judged: Callable[[Tensor], str] = lambda states: ""


def mnist(quick: bool) -> Problem:
    """The images are initial states of 196 entries; a linear layer reads the digits off the final ones."""
    data = load_data()
    settings = Settings(iterations=3 if quick else 300, tolerance=1e-4, engine="torch")
    model = train("vanilla", 0, data, settings, Solver(rtol=1e-4, atol=1e-4, engine="torch")).model
    count = 50 if quick else 500

    def accuracy(states: Tensor) -> str:
        right = model.readout(states).argmax(1) == data.test_y[: len(states)]
        return f"accuracy {100 * float(right.double().mean()):.1f} %"

    return Problem(
        "classifier of MNIST images", model.ode.field, (0.0, 1.0), data.train_x[:count], data.test_x[:count], accuracy
    )


def spiral(quick: bool) -> Problem:
    """The spiral du/dt = A u^3 of the papers from states around (2, 0)."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    start = torch.tensor([2.0, 0.0], dtype=torch.float64)
    count = 50 if quick else 500
    generator = torch.Generator().manual_seed(0)
    states = start + 0.2 * torch.randn(2 * count, 2, dtype=torch.float64, generator=generator)
    return Problem("spiral", lambda t, u: u**3 @ matrix.T, (0.0, 1.0), states[:count], states[count:])


def errors(y1: Tensor, reference: Tensor) -> Tensor:
    """Error of each sample in units of the tolerance, as `regnde.GridReport` has it."""
    ratios = (y1 - reference).abs() / (TOLERANCE + TOLERANCE * reference.abs())
    return ratios.square().mean(1).sqrt()


def timed(solve: Callable[[], object]) -> float:
    """Median processor time in milliseconds."""
    taken = []
    for _ in range(TIMED):
        began = time.process_time()
        solve()
        taken.append(1e3 * (time.process_time() - began))
    return statistics.median(taken)


def equal_error(problem: Problem, reference: Tensor) -> Solver:
    """The adaptive solver of the fewest evaluations with which enough samples are within the tolerance."""
    found = []
    for method in ADAPTIVE:
        for finer in range(TRIED):
            tolerance = 100 * TOLERANCE / TIGHTENED**finer
            solver = Solver(method=method, rtol=tolerance, atol=tolerance, engine="torch")
            solution = regnde.solve(problem.field, problem.others, problem.ts, solver, throw=False)
            if solution.status == "success" and float((errors(solution.y1, reference) <= 1).double().mean()) >= SHARE:
                found.append((solution.stats.nfe, method, solver))
                break  # tighter ones take more
    return min(found, key=lambda each: each[:2])[2]


@torch.no_grad()
def rows(problem: Problem) -> Iterator[str]:
    """The table's lines."""
    fine = Solver(method="vern7", rtol=1e-4 * TOLERANCE, atol=1e-4 * TOLERANCE, engine="torch")
    reference = regnde.solve(problem.field, problem.others, problem.ts, fine).y1
    usual = Solver(rtol=TOLERANCE, atol=TOLERANCE, engine="torch")
    cheapest = equal_error(problem, reference)
    grids = {
        "fixed grid": fixed_grid(problem.field, problem.chosen_on, problem.ts, usual, share=SHARE),
        "fixed grid, any method": fixed_grid(
            problem.field, problem.chosen_on, problem.ts, usual, share=SHARE, methods=METHODS
        ),
    }
    yield f"{'':24}  {'':26}  evaluations     ms   95 %  100 %"
    for name, solver in (("adaptive", usual), ("adaptive, equal error", cheapest)):
        solution = regnde.solve(problem.field, problem.others, problem.ts, solver)
        took = timed(lambda s=solver: regnde.solve(problem.field, problem.others, problem.ts, s))
        method = f"{solution.solver.method} at {solution.solver.rtol:.2g}"
        yield row(name, method, solution.stats.nfe, took, errors(solution.y1, reference), problem.judged(solution.y1))
    for name, grid in grids.items():
        y1, took = grid(problem.others), timed(lambda g=grid: g(problem.others))
        method = f"{grid.tableau.name}, {len(grid.ends) - 1} {grid.report.chosen.spacing} steps"
        beyond = f"beyond {100 * float(grid.beyond(problem.others).double().mean()):.1f} %"
        said = ", ".join(filter(None, (problem.judged(y1), beyond)))
        yield row(name, method, grid.nfe, took, errors(y1, reference), said)


def row(name: str, method: str, nfe: int, milliseconds: float, found: Tensor, said: str) -> str:
    """One line: errors at SHARE and of all samples."""
    share = float(found.sort().values[-(-len(found) * 95 // 100) - 1])
    line = f"{name:24}  {method:26}  {nfe:11}  {milliseconds:5.1f}  {share:5.2f}  {float(found.max()):5.2f}"
    return f"{line}  {said}".rstrip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for each problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training and few samples")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for make in (mnist, spiral):
        problem = make(options.quick)
        print(
            f"{problem.name}: steps chosen on {len(problem.chosen_on)} samples, errors of {len(problem.others)} "
            f"others, tolerance {TOLERANCE:g}, share {SHARE:g}"
        )
        for line in rows(problem):
            print(line)
        print()


if __name__ == "__main__":
    main()
