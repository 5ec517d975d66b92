"""A latent SDE on the stochastic Lorenz attractor: torchsde's own loop beside ours, and ERNSDE within a budget.

    python examples/latent_sde.py            # a few minutes on one core
    python examples/latent_sde.py --quick    # seconds

Prints a Markdown table: the loss after training (negative evidence bound, mean over fresh noise), evaluations of drift
and diffusion together in a forward solve, seconds of processor time. All rows have the same series, initial weights and
learning rates. The first two differ in the package that solves, along noise of their own.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import regnde
from regnde import SDE, ErrorPenalty, LossBudget, Solver
from regnde.nn import ContextGRU, LatentSDE

LATENT, CONTEXT, HIDDEN, NOISE = 4, 16, 32, 0.1
CHECKS = 2  # evaluations in which torchsde looks at the shapes


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment."""

    batch: int
    times: int
    iterations: int
    more: int  # iterations of the longer runs


FULL = Settings(batch=32, times=11, iterations=100, more=150)
QUICK = Settings(batch=8, times=6, iterations=6, more=6)


def lorenz(batch: int, times: Tensor) -> Tensor:
    """Normalised noisy series of the stochastic Lorenz system, shape (batch, times, 3)."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(1)
        return torch.stack([10 * (b - a), 28 * a - b - a * c, a * b - 8 / 3 * c], 1)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return y * torch.tensor([0.1, 0.28, 0.3])

    solver = Solver(method="em", dt0=1e-3, engine="torch")
    ys = regnde.solve(SDE(drift, diffusion), torch.randn(batch, 3), times, solver).ys.transpose(0, 1)
    ys = (ys - ys.mean((0, 1))) / ys.std((0, 1))
    return ys + 0.01 * torch.randn_like(ys)


class Drift(nn.Module):
    """The posterior's drift, which reads the context, or the prior's, which has none."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(LATENT + context, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, LATENT))

    def forward(self, t: Tensor, z: Tensor, *context: Tensor) -> Tensor:
        """f(t, z, context) or h(t, z)."""
        return self.net(torch.cat((z, *context), 1))


class Diffusion(nn.Module):
    """A small network for each entry, away from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Parameter(torch.randn(LATENT, 8)), nn.Parameter(torch.randn(LATENT, 8) / 8)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """g(t, z)."""
        return 0.1 + torch.sigmoid((torch.tanh(z.unsqueeze(-1) * self.inner) * self.outer).sum(-1))


def model(solver: Solver, record: str) -> LatentSDE:
    """The same initial weights each time."""
    torch.manual_seed(1)
    encoder = ContextGRU(3, hidden=HIDDEN, context=CONTEXT, latent=LATENT)
    made = LatentSDE(
        encoder,
        Drift(CONTEXT),
        Drift(0),
        Diffusion(),
        nn.Linear(LATENT, 3),
        latent=LATENT,
        solver=solver,
        record="all" if record == "all" else "none",
    )
    torch.manual_seed(2)
    return made


def bound(made: LatentSDE, series: Tensor, values: Tensor, kl: Tensor, weight: float) -> Tensor:
    """Negative evidence bound of a series, mean over the batch, with a weight of the divergence."""
    of_each = -0.5 * ((series - values) / NOISE).square() - math.log(NOISE * math.sqrt(2 * math.pi))
    return -of_each.sum((1, 2)).mean() + weight * kl.mean()


class Objective:
    """torchsde's view of the model: an object with f, g and h."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self, made: LatentSDE, ts: Tensor, context: Tensor) -> None:
        self.made, self.ts, self.context = made, ts, context
        self.calls = 0

    def f(self, t: Tensor, z: Tensor) -> Tensor:
        """The posterior's drift."""
        self.calls += 1
        i = min(int(torch.searchsorted(self.ts, t, right=True)), len(self.ts) - 1)
        return self.made.posterior(t, z, self.context[i])

    def g(self, t: Tensor, z: Tensor) -> Tensor:
        """The diffusion."""
        return self.made.diffusion(t, z)

    def h(self, t: Tensor, z: Tensor) -> Tensor:
        """The prior's drift."""
        return self.made.prior(t, z)


Loss = Callable[[float], tuple[Tensor, int, regnde.Solution | None]]


def by_torchsde(made: LatentSDE, series: Tensor, ts: Tensor, dt: float) -> Loss:
    """The loss with torchsde's own solve, and its evaluations: as many of the drift as of the diffusion."""
    import torchsde

    def loss(weight: float) -> tuple[Tensor, int, None]:
        mean, log_variance, context = made.encoder(series, torch.ones_like(series), ts)
        start = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        sde = Objective(made, ts, context)
        zs, ratio = torchsde.sdeint(sde, start, ts, dt=dt, method="euler", logqp=True)
        gap = (mean - made.prior_mean).square() / made.prior_log_variance.exp()
        log_ratio = log_variance - made.prior_log_variance
        kl = 0.5 * (log_ratio.exp() + gap - 1 - log_ratio).sum(1) + ratio.sum(0)
        return bound(made, series, made.decoder(zs.transpose(0, 1)), kl, weight), 2 * (sde.calls - CHECKS), None

    return loss


def by_regnde(made: LatentSDE, series: Tensor, ts: Tensor) -> Loss:
    """The loss with ours."""

    def loss(weight: float) -> tuple[Tensor, int, regnde.Solution]:
        out = made(series, torch.ones_like(series), ts)
        stats = out.solution.stats
        value = bound(made, series, out.values, out.kl(), weight)
        return value, stats.nfe + stats.nfe_diffusion, out.solution

    return loss


def train(
    name: str, made: LatentSDE, loss: Loss, iterations: int, rule: LossBudget | None = None
) -> tuple[dict[str, object], float]:
    """Trains, and returns the row of the table and the final loss."""
    anneal = max(iterations // 4, 1)  # iterations in which the divergence's weight rises to 1
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / iterations))
    penalty = ErrorPenalty("mean")
    begin, first = time.process_time(), math.nan
    for i in range(iterations):
        optimizer.zero_grad()
        value, _, solution = loss(min(1.0, (i + 1) / anneal))
        if rule is not None and i >= anneal:
            assert solution is not None
            cost = penalty(solution)
            total = value + rule.update(value, cost, list(made.parameters())) * cost
        else:
            total = value
        total.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 100.0)
        optimizer.step()
        scheduler.step()
        first = float(value.detach()) if i == 0 else first
    seconds = time.process_time() - begin
    made.eval()
    with torch.no_grad():
        found = [loss(1.0)[:2] for _ in range(max(iterations // 20, 2))]
    final = sum(float(x) for x, _ in found) / len(found)
    evaluations = sum(n for _, n in found) / len(found)
    row = {
        "run": name,
        "iterations": iterations,
        "loss": f"{final:.1f}",
        "first loss": f"{first:.0f}",
        "evaluations": f"{evaluations:.0f}",
        "s": f"{seconds:.0f}",
    }
    return row, final


def main() -> None:
    """Runs all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few iterations: whether it runs")
    settings = QUICK if parser.parse_args().quick else FULL
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ts = torch.linspace(0, 1, settings.times)
    series = lorenz(settings.batch, ts)
    dt = 1 / (2 * (settings.times - 1))
    fixed = Solver(method="em", dt0=dt, engine="torch")
    adaptive = Solver(method="sriw1", rtol=0.05, atol=0.05, dt0=dt, engine="torch")
    rows = []
    made = model(fixed, "none")
    rows.append(train(f"torchsde, euler, dt={dt:g}", made, by_torchsde(made, series, ts, dt), settings.iterations)[0])
    made = model(fixed, "none")
    rows.append(train(f"regnde, em, dt={dt:g}", made, by_regnde(made, series, ts), settings.iterations)[0])
    made = model(adaptive, "none")
    row, plain = train("regnde, adaptive", made, by_regnde(made, series, ts), settings.iterations)
    rows.append(row)
    made = model(adaptive, "none")
    rows.append(train("regnde, adaptive, longer", made, by_regnde(made, series, ts), settings.more)[0])
    made = model(adaptive, "all")
    budget = LossBudget(plain + 0.02 * abs(plain))
    rows.append(train("regnde, ERNSDE, budget 2 %", made, by_regnde(made, series, ts), settings.more, budget)[0])
    print(f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
