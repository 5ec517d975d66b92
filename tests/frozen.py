"""A solve replayed on given steps: the reference for gradients, independent of the loop under test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde
from regnde._engines.torch.stages import ListStages
from regnde._engines.torch.step import (
    Taken,
    dense_rows,
    extra_stages,
    scaled_error,
    stage_times,
    take_step,
)
from regnde._engines.torch.tableaux import TABLEAUX, Tableau

Field = Callable[[Tensor, Tensor], Tensor]


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
        """One step: its new state, and the three vectors whose norms are its estimates, shape (3, N).

        They are the scaled error, and the differences of the last two stages and of their arguments.
        `first` replaces the first stage.
        """
        taken, stages = self._taken(f, t, h, y, first)
        zero = torch.zeros_like(y)
        last = self.tableau.stages - 1
        pieces = [
            scaled_error(self.tableau, stages, y, taken.y1, h, self.rtol, self.atol) if self.tableau.btilde else zero,
            stages[last] - stages[last - 1] if self.tableau.stiffness_pair else zero,
            taken.last_argument - taken.previous_argument,
        ]
        return taken.y1, torch.stack([piece.reshape(-1) for piece in pieces])

    def _taken(self, f: Field, t: float, h: float, y: Tensor, first: Tensor | None = None) -> tuple[Taken, ListStages]:
        times = stage_times(self.tableau.c, t, h, t + h, y)
        stages = ListStages([f(times[0], y) if first is None else first])
        return take_step(f, self.tableau, stages, y, h, times), stages

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
                _, stages = self._taken(f, begin, h, y)
                extra_stages(f, self.tableau, stages, y, begin, h, begin + h)
                return dense_rows(self.tableau, stages, y, h, [(t - begin) / h])[0]
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
