"""The methods that the Julia engine has, and what it knows of each."""

from __future__ import annotations

from regnde._engines.base import Request
from regnde._equation import SDE
from regnde._rosenbrock_tableau import AUTOTSIT5, ROSENBROCK_TABLEAUX
from regnde._sde_method import SDE_METHODS
from regnde._tableau import SDE_TABLEAUX, TABLEAUX

__all__ = [
    "ADJOINTS",
    "EXPLICIT",
    "FIXED",
    "IMPLICIT",
    "ORDERS",
    "ROSENBROCK",
    "SDIRK",
    "SIZES",
    "STOCHASTIC",
    "adaptive",
]

# stability sizes along the negative real axis; None: the method has no stiffness estimate
_VERNER = {"vern6": 4.8553, "vern8": 5.8641, "vern9": 4.4762}
EXPLICIT: dict[str, float | None] = {
    name: _VERNER[name] if name in _VERNER else TABLEAUX[name].stability_size
    for name in ("tsit5", "bs3", "dp5", "heun", "vern6", "vern7", "vern8", "vern9")
}
ROSENBROCK = (*ROSENBROCK_TABLEAUX, AUTOTSIT5)
SDIRK = ("trbdf2", "kencarp4")
IMPLICIT: dict[str, float | None] = {**dict.fromkeys(ROSENBROCK, EXPLICIT["tsit5"]), **dict.fromkeys(SDIRK)}
FIXED = tuple(name for name, tableau in TABLEAUX.items() if not tableau.adaptive)
_SCHEMES = ("em", "rkmil", "lambaem", "lambaeulerheun", "eulerheun", "heun", "midpoint", "diffusionheun")
STOCHASTIC: dict[str, float | None] = {
    **{name: SDE_TABLEAUX[name].stability_size for name in ("sosri", "sosri2", "sriw1", "sosra")},
    **dict.fromkeys(_SCHEMES),
}
# of ODEs, as the step control has them, for what the next solve's first step may be
ORDERS = {
    **{name: float(name.removeprefix("vern")) if name in _VERNER else TABLEAUX[name].order for name in EXPLICIT},
    **{name: tableau.order for name, tableau in ROSENBROCK_TABLEAUX.items()},
    **dict(trbdf2=2.0, kencarp4=4.0, autotsit5=5.0),
}
SIZES = {**EXPLICIT, **dict.fromkeys(FIXED), **IMPLICIT}
ADJOINTS = ("interpolating", "gauss", "quadrature", "backsolve", "tracker")


def adaptive(request: Request) -> bool:
    """Whether the method adapts its step."""
    method = request.solver.method
    return SDE_METHODS[method].adaptive if isinstance(request.equation, SDE) else method not in FIXED
