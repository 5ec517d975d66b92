"""A continuous normalising flow learns the density of points on a ring, and draws samples from it.

python examples/cnf.py            (a minute)
python examples/cnf.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import regnde
from regnde import Solver
from regnde.nn import CNF, MLP


def ring(count: int) -> Tensor:
    """Points near a circle of radius 2, shape (count, 2)."""
    angle = 2 * torch.pi * torch.rand(count, 1)
    return 2 * torch.cat([angle.cos(), angle.sin()], 1) + 0.3 * torch.randn(count, 2)


def main(iterations: int) -> None:
    """Trains without and with a penalty; prints the likelihood of new points, the cost, and where samples lie."""
    for name, penalty in (("without a penalty", None), ("with a penalty", regnde.ErrorPenalty("mean"))):
        torch.manual_seed(0)
        flow = CNF(MLP([2, 32, 32, 2]), event=2, solver=Solver(rtol=1e-4, atol=1e-4), record="all")
        adam = torch.optim.Adam(flow.parameters(), 1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
        batches = (ring(256) for _ in range(iterations))

        def compute(points: Tensor, flow: CNF = flow) -> tuple[Tensor, regnde.Solution]:
            density = flow(points)
            return -density.log_prob.mean(), density.solution

        weight = regnde.Balance(0.1)
        for _ in regnde.fit(compute, batches, adam, penalty=penalty, weight=weight, scheduler=scheduler):
            pass
        flow.eval()
        with torch.no_grad():
            density, samples = flow(ring(2000)), flow.sample(2000)
        print(
            f"{name}: {density.solution.stats.nfe} evaluations, {-density.log_prob.mean():.3f} nats a point, "
            f"mean radius of samples {samples.norm(dim=1).mean():.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(40 if parser.parse_args().quick else 400)
