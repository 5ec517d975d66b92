"""A neural SDE is fitted to the mean and the variance of a process at 20 times.

python examples/neural_sde.py            (a minute)
python examples/neural_sde.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import regnde
from regnde import BrownianPath, Solver
from regnde.nn import MLP, NeuralSDE

TS = torch.linspace(0, 1, 20, dtype=torch.float64)
COUNT, START, RATE, NOISE = 200, 2.0, 1.5, 0.5


def moments() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the Ornstein-Uhlenbeck process dy = -RATE y dt + NOISE dW from START."""
    variance = NOISE**2 / (2 * RATE) * (1 - (-2 * RATE * TS).exp())
    return START * (-RATE * TS).exp(), variance.sqrt()


def loss_of(states: Tensor) -> Tensor:
    """Squared distance of the moments of states of shape (times, COUNT, 1) from those of the process."""
    mean, deviation = moments()
    found = states[1:].std((1, 2))  # at the first time all are equal
    return (states.mean((1, 2)) - mean).square().mean() + (found - deviation[1:]).square().mean()


def main(iterations: int) -> None:
    """Trains, then solves with three methods along one Brownian path."""
    torch.manual_seed(0)
    drift, diffusion = MLP([1, 16, 1]), MLP([1, 16, 1], output=torch.sigmoid)
    layer = NeuralSDE(drift, diffusion, ts=TS, solver=Solver(method="sriw1", rtol=1e-2, atol=1e-2))
    start = torch.full((COUNT, 1), START)  # all trajectories are one system; each entry has noise of its own

    def compute(_: int) -> Tensor:
        return loss_of(layer(start).ys)

    adam = torch.optim.Adam(layer.parameters(), 2e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in regnde.fit(compute, range(iterations), adam, scheduler=scheduler):
        pass

    mean, deviation = (x[-1] for x in moments())
    print(f"process: mean {mean:.3f}, standard deviation {deviation:.3f}")
    many = torch.full((2000, 1), START)
    path = BrownianPath(0.0, 1.0, many.shape, seed=1)  # a function of its seed: the same noise for every solve
    for method in ("sosri", "sriw1", "em"):
        layer.solver = (
            Solver(method=method, dt0=0.01) if method == "em" else Solver(method=method, rtol=1e-2, atol=1e-2)
        )
        with torch.no_grad():
            solution = layer.eval()(many, noise=path)
        states, stats = solution.y1, solution.stats
        print(
            f"{method}: mean {states.mean():.3f}, standard deviation {states.std():.3f}, {stats.accepted} steps, "
            f"{stats.nfe} evaluations of the drift, {stats.nfe_diffusion} of the diffusion"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(20 if parser.parse_args().quick else 200)
