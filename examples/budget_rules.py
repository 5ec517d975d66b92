"""Rules for the weight of a penalty, on five small tasks: which keeps the loss, which saves evaluations?

    python examples/budget_rules.py [--seeds 1] [--quick]

A rule gets 1.5 times the iterations of the training without a penalty, and 2 % more than its final loss. The table
shows the final loss relative to it, and the evaluations of a solve at 1e-4. The tasks are not those of docs/results.md.
"""

from __future__ import annotations

import argparse
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import regnde
from regnde import Balance, ErrorPenalty, LossBudget, Solver
from regnde._budget import MeasuredWeight

ALLOWED = 0.02  # above the loss without a penalty, as a share of its size
LONGER = 1.5  # iterations of a rule over those without a penalty


@dataclass
class Late:
    """`Balance(1)` from the iteration on at which the smoothed loss was first within the budget; never back."""

    allowed: float

    def __post_init__(self) -> None:
        self.balance, self.loss, self.on = Balance(1.0), math.inf, False

    def update(self, task: Tensor, penalty: Tensor, parameters: Sequence[Tensor], *, scale: float = 1.0) -> float:
        """The weight of this iteration."""
        weight, now = self.balance.update(task, penalty, parameters), float(task.detach())
        self.loss = now if math.isinf(self.loss) else 0.9 * self.loss + 0.1 * now
        self.on = self.on or self.loss <= self.allowed
        return weight if self.on else 0.0


@dataclass
class Steps:
    """A share of `Balance(1)`: times 1.1 within the budget, 1.02 up to 1 while the loss falls, else times 0.85."""

    allowed: float
    share: float = 0.1

    def __post_init__(self) -> None:
        self.balance, self.fast, self.slow = Balance(1.0), math.inf, math.inf

    def update(self, task: Tensor, penalty: Tensor, parameters: Sequence[Tensor], *, scale: float = 1.0) -> float:
        """The weight of this iteration."""
        weight, now = self.balance.update(task, penalty, parameters), float(task.detach())
        first = math.isinf(self.fast)
        self.fast, self.slow = (now, now) if first else (0.9 * self.fast + 0.1 * now, 0.97 * self.slow + 0.03 * now)
        if self.fast <= self.allowed:
            self.share = min(1.1 * self.share, 10.0)
        elif self.fast < self.slow - 0.01 * abs(self.slow):
            self.share = max(self.share, min(1.02 * self.share, 1.0))
        else:
            self.share *= 0.85
        return self.share * weight


class Projected:
    """`Balance(1)` with a penalty's gradient that never undoes the task's step.

    Of the penalty's gradient p the part against the task's gradient g is taken out, p + c g with c = -p.g / |g|^2 where
    that is positive (T. Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020). The sum g + w (p + c g)
    points where g + w / (1 + w c) p does: a smaller weight. Its length is another one, which Adam does not heed.
    """

    def __init__(self) -> None:
        self.balance = Balance(1.0)

    def update(self, task: Tensor, penalty: Tensor, parameters: Sequence[Tensor], *, scale: float = 1.0) -> float:
        """The weight of this iteration."""
        weight = self.balance.update(task, penalty, parameters)
        slopes = (torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (task, penalty))
        pairs = [(g, p) for g, p in zip(*slopes, strict=True) if not (g is None or p is None)]
        against = -sum(float((g * p).sum()) for g, p in pairs) / sum(float(g.square().sum()) for g, _ in pairs)
        return weight / (1 + weight * max(against, 0.0))


RULES: dict[str, Callable[[float], MeasuredWeight]] = {
    "Balance(0.1)": lambda allowed: Balance(0.1),
    "Balance(0.3)": lambda allowed: Balance(0.3),
    "Balance(1)": lambda allowed: Balance(1.0),
    "late switch": Late,
    "fixed factors": Steps,
    "projected": lambda allowed: Projected(),
    "LossBudget": LossBudget,
}


class Task(nn.Module, ABC):
    """Data, a field and what is made of the final state."""

    iterations, tolerance, learning_rate, batch = 300, 1e-4, 1e-2, 100
    span = (0.0, 1.0)
    y0: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope."""
        slope: Tensor = self.net(t, y)
        return slope

    @abstractmethod
    def error(self, solution: regnde.Solution, index: Tensor) -> Tensor:
        """The loss of the chosen items."""

    def compute(self, index: Tensor, tolerance: float, *, record: bool) -> tuple[Tensor, regnde.Solution]:
        """Loss and solution."""
        solver = Solver(rtol=tolerance, atol=tolerance)
        solution = regnde.solve(self.field, self.y0[index], self.span, solver, record="all" if record else "none")
        return self.error(solution, index), solution


def moons(count: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on two half circles, and which."""
    angle = torch.rand(count, generator=generator) * math.pi
    label = (torch.rand(count, generator=generator) < 0.5).double()
    x = torch.where(label > 0, 1 - angle.cos(), angle.cos()) - 0.5
    y = torch.where(label > 0, 0.5 - angle.sin(), angle.sin()) - 0.25
    points = torch.stack([x, y], 1)
    return points + noise * torch.randn(points.shape, generator=generator), label


class Moons(Task):
    """A classifier; all points can be told apart."""

    noise = 0.12

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.y0, self.label = moons(400, self.noise, self.generator)
        self.net, self.readout = regnde.nn.MLP([2, 24, 24, 2]), nn.Linear(2, 1)

    def error(self, solution: regnde.Solution, index: Tensor) -> Tensor:
        """Cross entropy."""
        return functional.binary_cross_entropy_with_logits(self.readout(solution.y1)[:, 0], self.label[index])


class NoisyMoons(Moons):
    """Points that overlap, in small batches: the loss is mostly noise."""

    noise, batch = 0.35, 20


class Regression(Task):
    """A function of three numbers, with one more dimension for the flow."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        x = torch.randn(400, 3, generator=self.generator)
        self.target = torch.sin(2 * x[:, 0]) * x[:, 1] + 0.3 * x[:, 2] ** 2
        self.y0 = functional.pad(x, (0, 1))
        self.net, self.readout = regnde.nn.MLP([4, 24, 24, 4]), nn.Linear(4, 1)

    def error(self, solution: regnde.Solution, index: Tensor) -> Tensor:
        """Mean squared error."""
        return (self.readout(solution.y1)[:, 0] - self.target[index]).square().mean()


class Spiral(Task):
    """Trajectories of the cubic spiral: the dynamics are the answer."""

    tolerance, learning_rate, batch = 1e-5, 5e-3, 16
    span = tuple(torch.linspace(0, 1.5, 10).tolist())  # type: ignore[assignment]  # ten times

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.y0 = torch.rand(64, 2, generator=self.generator) * 2 + torch.tensor([0.0, -1.0])
        matrix = torch.tensor([[-0.1, -2.0], [2.0, -0.1]])
        self.truth = regnde.solve(lambda t, y: y**3 @ matrix, self.y0, self.span, Solver(rtol=1e-8, atol=1e-8)).ys
        self.net = regnde.nn.MLP([2, 32, 2])

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """A network of the cubes."""
        return super().field(t, y**3)

    def error(self, solution: regnde.Solution, index: Tensor) -> Tensor:
        """Mean squared error at all times."""
        return (solution.ys - self.truth[:, index]).square().mean()


class Density(Task):
    """A continuous normalising flow of two moons, with the exact trace."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        points, _ = moons(400, 0.06, self.generator)
        self.y0 = functional.pad(points, (0, 1))
        self.inner, self.outer = nn.Linear(3, 32), nn.Linear(32, 2)

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The flow, and the rate of the log-density."""
        hidden = torch.tanh(self.inner(torch.cat([y[:, :2], t.expand(len(y), 1)], 1)))
        trace = ((1 - hidden**2) * (self.inner.weight[:, :2] * self.outer.weight.T).sum(1)).sum(1)
        return torch.cat([self.outer(hidden), -trace[:, None]], 1)

    def error(self, solution: regnde.Solution, index: Tensor) -> Tensor:
        """Negative log-likelihood."""
        z, change = solution.y1[:, :2], solution.y1[:, 2]
        return (0.5 * z.square().sum(1) + math.log(2 * math.pi) + change).mean()


TASKS = {"moons": Moons, "noisy moons": NoisyMoons, "regression": Regression, "spiral": Spiral, "density": Density}


def train(task: Task, rule: MeasuredWeight | None, iterations: int) -> tuple[float, int]:
    """Final loss of all data, and the evaluations of their solve at 1e-4."""
    adam = torch.optim.Adam(task.parameters(), task.learning_rate)
    fall = torch.optim.lr_scheduler.LambdaLR(adam, lambda i: min(1.0, max(0.02, (1 - i / iterations) / 0.4)))

    def batches() -> Iterator[Tensor]:
        for _ in range(iterations):
            yield torch.randperm(len(task.y0), generator=task.generator)[: task.batch]

    for _ in regnde.fit(
        lambda index: task.compute(index, task.tolerance, record=rule is not None),
        batches(),
        adam,
        penalty=None if rule is None else ErrorPenalty("mean"),
        weight=0.0 if rule is None else rule,
        scheduler=fall,
    ):
        pass
    with torch.no_grad():
        everything = torch.arange(len(task.y0))
        loss, _ = task.compute(everything, task.tolerance, record=False)
        return float(loss), task.compute(everything, 1e-4, record=False)[1].stats.nfe


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help="a few iterations: the program runs, the numbers say nothing"
    )
    parser.add_argument("--rules", nargs="+", choices=list(RULES), default=list(RULES))
    options = parser.parse_args(arguments)
    rules = {name: RULES[name] for name in options.rules}
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(f"| task, seed | without: loss; NFE | {' | '.join(rules)} |")
    print("|---|--:|" + "--:|" * len(rules), flush=True)
    kept, ratios = dict.fromkeys(rules, 0), {name: list[float]() for name in rules}
    for name, make in TASKS.items():
        for seed in range(options.seeds):
            iterations = 5 if options.quick else make.iterations
            base, nfe = train(make(seed), None, iterations)
            cells = []
            for rule, build in rules.items():
                allowed = base + ALLOWED * abs(base)
                loss, spent = train(make(seed), build(allowed), round(LONGER * iterations))
                kept[rule] += loss <= allowed
                ratios[rule].append(spent / nfe)
                cells.append(f"{(loss - base) / abs(base):+.0%}; {spent / nfe:.2f}")
            print(f"| {name}, {seed} | {base:.3g}; {nfe} | {' | '.join(cells)} |", flush=True)
    total = len(TASKS) * options.seeds
    last = [f"{kept[rule]}/{total}; {sum(ratios[rule]) / total:.2f}" for rule in rules]
    print(f"| within 2 %; mean NFE ratio | | {' | '.join(last)} |")


if __name__ == "__main__":
    main()
