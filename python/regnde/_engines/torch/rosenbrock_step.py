"""One step of a Rosenbrock method: its stages, its error estimate, its stiffness, its interpolant.

E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.7. All stages solve linear equations with one
matrix, whose factors are formed once a step. A step size h is a float for one system, or a column for a batch of
samples with step sizes of their own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._dense import product
from regnde._engines.torch.jacobian import Jacobian, as_states, as_vectors
from regnde._engines.torch.step import (
    Estimates,
    Field,
    Norm,
    StepSize,
    Tolerance,
    divided,
    larger,
    sample_rms,
    shifted,
    tolerance,
    weighted,
)
from regnde._mass import Mass
from regnde._rosenbrock_tableau import RosenbrockTableau

__all__ = ["RosenbrockStep", "error_estimate", "error_ratio", "estimates", "stiffness_estimate", "take_step"]

SINGULAR_ERROR = 2.0  # of a step whose equations have no solution, as in OrdinaryDiffEq.jl


class RosenbrockStep(NamedTuple):
    """A step from y to y1.

    Attributes:
        y: the state at its start.
        h: its size.
        k: the stages u_i, of the state's shape.
        y1: the state at its end.
        slope: the field at the start.
        jacobian: its derivative there, shape (n, n), or (B, n, n).
        singular: whether the equations had no solution, 0-dim, or shape (B,).
    """

    y: Tensor
    h: StepSize
    k: list[Tensor]
    y1: Tensor
    slope: Tensor
    jacobian: Tensor
    singular: Tensor


@functools.lru_cache(maxsize=32)
def _weights(tableau: RosenbrockTableau, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """For each stage, the weights of the earlier ones in its argument and in its equation, shape (2, i)."""
    rows = zip(tableau.a, tableau.coupling, strict=True)
    pairs = [[a[:i], [tableau.gamma * c for c in coupling[:i]]] for i, (a, coupling) in enumerate(rows)]
    with torch.inference_mode(False):
        return [torch.tensor(pair, dtype=torch.float64).to(device, dtype) for pair in pairs]


def take_step(
    field: Field,
    jacobian: Jacobian,
    tableau: RosenbrockTableau,
    y: Tensor,
    h: StepSize,
    times: Sequence[Tensor],
    mass: Mass | None = None,
    guard: Callable[[Tensor], Tensor] | None = None,
) -> RosenbrockStep:
    """The step of size h from y.

    Args:
        field: the right-hand side.
        jacobian: differentiates it.
        tableau: the method.
        y: state at the start.
        h: signed size.
        times: of the stages.
        mass: the mass matrix; None for the identity.
        guard: of the field's arguments, outside the Jacobian: where their gradient is stopped. None for nowhere.
    """
    samples = jacobian.samples
    slope, matrix, by_time = jacobian(field, times[0], y if guard is None else guard(y), times[-1])
    size = h.reshape(len(y), 1) if isinstance(h, Tensor) else h
    scaled = (size * tableau.gamma).unsqueeze(-1) if isinstance(size, Tensor) else size * tableau.gamma
    n = matrix.shape[-1]
    identity = torch.eye(n, dtype=matrix.dtype, device=matrix.device) if mass is None else mass.matrix
    factors, pivots, info = torch.linalg.lu_factor_ex(identity - scaled * matrix)
    start = as_vectors(y, samples)
    vectors: list[Tensor] = []
    k: list[Tensor] = []
    for i, weights in enumerate(_weights(tableau, start.dtype, start.device)):
        right = by_time * (size * size * (tableau.gamma * tableau.d[i])) if tableau.d[i] else None
        if i:
            earlier = torch.stack(vectors)
            change, coupled = product(weights, earlier.reshape(i, -1)).unbind()
            argument = as_states(start + change.view_as(start), y)
            slope_i = field(times[i], argument if guard is None else guard(argument))
            coupled = coupled.view_as(start)
            if mass is not None:
                coupled = coupled @ mass.matrix.mT
            right = coupled if right is None else right + coupled
        else:
            slope_i = slope
        of_slope = as_vectors(slope_i, samples) * (size * tableau.gamma)
        right = of_slope if right is None else right + of_slope
        solved = torch.linalg.lu_solve(factors, pivots, right.unsqueeze(-1)).squeeze(-1)
        vectors.append(solved)
        k.append(as_states(solved, y))
    y1 = shifted(y, k, tableau.b, 1.0)
    return RosenbrockStep(y, h, k, y1, slope, matrix, info != 0)


def error_ratio(tableau: RosenbrockTableau, step: RosenbrockStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
    """The embedded error over the tolerance, entrywise."""
    return divided(weighted(step.k, tableau.btilde), tolerance(larger(step.y, step.y1), rtol, atol))


def error_estimate(
    tableau: RosenbrockTableau, step: RosenbrockStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms
) -> Tensor:
    """Local error estimate E = rms(error ratio), shape (B,); 2 where the step's equations had no solution."""
    error = norm(error_ratio(tableau, step, rtol, atol))
    unsolved = step.singular & torch.isfinite(step.jacobian.detach()).flatten(-2).all(-1)
    return torch.where(unsolved, SINGULAR_ERROR, error)


def stiffness_estimate(step: RosenbrockStep, mass: Mass | None = None) -> Tensor | None:
    """Stiffness estimate S = max_i sum_j |J_ij| at the start of the step, shape (B,), or (1,) for one system.

    With a mass matrix M^-1 J takes the place of J; None where that does not exist.

    It is a bound of the eigenvalues (Gershgorin), and what OrdinaryDiffEq.jl compares with an explicit method's
    stability region when it switches back from an implicit method.
    """
    matrix = step.jacobian
    if mass is not None:
        if mass.singular:
            return None
        matrix = torch.linalg.solve(mass.matrix, matrix)
    if not matrix.shape[-1]:
        return matrix.new_zeros(len(matrix) if matrix.ndim > 2 else 1)
    return matrix.abs().sum(-1).amax(-1).reshape(-1)


def estimates(
    tableau: RosenbrockTableau,
    step: RosenbrockStep,
    rtol: Tolerance,
    atol: Tolerance,
    norm: Norm = sample_rms,
    mass: Mass | None = None,
) -> Estimates:
    """What the method estimates of the step of each sample, shape (B,), or of one system, shape (1,)."""
    return Estimates(error_estimate(tableau, step, rtol, atol, norm), stiffness_estimate(step, mass))
