"""Rules for the weight of a penalty, on a small classifier: a fixed weight, `Balance`, `LossBudget`, `cheapen`.

python examples/weights.py [--quick]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import regnde

SOLVER = regnde.Solver(rtol=1e-6, atol=1e-6)
Compute = Callable[[Tensor], tuple[Tensor, regnde.Solution]]


def data() -> tuple[Tensor, Tensor]:
    """Points and their class, an exclusive or of two signs; six zeros are appended to a point."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, dtype=torch.float64)
    return functional.pad(x, (0, 6)), (x[:, 0] * x[:, 1] > 0).long()


def new_model(label: Tensor) -> tuple[Compute, torch.optim.Optimizer]:
    """What `fit` needs of a model: the function from a batch to loss and solution, and an optimiser."""
    torch.manual_seed(0)
    field, readout = regnde.nn.MLP([8, 32, 8]).double(), nn.Linear(8, 2).double()

    def compute(y0: Tensor) -> tuple[Tensor, regnde.Solution]:
        sol = regnde.solve(field, y0, [0.0, 1.0], SOLVER, record="all")
        return functional.cross_entropy(readout(sol.y1), label), sol

    return compute, torch.optim.Adam([*field.parameters(), *readout.parameters()], 3e-2)


def main(quick: bool = False) -> None:
    """Trains the model with each rule."""
    torch.set_num_threads(1)
    y0, label = data()
    short, long, longest = (4, 8, 8) if quick else (60, 300, 400)

    def train(name: str, weight: float | regnde.Balance | regnde.LossBudget, iterations: int) -> float:
        compute, adam = new_model(label)
        batches, penalty = itertools.repeat(y0, iterations), regnde.ErrorPenalty("mean")
        last = list(regnde.fit(compute, batches, adam, penalty=penalty, weight=weight))[-1]
        print(f"{name}, {iterations} iterations: loss {last.task:.4f}, {last.nfe} evaluations")
        return last.task

    loss = train("no penalty", 0.0, short)
    train("weight 30", 30.0, short)
    train("Balance 1.0", regnde.Balance(1.0), short)
    train("LossBudget", regnde.LossBudget(allowed=1.02 * loss), short)
    train("LossBudget", regnde.LossBudget(allowed=1.02 * loss), long)

    compute, adam = new_model(label)
    for _ in regnde.fit(compute, itertools.repeat(y0, short), adam):  # a trained model
        pass
    run = regnde.cheapen(compute, [y0], adam, iterations=longest)
    for _ in run:
        pass
    before, after = run.before, run.best
    print(f"before cheapen: loss {before.loss:.4f}, {before.nfe:.0f} evaluations, allowed {run.allowed:.4f}")
    print(f"after cheapen: loss {after.loss:.4f}, {after.nfe:.0f} evaluations")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few iterations, to see that it runs")
    main(parser.parse_args().quick)
