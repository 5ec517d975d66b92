"""A neural CDE tells whether a point turns clockwise, from few values at irregular times with gaps.

python examples/neural_cde.py            (a minute)
python examples/neural_cde.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import regnde
from regnde import Solver
from regnde.nn import LinearPath, NeuralCDE


class Field(nn.Module):
    """Maps hidden states, shape (batch, hidden), to matrices, shape (batch, hidden, channels)."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, 32), nn.SiLU(), nn.Linear(32, hidden * channels), nn.Tanh())
        self.shape = (hidden, channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The matrix that multiplies dX."""
        return self.layers(z).unflatten(-1, self.shape)


def turns(count: int) -> tuple[Tensor, Tensor]:
    """Time and two coordinates, shape (count, 20, 3), with NaN where a value is missing; and +1 or -1."""
    ts = torch.sort(torch.rand(count, 20))[0]  # other times in each sample: so the time is a channel
    turn = torch.where(torch.rand(count, 1) < 0.5, -1.0, 1.0)
    values = torch.stack([ts, (6 * ts).cos(), turn * (6 * ts).sin()], -1)
    values[..., 1:] += 0.8 * torch.randn(count, 20, 2)
    values[..., 1:][torch.rand(count, 20, 2) < 0.3] = float("nan")
    return values, turn


def main(iterations: int) -> None:
    """Trains at two tolerances; prints the accuracy on new series and the evaluations of a solve."""
    for tolerance in (1e-4, 1e-1):
        torch.manual_seed(0)
        solver = Solver(method="bs3", rtol=tolerance, atol=tolerance)
        cde = NeuralCDE(Field(8, 3), initial=nn.Linear(3, 8), solver=solver, path=LinearPath, output="state")
        model = nn.Sequential(cde, nn.Linear(8, 1))

        def compute(batch: tuple[Tensor, Tensor], model: nn.Module = model) -> Tensor:
            values, turn = batch
            return nn.functional.soft_margin_loss(model(values), turn)

        batches = (turns(64) for _ in range(iterations))
        for _ in regnde.fit(compute, batches, torch.optim.Adam(model.parameters(), 1e-2)):
            pass
        values, turn = turns(1000)
        with torch.no_grad(), regnde.recording("none") as log:
            right = (model.eval()(values) * turn > 0).double().mean()
        print(f"tolerance {tolerance:g}: accuracy {right:.1%}, {log.nfe} evaluations between 20 knots")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(20 if parser.parse_args().quick else 200)
