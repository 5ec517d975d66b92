"""The explicit Runge-Kutta methods as this engine takes them: a tableau of `regnde._tableau` with its step control."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from regnde import _tableau
from regnde._engines.torch.control import Controller
from regnde._tableau import Row

__all__ = ["TABLEAUX", "Row", "Tableau", "adapted"]


@dataclass(frozen=True)
class Tableau:
    """The fields of `regnde.Tableau`, facts that follow from them, and the controller (None for a fixed step)."""

    name: str
    order: int
    a: tuple[Row, ...]
    c: Row
    b: Row
    dense: tuple[Row, ...]
    btilde: Row | None
    extra_a: tuple[Row, ...]
    extra_c: Row
    fsal: bool
    stability_size: float | None
    stiffness_pair: bool
    controller: Controller | None

    @property
    def rows(self) -> list[Row]:
        """All weights of sums of stages, each once."""
        return [row for row in dict.fromkeys([*self.a, *self.extra_a, self.b, self.btilde or ()]) if row]

    def places(self, width: int = 1) -> dict[Row, slice]:
        """Where each of `rows` lies if they are laid one after another, `width` places for an entry."""
        ends = itertools.accumulate(width * len(row) for row in self.rows)
        return {row: slice(end - width * len(row), end) for row, end in zip(self.rows, ends, strict=True)}

    @property
    def estimates_error(self) -> bool:
        """Whether the method has an embedded error estimate."""
        return self.btilde is not None

    @property
    def stages(self) -> int:
        """Number of stages, the FSAL one included."""
        return len(self.c)


@cache
def adapted(tableau: _tableau.Tableau) -> Tableau:
    """The tableau with its step control."""
    controller = Controller(
        beta1=7 / (10 * tableau.order) if tableau.beta1 is None else tableau.beta1,
        beta2=2 / (5 * tableau.order) if tableau.beta2 is None else tableau.beta2,
    )
    return Tableau(
        name=tableau.name,
        order=tableau.order,
        a=tableau.a,
        c=tableau.c,
        b=tableau.b if tableau.fsal else tableau.b + (0.0,) * (tableau.stages - len(tableau.b)),
        dense=tableau.dense,
        btilde=tableau.btilde,
        extra_a=tableau.extra_a,
        extra_c=tableau.extra_c,
        fsal=tableau.fsal,
        stability_size=tableau.stability_size,
        stiffness_pair=tableau.stiffness_pair,
        controller=controller if tableau.adaptive else None,
    )


TABLEAUX: Mapping[str, Tableau] = {name: adapted(tableau) for name, tableau in _tableau.TABLEAUX.items()}
"""Every method of this engine by name."""
