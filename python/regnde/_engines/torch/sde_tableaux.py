"""The stochastic Runge-Kutta methods as this engine takes them: `regnde._tableau`'s with their step control."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from regnde import _tableau
from regnde._engines.torch.control import Controller
from regnde._tableau import Row

__all__ = ["SDE_TABLEAUX", "Row", "StochasticTableau"]


@dataclass(frozen=True, kw_only=True, repr=False)
class StochasticTableau(_tableau.StochasticTableau):
    """The same with its step control, None for a fixed step."""

    controller: Controller | None


def _adapted(tableau: _tableau.StochasticTableau) -> StochasticTableau:
    fields = {field.name: getattr(tableau, field.name) for field in dataclasses.fields(tableau)}
    control = Controller.for_order(tableau.order, qmax=tableau.qmax) if tableau.adaptive else None
    return StochasticTableau(**fields, controller=control)


SDE_TABLEAUX: Mapping[str, StochasticTableau] = {n: _adapted(t) for n, t in _tableau.SDE_TABLEAUX.items()}
"""Every stochastic method by name."""
