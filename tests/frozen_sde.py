"""An SDE replayed on given steps and noise: the reference for gradients, orders and recorded runs.

The steps are written out from Roessler's formulas with the coefficients of a `StochasticTableau`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde
from frozen import combined
from regnde import SDE, BrownianPath
from regnde._sde_method import SDE_METHODS, SDEMethod, StochasticMethod


def drive(g: Tensor, w: Tensor) -> Tensor:
    """The diffusion times a vector of noise."""
    return torch.einsum("...dm,...m->...d", g, w) if g.ndim > w.ndim else g * w


def written_out(name: str, sde: SDE, t: float, h: float, w: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
    """The new state and the error of a step of a method that is no tableau, by its formula."""
    start, middle, end = (torch.tensor(t + c * h, dtype=y.dtype) for c in (0.0, 0.5, 1.0))
    f, g, root = sde.drift, sde.diffusion, math.sqrt(h)
    ito, matrix = sde.calculus == "ito", sde.has_matrix
    euler = y + h * f(start, y)
    of_drift = h / 2 * (f(end, euler) - f(start, y))
    here = g(start, y)
    if name == "milstein" and sde.noise == "additive":
        return euler + drive(here, w), None
    if name == "milstein":
        along = torch.autograd.functional.jvp(lambda x: g(start, x), y, here)[1]
        return euler + here * w + along * (w**2 - (h if ito else 0)) / 2, None
    if name == "rkmil":
        slope = (g(start, (euler if ito else y) + root * here) - here) / root
        y1 = euler + here * w + slope * (w**2 - (h if ito else 0)) / 2
        return y1, of_drift.abs() + (w**3).abs() * slope**2 / 6
    if name == "lambaem":
        late = g(end, y)
        change = (g(start, euler + root * drive(late, w)) - late) / root
        return euler + drive(late, w), of_drift + drive(change, w**2 - h) / 2
    noise = drive(here, w)
    if name == "midpoint":
        at = y + (h * f(start, y) + noise) / 2
        return y + h * f(middle, at) + drive(g(middle, at), w), None
    if name == "diffusionheun":
        return euler + (noise + drive(g(end, y + noise), w)) / 2, None
    at = euler + noise
    y1 = y + h / 2 * (f(start, y) + f(end, at)) + (noise + drive(g(end, at), w)) / 2
    if name in ("heun", "eulerheun"):
        return y1, None
    assert name == "lambaeulerheun"
    if matrix:
        return y1, of_drift + drive(g(start, y + noise) - here, w) / 2
    return y1, of_drift + (g(start, y + root * here) - here) / root * w**2 / 2


@dataclass(frozen=True)
class FrozenSDE:
    """Steps with their noise, and how to walk them again with another equation or initial state.

    `ends` start with the initial time; `dw` and `area` hold one tensor a step.
    """

    tableau: StochasticMethod
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
        return FrozenSDE(SDE_METHODS[method], ends, sizes, [n.w for n in noise], [n.h for n in noise])

    @staticmethod
    def of(solution: regnde.Solution, path: BrownianPath) -> FrozenSDE:
        """The steps of a float64 solution that recorded all of them."""
        assert solution.steps is not None
        ends, sizes = [float(solution.ts[0]), *solution.steps.t.tolist()], solution.steps.dt.tolist()
        noise = [path.increment(s, t) for s, t in itertools.pairwise(ends)]
        solver = solution.solver
        return FrozenSDE(
            SDE_METHODS[solver.method],
            ends,
            sizes,
            [n.w for n in noise],
            [n.h for n in noise],
            solver.rtol,
            solver.atol,
        )

    def one(self, sde: SDE, i: int, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step i from y: the new state, error and stiffness (NaN where the method has none)."""
        tab, t, h, w = self.tableau, self.ends[i], self.sizes[i], self.dw[i]
        if isinstance(tab, SDEMethod):
            y1, parts = written_out(tab.name, sde, t, h, w, y)
            allowed = self.atol + self.rtol * torch.maximum(y.abs(), y1.abs())
            nothing = torch.full((), torch.nan, dtype=y.dtype)
            return y1, nothing if parts is None else (parts / allowed).square().mean().sqrt(), nothing
        j1 = (w**2 - h) / (2 * math.sqrt(h))
        j2 = w / 2 + self.area[i]
        j3 = (w**3 - 3 * h * w) / (6 * h)
        k: list[Tensor] = []
        g: list[Tensor] = []
        arguments: list[Tensor] = []
        for n, c1 in enumerate(tab.c1):
            if n < len(tab.c0):
                noise = drive(combined(tab.b0[n], g, torch.zeros_like(g[0])), j2) if g else 0.0
                arguments.append(y + h * combined(tab.a0[n], k, y) + noise)
            state = arguments[-1]
            if tab.a1:
                state = y + h * combined(tab.a1[n], k, y) + math.sqrt(h) * combined(tab.b1[n], g, y)
            if n < len(tab.c0):
                k.append(sde.drift(torch.tensor(t + tab.c0[n] * h, dtype=y.dtype), arguments[-1]))
            g.append(sde.diffusion(torch.tensor(t + c1 * h, dtype=y.dtype), state))
        zero = torch.zeros_like(g[0])
        added = drive(combined(tab.beta3, g, zero), j2) + drive(combined(tab.beta4, g, zero), j3)
        plain = drive(combined(tab.beta1, g, zero), w) + drive(combined(tab.beta2, g, zero), j1)
        y1 = y + h * combined(tab.alpha, k, y) + plain + added
        error = stiffness = torch.full((), torch.nan, dtype=y.dtype)
        if tab.delta is not None:
            allowed = self.atol + self.rtol * torch.maximum(y.abs(), y1.abs())
            error = ((tab.delta * h * sum(k) + added) / allowed).square().mean().sqrt()
        if tab.stiffness_pair:
            stiffness = (k[-1] - k[-2]).norm() / (arguments[-1] - arguments[-2]).norm()
        return y1, error, stiffness

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
