"""Coefficients of the Runge-Kutta methods: read from `julia/src/tableaux.toml`, or given by the user."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import fsum, isfinite, prod
from operator import mul
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

__all__ = [
    "SDE_TABLEAUX",
    "TABLEAUX",
    "Check",
    "Row",
    "StochasticTableau",
    "Tableau",
    "coefficients",
    "floats",
    "order_conditions",
]

Row: TypeAlias = tuple[float, ...]
Exact: TypeAlias = tuple[float | Fraction, ...]
Tree: TypeAlias = tuple[Any, ...]  # a rooted tree: the branches of its root, trees again

TOLERANCE = 1e-10  # of sums that must be exact; published coefficients carry 15 digits
CHECKED_ORDER = 5  # the order conditions are checked up to this order: 17 trees
FOLDERS = Path(__file__).parent / "julia", Path(__file__).parents[2] / "julia"  # a link to the second in a checkout


@dataclass(frozen=True, repr=False)
class Tableau:
    """Coefficients of an explicit Runge-Kutta method, with stages k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    The new state is y + h sum_i b_i k_i and its error estimate h sum_i btilde_i k_i. Coefficients may be
    floats, integers, `fractions.Fraction`, or strings such as "19372/6561"; the fields hold floats.
    `Solver(method=Tableau(...))` solves with it.

    Args:
        name: a lower-case name, such as "fehlberg45".
        order: order of the new state.
        a: rows of the stage weights. Row i has i entries; the first one is empty.
        b: weights of the new state. Zeros at the end may be left out. If `b` equals the last row of `a`,
            the last stage is the first one of the next step (FSAL).
        btilde: weights of the error estimate, embedded minus main; None for a method of fixed step size.
        c: stage times as fractions of the step. Default: the row sums of `a`.
        dense: row i holds the coefficients of theta, theta^2, ... in the weight of stage i of the
            interpolant y(t + theta h) = y + h sum_i weight_i(theta) k_i. Default: cubic Hermite, which adds
            one stage to `extra_a` unless the method is FSAL.
        extra_a: rows of further stages that `dense` uses, evaluated only in steps that hold an output.
        extra_c: times of the further stages. Default: the row sums of `extra_a`.
        stability_size: extent of the stability region along the negative real axis.
        beta1: exponent of the error in the step control. Default: 7 / (10 order).
        beta2: exponent of the previous error in the step control. Default: 2 / (5 order).

    Raises:
        ValueError: if the coefficients do not fit together, or miss an order condition up to order 5.

    Examples:
        >>> Tableau("ralston", 2, a=((), ("2/3",)), b=("1/4", "3/4"), btilde=("3/4", "-3/4"))
        Tableau('ralston', order=2, stages=2)
        >>> Tableau("typo", 2, a=((), (0.6,)), b=(0.25, 0.75))
        Traceback (most recent call last):
        ...
        ValueError: Tableau 'typo': a condition of order 2 gives 0.45, not 0.5. Correct a and b, or give order=1.
    """

    name: str
    order: int
    a: tuple[Row, ...]
    b: Row
    btilde: Row | None = None
    c: Row = ()
    dense: tuple[Row, ...] = ()
    extra_a: tuple[Row, ...] = ()
    extra_c: Row = ()
    stability_size: float | None = None
    beta1: float | None = None
    beta2: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier() and self.name == self.name.lower()):
            raise ValueError(f"Tableau(name={self.name!r}): give a lower-case identifier such as 'fehlberg45'.")
        check = Check(f"Tableau {self.name!r}")
        check(type(self.order) is int and self.order > 0, f"order={self.order!r}: give an integer above 0")
        for key in ("stability_size", "beta1", "beta2"):
            value = getattr(self, key)
            check(value is None or value > 0, f"{key}={value!r}: give a number above 0, or leave it out")
        a, extra_a = check.triangle("a", self.a), check.triangle("extra_a", self.extra_a, len(self.a))
        stages = len(a)
        b = check.row("b", self.b)
        check(len(b) <= stages, f"b has {len(b)} entries: give at most one for each of the {stages} stages")
        c, extra_c = check.times("c", self.c, a), check.times("extra_c", self.extra_c, extra_a)
        for key, times in (("c", c), ("extra_c", extra_c)):
            check(all(0 <= t <= 1 for t in times), f"{key} = {times}: stages must lie in the step, between 0 and 1")
        rows, weights = tuple(map(floats, a)), floats(b, stages)
        for order, stage_weights, value in order_conditions(rows, min(self.order, CHECKED_ORDER)):
            found = fsum(map(mul, weights, stage_weights))
            cure = f"Correct a and b, or give order={order - 1}" if order > 1 else "The entries of b must sum to 1"
            problem = f"a condition of order {order} gives {found:.6g}, not {value:.6g}. {cure}"
            check(abs(found - value) < TOLERANCE, problem)
        fsal = stages > 1 and c[-1] == 1.0 and weights == floats(a[-1], stages)

        btilde = None if self.btilde is None else floats(check.row("btilde", self.btilde))
        if btilde is not None:
            check(len(btilde) == stages, f"btilde has {len(btilde)} entries: give one for each of the {stages} stages")
            check(any(btilde), "btilde is zero, so that no error is ever seen: leave it out or correct it")
            problem = f"btilde sums to {fsum(btilde):.6g}, not 0: give the embedded weights minus b, both of sum 1"
            check(abs(fsum(btilde)) < TOLERANCE, problem)
        if self.dense is not None and len(self.dense):
            dense = check.interpolant(self.dense, floats(b, stages + len(extra_a)))
        else:
            check(not extra_a, "extra_a without dense: give the interpolant that uses these stages")
            dense = hermite(weights, stages - 1 if fsal else stages)
            extra_a, extra_c = ((), ()) if fsal else ((b,), (1.0,))
        filled: dict[str, Any] = {
            "a": rows,
            "b": rows[-1] if fsal else weights[: max(i for i, weight in enumerate(weights, 1) if weight)],
            "btilde": btilde,
            "c": c,
            "dense": dense,
            "extra_a": tuple(floats(row, stages + i) for i, row in enumerate(extra_a)),
            "extra_c": extra_c,
        }
        for key, value in filled.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        return f"Tableau({self.name!r}, order={self.order}, stages={self.stages})"

    @cached_property
    def stages(self) -> int:
        """Number of stages, the FSAL one included."""
        return len(self.a)

    @cached_property
    def fsal(self) -> bool:
        """Whether the last stage is the first one of the next step."""
        return self.stages > 1 and self.c[-1] == 1.0 and self.b == self.a[-1]

    @property
    def carries(self) -> bool:
        """Whether the next step takes the last stage for its first one."""
        return self.fsal

    @cached_property
    def ends_with_slope(self) -> bool:
        """Whether the dense output has one further stage, which is the slope at the end of the step."""
        b = (*self.b, *(0.0,) * (self.stages - len(self.b)))
        return self.extra_a == (b,) and self.extra_c == (1.0,)

    @property
    def adaptive(self) -> bool:
        """Whether the method has an error estimate and thus adapts its step."""
        return self.btilde is not None

    estimates_error = adaptive

    @cached_property
    def stiffness_pair(self) -> bool:
        """Whether the last two stages both lie at t + h, so that their quotient estimates the stiffness."""
        return self.adaptive and self.c[-2:] == (1.0, 1.0)


@dataclass(frozen=True, kw_only=True, repr=False)
class StochasticTableau:
    """Coefficients of a stochastic Runge-Kutta method for diagonal Ito noise, in Roessler's form.

    With J_1 = I_(1,1)/sqrt(h), J_2 = I_(1,0)/h and J_3 = I_(1,1,1)/h,

        k_i = f(t + c0_i h, y + h sum_j a0_ij k_j + J_2 sum_j b0_ij g_j)
        g_i = g(t + c1_i h, y + h sum_j a1_ij k_j + sqrt(h) sum_j b1_ij g_j)
        y1  = y + h sum alpha_i k_i + sum (beta1_i dW + beta2_i J_1 + beta3_i J_2 + beta4_i J_3) g_i.

    Args:
        name: the name users give.
        order: strong order, which the step control uses.
        a0: rows of the drift's stages; fewer than the diffusion's if the last ones are unused.
        b0: the same for the noise in the drift's stages.
        c0: times of the drift's stages. Default: the row sums of `a0`.
        a1: rows of the diffusion's stages; none where it is evaluated at the drift's states.
        b1: the same for the noise.
        c1: times of the diffusion's stages. Default: the row sums of `a1`.
        alpha: weights of the drift in the new state.
        beta1: weights of dW g in the new state; `beta2`, `beta3`, `beta4` those of J_1, J_2, J_3. Default: zero.
        delta: weight of the drift's part in the error estimate; None for a method of fixed step size.
        additive: only for a diffusion that does not depend on the state.
        stability_size: extent of the stability region along the negative real axis.
    """

    name: str
    order: float
    a0: tuple[Row, ...]
    b0: tuple[Row, ...]
    c0: Row = ()
    a1: tuple[Row, ...] = ()
    b1: tuple[Row, ...] = ()
    c1: Row = ()
    alpha: Row
    beta1: Row
    beta2: Row = ()
    beta3: Row = ()
    beta4: Row = ()
    delta: float | None = None
    additive: bool = False
    stability_size: float | None = None
    qmax: ClassVar[float] = 9 / 8
    """A step grows at most by this factor: an error estimate that holds noise may be small by chance."""

    def __post_init__(self) -> None:
        check = Check(f"StochasticTableau {self.name!r}")
        triangles = {key: check.triangle(key, getattr(self, key), full=False) for key in ("a0", "b0", "a1", "b1")}
        filled: dict[str, Any] = {key: tuple(map(floats, rows)) for key, rows in triangles.items()}
        filled["c0"] = check.times("c0", self.c0, triangles["a0"])
        filled["c1"] = check.times("c1", self.c1, triangles["a1"]) if self.a1 else floats(check.row("c1", self.c1))
        for key, total in {"alpha": 1, "beta1": 1, "beta2": 0, "beta3": 0, "beta4": 0}.items():
            row = floats(check.row(key, getattr(self, key)), len(filled["c0" if key == "alpha" else "c1"]))
            check(abs(fsum(row) - total) < TOLERANCE, f"{key} sums to {fsum(row)!r}, not {total}")
            filled[key] = row
        filled["delta"] = None if self.delta is None else floats(check.row("delta", [self.delta]))[0]
        for key, value in filled.items():
            object.__setattr__(self, key, value)

    def __repr__(self) -> str:
        return f"StochasticTableau({self.name!r}, order={self.order:g}, stages={len(self.c1)})"

    @property
    def adaptive(self) -> bool:
        """Whether the method has an error estimate and thus adapts its step."""
        return self.delta is not None

    estimates_error = adaptive

    @cached_property
    def stiffness_pair(self) -> bool:
        """Whether the drift's last two stages both lie at t + h, so that their quotient estimates the stiffness."""
        return self.adaptive and self.c0[-2:] == (1.0, 1.0)

    @cached_property
    def noise_weights(self) -> tuple[Row, ...]:
        """Weights (rows: stages for y1, then stages for the error) of dW, J_1, J_2, J_3 (columns)."""
        update = zip(self.beta1, self.beta2, self.beta3, self.beta4, strict=True)
        error = ((0.0, 0.0, b3, b4) for b3, b4 in zip(self.beta3, self.beta4, strict=True))
        return (*update, *error)


def hermite(b: Row, end: int, quartic: Row = ()) -> tuple[Row, ...]:
    """The cubic Hermite interpolant as weights of the stages, plus theta^2 (1 - theta)^2 times `quartic`.

    Args:
        b: weights of the new state.
        end: index of the stage that is the slope at the new state; stage 0 is the slope at the old one.
        quartic: a weight for each stage, as in dp5's interpolant; none by default.
    """
    rows = []
    for j in range(end + 1):
        bj = b[j] if j < len(b) else 0.0
        row = [0.0, 3.0 * bj, -2.0 * bj, 0.0] if quartic else [0.0, 3.0 * bj, -2.0 * bj]
        for i, term in enumerate((1.0, -2.0, 1.0) if j == 0 else (0.0, -1.0, 1.0) if j == end else ()):
            row[i] += term
        for i, term in enumerate((0.0, 1.0, -2.0, 1.0) if quartic else ()):
            row[i] += term * quartic[j]
        rows.append(tuple(row))
    return tuple(rows)


def order_conditions(
    a: tuple[Row, ...], order: int, single: tuple[Row, ...] | None = None
) -> Iterator[tuple[int, Row, float]]:
    """The conditions on b up to that order, one for each rooted tree: its order, weights w, and v in b w = v.

    Args:
        a: weights of the stages.
        order: up to which.
        single: the weights where a node has one branch, if they are others: alpha + gamma of a Rosenbrock method
            (E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.7).
    """
    known: dict[Tree, Row] = {}
    for nodes in range(1, order + 1):
        for tree, density in _trees(nodes):
            yield nodes, _stage_weights(tree, a, single or a, known), 1 / density


@cache
def _trees(nodes: int) -> tuple[tuple[Tree, int], ...]:
    """The rooted trees with that many nodes, and the density gamma of each (J. C. Butcher)."""
    trees = {grown for tree, _ in _trees(nodes - 1) for grown in _grown(tree)} if nodes > 1 else {()}
    return tuple((tree, _size_and_density(tree)[1]) for tree in sorted(trees))


def _grown(tree: Tree) -> Iterator[Tree]:
    """The tree with one leaf more, at each of its nodes."""
    yield tuple(sorted((*tree, ())))
    for i, branch in enumerate(tree):
        for grown in _grown(branch):
            yield tuple(sorted((*tree[:i], grown, *tree[i + 1 :])))


def _size_and_density(tree: Tree) -> tuple[int, int]:
    branches = [_size_and_density(branch) for branch in tree]
    size = 1 + sum(size for size, _ in branches)
    return size, size * prod(density for _, density in branches)


def _stage_weights(tree: Tree, a: tuple[Row, ...], single: tuple[Row, ...], known: dict[Tree, Row]) -> Row:
    """For each stage, the product over the branches of a times the branch's own weights; `known` is filled."""
    if tree not in known:
        inner = [_stage_weights(branch, a, single, known) for branch in tree]
        rows = single if len(tree) == 1 else a
        known[tree] = tuple([prod([sum(map(mul, row, weights)) for weights in inner]) for row in rows])
    return known[tree]


class Check:
    """Turns coefficients into exact numbers; what does not fit is a `ValueError` that begins with the subject."""

    def __init__(self, subject: str) -> None:
        self.subject = subject

    def __call__(self, holds: bool, problem: str) -> None:
        if not holds:
            raise ValueError(f"{self.subject}: {problem}.")

    def row(self, key: str, values: Iterable[Any]) -> Exact:
        """The exact value of each entry."""
        problem = f"{key} = {values!r}: give finite numbers, fractions, or strings such as '1/3'"
        try:
            exact = tuple([Fraction(x) if isinstance(x, (str, Fraction)) else float(x) for x in values])
        except (TypeError, ValueError, ArithmeticError):
            raise ValueError(f"{self.subject}: {problem}.") from None
        self(all(map(isfinite, exact)), problem)
        return exact

    def triangle(
        self, key: str, rows: Iterable[Iterable[Any]], first: int = 0, *, full: bool = True
    ) -> tuple[Exact, ...]:
        """Rows of which row i has first + i entries, or at most as many where not `full`."""
        exact = tuple(self.row(f"{key}[{i}]", row) for i, row in enumerate(rows))
        for i, row in enumerate(exact):
            problem = f"{key}[{i}] has {len(row)} entries: give {first + i}, one for each earlier stage"
            self(len(row) == first + i or (len(row) < first + i and not full), problem)
        return exact

    def times(self, key: str, given: Iterable[Any], rows: tuple[Exact, ...]) -> Row:
        """The times that were given, or the row sums; where they are 1 to rounding, exactly 1."""
        sums = tuple(map(_total, rows))
        times = floats(self.row(key, () if given is None else given)) or sums
        self(len(times) == len(rows), f"{key} has {len(times)} entries: give {len(rows)}, one for each row")
        for i, (time, total) in enumerate(zip(times, sums, strict=True)):
            problem = f"{key}[{i}] is {time!r}, but its row sums to {total!r}: correct one, or leave {key} out"
            self(abs(time - total) < TOLERANCE, problem)
        return tuple(1.0 if abs(time - 1) < TOLERANCE else time for time in times)

    def interpolant(self, rows: Iterable[Iterable[Any]], b: Row) -> tuple[Row, ...]:
        """Rows of equal length that give a consistent interpolant which ends at the new state."""
        exact = [self.row(f"dense[{i}]", row) for i, row in enumerate(rows)]
        self(len(exact) == len(b), f"dense has {len(exact)} rows: give {len(b)}, one for each stage and extra stage")
        dense = tuple(floats(row, max(map(len, exact))) for row in exact)
        for i, (row, weight) in enumerate(zip(dense, b, strict=True)):
            problem = f"dense[{i}] sums to {fsum(row):.6g}, but at theta = 1 must be the weight in b, {weight:.6g}"
            self(abs(fsum(row) - weight) < TOLERANCE, problem)
        for power, column in enumerate(zip(*dense, strict=True), 1):
            total, must = fsum(column), float(power == 1)
            problem = f"the coefficients of theta^{power} in dense sum to {total:.6g}, not {must:g}"
            self(abs(total - must) < TOLERANCE, problem)
        return dense


def _total(row: Exact) -> float:
    """The sum of the entries, rounded once."""
    exact = any(isinstance(x, Fraction) for x in row)
    return float(sum(Fraction(x) for x in row)) if exact else fsum(row)


def floats(row: Iterable[float | Fraction], length: int = 0) -> Row:
    """The entries as floats, with zeros up to that length."""
    floats = tuple(map(float, row))
    return floats + (0.0,) * (length - len(floats))


def coefficients(kind: str) -> dict[str, dict[str, Any]]:
    """The methods of that kind in the data file, by name."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    data: dict[str, dict[str, Any]] = tomllib.loads((folder / "src" / "tableaux.toml").read_text(encoding="utf-8"))[
        kind
    ]
    return data


def _read() -> tuple[Mapping[str, Tableau], Mapping[str, StochasticTableau]]:
    """The explicit and the stochastic methods of the data file by name."""
    explicit = coefficients("ode")
    for entry in explicit.values():
        entry.setdefault("b", entry["a"][-1])
        if (quartic := entry.pop("quartic", None)) is not None:
            b = floats(map(Fraction, entry["b"]))
            entry["dense"] = hermite(b, len(b), floats(map(Fraction, quartic)))
    odes = {name: Tableau(name, **entry) for name, entry in explicit.items()}
    sdes = {name: StochasticTableau(name=name, **entry) for name, entry in coefficients("sde").items()}
    return MappingProxyType(odes), MappingProxyType(sdes)


TABLEAUX, SDE_TABLEAUX = _read()
