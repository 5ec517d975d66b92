"""Chooses a grid of fixed steps on samples, for deployment.

An adaptive solve takes decisions that depend on numbers, which an exported graph can not. Its control also costs
evaluations: for the first step, for rejected steps, for a margin of safety. Similar inputs can share fixed steps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from regnde._engines.torch.field import CountedField
from regnde._engines.torch.grid import evaluations, walk
from regnde._equation import SDE, Field, JuliaField
from regnde._fixed_grid import FixedGrid, explicit, with_stops
from regnde._grid_report import Candidate, GridReport, Spacing, distances
from regnde._recording import unrecorded
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Solver
from regnde._state import checked_state
from regnde._stops import Segment, segments
from regnde._tableau import Tableau
from regnde._times import checked_stops, checked_times

__all__ = ["fixed_grid"]

Floats = NDArray[np.float64]
Grid = tuple[float, ...]
Density = tuple[Floats, Floats]  # places, and how dense steps are between them

REFERENCE_METHOD = "vern7"
FINER = 1e-4  # tolerance of the reference over the given one
RESOLUTION = 50  # of the state's dtype: a multiple that is the least tolerance of the reference
LOOSER = 10  # tolerance of a second reference over that of the first
UNSURE = 0.2  # distance of the two references in units of the tolerance, up to which errors are believed
DEAREST = 10  # evaluations of a grid over those of the adaptive solve, at most
COARSE = 8  # least number of steps of the grid on which local errors are measured
SPARSEST = 0.1  # density of steps over its mean, at least
SMALLEST = 1e-12  # error that counts


def fixed_grid(
    field: Field,
    samples: Tensor | ArrayLike,
    ts: Sequence[float] | Tensor,
    solver: Solver | None = None,
    *,
    share: float = 0.95,
    methods: Sequence[str | Tableau] | None = None,
    output: Literal["state", "states"] = "state",
    stops: Sequence[float] | Tensor = (),
) -> FixedGrid:
    """Chooses fixed steps that solve samples to the solver's tolerance, and makes a module that takes them.

    The samples are solved once adaptively, with records, and twice very accurately. For each method the fewest steps
    are sought with which the given share of the samples is within the tolerance at all save times. Steps are spaced
    evenly, or as the records have them, or so that the method's local errors are alike. The grid of the fewest
    evaluations is taken. The tolerance is that of the result; an adaptive solve holds only its single steps to it.

    Args:
        field: f(t, y), usually a module in evaluation mode, of every sample on its own.
        samples: initial states like those to come, shape (samples, ...).
        ts: save times, in units of time.
        solver: an adaptive method, and the tolerances to be met; `Solver()` by default.
        share: of the samples that is to be within the tolerance, above 0 and at most 1.
        methods: names of explicit methods of the torch engine, of fixed or adaptive step, or `Tableau`s; by default the
            solver's method.
        output: what the module returns, as `FixedGrid` has it.
        stops: times at which the field may jump or bend, as for `solve`: steps end there.

    Returns:
        A `FixedGrid`; its `report` has the errors.

    Raises:
        TypeError: for an SDE or a `JuliaField`.
        ValueError: for a solver of fixed step size, an unknown method, or samples whose dtype is too coarse for the
            tolerance; if no grid meets the tolerance with ten times the evaluations of the adaptive solve.
        SolveError: if an adaptive solve of the samples does not reach the end.

    Examples:
        >>> samples = torch.linspace(0.5, 2.0, 40, dtype=torch.float64)[:, None]
        >>> grid = fixed_grid(lambda t, y: -y, samples, [0.0, 1.0], Solver(rtol=1e-4, atol=1e-4))
        >>> grid.nfe < grid.report.adaptive_nfe, grid.report.errors[1] <= 1, bool(grid.beyond(samples).any())
        (True, True, False)
    """
    if isinstance(field, (SDE, JuliaField)):
        raise TypeError(f"fixed_grid: field must be the f(t, y) of an ODE, got {type(field).__name__}.")
    if not 0 < share <= 1:
        raise ValueError(f"fixed_grid(share={share!r}): give a share above 0 and at most 1.")
    solver = Solver() if solver is None else solver
    resolved = solver.resolve(sde=False)
    own = explicit(resolved.method if resolved.tableau is None else resolved.tableau)
    if not own.adaptive:
        raise ValueError(
            f"fixed_grid: the solver's method {own.name!r} has fixed steps and estimates no error: give an adaptive "
            "solver, and the method of the grid as methods=[...]."
        )
    if not (isinstance(resolved.rtol, float) and isinstance(resolved.atol, float)):
        raise ValueError("fixed_grid: the solver has a tolerance for each part or entry: give one rtol and one atol.")
    tableaux = [own] if methods is None else [explicit(method) for method in methods]
    with torch.no_grad(), unrecorded():
        times = checked_times(ts)[1]
        jumps = checked_stops(stops)[1]
        problem = _Problem.of(field, samples, times, solver, resolved.rtol, resolved.atol, share, jumps)
        found = sorted(problem.candidates(tableaux), key=lambda each: (each[0].nfe, each[0].error))
        if not found:
            names = ", ".join(tableau.name for tableau in tableaux)
            raise ValueError(
                f"fixed_grid: no grid of up to {problem.dearest} evaluations brings {share:g} of the samples within "
                f"the tolerance with {names}: give other methods, a lower share, or larger tolerances."
            )
        tableau, ends = found[0][1:]
        grid = FixedGrid(
            field, problem.ts, ends, tableau, rtol=problem.rtol, atol=problem.atol, output=output, stops=jumps
        )
        grid.report = problem.report([candidate for candidate, *_ in found], tableau, ends)
    return grid


@dataclass(frozen=True)
class _Problem:
    """Samples, their reference solution, and the adaptive solve that a grid is compared with."""

    field: Field
    y0: Tensor
    ts: Grid
    rtol: float
    atol: float
    share: float
    adaptive: Solution
    reference: Tensor  # at the save times
    reference_error: float
    places: Grid  # a coarse grid
    states: Tensor  # the reference at its times
    segments: tuple[Segment, ...]  # between the stops

    @staticmethod
    def of(
        field: Field,
        samples: Tensor | ArrayLike,
        ts: Grid,
        solver: Solver,
        rtol: float,
        atol: float,
        share: float,
        stops: Grid,
    ) -> _Problem:
        """The problem of these samples; solves it."""
        y0 = checked_state(samples)
        if y0.ndim == 0 or not y0.numel():
            raise ValueError(f"fixed_grid: samples must have the shape (samples, ...), got {tuple(y0.shape)}.")
        if ts[0] == ts[-1]:
            raise ValueError(f"fixed_grid: ts must span some time, got {ts[0]:g} to {ts[-1]:g}.")
        plain = dataclasses.replace(solver, engine="torch", batch="joint", gradient="discrete", compile=False, dt0=None)
        parts = segments(ts[0], ts[-1], stops, y0.dtype.to_real())
        adaptive = solve(field, y0, ts, plain, record="all", stops=stops)
        places = with_stops(_spaced(_recorded(adaptive), max(COARSE, adaptive.stats.accepted)), parts)
        times = sorted({*ts, *places}, reverse=ts[-1] < ts[0])
        saved, coarse = ([times.index(t) for t in some] for some in (ts, places))
        fine = dataclasses.replace(
            plain,
            method=REFERENCE_METHOD,
            rtol=max(FINER * rtol, RESOLUTION * torch.finfo(y0.dtype).eps),
            atol=FINER * atol,
            max_steps=DEAREST * plain.max_steps,
            dt_min=0.0,
        )
        rougher = dataclasses.replace(fine, rtol=LOOSER * fine.rtol, atol=LOOSER * fine.atol)
        states, others = (solve(field, y0, times, each, stops=stops).ys for each in (fine, rougher))
        unsure = float(distances(others[saved], states[saved], rtol, atol).max())
        if not unsure <= UNSURE:
            raise ValueError(
                f"fixed_grid: references at two tolerances are {unsure:.2g} apart in units of the tolerance "
                f"(rtol={rtol:g}, atol={atol:g}), so that no error can be told: give samples and field in double "
                "precision, or larger tolerances."
            )
        return _Problem(
            field, y0, ts, rtol, atol, share, adaptive, states[saved], unsure, places, states[coarse], parts
        )

    @property
    def dearest(self) -> int:
        """The largest number of evaluations of a grid."""
        return DEAREST * self.adaptive.stats.nfe

    def errors(self, tableau: Tableau, ends: Grid) -> Tensor:
        """Errors of the samples along a grid, shape (samples,)."""
        ys = walk(CountedField(self.field), tableau, self.y0, ends, self.ts, self.segments)
        return distances(ys, self.reference, self.rtol, self.atol)

    def candidates(self, tableaux: Sequence[Tableau]) -> Iterator[tuple[Candidate, Tableau, Grid]]:
        """The grid of the fewest steps of each method and spacing, where it is not dearer than those before it."""
        limit = self.dearest
        for tableau in tableaux:
            densities: dict[Spacing, Density] = {
                "even": (np.array((self.ts[0], self.ts[-1])), np.ones(1)),
                "recorded": _recorded(self.adaptive),
                "measured": self.measured(tableau),
            }
            for spacing, density in densities.items():
                fewest = self.fewest(tableau, density, limit)
                if fewest is not None:
                    error, ends = fewest
                    nfe = evaluations(tableau, ends, self.ts)
                    limit = min(limit, nfe)
                    yield Candidate(tableau.name, spacing, len(ends) - 1, nfe, error), tableau, ends

    def measured(self, tableau: Tableau) -> Density:
        """The coarse grid, and the density at which the method's local errors are alike."""
        local, at = [], 0
        for i, ends in enumerate(itertools.pairwise(self.places)):
            at += ends[0] == self.segments[at].end
            y1 = walk(CountedField(self.field), tableau, self.states[i], ends, ends[1:], self.segments[at : at + 1])
            error = distances(y1, self.states[i + 1 : i + 2], self.rtol, self.atol)
            local.append(min(max(_at_share(error, self.share), SMALLEST), 1 / SMALLEST))
        places = np.array(self.places)
        return places, np.array(local) ** (1 / (tableau.order + 1)) / np.abs(np.diff(places))

    def fewest(self, tableau: Tableau, density: Density, limit: int) -> tuple[float, Grid] | None:
        """The grid of the fewest steps that meets the tolerance, and its error; None if that is beyond the limit."""

        def tried(steps: int) -> tuple[float, Grid]:
            ends = with_stops(_spaced(density, steps), self.segments)
            return _at_share(self.errors(tableau, ends), self.share), ends

        most = limit // (tableau.stages - tableau.fsal)
        failed, steps = 0, 1
        error, ends = tried(steps)
        while error > 1:
            if steps >= most:
                return None
            failed, growth = steps, min(max(error ** (1 / tableau.order), 1.1), 2.0)
            steps = min(math.ceil(growth * steps), most)
            error, ends = tried(steps)
        while steps > failed + 1:
            middle = (failed + steps) // 2
            found = tried(middle)
            if found[0] <= 1:
                steps, (error, ends) = middle, found
            else:
                failed = middle
        return error, ends

    def report(self, candidates: Sequence[Candidate], tableau: Tableau, ends: Grid) -> GridReport:
        """The report on a chosen grid."""
        quantiles = tuple(sorted({0.5, self.share, 1.0}))
        errors = self.errors(tableau, ends)
        others = distances(self.adaptive.ys, self.reference, self.rtol, self.atol)
        return GridReport(
            chosen=candidates[0],
            candidates=tuple(candidates),
            samples=len(self.y0),
            share=self.share,
            rtol=self.rtol,
            atol=self.atol,
            quantiles=quantiles,
            errors=tuple(_at_share(errors, q) for q in quantiles),
            adaptive_errors=tuple(_at_share(others, q) for q in quantiles),
            adaptive_nfe=self.adaptive.stats.nfe,
            adaptive_steps=self.adaptive.stats.accepted,
            reference_error=self.reference_error,
        )


def _recorded(solution: Solution) -> Density:
    """The recorded steps, and the density at which their errors would be alike."""
    steps = solution.steps
    assert steps is not None
    size = steps.dt.abs().cpu().numpy()
    error = steps.error.double().cpu().numpy()
    order = explicit(solution.solver.method if solution.solver.tableau is None else solution.solver.tableau).order
    places = np.concatenate(([float(solution.ts[0])], steps.t.cpu().numpy()))
    return places, np.maximum(error, SMALLEST) ** (1 / order) / size


def _spaced(density: Density, steps: int) -> Grid:
    """The ends of steps that are as dense as that, the initial time first."""
    places, values = density
    widths = np.abs(np.diff(places))
    mean = np.average(values, weights=widths)
    shares = np.concatenate(([0.0], np.cumsum(np.maximum(values, SPARSEST * mean) * widths)))
    inside = np.interp(np.arange(1, steps) / steps, shares / shares[-1], places)
    return (float(places[0]), *inside.tolist(), float(places[-1]))


def _at_share(errors: Tensor, share: float) -> float:
    """The error that this share of the samples does not exceed."""
    return float(errors.sort().values[math.ceil(share * len(errors)) - 1])
