"""An SDE replayed on given steps and noise: the reference for gradients, orders and recorded runs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde
from regnde import SDE, BrownianPath
from regnde._engines.torch.sde_step import (
    noise_weights,
    sde_error_estimate,
    sde_stiffness_estimate,
    step_noise,
    take_sde_step,
)
from regnde._engines.torch.sde_tableaux import SDE_TABLEAUX, StochasticTableau


@dataclass(frozen=True)
class FrozenSDE:
    """Steps with their noise, and how to walk them again with another equation or initial state.

    `ends` start with the initial time; `dw` and `area` hold one tensor a step.
    """

    tableau: StochasticTableau
    ends: Sequence[float]
    sizes: Sequence[float]
    dw: Sequence[Tensor]
    area: Sequence[Tensor]
    rtol: float = 0.0
    atol: float = 1.0

    @staticmethod
    def on(path: BrownianPath, method: str, ends: Sequence[float]) -> FrozenSDE:
        """Given step ends along a path."""
        noise = [path.increment(s, t) for s, t in itertools.pairwise(ends)]
        sizes = [t - s for s, t in itertools.pairwise(ends)]
        return FrozenSDE(SDE_TABLEAUX[method], ends, sizes, [n.w for n in noise], [n.h for n in noise])

    @staticmethod
    def of(solution: regnde.Solution, path: BrownianPath) -> FrozenSDE:
        """The steps of a float64 solution that recorded all of them."""
        assert solution.steps is not None
        ends, sizes = [float(solution.ts[0]), *solution.steps.t.tolist()], solution.steps.dt.tolist()
        noise = [path.increment(s, t) for s, t in itertools.pairwise(ends)]
        solver = solution.solver
        return FrozenSDE(
            SDE_TABLEAUX[solver.method],
            ends,
            sizes,
            [n.w for n in noise],
            [n.h for n in noise],
            solver.rtol,
            solver.atol,
        )

    def one(self, sde: SDE, i: int, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step i from y: the new state, error and stiffness (NaN where the method has none)."""
        noise = step_noise(noise_weights(self.tableau, y), self.sizes[i], self.dw[i], self.area[i])
        h, none = self.sizes[i], torch.full((), torch.nan, dtype=y.dtype)
        step = take_sde_step(sde.drift, sde.diffusion, self.tableau, y, self.ends[i], h, self.ends[i + 1], noise)
        error = none
        if self.tableau.estimates_error:
            error = sde_error_estimate(self.tableau, y, h, noise, step, self.rtol, self.atol)
        stiffness = sde_stiffness_estimate(step) if self.tableau.stiffness_pair else none
        return step.y1, error, stiffness

    def walk(self, sde: SDE, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States at the step ends, shape (S + 1, *y.shape), and errors and stiffnesses, shape (S,)."""
        states, errors, stiffnesses = [y], [], []
        for i in range(len(self.sizes)):
            y, error, stiffness = self.one(sde, i, y)
            states.append(y)
            errors.append(error)
            stiffnesses.append(stiffness)
        return torch.stack(states), torch.stack(errors), torch.stack(stiffnesses)

    def end(self, sde: SDE, y: Tensor) -> Tensor:
        """State at the last step's end."""
        return self.walk(sde, y)[0][-1]

    def states(self, sde: SDE, y: Tensor, ts: Sequence[float]) -> Tensor:
        """States at any times, linear between the steps' ends, shape (T, *y.shape)."""
        ends, rows = self.walk(sde, y)[0], []
        for t in ts:
            i = next(i for i in range(len(self.sizes)) if t <= self.ends[i + 1])
            rows.append(torch.lerp(ends[i], ends[i + 1], (t - self.ends[i]) / self.sizes[i]))
        return torch.stack(rows)
