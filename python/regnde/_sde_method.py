"""Methods for SDEs that are no tableau of Roessler's form, and which method is for which equation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from regnde._equation import SDE
from regnde._tableau import SDE_TABLEAUX, StochasticTableau

__all__ = [
    "SDE_METHODS",
    "Carried",
    "Doubled",
    "ReversibleHeun",
    "SDEMethod",
    "StochasticMethod",
    "default_method",
    "fits",
    "misfit",
]


@dataclass(frozen=True, kw_only=True)
class SDEMethod:
    """A method for SDEs whose step is written out in the engine.

    Args:
        name: of the step.
        order: strong order, which the step control uses.
        adaptive: whether it estimates its error and thus adapts its step.
    """

    name: str
    order: float
    adaptive: bool = False
    additive: ClassVar[bool] = False
    stiffness_pair: ClassVar[bool] = False
    stability_size: ClassVar[None] = None
    qmax: ClassVar[float] = StochasticTableau.qmax

    @property
    def estimates_error(self) -> bool:
        """The same."""
        return self.adaptive


Carried = tuple[Tensor, Tensor, Tensor]
"""Of the reversible Heun method: the drift and the diffusion at its second state, and that state."""


@dataclass(frozen=True, kw_only=True)
class ReversibleHeun(SDEMethod):
    """The reversible Heun method that begins where another solve ended, or tells where it ends.

    Args:
        start: what the solve before carried, or None.
        carried: called after each step with what the next one is given.
    """

    name: str = "reversible_heun"
    order: float = 0.5
    start: Carried | None = None
    carried: Callable[[Carried], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Doubled(SDEMethod):
    """Adaptive steps by comparison: each step is taken whole and in two halves, which are what it goes on from.

    Args:
        of: the method whose steps are compared.
    """

    of: StochasticTableau | SDEMethod
    adaptive: bool = True


StochasticMethod = StochasticTableau | SDEMethod

_WRITTEN_OUT = (
    SDEMethod(name="rkmil", order=1.0, adaptive=True),
    SDEMethod(name="lambaem", order=0.5, adaptive=True),
    SDEMethod(name="lambaeulerheun", order=0.5, adaptive=True),
    SDEMethod(name="milstein", order=1.0),
    SDEMethod(name="eulerheun", order=0.5),
    SDEMethod(name="heun", order=0.5),
    SDEMethod(name="midpoint", order=0.5),
    SDEMethod(name="diffusionheun", order=0.5),
    ReversibleHeun(),
)

SDE_METHODS: Mapping[str, StochasticMethod] = MappingProxyType(
    {**SDE_TABLEAUX, **{method.name: method for method in _WRITTEN_OUT}}
)
"""Every method for SDEs by name."""

_BOTH, _ITO, _STRATONOVICH = ("ito", "stratonovich"), ("ito",), ("stratonovich",)
_ENTRYWISE, _ALL = ("diagonal", "scalar"), ("diagonal", "scalar", "additive", "general")
_FOR: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sosri": (_ITO, _ENTRYWISE),
    "sosri2": (_ITO, _ENTRYWISE),
    "sriw1": (_ITO, _ENTRYWISE),
    "sosra": (_BOTH, ("diagonal", "scalar", "additive")),  # the diffusion must not depend on the state
    "rkmil": (_BOTH, _ENTRYWISE),
    "lambaem": (_ITO, _ALL),
    "lambaeulerheun": (_STRATONOVICH, _ALL),
    "em": (_ITO, _ALL),
    "milstein": (_BOTH, ("diagonal", "scalar", "additive")),
    **dict.fromkeys(("eulerheun", "heun", "midpoint", "diffusionheun", "reversible_heun"), (_STRATONOVICH, _ALL)),
}
"""The calculi and the kinds of noise that each method is for."""


def default_method(sde: SDE) -> str:
    """The method that is taken where none is given; `docs/sde.md` has the measurements."""
    if sde.noise == "additive":
        return "sosra"
    if sde.calculus == "stratonovich":
        return "rkmil" if sde.noise in _ENTRYWISE else "lambaeulerheun"
    return "sriw1" if sde.noise in _ENTRYWISE else "lambaem"


def fits(name: str, sde: SDE) -> bool:
    """Whether a method is for an equation: for additive noise the calculi are the same."""
    calculi, noises = _FOR[name]
    return sde.noise in noises and (sde.calculus in calculi or sde.noise == "additive")


def misfit(name: str, sde: SDE) -> str | None:
    """Why a method is not for an equation, and which ones are, or None."""
    if name not in _FOR or fits(name, sde):
        return None
    calculi, noises = _FOR[name]
    senses = " and ".join(calculus.capitalize() for calculus in calculi)
    fitting = [known for known in _FOR if fits(known, sde)]
    adaptive = [known for known in fitting if SDE_METHODS[known].adaptive]
    fixed = [known for known in fitting if not SDE_METHODS[known].adaptive]
    kind = f"{sde.calculus.capitalize()} with {sde.noise} noise"
    return (
        f"method {name!r} is for {senses} SDEs with {_listed(noises)} noise, and this one is {kind}: "
        f"use {_quoted(adaptive)} (adaptive), or {_quoted(fixed)} (fixed step)."
    )


def _listed(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _quoted(names: list[str]) -> str:
    return _listed(tuple(map(repr, names)))
