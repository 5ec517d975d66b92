"""Methods that step along a given grid and are no explicit Runge-Kutta method: implicit ones, and Adams'.

Only the drop-ins offer them. Their coefficients follow from what is written here, and are checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum, sqrt
from operator import mul
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from regnde._tableau import Row, order_conditions

__all__ = ["IMPLICIT_TABLEAUX", "LEAST_SLOPES", "Adams", "GridMethod", "ImplicitTableau", "adams_weights"]

TOLERANCE = 1e-13  # of the conditions on the coefficients, which are square roots and fractions
CHECKED_ORDER = 6  # of the order conditions: 37 trees


@dataclass(frozen=True, kw_only=True, repr=False)
class GridMethod:
    """A method that steps along a given grid: its properties.

    Args:
        name: for messages and solutions.
        order: order of the new state.
    """

    name: str
    order: int
    adaptive = estimates_error = stiffness_pair = False
    stability_size = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, order={self.order})"


@dataclass(frozen=True, kw_only=True, repr=False)
class ImplicitTableau(GridMethod):
    """Coefficients of an implicit Runge-Kutta method, with stages k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    The new state is y + h sum_i b_i k_i.

    Args:
        a: rows of the stage weights, one entry for each stage; zeros at the end may be left out.
        b: weights of the new state.
        max_iters: iterations in which the equations of a step must be solved.

    Raises:
        ValueError: if the coefficients miss a condition of the order.
    """

    a: tuple[Row, ...]
    b: Row
    max_iters: int = 100

    def __post_init__(self) -> None:
        stages = len(self.b)
        object.__setattr__(self, "a", tuple((*row, *[0.0] * (stages - len(row))) for row in self.a))
        for order, weights, value in order_conditions(self.a, min(self.order, CHECKED_ORDER)):
            found = fsum(map(mul, self.b, weights))
            if abs(found - value) > TOLERANCE:
                raise ValueError(f"{self!r}: a condition of order {order} gives {found!r}, not {value!r}.")

    @cached_property
    def c(self) -> Row:
        """Times of the stages, as fractions of the step; 0 and 1 exactly where they are meant."""
        sums = map(fsum, self.a)
        return tuple(float(round(c)) if abs(c - round(c)) < TOLERANCE else c for c in sums)

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The stages in groups to be solved one after the other: a group depends on itself and earlier ones."""
        groups: list[tuple[int, ...]] = []
        begin = 0
        for i in range(len(self.b)):
            if not any(weight for row in self.a[begin : i + 1] for weight in row[i + 1 :]):
                groups.append(tuple(range(begin, i + 1)))
                begin = i + 1
        return tuple(groups)

    def is_explicit(self, block: Sequence[int]) -> bool:
        """Whether the stages of a group depend on earlier groups alone."""
        return not any(self.a[i][j] for i in block for j in block)


@dataclass(frozen=True, kw_only=True, repr=False)
class Adams(GridMethod):
    """The methods of Adams and Bashforth, and of Adams and Moulton, of an order that grows with the steps taken.

    The first steps, while fewer than three slopes are known, are those of the 3/8 rule, as in torchdiffeq. The weights
    are those of the steps' own sizes, which need not be equal (E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary
    Differential Equations I, III.1 and III.5).

    Args:
        implicit: correct the explicit step by fixed-point iterations of the implicit formula.
        max_order: at most 12; below 4 all steps are those of the 3/8 rule.
        max_iters: fixed-point iterations, at most.
        rtol: relative tolerance at which they end.
        atol: absolute tolerance at which they end.
    """

    implicit: bool
    max_order: int = 12
    max_iters: int = 4
    rtol: float = 1e-7
    atol: float = 1e-9

    def __post_init__(self) -> None:
        if not 1 <= self.max_order <= 12:
            raise ValueError(f"{self.name}: max_order={self.max_order}: give 1 to 12.")
        if self.max_iters < 1:
            raise ValueError(f"{self.name}: max_iters={self.max_iters}: give at least 1.")


LEAST_SLOPES = 3  # for a step of Adams' method
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(7)  # exact for the integrals below
QUADRATURE = (POINTS + 1) / 2, WEIGHTS / 2


def adams_weights(nodes: Sequence[float]) -> NDArray[np.float64]:
    """The integrals over [0, 1] of the Lagrange polynomials of at most 13 nodes, in units of the step."""
    points, weights = QUADRATURE
    x = np.asarray(nodes, np.float64)
    differences, gaps = points[:, None] - x, x[:, None] - x
    others = ~np.eye(len(x), dtype=bool)
    products = np.prod(np.where(others, differences[:, None, :], 1.0), axis=2)
    lagrange = products / np.prod(np.where(others, gaps, 1.0), axis=1)
    integrals: NDArray[np.float64] = weights @ lagrange
    return integrals


def _tableaux() -> Mapping[str, ImplicitTableau]:
    """The methods by torchdiffeq's names.

    Hairer, Wanner, Solving Ordinary Differential Equations II, IV.5 (Gauss: tables 5.1 and 5.2; Radau IIA: 5.5 and 5.6)
    and IV.6 (the L-stable SDIRK method of order 2); trbdf2: M. E. Hosea, L. F. Shampine, Appl. Numer. Math. 20 (1996).
    """
    r3, r6, r15 = sqrt(3), sqrt(6), sqrt(15)
    gamma = 1 - sqrt(2) / 2
    w = sqrt(2) / 4
    radau5 = (
        (11 / 45 - 7 * r6 / 360, 37 / 225 - 169 * r6 / 1800, -2 / 225 + r6 / 75),
        (37 / 225 + 169 * r6 / 1800, 11 / 45 + 7 * r6 / 360, -2 / 225 - r6 / 75),
        (4 / 9 - r6 / 36, 4 / 9 + r6 / 36, 1 / 9),
    )
    gauss6 = (
        (5 / 36, 2 / 9 - r15 / 15, 5 / 36 - r15 / 30),
        (5 / 36 + r15 / 24, 2 / 9, 5 / 36 - r15 / 24),
        (5 / 36 + r15 / 30, 2 / 9 + r15 / 15, 5 / 36),
    )
    rows: Mapping[str, tuple[int, tuple[Row, ...], Row]] = {
        "implicit_euler": (1, ((1.0,),), (1.0,)),
        "implicit_midpoint": (2, ((0.5,),), (1.0,)),
        "trapezoid": (2, ((), (0.5, 0.5)), (0.5, 0.5)),
        "radauIIA3": (3, ((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4)),
        "gl4": (4, ((1 / 4, 1 / 4 - r3 / 6), (1 / 4 + r3 / 6, 1 / 4)), (1 / 2, 1 / 2)),
        "radauIIA5": (5, radau5, radau5[2]),
        "gl6": (6, gauss6, (5 / 18, 4 / 9, 5 / 18)),
        "sdirk2": (2, ((gamma,), (1 - gamma, gamma)), (1 - gamma, gamma)),
        "trbdf2": (2, ((), (gamma, gamma), (w, w, gamma)), (w, w, gamma)),
    }
    return MappingProxyType(
        {name: ImplicitTableau(name=name, order=order, a=a, b=b) for name, (order, a, b) in rows.items()}
    )


IMPLICIT_TABLEAUX = _tableaux()
