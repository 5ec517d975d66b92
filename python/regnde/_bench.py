"""The problem that `diagnose` is given, and the measurement of one solve of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regnde import _modules
from regnde._last_step import LastStep
from regnde._penalty import ErrorPenalty
from regnde._report import Smoothness
from regnde._run import Run
from regnde._solution import Solution, Status
from regnde._solve import solve
from regnde._solver import Solver
from regnde._tableau import TABLEAUX, Tableau

__all__ = ["Bench", "Metric", "two_steps"]

Metric = Callable[[Solution], float]

PERTURBATION = 1e-6  # relative change of y0


@dataclass
class Bench:
    """The problem, and the ways in which it is solved.

    Attributes:
        f, y0, ts: the field, the initial state and the save times.
        metric: the user's, or None.
        per_sample: whether the field is called with a time for each sample.
        truth: states of the reference, once it was solved.
        solves: how many were made.
        needs_graph: whether the field fails without a graph.
        kinks: activations that have kinks, and how often an evaluation calls each.
        modules, parameters: those of the field that are found; parameters that are trained.
        span: length of the time span.
        size: root mean square of the state's entries.
    """

    f: Any
    y0: Tensor
    ts: Tensor
    metric: Metric | None
    per_sample: bool
    truth: Tensor | None = None
    solves: int = 0
    needs_graph: bool = False
    kinks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.modules = _modules.found(self.f)
        self.parameters: list[Tensor] = [p for m in self.modules for p in m.parameters() if p.requires_grad]
        self.span = abs(float(self.ts[-1]) - float(self.ts[0]))
        self.size = float(self.y0.abs().square().mean().sqrt()) or 1.0
        for graph in (False, True):  # if neither works, the solve raises the error
            with contextlib.suppress(Exception), _modules.Activations() as activations:
                self.slope(self.y0, graph=graph)
                self.needs_graph = graph
                self.kinks = tuple(f"{name} ({count})" for name, count in activations.calls.items())
                break

    def slope(self, y0: Tensor, *, per_sample: bool = False, graph: bool = False) -> Tensor:
        """The field at the initial time, called as a solve does: for each sample a time of its own, or one for all."""
        t = self.ts[0].to(y0.dtype.to_real()).to(y0.device)
        if per_sample or self.per_sample:
            t = t.expand(len(y0), *(1,) * (y0.ndim - 1))
        with torch.set_grad_enabled(graph or self.needs_graph):
            try:
                slope: Tensor = self.f(t.clone(), y0.clone())
            except TypeError:  # of three arguments
                slope = self.f(t.clone(), y0.clone(), torch.arange(len(y0), device=y0.device))
            return slope.detach()

    def roundoff(self) -> float | None:
        """Relative difference of that value from the one in float64; None if the field can not be converted."""
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            own = self.slope(self.y0)
            with _modules.in_double(self.modules):
                exact = self.slope(self.y0.to(_modules.DOUBLE.get(self.y0.dtype, self.y0.dtype)))
            return float((own - exact).norm()) / (float(exact.norm()) or 1.0)
        return None

    def __str__(self) -> str:
        dtype = str(self.y0.dtype).removeprefix("torch.")
        return f"{dtype} state {tuple(self.y0.shape)}, t from {float(self.ts[0]):.8g} to {float(self.ts[-1]):.8g}"

    def solve(
        self,
        solver: Solver,
        y0: Tensor | None = None,
        *,
        record: bool = False,
        graph: bool = False,
        throw: bool = False,
    ) -> Solution:
        """A solve, without a graph unless it is asked for or the field needs one."""
        self.solves += 1
        y0 = self.y0 if y0 is None else y0
        with torch.set_grad_enabled(graph or self.needs_graph):
            if isinstance(
                solver.dt0, LastStep
            ):  # a copy with the size of this solve: runs must not depend on each other
                solver = replace(solver, dt0=LastStep(solver.dt0.size))
                solve(self.f, y0.detach(), self.ts, solver, throw=False)
            return solve(self.f, y0, self.ts, solver, record="all" if record else "none", throw=throw)

    def tried(self, solver: Solver, *, double: bool = False) -> Solution | None:
        """The solve if it succeeds, in float64 if asked for; None if solver or field can not be used so."""
        y0 = self.y0.to(_modules.DOUBLE.get(self.y0.dtype, self.y0.dtype)) if double else self.y0
        modules = self.modules if double else ()
        with contextlib.suppress(RuntimeError, TypeError, ValueError), _modules.in_double(modules):
            solution = self.solve(solver, y0)
            return solution if solution.status == Status.SUCCESS else None
        return None

    def run(self, solver: Solver, solution: Solution | None = None) -> Run:
        """The measurement of a solve; a solve that was made before is not repeated."""
        solution = self.solve(solver) if solution is None else solution
        stats, done = solution.stats, solution.status == Status.SUCCESS
        tableau = solution.solver.tableau or TABLEAUX.get(solution.solver.method)
        return Run(
            solver=solver,
            method=solution.solver.method,
            evaluations=stats.nfe,
            accepted=stats.accepted,
            rejected=stats.rejected,
            floor=None if tableau is None else two_steps(tableau, solver),
            error=self._error(solution.ys.detach()) if done else None,
            metric=self._measured(solution) if done else None,
            status=solution.status,
        )

    def _error(self, ys: Tensor) -> float | None:
        """Largest rms over the save times of the difference from the reference, over the rms of the reference."""
        if self.truth is None:
            return None
        difference = (ys.to(self.truth.dtype) - self.truth).abs().reshape(len(ys), -1)
        size = float(self.truth.abs().square().mean().sqrt())
        error = float(difference.square().mean(1).sqrt().max()) / (size or 1.0)
        return error if math.isfinite(error) else math.inf

    @torch.no_grad()
    def _measured(self, solution: Solution) -> float | None:
        """The user's metric."""
        if self.metric is None:
            return None
        value: Any = self.metric(replace(solution, ys=solution.ys.detach().to(self.y0.dtype)))
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise TypeError(f"metric must return one real number, got a {type(value).__name__}{shape}.") from None

    def smoothness(self, solver: Solver) -> Smoothness | None:
        """How reproducible the gradient of the mean error is; None if there is none."""
        if solver.gradient not in ("discrete", "checkpoint"):
            solver = replace(solver, gradient="discrete")
        moved = self.y0 * (1 + PERTURBATION) if bool(self.y0.any()) else self.y0 + PERTURBATION
        try:
            here, there = self._gradient(solver, self.y0), self._gradient(solver, moved)
        except (RuntimeError, ValueError, TypeError):
            return None
        size = float(here.norm())
        if size == 0:
            return Smoothness(float(there.norm() > 0), 1.0)
        cosine = float(here @ there) / (size * float(there.norm()) or 1.0)
        return Smoothness(float((there - here).norm()) / size, cosine)

    def _gradient(self, solver: Solver, y0: Tensor) -> Tensor:
        """By the parameters, or by y0 if there are none."""
        start = y0 if self.parameters else y0.clone().requires_grad_()
        penalty = ErrorPenalty("mean")(self.solve(solver, start, record=True, graph=True, throw=True))
        slopes = torch.autograd.grad(penalty, self.parameters or [start], allow_unused=True)
        found = [torch.view_as_real(x) if x.is_complex() else x for x in slopes if x is not None]
        return torch.cat([x.flatten().double() for x in found])


def two_steps(tableau: Tableau, solver: Solver) -> int:
    """Evaluations of two steps and of the start."""
    carried = tableau.fsal and tableau.adaptive
    start = (2 if tableau.adaptive and solver.dt0 is None else 0) + carried
    return start + 2 * (tableau.stages - carried)
