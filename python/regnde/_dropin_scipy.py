"""torchdiffeq's `scipy_solver`: `scipy.integrate.solve_ivp` steps, in double precision on the host.

Its steps are not recorded; a recording counts its evaluations. `odeint_adjoint` differentiates it by the continuous
adjoint equation, which scipy solves backwards (L. S. Pontryagin et al.; R. T. Q. Chen et al., NeurIPS 2018): a gradient
with that solve's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._dropin_options import ScipyOptions, options_of
from regnde._dropin_problem import Problem
from regnde._last_derivative import last_derivative
from regnde._recording import open_recordings
from regnde._solver import Solver
from regnde._state import Structure
from regnde._tolerance import entries

__all__ = ["Backwards", "odeint_by_scipy"]

Array = NDArray[Any]
Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Backwards:
    """What the adjoint equation needs.

    Attributes:
        rtol, atol: tolerances.
        parameters: tensors besides the state and the times that get a gradient.
    """

    rtol: Any
    atol: Any
    parameters: tuple[Tensor, ...]


@dataclass(frozen=True)
class _How:
    """Settings of scipy's solver."""

    options: ScipyOptions
    rtol: float | Array
    atol: float | Array

    def solve(self, f: Callable[[float, Array], Array], y0: Array, times: Array) -> Array:
        """States at the times, shape (T, n); the first one is y0."""
        try:
            from scipy.integrate import solve_ivp  # type: ignore[import-untyped]  # scipy has no types of its own
        except ImportError:
            raise ImportError("odeint: method='scipy_solver' needs scipy: pip install scipy.") from None
        if times[0] == times[-1]:
            return np.broadcast_to(y0, (len(times), *y0.shape))
        inner, places = np.unique(times, return_inverse=True)
        if times[0] > times[-1]:
            inner, places = inner[::-1], len(inner) - 1 - places
        least = {"min_step": self.options.min_step} if self.options.solver == "LSODA" else {}
        result = solve_ivp(
            f,
            (times[0], times[-1]),
            y0,
            method=self.options.solver,
            t_eval=inner,
            rtol=self.rtol,
            atol=self.atol,
            max_step=self.options.max_step,
            **least,
        )
        if not result.success:
            reached = result.t[-1] if len(result.t) else times[0]
            raise RuntimeError(
                f"odeint: scipy's {self.options.solver} did not get beyond t={reached:.6g}: {result.message}"
            )
        states: Array = result.y.T[places]
        return states


def odeint_by_scipy(problem: Problem, given: Mapping[str, Any] | None, backwards: Backwards | None) -> Tensor:
    """Flat states at the times of a problem.

    Args:
        problem: what to solve.
        given: the user's options.
        backwards: of the adjoint solve; None for a result without a gradient.
    """
    options = options_of(ScipyOptions, problem.method, given)
    field, y0, t, structure = problem.field, problem.y0, problem.t, problem.structure
    how = _How(options, *_tolerances(problem.rtol, problem.atol, structure))
    if backwards is None:
        with torch.no_grad():
            return _forward(field, y0, t, how)
    tightest = (float(np.min(x)) for x in _tolerances(backwards.rtol, backwards.atol, structure))
    back = _How(options, *tightest)  # its state has further entries
    wanted = [p for p in backwards.parameters if p.requires_grad]
    result: Tensor = _Adjoint.apply(field, how, back, y0, t, *wanted)  # type: ignore[no-untyped-call]  # torch's
    return result


def _tolerances(rtol: Any, atol: Any, structure: Structure) -> tuple[float | Array, float | Array]:
    """Numbers, or arrays for the entries of the flat state."""
    resolved = Solver(rtol=rtol, atol=atol).resolve(sde=False)
    allowed = entries(resolved.rtol, resolved.atol, structure)
    relative, absolute = (x if isinstance(x, float) else _array(x) for x in (allowed.rtol, allowed.atol))
    return relative, absolute


def _forward(field: Field, y0: Tensor, t: Tensor, how: _How) -> Tensor:
    calls = 0

    def f(time: float, state: Array) -> Array:
        nonlocal calls
        calls += 1
        y = torch.as_tensor(state).to(y0.device, y0.dtype).reshape(y0.shape)
        return _array(field(torch.tensor(time, dtype=y0.dtype.to_real(), device=y0.device), y))

    try:
        states = how.solve(f, _array(y0), _array(t.double()))
    finally:
        for log in open_recordings():
            log.add_unseen(calls, "the steps of 'scipy_solver' are scipy's, which tells no errors of them.")
    return torch.as_tensor(np.array(states)).to(y0.device, y0.dtype).reshape(len(t), *y0.shape)


class _Adjoint(torch.autograd.Function):
    """The solve, and the adjoint equation from each time back to the one before."""

    @staticmethod
    def forward(ctx: Any, field: Field, how: _How, back: _How, y0: Tensor, t: Tensor, *parameters: Tensor) -> Tensor:
        ys = _forward(field, y0, t, how)
        ctx.field, ctx.back = field, back
        ctx.save_for_backward(ys, t, *parameters)
        return ys

    @staticmethod
    @last_derivative("second derivatives of 'scipy_solver' are not offered: use another method, such as 'dopri5'.")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ys, t, *parameters = ctx.saved_tensors
        field, like = ctx.field, ys[0]
        kinds = [like, like, *parameters]  # the state, its adjoint, minus the gradients of the parameters

        def products(time: Tensor, y: Tensor, adjoint: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                slope = field(time, y)
                sources = (y, *parameters)
                found = torch.autograd.grad(slope, sources, -adjoint, allow_unused=True)
            return [slope, *(torch.zeros_like(s) if x is None else x for x, s in zip(found, sources, strict=True))]

        def f(time: float, state: Array) -> Array:
            y, adjoint, *_ = _parts(state, kinds)
            return _joined(products(torch.tensor(time, dtype=like.dtype.to_real(), device=like.device), y, adjoint))

        times = _array(t.double())
        of_t = torch.zeros_like(t) if ctx.needs_input_grad[4] else None
        adjoint, sums = torch.zeros_like(like), [torch.zeros_like(p) for p in parameters]
        for i in range(len(times) - 1, 0, -1):
            adjoint = adjoint + grad[i]
            if of_t is not None:
                of_t[i] = _along(field, t[i], ys[i], grad[i])
            if times[i] != times[i - 1]:
                state = _joined([ys[i], adjoint, *sums])
                _, adjoint, *sums = _parts(ctx.back.solve(f, state, times[[i, i - 1]])[-1], kinds)
        if of_t is not None:
            of_t[0] = -_along(field, t[0], ys[0], adjoint)
        return None, None, None, adjoint + grad[0], of_t, *sums


def _along(field: Field, t: Tensor, y: Tensor, grad: Tensor) -> Tensor:
    """The derivative of a loss by the time: `grad`, its gradient by the state, times the field."""
    with torch.no_grad():
        slope = field(t.to(y.device, y.dtype.to_real()), y)
    product: Tensor = torch.linalg.vecdot(grad.reshape(-1), slope.reshape(-1))
    return product.real


def _parts(state: Array, kinds: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a vector holds, of the shapes and dtypes of the given ones."""
    pieces = np.split(state, np.cumsum([kind.numel() for kind in kinds])[:-1])
    return [
        torch.as_tensor(piece if kind.is_complex() else piece.real).to(kind.device, kind.dtype).reshape(kind.shape)
        for piece, kind in zip(pieces, kinds, strict=True)
    ]


def _joined(tensors: Sequence[Tensor]) -> Array:
    return np.concatenate([_array(x) for x in tensors])


def _array(x: Tensor) -> Array:
    """The entries as a vector of double precision on the host."""
    array: Array = x.detach().reshape(-1).to("cpu", torch.complex128 if x.is_complex() else torch.float64).numpy()
    return array
