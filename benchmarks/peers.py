"""One call shape for every solver: (field, y0, ts, tolerance) -> states, and how many steps it took."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torchdiffeq
import torchode
from torch import Tensor

import regnde

__all__ = ["PEERS", "SOLVERS", "Field", "regnde_solve", "steps_of"]

Field = Callable[[Tensor, Tensor], Tensor]
Solve = Callable[[Field, Tensor, Tensor, float], Tensor]


def regnde_solve(method: str = "dp5", **options: object) -> Solve:
    """`regnde.solve` with the torch engine."""
    record = options.pop("record", "none")
    penalty = options.pop("penalty", None)

    def run(f: Field, y0: Tensor, ts: Tensor, tolerance: float) -> Tensor:
        solver = regnde.Solver(method=method, rtol=tolerance, atol=tolerance, engine="torch", **options)
        sol = regnde.solve(f, y0, ts, solver, record=record)
        return sol.ys if penalty is None else torch.cat([sol.ys.reshape(-1), penalty(sol)[None]])

    return run


def torchdiffeq_dopri5(f: Field, y0: Tensor, ts: Tensor, tolerance: float) -> Tensor:
    """The field's lingua franca."""
    return torchdiffeq.odeint(f, y0, ts, rtol=tolerance, atol=tolerance, method="dopri5")


def torchdiffeq_adjoint(f: Field, y0: Tensor, ts: Tensor, tolerance: float) -> Tensor:
    """Its backsolve adjoint, for modules."""
    return torchdiffeq.odeint_adjoint(f, y0, ts, rtol=tolerance, atol=tolerance, method="dopri5")


def torchode_dopri5(f: Field, y0: Tensor, ts: Tensor, tolerance: float) -> Tensor:
    """Own steps per sample, `AutoDiffAdjoint`, integral controller; time first as everywhere here."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return f(t[:, None], y)

    term = torchode.ODETerm(field)
    method = torchode.Dopri5(term=term)
    controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver = torchode.AutoDiffAdjoint(method, controller)
    problem = torchode.InitialValueProblem(y0=y0, t_eval=ts.expand(len(y0), -1))
    return solver.solve(problem).ys.transpose(0, 1)


PEERS: dict[str, Solve] = {"torchdiffeq": torchdiffeq_dopri5, "torchode": torchode_dopri5}
SOLVERS: dict[str, Solve] = {"regnde": regnde_solve("dp5"), **PEERS}


def steps_of(solve: Solve, f: Field, y0: Tensor, ts: Tensor, tolerance: float) -> tuple[float, int]:
    """Trial steps and evaluations of a Dormand-Prince solve, counted in the field (6 a step)."""
    calls = 0

    def counting(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return f(t, y)

    with torch.no_grad():
        solve(counting, y0, ts, tolerance)
    return (calls - 2) / 6, calls
