"""A classifier with a neural ODE layer, made cheap in two steps: a diagnosed solver, then `cheapen`.

python examples/classifier.py            (a minute)
python examples/classifier.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regnde
from regnde import LastStep, Solver
from regnde.nn import MLP, NeuralODE

Batch = tuple[Tensor, Tensor]


def spirals(count: int) -> Batch:
    """Points of two noisy spirals, shape (count, 2), and the spiral that each is from."""
    label = torch.randint(2, (count,))
    radius = torch.rand(count)
    angle = 6 * radius + torch.pi * label
    points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return points + 0.1 * torch.randn(count, 2), label


class Classifier(nn.Module):
    """Two numbers, eight numbers, an ODE, two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.readout = nn.Linear(2, 8), nn.Linear(8, 2)
        self.ode = NeuralODE(MLP([8, 32, 8]), solver=Solver(rtol=1e-5, atol=1e-5), output="state")

    def forward(self, points: Tensor) -> Tensor:
        """Logits."""
        return self.readout(self.ode(self.encoder(points)))


def main(iterations: int) -> None:
    """Trains, diagnoses, cheapens; prints the test loss and the evaluations of a solve after each."""
    torch.manual_seed(0)
    model, test = Classifier(), spirals(1000)

    def compute(batch: Batch) -> Tensor:
        points, label = batch
        return cross_entropy(model(points), label)

    def batches(count: int) -> Iterator[Batch]:
        return (spirals(128) for _ in range(count))

    for _ in regnde.fit(compute, batches(iterations), torch.optim.Adam(model.parameters(), 1e-2)):
        pass
    report("trained", model, test)

    points, label = test
    found = regnde.diagnose(
        model.ode.field,
        model.encoder(points).detach(),
        model.ode.ts,
        model.ode.solver,
        metric=lambda solution: cross_entropy(model.readout(solution.y1), label),
    )
    model.ode.solver = found.recommended
    report("diagnosed", model, test)

    model.ode.solver = Solver(method="bs3", rtol=0.1, atol=0.1, dt0=LastStep())
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in regnde.cheapen(compute, list(batches(40)), adam, iterations=iterations):
        pass  # stops by itself; the loss may grow by 2 %
    report("cheapened", model, test)


@torch.no_grad()
def report(name: str, model: Classifier, test: Batch) -> None:
    """One line: quality, cost and solver."""
    points, label = test
    with regnde.recording("none") as log:
        logits = model(points)
    loss, right = cross_entropy(logits, label), (logits.argmax(1) == label).double().mean()
    print(f"{name}: {model.ode.solver}: {log.nfe} evaluations, test loss {loss:.3f}, accuracy {right:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(100 if parser.parse_args().quick else 400)
