"""What a solve costs at the least: evaluations and errors at loose tolerances, with and without `LastStep`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import regnde
from benchmarks.ode import Row

__all__ = ["compared", "floor"]

Field = Callable[[Tensor, Tensor], Tensor]
Batches = list[Tensor]
METHODS = ("tsit5", "dp5", "bs3", "heun")
TOLERANCES = (1e-1, 1e-2, 1e-3)
SPAN, REFERENCE, SOLVES = (0.0, 1.0), 1e-6, 12
TRAINING, RATE = 100, 1e-2


def network(sizes: tuple[int, ...], gain: float, batch: int) -> tuple[Field, Batches]:
    """A random network, its parameters times a gain that makes it worth several steps, and random states."""
    net = regnde.nn.MLP(list(sizes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(gain)
    return net, [torch.randn(batch, sizes[0]) for _ in range(SOLVES)]


def moons(count: int) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles with noise, and which of them a point is of."""
    angle, label = math.pi * torch.rand(count), torch.rand(count) < 0.5
    x = torch.where(label, angle.cos(), 1 - angle.cos())
    y = torch.where(label, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.1 * torch.randn(count, 2), label.long()


def classifier() -> tuple[Field, Batches]:
    """A neural ODE trained on two moons."""
    net, readout = regnde.nn.MLP([2, 32, 32, 2]), nn.Linear(2, 2)
    optimizer = torch.optim.Adam([*net.parameters(), *readout.parameters()], RATE)
    for _ in range(TRAINING):
        x, label = moons(100)
        end = regnde.solve(net, x, SPAN, regnde.Solver(rtol=1e-3, atol=1e-3)).y1
        loss = functional.cross_entropy(readout(end), label)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        optimizer.step()
    return net, [moons(100)[0] for _ in range(SOLVES)]


def spiral() -> tuple[Field, Batches]:
    """The cubic spiral from several starts."""
    turn = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    return lambda t, y: y**3 @ turn, [torch.tensor([2.0, 0.0]) + 0.1 * torch.randn(2) for _ in range(SOLVES)]


SETUPS: dict[str, Callable[[], tuple[Field, Batches]]] = {
    "2-50-2, B=20": lambda: network((2, 50, 2), 2.5, 20),
    "8-32-32-8, B=64": lambda: network((8, 32, 32, 8), 3.0, 64),
    "64-128-64, B=32": lambda: network((64, 128, 64), 2.5, 32),
    "two moons, trained, B=100": classifier,
    "cubic spiral": spiral,
}


def compared(field: Field, batches: Batches, span: tuple[float, float] = SPAN) -> dict[tuple[str, float, bool], Row]:
    """Means over the batches, by method, tolerance and whether the first step is the last solve's.

    The error is that of the final state over its size, against a solve at a tolerance of 1e-6. A `LastStep` is new
    for each method and tolerance, so that its first, dearer solve counts.
    """
    found: dict[tuple[str, float, bool], Row] = {}
    with torch.no_grad():
        fine = regnde.Solver(rtol=REFERENCE, atol=REFERENCE)
        exact = [regnde.solve(field, y0, span, fine).y1 for y0 in batches]
        for method in METHODS:
            for tolerance in TOLERANCES:
                for known in (False, True):
                    dt0 = regnde.LastStep() if known else None
                    solver = regnde.Solver(method=method, rtol=tolerance, atol=tolerance, dt0=dt0)
                    runs = [regnde.solve(field, y0, span, solver) for y0 in batches]
                    errors = [float((run.y1 - y1).norm() / y1.norm()) for run, y1 in zip(runs, exact, strict=True)]
                    found[method, tolerance, known] = {
                        "nfe": sum(run.stats.nfe for run in runs) / len(runs),
                        "rejected": sum(run.stats.rejected for run in runs) / len(runs),
                        "error": sum(errors) / len(errors),
                    }
    return found


def floor() -> list[Row]:
    """A row for each field and tolerance; a cell: evaluations (error), then the same with `LastStep`."""
    rows: list[Row] = []
    for name, make in SETUPS.items():
        torch.manual_seed(0)
        found = compared(*make())
        for tolerance in TOLERANCES:
            row: Row = {"field": name, "tolerance": f"{tolerance:g}"}
            for method in METHODS:
                plain, known = (found[method, tolerance, which] for which in (False, True))
                row[method] = f"{plain['nfe']:.0f} ({plain['error']:.1g})"
                row[f"{method}, LastStep"] = f"{known['nfe']:.0f} ({known['error']:.1g})"
            rows.append(row)
    return rows
