"""A solve replayed on given steps: the reference for gradients, independent of the engine under test.

The steps are written out from the formulas of a Runge-Kutta method with the coefficients of a `Tableau`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import regnde
from regnde import Tableau
from regnde._tableau import TABLEAUX

Field = Callable[[Tensor, Tensor], Tensor]


class Stages(NamedTuple):
    """Slopes k_i and arguments g_i of the stages, and the new state."""

    k: list[Tensor]
    g: list[Tensor]
    y1: Tensor


def combined(weights: Sequence[float], k: Sequence[Tensor], y: Tensor) -> Tensor:
    """The sum of weights_j k_j, of y's shape."""
    return sum((w * k_j for w, k_j in zip(weights, k, strict=False)), torch.zeros_like(y))


def stages_of(f: Field, tableau: Tableau, t: float, h: float, y: Tensor, first: Tensor | None = None) -> Stages:
    """The step of size h from (t, y); `first` replaces the first stage."""
    k: list[Tensor] = []
    g: list[Tensor] = []
    for c, row in zip((*tableau.c, *tableau.extra_c), (*tableau.a, *tableau.extra_a), strict=True):
        g.append(y + h * combined(row, k, y))
        k.append(first if not k and first is not None else f(torch.tensor(t + c * h, dtype=y.dtype), g[-1]))
    return Stages(k, g, y + h * combined(tableau.b, k, y))


def step_vectors(tableau: Tableau, stages: Stages, y: Tensor, h: float, rtol: float, atol: float) -> Tensor:
    """The three vectors whose norms are the estimates of a step, shape (3, N).

    They are the scaled error, and the differences of the last two stages and of their arguments.
    """
    (k, g, y1), n = stages, tableau.stages
    zero = torch.zeros_like(y)
    allowed = atol + rtol * torch.maximum(y.abs(), y1.abs())
    pieces = [
        h * combined(tableau.btilde, k, y) / allowed if tableau.btilde else zero,
        k[n - 1] - k[n - 2] if tableau.stiffness_pair else zero,
        g[n - 1] - g[n - 2],
    ]
    return torch.stack([piece.reshape(-1) for piece in pieces])


@dataclass(frozen=True)
class Frozen:
    """The step sequence of a solution, and how to walk it again with another field or initial state."""

    tableau: Tableau
    begins: list[float]
    sizes: list[float]
    rtol: float
    atol: float

    @staticmethod
    def of(solution: regnde.Solution, t0: float) -> Frozen:
        steps, solver = solution.steps, solution.solver
        assert steps is not None
        begins = [t0, *steps.t.tolist()[:-1]]
        return Frozen(TABLEAUX[solver.method], begins, steps.dt.tolist(), solver.rtol, solver.atol)

    def one(self, f: Field, t: float, h: float, y: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: its new state, and its `step_vectors`. `first` replaces the first stage."""
        stages = stages_of(f, self.tableau, t, h, y, first)
        return stages.y1, step_vectors(self.tableau, stages, y, h, self.rtol, self.atol)

    def walk(self, f: Field, y: Tensor) -> tuple[Tensor, Tensor]:
        """End state, and the vectors of all steps, shape (S, 3, N)."""
        rows = []
        for t, h in zip(self.begins, self.sizes, strict=True):
            y, pieces = self.one(f, t, h, y)
            rows.append(pieces)
        return y, torch.stack(rows)

    def state(self, f: Field, y: Tensor, t: float) -> Tensor:
        """State at any time, by the interpolant of the step that holds it."""
        for begin, h in zip(self.begins, self.sizes, strict=True):
            if abs(t - begin) < abs(h):
                if t == begin:
                    return y
                theta, stages = (t - begin) / h, stages_of(f, self.tableau, begin, h, y)
                weights = [sum(d * theta**p for p, d in enumerate(row, 1)) for row in self.tableau.dense]
                return y + h * combined(weights, stages.k, y)
            y = self.one(f, begin, h, y)[0]
        return y


def rms(x: Tensor) -> Tensor:
    """Root mean square over the last dimension."""
    return x.square().mean(-1).sqrt()


def estimates(pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Error and stiffness of each step from their vectors."""
    return rms(pieces[:, 0]), rms(pieces[:, 1]) / rms(pieces[:, 2])


def central_differences(value: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-3) -> Tensor:
    """Derivative of a tensor by a float64 tensor, fourth order, shape (*value.shape, *at.shape)."""
    columns = []
    for i in range(at.numel()):
        unit = torch.zeros_like(at).reshape(-1)
        unit[i] = step
        unit = unit.reshape(at.shape)
        near, far = (value(at + k * unit) - value(at - k * unit) for k in (1, 2))
        columns.append((8 * near - far) / (12 * step))
    stacked = torch.stack(columns, -1).detach()
    return stacked.reshape(*stacked.shape[:-1], *at.shape)


def gradient_of_norms(
    penalty: Callable[[Tensor], Tensor], pieces: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-3
) -> Tensor:
    """Gradient of a penalty of the estimates: the vectors under the norms by central differences.

    An estimate is a norm, which bends sharply where the vector is small, so that it can not itself be
    differenced to five digits; its vector is smooth. The norm's own derivative is elementary.
    """
    base = pieces(at).detach().requires_grad_()
    (weights,) = torch.autograd.grad(penalty(base), base, materialize_grads=True)
    jacobian = central_differences(pieces, at, step)
    return torch.tensordot(weights, jacobian, dims=weights.ndim)


def relative(a: Tensor, b: Tensor) -> float:
    """Distance of two tensors relative to the second."""
    return float((a - b).norm() / b.norm())
