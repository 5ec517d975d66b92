"""Coefficients of the Rosenbrock methods: read from `julia/src/tableaux.toml`, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from regnde._tableau import TABLEAUX, Check, Row, coefficients, floats, order_conditions

__all__ = ["AUTOTSIT5", "ROSENBROCK_TABLEAUX", "RosenbrockTableau"]

TOLERANCE = 1e-9  # of sums that must be exact: published coefficients of size 100 carry 15 digits
AUTOTSIT5 = "autotsit5"
"""The method that switches between "tsit5" and "rosenbrock23"."""


@dataclass(frozen=True, kw_only=True, repr=False)
class RosenbrockTableau:
    """Coefficients of a Rosenbrock method, in the form that multiplies no vector by the Jacobian J = df/dy.

    For M y' = f(t, y) the stages u_i solve linear equations with one matrix,

        (M / (gamma h) - J) u_i = f(t + c_i h, y + sum_j a_ij u_j) + M sum_j (C_ij / h) u_j + d_i h df/dt.

    The new state is y + sum_i b_i u_i, its error estimate sum_i btilde_i u_i, and the interpolant
    y(t + theta h) = y + sum_i weight_i(theta) u_i. Source: E. Hairer, G. Wanner, Solving Ordinary Differential
    Equations II, IV.7, equation (7.25).

    Args:
        name: the name users give.
        order: order of the new state.
        gamma: diagonal of the method.
        a: rows of the weights in the stages' arguments. Row i has at most i entries.
        coupling: rows of C.
        b: weights of the new state.
        btilde: weights of the error estimate.
        c: stage times as fractions of the step.
        d: weights of the time derivative.
        dense: row i holds the coefficients of theta, theta^2, ... in the weight of stage i.

    Raises:
        ValueError: if the coefficients do not fit together, or miss an order condition.
    """

    name: str
    order: int
    gamma: float
    a: tuple[Row, ...]
    coupling: tuple[Row, ...]
    b: Row
    btilde: Row
    c: Row
    d: Row
    dense: tuple[Row, ...]

    adaptive: ClassVar[bool] = True
    estimates_error: ClassVar[bool] = True
    stiffness_pair: ClassVar[bool] = True  # the norm of J takes the place of the pair
    carries: ClassVar[bool] = False  # the slope at the start comes with the Jacobian
    beta1: ClassVar[float | None] = None
    beta2: ClassVar[float | None] = None
    extra_a: ClassVar[tuple[Row, ...]] = ()
    extra_c: ClassVar[Row] = ()
    steady_factor: ClassVar[float] = 6 / 5
    """A step that might shrink by no more than this factor keeps its size: OrdinaryDiffEq.jl's rule."""
    stability_size: ClassVar[float | None] = TABLEAUX["tsit5"].stability_size
    """That of the explicit method with which AutoSwitch of OrdinaryDiffEq.jl compares."""

    def __post_init__(self) -> None:
        check = Check(f"RosenbrockTableau {self.name!r}")
        stages = len(self.a)
        filled: dict[str, Any] = {
            key: tuple(floats(row, i) for i, row in enumerate(check.triangle(key, getattr(self, key), full=False)))
            for key in ("a", "coupling")
        }
        for key in ("b", "btilde", "c", "d"):
            filled[key] = floats(check.row(key, getattr(self, key)), stages)
            check(len(filled[key]) == stages, f"{key} has {len(filled[key])} entries: give {stages}")
        length = max(map(len, self.dense))
        filled["dense"] = tuple(floats(check.row("dense", row), length) for row in self.dense)
        for key, value in filled.items():
            object.__setattr__(self, key, value)
        self._check_order(check)

    def _check_order(self, check: Check) -> None:
        """Raises a ValueError if a condition does not hold."""
        gammas, alphas = self.originals
        for key, rows in (("c", alphas), ("d", gammas)):
            for i, (value, row) in enumerate(zip(getattr(self, key), rows, strict=True)):
                fits = abs(fsum(row) - value) < TOLERANCE or (key == "d" and not self.b[i])
                check(fits, f"{key}[{i}] is {value!r}, but its row sums to {fsum(row)!r}")
        weights = np.array([self.b, self.btilde]) @ gammas
        pairs = tuple(map(tuple, alphas.tolist())), tuple(map(tuple, (alphas + gammas).tolist()))
        for order, of_stages, value in order_conditions(pairs[0], self.order, pairs[1]):
            found, of_error = (fsum(x * y for x, y in zip(w, of_stages, strict=True)) for w in weights.tolist())
            check(abs(found - value) < TOLERANCE, f"a condition of order {order} gives {found:.6g}, not {value:.6g}")
            homogeneous = order == self.order or abs(of_error) < TOLERANCE
            check(homogeneous, f"btilde misses a condition of order {order}: {of_error:.3g} is not 0")
        ends = np.asarray(self.dense).sum(1)
        check(bool(np.abs(ends - self.b).max() < TOLERANCE), "dense at theta = 1 is not b")
        slopes = np.asarray(self.dense).T @ gammas.sum(1)
        first = np.eye(1, len(slopes))[0]
        check(bool(np.abs(slopes - first).max() < TOLERANCE), "the coefficients of theta in dense do not sum to 1")

    def __repr__(self) -> str:
        return f"RosenbrockTableau({self.name!r}, order={self.order}, stages={self.stages})"

    @property
    def originals(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The matrices Gamma and alpha of the stages k in the form with J: h k = Gamma^-1 u, alpha = a Gamma."""
        a, coupling = (np.array([floats(row, self.stages) for row in rows]) for rows in (self.a, self.coupling))
        gammas = np.linalg.inv(np.eye(self.stages) / self.gamma - coupling)
        return gammas, a @ gammas

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.a)

    @cached_property
    def fsal(self) -> bool:
        """Whether the field is evaluated at the new state."""
        return self.c[-1] == 1.0 and (*self.a[-1], 0.0) == self.b


def _read() -> Mapping[str, RosenbrockTableau]:
    """The Rosenbrock methods of the data file by name."""
    methods = {}
    for name, entry in coefficients("rosenbrock").items():
        if (h := entry.pop("h", None)) is not None:
            entry["dense"] = _dense(np.array(entry["b"]), np.array(h))
        methods[name] = RosenbrockTableau(name=name, **entry)
    return MappingProxyType(methods)


def _dense(b: NDArray[np.float64], h: NDArray[np.float64]) -> tuple[Row, ...]:
    """Weights of theta y1 + theta (1 - theta) (h_1 + theta h_2 + ...), with rows h over the stages."""
    powers = np.vstack([b, np.zeros((len(h), len(b)))])
    for i, row in enumerate(h):
        powers[i] += row
        powers[i + 1] -= row
    return tuple(map(tuple, powers.T.tolist()))


ROSENBROCK_TABLEAUX = _read()
