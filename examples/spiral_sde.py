"""Spiral SDE: fit a neural SDE to the moments of 10,000 trajectories, with and without regularisation.

The toy problem of Pal et al. (ICML 2021): du = A u^3 dt + 0.2 u dW with A = [[-0.1, 2], [-2, -0.1]] (as
the paper prints it; its data file has the sign of the 2s turned, which mirrors the picture and
changes no number), u0 = (2, 0), 30 times on [0, 1]. Drift 2-50-2 with tanh on the cubes, linear
diffusion, 100 trajectories, SOSRI at tolerance 0.3, 250 iterations at learning rate 0.01. Their
optimiser is AdaBelief; here it is torch's Adam.

Run: python examples/spiral_sde.py --seeds 0 1 2 --out spiral_sde
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import regnde
from regnde import SDE, BrownianPath, ErrorPenalty, Local, Penalty, Solver, StiffnessPenalty
from regnde.nn import MLP, NeuralSDE

TIMES = tuple(i / 29 for i in range(30))
START = (2.0, 0.0)
TOLERANCE = 0.3
TRAJECTORIES = 100
PREDICTIONS = 10  # runs of 100 trajectories that a reported number is the mean of


@dataclass(frozen=True)
class Method:
    """One row of the table: what is recorded, penalised, and which solver estimates it."""

    penalty: Penalty | None = None
    record: regnde.Record = "none"
    solver: str = "sosri"


def methods(error: float, stiffness: float, local: float) -> dict[str, Method]:
    """The rows, from the weights of their penalties."""
    return {
        "vanilla": Method(),
        "ERNSDE": Method(error * ErrorPenalty(), "all"),
        "SRNSDE": Method(stiffness * StiffnessPenalty("mean"), "all", "sosri2"),
        "local": Method(local * ErrorPenalty(), Local()),
    }


@dataclass(frozen=True)
class Result:
    """What one training run came to. Seconds are processor time of one thread, which other jobs disturb less."""

    loss: float
    nfe: float
    train_seconds: float
    predict_seconds: float
    mean: Tensor
    variance: Tensor


def moments(ys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the trajectories, each of shape (times, 2)."""
    return ys.mean(1), ys.var(1)


def simulate(trajectories: int = 10_000) -> tuple[Tensor, Tensor]:
    """The moments to match, from the true SDE on a fine, seeded path."""
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    truth = SDE(lambda t, u: u**3 @ matrix.T, lambda t, u: 0.2 * u)
    u0 = torch.tensor(START).expand(trajectories, 2)
    noise = BrownianPath(TIMES[0], TIMES[-1], u0.shape, seed=0, resolution=1e-5)
    with torch.no_grad():
        return moments(regnde.solve(truth, u0, TIMES, Solver(method="sriw1", rtol=1e-2, atol=1e-2), noise=noise).ys)


class Cubes(torch.nn.Module):
    """The drift: a network on the cubes of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP([2, 50, 2], time=False)

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        """The drift at (t, u)."""
        return self.network(t, u**3)


def mismatch(solution: regnde.Solution, data: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of mean and variance over the times."""
    mean, variance = moments(solution.ys)
    return (mean - data[0]).square().mean() + (variance - data[1]).square().mean()


def train(method: Method, seed: int, iterations: int, data: tuple[Tensor, Tensor], label: str) -> Result:
    """Trains one model and measures it on paths that every model of the seed shares."""
    torch.manual_seed(seed)
    solver = Solver(method=method.solver, rtol=TOLERANCE, atol=TOLERANCE)
    model = NeuralSDE(Cubes(), MLP([2, 2], time=False), TIMES, solver, method.record)
    u0 = torch.tensor(START).expand(TRAJECTORIES, 2)

    def compute(batch: Tensor) -> tuple[Tensor, regnde.Solution]:
        solution = model(batch)
        return mismatch(solution, data), solution

    adam = torch.optim.Adam(model.parameters(), 1e-2)
    steps = regnde.fit(compute, itertools.repeat(u0, iterations), adam, penalty=method.penalty)
    began = time.process_time()
    for progress in (bar := tqdm(steps, total=iterations, desc=label, leave=False, mininterval=1.0)):
        bar.set_postfix(loss=f"{progress.task:.3g}", nfe=progress.nfe)

    seconds = time.process_time() - began

    model.eval()
    losses, evaluations, times, means, variances = [], [], [], [], []
    with torch.no_grad():
        for i in range(PREDICTIONS):
            noise = BrownianPath(TIMES[0], TIMES[-1], u0.shape, seed=1000 * seed + i)
            began = time.process_time()
            solution = model(u0, noise=noise)
            times.append(time.process_time() - began)
            losses.append(float(mismatch(solution, data)))
            evaluations.append(solution.stats.nfe)
            mean, variance = moments(solution.ys)
            means.append(mean)
            variances.append(variance)
    n = PREDICTIONS
    return Result(
        sum(losses) / n,
        sum(evaluations) / n,
        seconds,
        sorted(times)[n // 2],
        torch.stack(means).mean(0),
        torch.stack(variances).mean(0),
    )


def table(results: dict[str, list[Result]]) -> str:
    """Means and standard deviations over the seeds, and ratios to vanilla."""

    def cell(values: list[float], digits: int) -> str:
        x = torch.tensor(values, dtype=torch.float64)
        spread = float(x.std()) if len(values) > 1 else 0.0
        return f"{float(x.mean()):.{digits}f} ± {spread:.{digits}f}"

    def ratio(name: str, field: str) -> str:
        pairs = zip(results[name], results["vanilla"], strict=True)
        return f"{sum(getattr(a, field) / getattr(b, field) for a, b in pairs) / len(results[name]):.2f}"

    lines = [
        "| method | loss | NFE | train s | predict s | NFE ratio | train ratio | predict ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        cells = [
            cell([r.loss for r in runs], 4),
            cell([r.nfe for r in runs], 1),
            cell([r.train_seconds for r in runs], 1),
            cell([r.predict_seconds for r in runs], 4),
            *(ratio(name, field) for field in ("nfe", "train_seconds", "predict_seconds")),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(results: dict[str, list[Result]], data: tuple[Tensor, Tensor], path: Path) -> None:
    """Moments of the first seed over time, and NFE against loss of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, which, title in ((left, 0, "mean"), (middle, 1, "variance")):
        axis.plot(TIMES, data[which], "k.", ms=4)
        for number, (name, runs) in enumerate(results.items()):
            values = runs[0].mean if which == 0 else runs[0].variance
            axis.plot(TIMES, values, color=f"C{number}", lw=1, label=[name, None])
        axis.set(xlabel="t", title=f"{title} (dots: data)")
    left.legend()
    for number, (name, runs) in enumerate(results.items()):
        right.plot([r.nfe for r in runs], [r.loss for r in runs], "o", color=f"C{number}", label=name)
    right.set(xlabel="NFE of a prediction", ylabel="loss", title="all seeds")
    right.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Trains every method at every seed; prints the table and writes it with the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=250)
    parser.add_argument("--error", type=float, default=0.2, help="weight of the sum of E |h|")
    parser.add_argument("--stiffness", type=float, default=0.1, help="weight of the mean of S")
    parser.add_argument("--local", type=float, default=10.0, help="weight of one step's E |h|")
    parser.add_argument("--methods", nargs="+", default=None, help="some of the rows; vanilla is always run")
    parser.add_argument("--out", type=Path, default=Path("spiral_sde"), help="folder for the table and the picture")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = simulate()
    rows = methods(arguments.error, arguments.stiffness, arguments.local)
    chosen = [name for name in rows if name == "vanilla" or name in (arguments.methods or rows)]
    results: dict[str, list[Result]] = {name: [] for name in chosen}
    for seed in arguments.seeds:
        for name in chosen:
            result = train(rows[name], seed, arguments.iterations, data, f"seed {seed} {name}")
            results[name].append(result)
            print(
                f"seed {seed} {name}: loss {result.loss:.4f}, NFE {result.nfe:.1f}, train {result.train_seconds:.0f} s"
            )
    text = table(results)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
    picture(results, data, arguments.out / "spiral_sde.png")


if __name__ == "__main__":
    main()
