"""A latent ODE of irregular series: damped oscillations, of which a third of the values is seen.

python examples/latent_ode.py            (a minute)
python examples/latent_ode.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import regnde
from regnde import LastStep, Solver
from regnde.nn import MLP, BackwardGRU, LatentODE, Reconstruction

TS = torch.linspace(0, 1, 30, dtype=torch.float64)


def series(count: int) -> tuple[Tensor, Tensor]:
    """Values, shape (count, times, 3), and a mask of that shape which is 1 where a value is observed."""
    phase = 2 * torch.pi * torch.rand(count, 1, 3)
    values = (-TS[:, None]).exp() * (4 * TS[:, None] + phase).cos()
    values = values.to(torch.get_default_dtype()) + 0.05 * torch.randn(count, len(TS), 3)
    return values, (torch.rand(count, len(TS), 3) < 0.3).to(values)


def loss_of(made: Reconstruction, values: Tensor, mask: Tensor) -> Tensor:
    """Squared error where observed, and the divergence of the latent state's distribution."""
    error = ((made.values - values).square() * mask).sum() / mask.sum()
    return error + 1e-4 * made.kl().mean()


def main(iterations: int) -> None:
    """Trains, then cheapens; prints what the model does with new series after each."""
    torch.manual_seed(0)
    model = LatentODE(
        BackwardGRU(3, latent=6, hidden=16),
        MLP([6, 32, 6], time=False),
        nn.Linear(6, 3),
        solver=Solver(method="tsit5", rtol=1e-4, atol=1e-4),
        record="all",  # in training mode
    )
    values, mask = series(1000)

    def compute(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, regnde.Solution]:
        made = model(*batch, TS)
        return loss_of(made, *batch), made.solution

    batches = list(zip(values.split(100), mask.split(100), strict=True))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, iterations)
    for _ in regnde.fit(compute, batches * (iterations // 10), adam, scheduler=scheduler):
        pass
    report("trained", model)

    model.solver = Solver(method="bs3", rtol=1e-2, atol=1e-2, dt0=LastStep())
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in regnde.cheapen(compute, batches, adam, iterations=iterations):
        pass  # stops by itself; the loss may grow by 2 %
    report("cheapened", model)


@torch.no_grad()
def report(name: str, model: LatentODE) -> None:
    """Reconstructs new series, and compares with the values that were hidden from the model."""
    torch.manual_seed(1)
    values, mask = series(500)
    made = model(values, mask, TS, sample=False)
    error = ((made.values - values).square() * (1 - mask)).sum() / (1 - mask).sum()
    print(f"{name}: {made.solution.stats.nfe} evaluations, mean squared error of hidden values {error:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(20 if parser.parse_args().quick else 1000)
