"""Nine kinds of public models, written anew and small, each trained as its code trains it: what does a penalty gain?

Every trained model is solved with every free alternative: looser tolerances, other methods, a given first step. A
penalty has to be compared with the best of them. Rows of one client and seed begin with `vanilla`; the others need its
loss and its recommended tolerance.
"""

from __future__ import annotations

import copy
import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import regnde
from paper_experiments import free, public_cells, public_points, public_series
from paper_experiments.free import ALLOWED, LOOSEST, Line
from paper_experiments.public_model import Client, Model
from regnde import Solver

CLIENTS: dict[str, Client] = {
    client.name: client for group in (public_series, public_points, public_cells) for client in group.CLIENTS
}
TRAINED = ("vanilla", "loose", "fixed", "fixed+loose", "balance", "budget", "budget+loose")
ROWS = (*TRAINED, "cheapen", "cheapen+loose", "cheapen+last")
"""`loose`: trained at the recommended tolerance. `fixed`: a weight set by hand. `balance`: `Balance(FRACTION)`.
`budget`: `LossBudget` allowed vanilla's training loss and a share more; the last model within it counts. `cheapen`:
vanilla, and up to as many iterations again in which `cheapen` lowers its evaluations. `cheapen+last`: this at the
loosest of three tolerances, with `bs3` and a `LastStep`, that reaches its bound, the loss at the client's own tolerance
and a share more."""

FREE = ("tsit5", "bs3", "dp5", "heun", "tsit5:0.5", "bs3:0.5")
"""Free alternatives, each at all tolerances: a method, or method:share, whose first step is that share of the span.
Those that this version of regnde has are taken."""

FRACTION = regnde.Balance().fraction
MEASURED = 30  # batches on which `cheapen` measures a model
SLOWER = 0.3  # its learning rate, as a share of the first training's
SAME = 0.002  # of a loss, as a share of its size: what it may change by at the recommended tolerance


@dataclass(frozen=True)
class PublicRun:
    """One row of one client and seed.

    Attributes:
        client: a name out of `CLIENTS`.
        method: a name out of `ROWS`.
        seed: of parameters and batches.
        iterations: of training.
        factor: times the client's tolerances in training.
        allowed: training loss that a budget allows.
        free: alternatives that the model is solved with.
    """

    client: str
    method: str
    seed: int
    iterations: int
    factor: float = 1.0
    allowed: float | None = None
    free: tuple[str, ...] = FREE

    def described(self) -> dict[str, Any]:
        """Everything that tells this run from others, as it stands in the results."""
        client = CLIENTS[self.client]
        settings = {
            "iterations": self.iterations,
            "learning_rate": client.learning_rate,
            "rtol": client.solver(self.factor).rtol,
            "atol": client.solver(self.factor).atol,
            "weight": client.weight if self.method.startswith("fixed") else None,
            "fraction": FRACTION if self.method.startswith("balance") else None,
            "allowed": self.allowed,
            "free": self.free,
        }
        described = {"experiment": "public", "client": self.client, "method": self.method, "seed": self.seed}
        return json.loads(json.dumps(described | {"settings": settings}))  # type: ignore[no-any-return]  # a dict


def first(client: str, seed: int, iterations: int | None, free: tuple[str, ...] = FREE) -> PublicRun:
    """The run that the others of a client and a seed need; what this version of regnde lacks of `free` is dropped."""
    known = tuple(by for by in free if exists(by.partition(":")[0]))
    return PublicRun(client, "vanilla", seed, iterations or CLIENTS[client].iterations, free=known)


def others(vanilla: Line, methods: list[str]) -> list[PublicRun]:
    """The runs that follow a vanilla one."""
    made = []
    for method in methods:
        if method != "vanilla":
            factor = recommended(vanilla) if method.endswith("loose") else 1.0
            loss = vanilla["train_loss"]
            allowed = loss + ALLOWED * abs(loss) if method.startswith("budget") else None
            iterations, free = vanilla["settings"]["iterations"], tuple(vanilla["settings"]["free"])
            made.append(PublicRun(vanilla["client"], method, vanilla["seed"], iterations, factor, allowed, free))
    return made


def recommended(vanilla: Line) -> float:
    """The largest factor of the tolerances, in powers of ten, up to which the trained model's loss stays the same."""
    factor = 1.0
    for entry in vanilla["solved"]:
        if entry["by"] == "tsit5":
            if abs(entry["loss"] - vanilla["test_loss"]) > SAME * abs(vanilla["test_loss"]):
                break
            factor = entry["factor"]
    return factor


def train(run: PublicRun, watch: Callable[[regnde.Progress], None] = lambda _: None) -> Line:
    """Trains one run and solves its model with every alternative; returns its line of the results.

    A training that fails ends there, and its model is measured as it was; the line says so under "failed".
    """
    client = CLIENTS[run.client]
    model = client.build(run.seed)
    optimizer, scheduler = client.optimizer(model, run.iterations)
    solver = client.solver(run.factor)
    progress: list[regnde.Progress] = []
    failed, kept = None, None
    began = time.process_time()
    weight = _weight(run)
    cheapened = run.method.startswith("cheapen")
    penalised = not cheapened and run.method not in ("vanilla", "loose")
    trained = client.solver() if cheapened else solver
    solvers = [solver]
    if run.method.endswith("last"):  # the first one at which the model can be brought within its bound
        solvers = [Solver(method="bs3", rtol=t, atol=t, dt0=regnde.LastStep()) for t in (LOOSEST, 1e-2, 1e-3)]
    try:
        for step in regnde.fit(
            lambda batch: model.compute(batch, trained, "all" if penalised else "none"),
            model.batches(run.seed, run.iterations),
            optimizer,
            penalty=regnde.ErrorPenalty("mean") if penalised else None,
            weight=weight,
            scheduler=scheduler,
        ):
            progress.append(step)
            watch(step)
            if isinstance(weight, regnde.LossBudget) and weight.within:
                kept = copy.deepcopy(model.state_dict())
        if kept is not None:
            model.load_state_dict(kept)
        if cheapened:
            data = list(model.batches(run.seed, MEASURED))
            allowed = _allowed(model, client.solver(), data)
            for solver in solvers:
                cheapening = regnde.cheapen(
                    functools.partial(_recorded, model, solver),
                    data,
                    torch.optim.Adam(model.parameters(), SLOWER * client.learning_rate),
                    allowed=allowed,
                    iterations=run.iterations,
                    model=model,
                )
                for step in cheapening:
                    progress.append(step)
                    watch(step)
                if cheapening.best.loss <= allowed:
                    break
    except (FloatingPointError, regnde.SolveError) as error:
        failed = str(error).splitlines()[0]
    seconds = time.process_time() - began
    score = model.evaluate(solver)
    if isinstance(solver.dt0, regnde.LastStep):
        score = model.evaluate(solver)  # the first one began with a step of the training's batches
    last = progress[-max(1, run.iterations // 10) :]
    diagnosis = {"diagnosis": diagnosed(client, model)} if run.method == "vanilla" else {}
    measured = {
        "factor": run.factor,
        "solver": f"{solver.method or 'tsit5'} {solver.rtol:g}",
        "measure": client.measure,
        "test_loss": score.loss,
        "quality": score.quality,
        "test_nfe": score.nfe,
        "train_loss": statistics.mean(p.task for p in last) if last else score.loss,
        "train_nfe": statistics.mean(p.nfe for p in progress) if progress else 0.0,
        "train_seconds": seconds,
        "weight": progress[-1].weight if progress else 0.0,
        "failed": failed,
        "solved": [{"by": "own", "factor": run.factor} | score._asdict(), *solved(client, model, run.free)],
    }
    return run.described() | measured | diagnosis


def _recorded(model: Model[Any], solver: Solver, batch: Any) -> tuple[torch.Tensor, regnde.Solution]:
    """Loss and solution with all records."""
    return model.compute(batch, solver, "all")


def _allowed(model: Model[Any], solver: Solver, batches: list[Any]) -> float:
    """The mean loss at the client's tolerance and a share more."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        loss = statistics.mean(float(model.compute(batch, solver, "none")[0]) for batch in batches)
    return loss + ALLOWED * abs(loss)


def _weight(run: PublicRun) -> Any:
    """What `fit` takes as the penalty's weight."""
    if run.method.startswith("balance"):
        return regnde.Balance(FRACTION)
    if run.method.startswith("budget"):
        return regnde.LossBudget(run.allowed)
    return CLIENTS[run.client].weight


@torch.no_grad()
def diagnosed(client: Client, model: Model[Any]) -> Line:
    """What `diagnose` says of the client's solve of the test batch: its advice, and the solver that it recommends."""

    def loss(solution: regnde.Solution) -> float:
        return float(model.loss(model.read(solution, model.test), model.test))

    report = regnde.diagnose(*model.problem(model.test), client.solver(), metric=loss)
    return {
        "advice": [(advice.rule, advice.before, advice.evaluations) for advice in report.advice],
        "recommended": repr(report.recommended),
        "nfe": report.chosen.evaluations,
        "loss": report.chosen.metric,
    }


def solved(client: Client, model: Model[Any], alternatives: tuple[str, ...]) -> list[Line]:
    """Scores of the test batch by every alternative, each from the client's tolerances to the loosest."""

    def score(by: str, factor: float) -> Line:
        method, _, share = by.partition(":")
        dt0 = float(share) * client.span if share else None
        return model.evaluate(client.solver(factor, method, dt0))._asdict()

    steps = free.factors(min(client.rtol, client.atol))
    return [entry for by in alternatives for entry in free.solved(by, steps, score)]


@functools.cache
def exists(method: str) -> bool:
    """Whether this version of regnde has the method."""
    try:
        regnde.solve(lambda t, y: -y, torch.ones(1), (0.0, 1.0), Solver(method=method, rtol=0.1, atol=0.1))
    except ValueError:
        return False
    return True
