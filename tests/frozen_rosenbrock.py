"""A Rosenbrock solve replayed on given steps: the reference for gradients, independent of the engine under test.

The steps are written out in the form with the Jacobian, M k_i = f(y + h sum alpha_ij k_j) + h J sum gamma_ij k_j +
h gamma_i df/dt, M the mass matrix (E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.7), whose
coefficients follow from those of a `RosenbrockTableau`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import regnde
from regnde._rosenbrock_tableau import ROSENBROCK_TABLEAUX, RosenbrockTableau

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FrozenRosenbrock:
    """The step sequence of a solution of one system, and how to walk it again with another field or initial state."""

    tableau: RosenbrockTableau
    begins: list[float]
    sizes: list[float]
    rtol: float
    atol: float
    mass: Tensor | None = None

    @staticmethod
    def of(solution: regnde.Solution, t0: float, mass: Tensor | None = None) -> FrozenRosenbrock:
        steps, solver = solution.steps, solution.solver
        assert steps is not None
        tableau = ROSENBROCK_TABLEAUX[solver.method]
        begins = [t0, *steps.t.tolist()[:-1]]
        return FrozenRosenbrock(tableau, begins, steps.dt.tolist(), solver.rtol, solver.atol, mass)

    def one(self, f: Field, t: float, h: float, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step: its new state, its error over the tolerance, and the Jacobian at its start."""
        gammas, alphas = (torch.tensor(x, dtype=y.dtype) for x in self.tableau.originals)
        time = torch.tensor(t, dtype=y.dtype)
        jacobian, by_time = torch.func.jacrev(lambda t, y: f(t, y), argnums=(1, 0))(time, y)
        identity = torch.eye(len(y), dtype=y.dtype) if self.mass is None else self.mass
        matrix = identity - h * self.tableau.gamma * jacobian
        stages: list[Tensor] = []
        for i, (c, d) in enumerate(zip(self.tableau.c, self.tableau.d, strict=True)):
            argument, earlier = y, torch.zeros_like(y)
            for j, k in enumerate(stages):
                argument, earlier = argument + h * alphas[i, j] * k, earlier + gammas[i, j] * k
            # d and the row sum of gamma differ in the last stage of rosenbrock23 alone
            right = f(time + c * h, argument) + h * jacobian @ earlier + h * d * by_time
            stages.append(torch.linalg.solve(matrix, right))
        b, btilde = (torch.tensor(x, dtype=y.dtype) @ gammas for x in (self.tableau.b, self.tableau.btilde))
        y1 = y + h * sum(w * k for w, k in zip(b, stages, strict=True))
        error = h * sum(w * k for w, k in zip(btilde, stages, strict=True))
        return y1, error / (self.atol + self.rtol * torch.maximum(y.abs(), y1.abs())), jacobian

    def walk(self, f: Field, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """End state, errors over the tolerance, shape (S, N), and Jacobians, shape (S, N, N), of all steps."""
        errors, jacobians = [], []
        for t, h in zip(self.begins, self.sizes, strict=True):
            y, error, jacobian = self.one(f, t, h, y)
            errors.append(error)
            jacobians.append(jacobian)
        return y, torch.stack(errors), torch.stack(jacobians)
