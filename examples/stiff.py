"""Stiff models: learn chemical kinetics and a pharmacokinetic model with Rosenbrock methods, and compare the cures.

    python examples/stiff.py robertson    # Robertson's kinetics to t = 1e5: 3 species
    python examples/stiff.py pollu        # air pollution: 20 species, 25 reactions
    python examples/stiff.py compare      # explicit + SRNODE against Rosenbrock + ERNODE, one table
    python examples/stiff.py doses        # the same for a drug: infusions as stops, elimination by a network
    python examples/stiff.py ernode       # ERNODE on Rosenbrock methods: seeds, tolerances, LossBudget, cheapen
    python examples/stiff.py loose        # a model trained at a tight tolerance, made cheap for looser ones
    python examples/stiff.py engines      # the time of a gradient on both engines: Robertson's kinetics, rodas5p
    python examples/stiff.py --quick      # all of these with one iteration, to see that they run

The kinetics are learnt as rate laws: the reactions are known, their rates are mass action with constants that are wrong
by up to a factor of two, times the exponential of a network. States, residuals and tolerances are scaled by the largest
value of each species, and times are spread evenly in log t, as in S. Kim et al., Stiff neural ordinary differential
equations, Chaos 31 (2021) 093122. Data are made by the programs. POLLU: J. G. Verwer, SIAM J. Sci. Comput. 15 (1994).
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import regnde
from regnde import ErrorPenalty, LossBudget, Penalty, Solution, Solver, Stats, StiffnessPenalty

F64 = {"dtype": torch.float64}


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network with one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)).double()


# --- kinetics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """Reactions of one or two reactants with mass action.

    Attributes:
        reactants: of each reaction, two indices of species; the number of species stands for none.
        changes: by one reaction, of each species, shape (species, reactions).
        constants: of the rates, shape (reactions,).
        y0: initial concentrations.
        ts: save times.
    """

    reactants: Tensor
    changes: Tensor
    constants: Tensor
    y0: Tensor
    ts: Tensor

    def products(self, y: Tensor) -> Tensor:
        """The concentrations that each rate is proportional to, multiplied."""
        padded = torch.cat([y, torch.ones_like(y[..., :1])], -1)
        return padded[..., self.reactants].prod(-1)

    def field(self, t: Tensor, y: Tensor) -> Tensor:
        """The rates of change, by the true constants."""
        return (self.constants * self.products(y)) @ self.changes.T


def network(species: int, reactions: Sequence[tuple[float, str, str]], y0: Tensor, ts: Tensor) -> Network:
    """A network from reactions (constant, reactants, products); species are numbers in a text, from 1."""
    reactants, changes = [], torch.zeros(species, len(reactions), **F64)
    for j, (_, used, made) in enumerate(reactions):
        before, after = ([int(s) - 1 for s in text.split()] for text in (used, made))
        reactants.append([*before, species, species][:2])
        for i in before:
            changes[i, j] -= 1
        for i in after:
            changes[i, j] += 1
    return Network(torch.tensor(reactants), changes, torch.tensor([k for k, *_ in reactions], **F64), y0, ts)


def robertson() -> Network:
    """H. H. Robertson, in Numerical Analysis, an Introduction (1966)."""
    ts = torch.cat([torch.zeros(1), torch.logspace(-5, 5, 40, **F64)])
    reactions = [(0.04, "1", "2"), (3e7, "2 2", "2 3"), (1e4, "2 3", "1 3")]
    return network(3, reactions, torch.tensor([1.0, 0.0, 0.0], **F64), ts)


def pollu() -> Network:
    """The air pollution model of the Dutch institute RIVM."""
    reactions = [
        (0.35, "1", "2 3"),
        (26.6, "2 4", "1"),
        (1.23e4, "5 2", "6 1"),
        (8.6e-4, "7", "5 5 8"),
        (8.2e-4, "7", "8"),
        (1.5e4, "7 6", "5 8"),
        (1.3e-4, "9", "5 8 10"),
        (2.4e4, "9 6", "11"),
        (1.65e4, "11 2", "10 1 12"),
        (9e3, "11 1", "13"),
        (0.022, "13", "11 1"),
        (1.2e4, "10 2", "14 1"),
        (1.88, "14", "7 5"),
        (1.63e4, "1 6", "15"),
        (4.8e6, "3", "4"),
        (3.5e-4, "4", "16"),
        (0.0175, "4", "3"),
        (1e8, "16", "6 6"),
        (4.44e11, "16", "3"),
        (1.24e3, "17 6", "18 5"),
        (2.1, "19", "2"),
        (5.78, "19", "1 3"),
        (0.0474, "1 4", "19"),
        (1.78e3, "19 1", "20"),
        (3.12, "20", "19 1"),
    ]
    y0 = torch.zeros(20, **F64)
    y0[[1, 3, 6, 7, 8, 16]] = torch.tensor([0.2, 0.04, 0.1, 0.3, 0.01, 0.007], **F64)
    return network(20, reactions, y0, torch.cat([torch.zeros(1), torch.logspace(-3, 1.778, 30, **F64)]))


class RateLaw(nn.Module):
    """Known reactions whose rates are learnt.

    Args:
        known: the reactions; of its constants only rough values are used.
        scale: the largest value of each species.
        seed: of the wrong constants and of the network.
    """

    def __init__(self, known: Network, scale: Tensor, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.known = known
        self.register_buffer("scale", scale)
        wrong = torch.empty_like(known.constants).uniform_(-1, 1) * math.log(2)
        self.log_constants = nn.Parameter(known.constants.log() + wrong)
        self.correction = mlp(len(scale), 16, len(known.constants))
        with torch.no_grad():
            self.correction[2].weight.mul_(0.01)
            self.correction[2].bias.zero_()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The rates of change."""
        rates = torch.exp(self.log_constants + self.correction(y / self.scale)) * self.known.products(y)
        return rates @ self.known.changes.T


EXACT = Solver(method="rodas5p", rtol=1e-8, atol=1e-14, engine="torch")


def learn_kinetics(known: Network, iterations: int) -> None:
    """Learns the rates from a trajectory, and tests them on another one."""
    with torch.no_grad():
        data = regnde.solve(known.field, known.y0, known.ts, EXACT).ys
        other = regnde.solve(known.field, 0.7 * known.y0, known.ts, EXACT).ys
    scale = data.amax(0).clamp_min(1e-12)
    model = RateLaw(known, scale)
    solver = Solver(method="rodas5p", rtol=1e-4, atol=1e-6 * scale, engine="torch")

    def error(truth: Tensor, y0: Tensor) -> tuple[Tensor, Solution]:
        sol = regnde.solve(model, y0, known.ts, solver)
        return ((sol.ys - truth) / scale).abs().mean(), sol

    optimizer, began = torch.optim.Adam(model.parameters(), lr=0.03), time.process_time()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for i in range(iterations):
        optimizer.zero_grad()
        loss, sol = error(data, known.y0)
        loss.backward()
        optimizer.step()
        schedule.step()
        if i % 10 == 0:
            print(f"iteration {i:3d}: mean error {loss.item():.2e} of the largest value, {sol.stats.accepted} steps")
    with torch.no_grad():
        trained, sol = error(data, known.y0)
        tested, _ = error(other, 0.7 * known.y0)
    stats = sol.stats
    print(
        f"mean error {trained.item():.2e}; from another start {tested.item():.2e}. One solve: {stats.nfe} evaluations, "
        f"{stats.nfactorisations} factorisations. Training: {time.process_time() - began:.0f} s of processor time"
    )


# --- the cures compared ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A model that is to be fitted to a trajectory.

    Attributes:
        y0: the initial state.
        ts: times of the data.
        data: one row for each time.
        seen: the part of the states that the data are compared with, scaled.
        atol: absolute over relative tolerance.
        stops: times where the field jumps.
    """

    y0: Tensor
    ts: Tensor
    data: Tensor
    seen: Callable[[Tensor], Tensor]
    atol: float | Tensor = 1.0
    stops: Sequence[float] = ()

    def solver(self, method: str, tolerance: float) -> Solver:
        """A solver with that tolerance."""
        return Solver(method=method, rtol=tolerance, atol=tolerance * self.atol, engine="torch")

    def solve(self, model: nn.Module, solver: Solver, record: str = "none") -> Solution:
        """The trajectory of a model."""
        return regnde.solve(model, self.y0, self.ts, solver, record=record, stops=self.stops)

    def loss(self, solution: Solution) -> Tensor:
        """Mean squared error."""
        return (self.seen(solution.ys) - self.data).square().mean()


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and what it costs.

    Attributes:
        model: with its last parameters.
        solver: that it was trained with.
        loss: mean squared error.
        stats: of a solve.
        seconds: processor time of the training.
    """

    model: nn.Module
    solver: Solver
    loss: float
    stats: Stats
    seconds: float


@torch.no_grad()
def measured(model: nn.Module, task: Task, solver: Solver, seconds: float) -> Fitted:
    """A model that took so many seconds to train, and what a solve of it costs."""
    solution = task.solve(model, solver)
    return Fitted(model, solver, task.loss(solution).item(), solution.stats, seconds)


def fitted(
    start: nn.Module,
    task: Task,
    solver: Solver,
    iterations: int,
    rate: float,
    penalty: Penalty | None = None,
    weight: float | LossBudget = 1.0,
    last_rate: float | None = None,
) -> Fitted:
    """A copy of a model, trained; the rate of learning falls to the last one if that is given."""
    model, record, began = copy.deepcopy(start), "none" if penalty is None else "all", time.process_time()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    last = rate if last_rate is None else last_rate
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=last)

    def compute(record: str) -> tuple[Tensor, Solution]:
        solution = task.solve(model, solver, record)
        return task.loss(solution), solution

    run = regnde.fit(compute, [record] * iterations, optimizer, penalty=penalty, weight=weight, scheduler=schedule)
    for _ in run:
        pass
    return measured(model, task, solver, time.process_time() - began)


CURES = {
    "tsit5": ("tsit5", None),
    "tsit5 + SRNODE": ("tsit5", 3e-5 * StiffnessPenalty("mean")),
    "rodas5p": ("rodas5p", None),
    "rodas5p + ERNODE": ("rodas5p", 0.3 * ErrorPenalty("mean")),
    "autotsit5": ("autotsit5", None),
}
"""Method and penalty of each cure."""


def compare(
    start: nn.Module,
    task: Task,
    iterations: int,
    rate: float,
    tolerance: float,
    error: Callable[[nn.Module], float] | None = None,
    cures: Sequence[str] = tuple(CURES),
) -> None:
    """Trains the same stiff model with each cure, and prints a table.

    Args:
        start: the model.
        task: what to learn.
        iterations: of each training.
        rate: of learning, at the start.
        tolerance: of the solves.
        error: of what a model has learnt; by default the error of its solve.
        cures: names of those in `CURES`.
    """
    exact = task.solver("rodas5p", 1e-10)
    print("| training | loss | error | evaluations | factorisations | ms a solve | stiffness | s for training |")
    print("|---|---|---|---|---|---|---|---|")
    for name in cures:
        method, penalty = CURES[name]
        try:
            found = fitted(start, task, task.solver(method, tolerance), iterations, rate, penalty)
        except regnde.SolveError as failure:
            print(f"| {name} | {type(failure).__name__} at t = {failure.t:.3g} | | | | | | |", flush=True)
            continue
        with torch.no_grad():
            stiffness = task.solve(found.model, found.solver, "all").steps.stiffness.max().item()
            if error is None:
                states, true = (task.solve(found.model, solver).ys for solver in (found.solver, exact))
                wrong = (states - true).abs().max().item()
            else:
                wrong = error(found.model)
            each = timed(functools.partial(task.solve, found.model, found.solver))
        print(
            f"| {name} | {found.loss:.1e} | {wrong:.1e} | {found.stats.nfe} | {found.stats.nfactorisations or ''} "
            f"| {1e3 * each:.0f} | {stiffness:.0f} | {found.seconds:.0f} |",
            flush=True,
        )


def relaxation(t: Tensor, y: Tensor) -> Tensor:
    """A fast state that follows a slow one, 300 times as fast."""
    fast, slow = y.unbind(-1)
    return torch.stack([300 * (torch.cos(2 * slow) - fast), 1 - 0.5 * fast], -1)


class Scaled(nn.Module):
    """A network as the field, with outputs scaled by the rates of the two states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(2, 32, 2)
        self.register_buffer("scale", torch.tensor([300.0, 1.0]))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The field."""
        value: Tensor = self.scale * self.inner(y)
        return value


def pretrained(seed: int, iterations: int) -> Scaled:
    """A network that has learnt the field itself, so that it is as stiff."""
    torch.manual_seed(seed)
    model = Scaled()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(iterations):
        y = torch.rand(256, 2) * torch.tensor([3.0, 4.0]) - torch.tensor([1.5, 0.5])
        error = (model(y[0, 0], y) - relaxation(y[0, 0], y)) / model.scale
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return model


@torch.no_grad()
def relaxation_task() -> Task:
    """Both states of the relaxation, to t = 3."""
    y0, ts = torch.tensor([-0.5, 0.0]), torch.linspace(0, 3, 31)
    exact = Solver(method="rodas5p", rtol=1e-10, atol=1e-12, engine="torch")
    return Task(y0, ts, regnde.solve(relaxation, y0, ts, exact).ys, lambda states: states)


# --- doses -----------------------------------------------------------------------------------------

INFUSIONS = ((0.0, 0.5), (8.0, 8.5), (16.0, 16.5))  # hours at which they begin and end
DOSE = 5.0


class Doses(nn.Module):
    """A drug in blood that binds a target fast, with an unknown elimination: infusions as jumps of the field."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.elimination = mlp(1, 16, 1)

    def rate(self, drug: Tensor) -> Tensor:
        """Elimination by a network, per hour and unit of drug."""
        return nn.functional.softplus(self.elimination(drug.unsqueeze(-1) / DOSE)).squeeze(-1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """Rates of change of drug, free target and complex, per hour."""
        drug, target, bound = y.unbind(-1)
        binding = 200.0 * drug * target - 5.0 * bound
        given = sum(DOSE / (end - begin) * ((t >= begin) & (t < end)).to(y) for begin, end in INFUSIONS)
        return torch.stack(
            [given - self.rate(drug) * drug - binding, 0.3 * (1 - target) - binding, binding - 0.1 * bound], -1
        )


class TrueDoses(Doses):
    """The same with saturable elimination."""

    def rate(self, drug: Tensor) -> Tensor:
        """Michaelis and Menten's law."""
        return 1.2 / (1.0 + drug)


def doses_task() -> Task:
    """25 noisy concentrations of the drug."""
    ts, y0 = torch.linspace(0, 24, 25), torch.tensor([0.0, 1.0, 0.0])
    stops = sorted({t for infusion in INFUSIONS for t in infusion})
    with torch.no_grad():
        truth = regnde.solve(TrueDoses(), y0, ts, EXACT, stops=stops).ys[:, 0]
    data = truth * (1 + 0.02 * torch.randn(25, generator=torch.Generator().manual_seed(1)))
    return Task(y0, ts, data, lambda states: states[:, 0], 1e-2, stops)


@torch.no_grad()
def error_of_elimination(model: Doses) -> float:
    """Mean error of the rate, relative to the true one, at 0.5, 1, ..., 5."""
    drug = torch.linspace(0.5, 5, 10)
    true = TrueDoses().rate(drug)
    return ((model.rate(drug) - true) / true).abs().mean().item()


@torch.no_grad()
def robertson_task() -> Task:
    """Robertson's kinetics: all species, scaled."""
    known = robertson()
    data = regnde.solve(known.field, known.y0, known.ts, EXACT).ys
    scale = data.amax(0)
    return Task(known.y0, known.ts, data / scale, lambda states: states / scale, 1e-2 * scale)


# --- ERNODE on Rosenbrock methods ------------------------------------------------------------------


SLACK = 1.02  # of the loss without a penalty: what a penalty may use
LAST_RATE = 0.1  # of learning, over the first one


def ernode(
    task: Task, starts: Mapping[int, nn.Module], tolerances: Mapping[str, float], iterations: int, rate: float
) -> None:
    """Trains models without and with the penalty, and makes the trained ones cheaper; prints a table.

    Args:
        task: what to learn.
        starts: models before the training, by their seeds.
        tolerances: by method; the one that `diagnose` recommends for the trained model is tried, too, if the task has
            one tolerance for the whole state.
        iterations: of each training.
        rate: of learning, at the start.
    """
    print("| method, seed | tolerance | loss | evaluations | `LossBudget`: loss, evaluations | `cheapen` |")
    print("|---|---|---|---|---|---|")
    last = LAST_RATE * rate
    for (method, tolerance), (seed, start) in itertools.product(tolerances.items(), starts.items()):
        solver = task.solver(method, tolerance)
        first = fitted(start, task, solver, iterations, rate, last_rate=last)
        looser = tolerance
        if not isinstance(task.atol, Tensor):
            report = regnde.diagnose(
                first.model, task.y0, task.ts, solver, metric=lambda s: task.loss(s).item(), methods=[]
            )
            looser = report.best.solver.rtol
        for used in (solver, task.solver(method, looser))[: 1 + (looser > tolerance)]:
            free = first if used is solver else fitted(start, task, used, iterations, rate, last_rate=last)
            budget = LossBudget(SLACK * free.loss)
            paid = fitted(start, task, used, iterations, rate, ErrorPenalty("mean"), budget, last_rate=last)
            cheap = cheaper(free, task, used, free.loss, 2 * iterations, rate / 3)
            cells = (f"{x.loss / free.loss:.2f}x, {x.stats.nfe / free.stats.nfe:.2f}x" for x in (paid, cheap))
            plain = f"| `{method}`, {seed} | {used.rtol:.0e} | {free.loss:.1e} | {free.stats.nfe} "
            print(f"{plain}| {' | '.join(cells)} |", flush=True)


def cheaper(found: Fitted, task: Task, solver: Solver, loss: float, iterations: int, rate: float) -> Fitted:
    """The cheapest state for a solver that `cheapen` finds within 2 % of a loss."""
    model, began = copy.deepcopy(found.model), time.process_time()

    def compute(solver: Solver) -> tuple[Tensor, Solution]:
        solution = task.solve(model, solver, "all")
        return task.loss(solution), solution

    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    run = regnde.cheapen(compute, [solver], optimizer, allowed=SLACK * loss, iterations=iterations, every=10)
    for _ in run:
        pass
    return measured(model, task, solver, time.process_time() - began)


def loosened(
    task: Task,
    starts: Mapping[int, nn.Module],
    method: str,
    tolerances: Sequence[float],
    iterations: int,
    rate: float,
) -> None:
    """Trains models with the first tolerance, and makes them cheap for the others; prints a table.

    The loss that `cheapen` may use is that of the first tolerance and 2 %. Columns are relative to the first tolerance.
    """
    print("| seed | tolerance | loss, evaluations | after `cheapen` | its loss with exact solves |")
    print("|---|---|---|---|---|")
    exact = task.solver("rodas5p", 1e-9)
    for seed, start in starts.items():
        first = fitted(start, task, task.solver(method, tolerances[0]), iterations, rate, last_rate=LAST_RATE * rate)
        print(f"| {seed} | {tolerances[0]:.0e} | {first.loss:.1e}, {first.stats.nfe} | | |", flush=True)
        for tolerance in tolerances[1:]:
            solver = task.solver(method, tolerance)
            plain = measured(first.model, task, solver, first.seconds)
            cheap = cheaper(first, task, solver, first.loss, 2 * iterations, rate / 3)
            with torch.no_grad():
                right = task.loss(task.solve(cheap.model, exact)).item()
            cells = (f"{x.loss / first.loss:.2f}x, {x.stats.nfe / first.stats.nfe:.2f}x" for x in (plain, cheap))
            print(f"| {seed} | {tolerance:.0e} | {' | '.join(cells)} | {right / first.loss:.2f}x |", flush=True)


def compare_engines() -> None:
    """Prints the time of Robertson's kinetics to t = 1e5 with a gradient, by each engine that can run."""
    known, solver = robertson(), Solver(method="rodas5p", rtol=1e-6, atol=1e-9)

    def gradient(engine: str) -> None:
        constants = known.constants.clone().requires_grad_()

        def field(t: Tensor, y: Tensor) -> Tensor:
            return (constants * known.products(y)) @ known.changes.T

        sol = regnde.solve(field, known.y0, [0.0, 1e5], replace(solver, engine=engine), record="all")
        (sol.y1.sum() + ErrorPenalty()(sol)).backward()

    for engine in ("torch", "julia"):
        try:
            gradient(engine)  # the first one compiles
        except regnde.EngineUnavailable:
            print(f"{engine} is not available")
            continue
        print(f"{engine}: {1e3 * timed(functools.partial(gradient, engine)):.0f} ms for a solve and its gradient")


def timed(function: Callable[[], object]) -> float:
    """Processor time of one call, the median of five."""
    times = []
    for _ in range(5):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return sorted(times)[2]


WHAT = ("robertson", "pollu", "doses", "compare", "ernode", "loose", "engines")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=WHAT)
    parser.add_argument("--iterations", type=int, default=60, help="of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the compared models")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of ernode and loose")
    parser.add_argument("--cures", nargs="+", choices=CURES, default=tuple(CURES), help="of compare and doses")
    parser.add_argument("--methods", nargs="+", default=("rodas5p", "rosenbrock23"), help="of ernode")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the compared solves")
    parser.add_argument("--task", choices=("relaxation", "robertson"), default="relaxation", help="of ernode")
    parser.add_argument("--quick", action="store_true", help="everything with one iteration")
    given = parser.parse_args()
    if given.quick:
        run_all()
    elif given.what in ("robertson", "pollu"):
        learn_kinetics(robertson() if given.what == "robertson" else pollu(), given.iterations)
    elif given.what == "doses":
        task, rate = doses_task(), 0.05
        compare(Doses(), task, given.iterations, rate, given.tolerance, error_of_elimination, given.cures)
    elif given.what == "compare":
        model, task = pretrained(given.seed, 1500), relaxation_task()
        compare(model, task, given.iterations, 0.002, given.tolerance, cures=given.cures)
    elif given.what == "ernode" and given.task == "relaxation":
        tolerances = {name: {"rodas5p": 1e-4, "rosenbrock23": 1e-3}[name] for name in given.methods}
        ernode(relaxation_task(), {s: pretrained(s, 1500) for s in given.seeds}, tolerances, given.iterations, 0.002)
    elif given.what == "ernode":
        task = robertson_task()
        starts = {seed: RateLaw(robertson(), 100 * task.atol, seed) for seed in given.seeds}
        ernode(task, starts, {"rodas5p": 1e-4}, given.iterations, 0.03)
    elif given.what == "loose":
        starts = {seed: pretrained(seed, 1500) for seed in given.seeds}
        loosened(relaxation_task(), starts, "rodas5p", (1e-4, 1e-3, 1e-2, 1e-1), given.iterations, 0.002)
    elif given.what == "engines":
        compare_engines()
    else:
        parser.error(f"say what: {', '.join(WHAT)}, or --quick")


def run_all() -> None:
    """Every program, to see that it runs."""
    learn_kinetics(robertson(), 1)
    learn_kinetics(pollu(), 1)
    compare(Doses(), doses_task(), 1, 0.02, 1e-2, error_of_elimination)
    ernode(relaxation_task(), {0: pretrained(0, 100)}, {"rodas5p": 1e-2}, 1, 0.002)
    loosened(relaxation_task(), {0: pretrained(0, 100)}, "rodas5p", (1e-2, 1e-1), 1, 0.002)
    compare(pretrained(0, 100), relaxation_task(), 1, 0.002, 1e-2)
    compare_engines()


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    main()
