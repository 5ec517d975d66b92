"""Published ways to make neural ODEs cheap that need no records: RNODE, TayNODE, STEER for many times; FFJORD's field.

RNODE and TayNODE penalise an integral along the solution. Their authors add it to the state, without error control.
Here it is a Gauss-Legendre sum over states that are saved at its nodes. Save points never change the steps, so the
integral does not take part in error control, and both engines can compute it. It costs `nodes` evaluations of the
integrand; as a part of the state it would cost one evaluation a stage. Times measured here therefore favour the
comparators.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from regnde._arguments import check_arguments
from regnde._divergence import log_density_slope, signs, slope_and_rows
from regnde._solution import Solution
from regnde._solve import solve
from regnde._solver import Record, Solver
from regnde._state import Structure
from regnde._times import checked_times

__all__ = ["RNODE", "Hutchinson", "Integrand", "TayNODE", "solve_with_integral", "steer_all", "total_derivative"]

Field = Callable[[Tensor, Tensor], Tensor]
NODES = 8  # exact for polynomials in t up to degree 15


class Integrand(ABC):
    """A quantity whose integral along the solution is penalised."""

    @abstractmethod
    def __call__(self, field: Field, t: Tensor, y: Tensor) -> Tensor:
        """The value at time t (0-dim) and state y, averaged over all entries: 0-dim, differentiable."""


@dataclass(frozen=True)
class RNODE(Integrand):
    """Kinetic energy mean |f|^2 / 2 and squared Frobenius norm of the Jacobian, mean |e^T J|^2.

    Source: Finlay, Jacobsen, Nurbekyan, Oberman (ICML 2020). Means over the dimensions as in their code. A complex
    state counts one dimension an entry; of a field that is not holomorphic the Jacobian of real and imaginary parts
    is taken, divided by the same factor of 2 as that of a holomorphic one.

    Args:
        kinetic: weight of the kinetic energy.
        jacobian: weight of the Jacobian's norm.
        probe: vector e of the state's shape with entries of mean 0 and variance 1, the same throughout a
            solve; by default drawn anew from {-1, 1} at every call (complex: {-1, 1} + {-i, i} over sqrt 2).

    Examples:
        >>> y = torch.tensor([3.0])
        >>> float(RNODE(kinetic=1.0, jacobian=10.0)(lambda t, y: -2 * y, torch.tensor(0.0), y))
        58.0
    """

    kinetic: float = 1.0
    jacobian: float = 1.0
    probe: Tensor | None = None

    def drawn(self, y: Tensor, generator: torch.Generator | None = None) -> RNODE:
        """A copy whose probe, of y's shape, is drawn once and fixed."""
        return dataclasses.replace(self, probe=signs(y, generator))

    def __call__(self, field: Field, t: Tensor, y: Tensor) -> Tensor:
        """The weighted sum of both, 0-dim."""
        probe = signs(y) if self.probe is None else self.probe
        slope, (row,) = slope_and_rows(field, t, y, [probe])
        return self.kinetic * _mean_square(slope) / 2 + self.jacobian * _mean_square(row)


@dataclass(frozen=True)
class TayNODE(Integrand):
    """Mean square of the state's K-th time derivative along the solution.

    Source: Kelly, Bettencourt, Johnson, Duvenaud (NeurIPS 2020); mean over the dimensions as in their code.

    Args:
        order: K >= 1; the paper recommends 2 or 3.

    Examples:
        >>> y = torch.tensor([1.0])
        >>> float(TayNODE(order=3)(lambda t, y: -2 * y, torch.tensor(0.0), y))  # y''' = -8 y
        64.0
    """

    order: int = 3

    def __call__(self, field: Field, t: Tensor, y: Tensor) -> Tensor:
        """The mean square, 0-dim."""
        return _mean_square(total_derivative(field, t, y, self.order))


def total_derivative(field: Field, t: Tensor, y: Tensor, order: int) -> Tensor:
    """d^K y / dt^K of the solution through (t, y), of y's shape, by nested forward mode.

    D_1 = f and D_{k+1} = dD_k/dt + (dD_k/dy) f, the derivative of D_k in the direction (1, f). Each order doubles the
    cost; up to K = 3 this is no more than the cost of Taylor mode.

    Args:
        field: f(t, y), of operations that have forward mode.
        t: time, 0-dim.
        y: state, any shape.
        order: K >= 1.

    Raises:
        ValueError: if the order is below 1.
    """
    if order < 1:
        raise ValueError(f"order={order}: the solution's derivatives start at order 1, the field.")
    if order == 1:
        return field(t, y).to(y.dtype)  # under autocast a field returns a lower precision
    _load_forward_mode()
    tangents = (torch.ones_like(t), field(t, y).to(y.dtype))
    lower: Callable[[Tensor, Tensor], Tensor] = lambda s, x: total_derivative(field, s, x, order - 1)  # noqa: E731
    return torch.func.jvp(lower, (t, y), tangents)[1]  # type: ignore[no-any-return]  # torch leaves it untyped


def solve_with_integral(
    field: Callable[[Tensor, Any], Any],
    y0: Any,
    ts: Tensor | ArrayLike,
    integrand: Integrand,
    solver: Solver | None = None,
    *,
    record: Record = "none",
    nodes: int = NODES,
    of: Callable[[Any], Tensor] | None = None,
    inner: Field | None = None,
) -> tuple[Solution[Any], Tensor]:
    """Solves as `regnde.solve` does, and integrates a quantity along the solution.

    For a state of several tensors the integrand is that of their entries together.

    Args:
        field: f(t, y).
        y0: initial state, as `regnde.solve` takes it.
        ts: save times, in units of time, two or more, as `regnde.solve` takes them. If they carry a gradient, the
            integral does too.
        integrand: what is integrated.
        solver: method, tolerances, gradient, engine.
        record: what to record.
        nodes: of the Gauss-Legendre sum over the whole span (> 0).
        of: returns the part of a state that `inner` is a field of (FFJORD: all but the log density).
        inner: the field that the integrand uses; by default `field`.

    Returns:
        The solution at `ts`, and the integral, 0-dim, differentiable.

    Examples:
        >>> y0 = torch.tensor([1.0], dtype=torch.float64)
        >>> solution, energy = solve_with_integral(lambda t, y: -y, y0, [0.0, 1.0], RNODE(jacobian=0.0))
        >>> abs(float(energy) - (1 - torch.e**-2) / 4) < 1e-6
        True
    """
    if isinstance(integrand, type) or not callable(integrand):
        raise TypeError(f"integrand={integrand!r}: give an object such as RNODE() or TayNODE().")
    if not isinstance(nodes, Integral) or nodes < 1:
        raise ValueError(f"nodes={nodes!r}: give a whole number above zero.")
    if inner is not None:
        check_arguments("inner", inner, by="solve_with_integral")
    x, w = np.polynomial.legendre.leggauss(nodes)
    solver = Solver() if solver is None else solver
    structure = Structure(y0, samples=solver.batch == "per-sample")
    state, (given, values) = structure.flat, checked_times(ts)
    clock = given.double()
    half, middle = (clock[-1] - clock[0]) / 2, (clock[-1] + clock[0]) / 2
    inside = middle + half * torch.as_tensor(x, device=clock.device)
    every = torch.cat((clock, inside))
    # A stable sort: a node that meets a save time stands after it, and both are saved.
    order = torch.argsort(every.detach(), stable=True, descending=values[-1] < values[0])
    place = torch.argsort(order).to(state.device)
    solution = solve(field, y0, every[order], solver, record=record)
    if isinstance(integrand, RNODE) and integrand.probe is None:  # one probe a solve
        integrand = integrand.drawn(state if of is None else of(structure.tree_of(state)))
    on_flat: Any = structure.on_flat(field)
    saved = structure.flat_of(solution.ys)[place]
    moments = inside.to(state.device, state.real.dtype)
    terms = [
        integrand(inner or on_flat, t, y if of is None else of(structure.tree_of(y)))
        for t, y in zip(moments, saved[len(values) :], strict=True)
    ]
    weights = half.abs().to(state.device) * torch.as_tensor(w, device=state.device)
    integral = (torch.stack(terms) * weights.to(state.real.dtype)).sum()
    return dataclasses.replace(solution, ts=given, ys=structure.tree_of(saved[: len(values)])), integral


class Hutchinson(torch.nn.Module):
    """FFJORD's field: a state with the log density's change as its last entry.

    d log p / dt = -tr J, estimated by -e^T J e with one vector e a solve, so that the field is a function. The log
    density is part of the state and of error control, as in the papers.

    Source: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud (ICLR 2019).

    Args:
        field: f(t, y) on states of shape (batch, d).

    Examples:
        >>> flow = Hutchinson(lambda t, y: -2 * y)
        >>> _ = flow.draw(torch.ones(1, 3))
        >>> flow(torch.tensor(0.0), torch.ones(1, 4))
        tensor([[-2., -2., -2.,  6.]])
    """

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.field = field
        self.probe: Tensor | None = None

    def draw(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the vector e, of y's shape (batch, d), from {-1, 1}, for the solves that follow."""
        self.probe = signs(y, generator)
        return self.probe

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope of states and log densities, shape (batch, d + 1).

        Raises:
            ValueError: if no vector was drawn, or for another batch.
        """
        y = z[..., :-1]
        if self.probe is None or self.probe.shape != y.shape:
            raise ValueError(f"Hutchinson: call draw(y) with a state of shape {tuple(y.shape)} before the solve.")
        return log_density_slope(self.field, t, z, self.probe)


def steer_all(ts: Sequence[float], *, generator: torch.Generator | None = None) -> tuple[float, ...]:
    """Save times, all but the first moved at random, each by up to half of the smaller gap beside it.

    Source: Ghosh et al. (NeurIPS 2020), as Pal et al. (ICML 2021) use it for latent ODEs: t_i + U(-1, 1) (t_i -
    t_{i-1}) / 2, not beyond the end. With equal gaps this is the same; with unequal ones theirs may swap times.

    Args:
        ts: save times, increasing, in units of time.
        generator: torch generator to draw from, by default torch's own.

    Returns:
        The moved times, in order.

    Raises:
        ValueError: if the times do not increase.
    """
    times = [float(t) for t in ts]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    if not gaps or min(gaps) <= 0:
        raise ValueError("steer_all: give two or more increasing times.")
    device = "cpu" if generator is None else generator.device  # whatever torch's default device
    draws = (2 * torch.rand(len(gaps), generator=generator, dtype=torch.float64, device=device) - 1).tolist()
    widths = [min(before, after) / 2 for before, after in zip(gaps, (*gaps[1:], gaps[-1]), strict=True)]
    moved = [t + draw * width for t, draw, width in zip(times[1:], draws, widths, strict=True)]
    return (times[0], *(min(t, times[-1]) for t in moved))


@functools.cache
def _load_forward_mode() -> None:
    """Makes torch load its forward mode, whose first use warns of torch's own use of torch.jit."""
    one = torch.ones(())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.sin, (one,), (one,))


def _mean_square(x: Tensor) -> Tensor:
    """Mean of |x|^2, 0-dim and real."""
    return (x.real.square() + x.imag.square()).mean() if x.is_complex() else x.square().mean()
