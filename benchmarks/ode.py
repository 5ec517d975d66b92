"""ODE set-ups: forward and training per step, overhead, records, outputs, memory, per-sample steps."""

from __future__ import annotations

import copy
import functools
import resource
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regnde
from benchmarks.fields import FIELDS
from benchmarks.peers import PEERS, SOLVERS, Field, regnde_solve, steps_of, torchdiffeq_adjoint
from benchmarks.timing import race

__all__ = ["SETUPS", "Row"]

Row = dict[str, object]


def gradient_of(
    solve: Callable[..., Tensor], f: nn.Module, y0: Tensor, ts: Tensor, tolerance: float
) -> Callable[[], None]:
    """One forward and backward pass through the last state."""

    def run() -> None:
        f.zero_grad(set_to_none=True)
        solve(f, y0, ts, tolerance)[-1].square().sum().backward()

    return run


def works(run: Callable[[], None]) -> bool:
    """Whether a peer gets through: torchdiffeq's adjoint runs backwards, where a limit cycle repels."""
    try:
        run()
    except AssertionError:
        return False
    return True


def bare(f: Field, y0: Tensor, calls: int) -> Callable[[], Tensor]:
    """The field alone, of its own values, as often as a solve calls it."""
    t = torch.zeros(())

    def run() -> Tensor:
        y = y0
        for _ in range(calls):
            y = f(t, y)
        return y

    return run


def per_step() -> list[Row]:
    """Microseconds a trial step, forward and training, and the ratios to the peers at the same method."""
    rows = []
    recorded = regnde_solve("dp5", record="all", penalty=regnde.ErrorPenalty())
    for setup in FIELDS:
        f, y0, ts = setup.make()
        counts = {name: steps_of(solve, f, y0, ts, setup.tolerance) for name, solve in SOLVERS.items()}
        alone = bare(f, y0, counts["regnde"][1])
        with torch.no_grad():
            forward = race(
                {
                    **{name: functools.partial(s, f, y0, ts, setup.tolerance) for name, s in SOLVERS.items()},
                    "bare": alone,
                },
                setup.repeats,
            )
        adjoint = gradient_of(torchdiffeq_adjoint, f, y0, ts, setup.tolerance)
        training = race(
            {
                **{name: gradient_of(s, f, y0, ts, setup.tolerance) for name, s in SOLVERS.items()},
                "records": gradient_of(recorded, f, y0, ts, setup.tolerance),
                "checkpoint": gradient_of(regnde_solve("dp5", gradient="checkpoint"), f, y0, ts, setup.tolerance),
                **({"torchdiffeq adjoint": adjoint} if works(adjoint) else {}),
                "bare": gradient_of(lambda *_, alone=alone: alone()[None], f, y0, ts, setup.tolerance),
            },
            setup.repeats,
        )
        more: Row = {
            "records + penalty": f"{100 * (training['records'] / training['regnde'] - 1):+.0f} %",
            "checkpoint": round(training["checkpoint"] / training["regnde"], 2),
            "adjoint / checkpoint": "fails",
        }
        if "torchdiffeq adjoint" in training:
            more["adjoint / checkpoint"] = round(training["torchdiffeq adjoint"] / training["checkpoint"], 1)
        for kind, seconds, further in (("forward", forward, {}), ("training", training, more)):
            each = {name: 1e6 * seconds[name] / counts[name][0] for name in SOLVERS}
            rows.append(
                {
                    "field": setup.name,
                    "pass": kind,
                    "steps": round(counts["regnde"][0]),
                    "regnde us/step": round(each["regnde"]),
                    **{f"x {name}": round(each[name] / each["regnde"], 2) for name in PEERS},
                    "overhead": round(seconds["regnde"] / seconds["bare"], 2),
                    **further,
                }
            )
    return rows


def accuracy() -> list[Row]:
    """Evaluations, and the largest error of an entry of the last state against a float64 solve at 1e-11."""
    rows: list[Row] = []
    for setup in FIELDS:
        f, y0, ts = setup.make()
        tight = regnde.Solver(method="vern7", rtol=1e-11, atol=1e-11, engine="torch")
        with torch.no_grad():
            exact = regnde.solve(copy.deepcopy(f).double(), y0.double(), ts.double(), tight).y1
        row: Row = {"field": setup.name, "tolerance": f"{setup.tolerance:.0e}"}
        for name, solve in SOLVERS.items():
            row[f"{name} NFE"] = steps_of(solve, f, y0, ts, setup.tolerance)[1]
            with torch.no_grad():
                row[f"{name} error"] = f"{float((solve(f, y0, ts, setup.tolerance)[-1] - exact).abs().max()):.0e}"
        rows.append(row)
    return rows


def outputs() -> list[Row]:
    """Cost of save points: the same harmonic oscillator with 2 to 10,000 of them."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[:, 1], -y[:, 0]], 1)

    y0 = torch.tensor([[1.0, 0.0]])
    counts = (2, 100, 1_000, 10_000)
    spans = {n: torch.linspace(0, 30, n) for n in counts}
    with torch.no_grad():
        seconds = race(
            {f"{name} {n}": lambda s=s, n=n: s(f, y0, spans[n], 1e-6) for n in counts for name, s in SOLVERS.items()},
            5,
        )
    return [
        {
            "save points": n,
            **{f"{name} ms": round(1e3 * seconds[f"{name} {n}"], 1) for name in SOLVERS},
            "regnde, ratio to 2": round(seconds[f"regnde {n}"] / seconds["regnde 2"], 2),
        }
        for n in counts
    ]


class Allocated(TorchDispatchMode):
    """Notes the memory of every tensor that an operation returns, and tells how much of it is still in use."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Callable[..., object], types: object, args=(), kwargs=None) -> object:
        """Runs the operation."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def in_use(self) -> int:
        """Bytes of the tensors that something still refers to, a graph for example."""
        return sum(size for storage, size in self.storages.values() if not storage.expired())


def saved_bytes(gradient: str, steps: int) -> int:
    """Bytes in use between the passes of rk4 with so many steps on the MNIST-shaped field.

    Not counted by hooks on saved tensors: a checkpoint has hooks of its own, and saves tensors beside the graph.
    """
    f, y0, _ = FIELDS[-1].make()
    solver = regnde.Solver(method="rk4", dt0=1 / steps, gradient=gradient, engine="torch")
    start = y0[:64]
    with Allocated() as allocated:
        sol = regnde.solve(f, start, [0.0, 1.0], solver)
    size = allocated.in_use()
    del sol  # the graph was alive until here
    return size


def memory() -> list[Row]:
    """What a further step adds to the memory between forward and backward pass, in states."""
    state = 64 * 784 * 4
    rows = []
    for gradient in ("discrete", "checkpoint"):
        small, large = saved_bytes(gradient, 10), saved_bytes(gradient, 20)
        rows.append(
            {
                "gradient": gradient,
                "MB for 20 steps": round(large / 1e6, 1),
                "states a step": round((large - small) / 10 / state, 2),
                "peak RSS of this process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    return rows


def stiff_sample() -> list[Row]:
    """One van der Pol oscillator with mu = 50 among 63 with mu = 1: joint, per sample, and each solved alone."""
    mu = torch.ones(64, dtype=torch.float64)
    mu[17] = 50.0

    def field(t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        m = mu[samples]
        return torch.stack([y[:, 1], m * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1)

    everyone = torch.arange(64)
    y0 = torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(64, 1)
    joint = regnde.Solver(rtol=1e-5, atol=1e-5, engine="torch")
    each = regnde.Solver(rtol=1e-5, atol=1e-5, engine="torch", batch="per-sample")
    with torch.no_grad():
        together = regnde.solve(lambda t, y: field(t, y, everyone), y0, [0.0, 5.0], joint).stats
        sampled = regnde.solve(field, y0, [0.0, 5.0], each).stats
        alone = [
            regnde.solve(lambda t, y, i=i: field(t, y, everyone[i : i + 1]), y0[i : i + 1], [0.0, 5.0], joint).stats
            for i in range(64)
        ]
        seconds = race(
            {
                "joint": lambda: regnde.solve(lambda t, y: field(t, y, everyone), y0, [0.0, 5.0], joint),
                "per-sample": lambda: regnde.solve(field, y0, [0.0, 5.0], each),
            },
            3,
        )
    least = sum(stats.nfe for stats in alone)
    evaluations = {"joint": 64 * together.nfe, "per-sample": sum(s.nfe for s in sampled.samples), "alone": least}
    return [
        {
            "batch": name,
            "sample evaluations": count,
            "ratio to alone": round(count / least, 2),
            "ms": round(1e3 * seconds[name]) if name in seconds else None,
        }
        for name, count in evaluations.items()
    ]


def spiral_training() -> list[Row]:
    """500 Adam steps of the cubic spiral (30 save points on [0, 1.5], 2-50-2), the SciML gist's set-up."""
    truth_matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    ts, y0 = torch.linspace(0, 1.5, 30), torch.tensor([[2.0, 0.0]])
    truth = regnde.solve(lambda t, y: y**3 @ truth_matrix.T, y0, ts, regnde.Solver(engine="torch")).ys

    def train(solve: Callable[..., Tensor], steps: int) -> float:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))
        adam = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(steps):
            adam.zero_grad()
            loss = (solve(lambda t, y: net(y**3), y0, ts, 1e-5) - truth).square().mean()
            loss.backward()
            adam.step()
        return float(loss.detach())

    solvers = {"regnde": regnde_solve("dp5"), "torchdiffeq": PEERS["torchdiffeq"]}
    losses = {name: train(solve, 500) for name, solve in solvers.items()}
    seconds = race({name: lambda s=s: train(s, 50) for name, s in solvers.items()}, 3)
    return [
        {
            "solver": name,
            "s / 500 steps": round(10 * seconds[name], 1),
            "loss after 500": f"{losses[name]:.2e}",
            "speed-up": round(seconds["torchdiffeq"] / seconds[name], 2),
        }
        for name in solvers
    ]


SETUPS: dict[str, tuple[str, Callable[[], list[Row]]]] = {
    "per-step": ("Time per trial step, Dormand-Prince, float32", per_step),
    "accuracy": ("Evaluations and errors of these solves", accuracy),
    "outputs": ("Save points", outputs),
    "memory": ("Memory between forward and backward pass, 784-100-784, B=64, rk4", memory),
    "stiff-sample": ("One stiff sample among 64, tsit5", stiff_sample),
    "spiral": ("Training on the spiral", spiral_training),
}
