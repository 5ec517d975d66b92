"""A generator of series like that of an SDE-GAN (Stratonovich, general noise), made cheaper within a budget.

    python examples/sde_generator.py            # a few minutes on one core
    python examples/sde_generator.py --quick    # seconds

The generator is that of Kidger et al., "Neural SDEs as infinite-dimensional GANs" (ICML 2021): an initial value from
noise, drift and diffusion matrix by networks that are bounded by tanh, a linear readout. In the place of their
discriminator stands the energy distance between series and generated series (G. J. Szekely, M. L. Rizzo 2013), a loss
that has a value to hold: a `LossBudget` needs one.

Prints a Markdown table: the loss after training on fresh noise and series, evaluations of drift and diffusion together
in a solve, seconds of processor time. All rows have the same data, initial weights and learning rates.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import regnde
from regnde import SDE, ErrorPenalty, LossBudget, Solver

STATE, NOISES, HIDDEN = 8, 3, 16


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    batch: int
    times: int
    iterations: int


FULL = Settings(batch=128, times=9, iterations=150)
QUICK = Settings(batch=32, times=4, iterations=4)


def series(batch: int, ts: Tensor) -> Tensor:
    """An Ornstein-Uhlenbeck process with a moving mean, shape (batch, times)."""
    sde = SDE(lambda t, y: 0.6 * t - 1.5 * y, lambda t, y: 0.4 + 0 * y)
    start = 2 * torch.rand(batch, 1) - 1
    return regnde.solve(sde, start, ts, Solver(method="em", dt0=0.02, engine="torch")).ys.squeeze(-1).T


class Generator(nn.Module):
    """Series from noise.

    Args:
        solver: of the SDE.
    """

    def __init__(self, solver: Solver) -> None:
        super().__init__()
        self.initial = nn.Linear(NOISES, STATE)
        self.drift = self._net(STATE)
        self.diffusion = self._net(STATE * NOISES)
        self.readout = nn.Linear(STATE, 1)
        self.solver = solver

    def _net(self, out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(1 + STATE, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, out), nn.Tanh())

    def forward(self, batch: int, ts: Tensor) -> tuple[Tensor, regnde.Solution]:
        """The series, shape (batch, times), and the solution that they come from."""

        def at(t: Tensor, y: Tensor) -> Tensor:
            return torch.cat([t.expand(len(y), 1), y], 1)

        sde = SDE(
            lambda t, y: self.drift(at(t, y)),
            lambda t, y: self.diffusion(at(t, y)).reshape(len(y), STATE, NOISES),
            noise="general",
            calculus="stratonovich",
        )
        start = self.initial(torch.randn(batch, NOISES))
        solution = regnde.solve(sde, start, ts, self.solver, record="all")
        return self.readout(solution.ys).squeeze(-1).T, solution


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of two sets of series, without bias; zero if their laws are the same."""
    of_x, of_y = len(x) * (len(x) - 1), len(y) * (len(y) - 1)
    root = x.shape[1] ** 0.5
    return (2 * torch.cdist(x, y).mean() - torch.pdist(x).sum() * 2 / of_x - torch.pdist(y).sum() * 2 / of_y) / root


def train(
    name: str, solver: Solver, settings: Settings, budget: float | None = None
) -> tuple[dict[str, object], float]:
    """Trains, and returns the row of the table and the final loss."""
    torch.manual_seed(1)
    made, ts = Generator(solver), torch.linspace(0, 2, settings.times)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / settings.iterations))
    rule, penalty = None if budget is None else LossBudget(budget), ErrorPenalty("mean")
    begin = time.process_time()
    for _ in range(settings.iterations):
        optimizer.zero_grad()
        values, solution = made(settings.batch, ts)
        loss = energy_distance(values, series(settings.batch, ts))
        if rule is not None:
            cost = penalty(solution)
            loss = loss + rule.update(loss, cost, list(made.parameters())) * cost
        loss.backward()
        optimizer.step()
        scheduler.step()
    seconds = time.process_time() - begin
    losses, evaluations = [], []
    torch.manual_seed(2)
    with torch.no_grad():
        for _ in range(20):
            values, solution = made(settings.batch, ts)
            losses.append(float(energy_distance(values, series(settings.batch, ts))))
            evaluations.append(solution.stats.nfe + solution.stats.nfe_diffusion)
    final = torch.tensor(losses)
    row = {
        "run": name,
        "loss": f"{final.mean():.4f}",
        "its standard error": f"{final.std() / len(losses) ** 0.5:.4f}",
        "evaluations": f"{sum(evaluations) / len(evaluations):.0f}",
        "s": f"{seconds:.0f}",
    }
    return row, float(final.mean())


def main() -> None:
    """Runs all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few iterations: whether it runs")
    settings = QUICK if parser.parse_args().quick else FULL
    torch.set_num_threads(1)
    fixed = Solver(method="midpoint", dt0=2 / (settings.times - 1) / 2, engine="torch")
    adaptive = Solver(rtol=0.05, atol=0.05, engine="torch")
    rows = [train("midpoint, fixed steps", fixed, settings)[0]]
    row, plain = train("lambaeulerheun, adaptive", adaptive, settings)
    rows.append(row)
    rows.append(train("adaptive, ERNSDE, budget 5 %", adaptive, settings, plain + 0.05 * abs(plain))[0])
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
