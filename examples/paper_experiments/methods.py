"""The rows of the tables: what each method records, penalises, integrates and samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from regnde import ErrorPenalty, Local, Penalty, SquaredErrorPenalty, StiffnessPenalty
from regnde._solver import Record
from regnde.comparators import RNODE, Integrand, TayNODE

NAMES = (
    "vanilla",
    "steer",
    "ernode",
    "srnode",
    "er+sr",
    "steer+ernode",
    "steer+srnode",
    "local-time",
    "local-step",
    "rnode",
    "taynode",
    "budget",
)
STUDY = ("squared",)  # not in the papers' tables: their squared error estimates
WEIGHTLESS = ("vanilla", "steer", "budget")
SWEPT = ("rnode", "taynode")  # the rows whose weight is looked for
TSIT5_SIZE, SOSRI2_SIZE = 3.5068, 10.6  # stability sizes: the papers' code divides the stiffness by them

Pair = tuple[float, float]


@dataclass(frozen=True)
class Weights:
    """Weights of every penalty of one experiment, from the start to the end of training.

    Attributes:
        error: of the mean of E |h| over the steps.
        stiffness: of S / stability size.
        stiffness_reduction: over the steps; the papers' code takes "max" for ODEs, "mean" for SDEs.
        both: of the mean of E |h| + 0.1 S / stability size.
        local: of one step's E |h|.
        squared: of the mean of E^2.
        rnode: of the integrals of the kinetic energy and of the Jacobian's norm.
        taynode: of the integral of the squared derivative, and its order K.
    """

    error: Pair
    stiffness: Pair
    both: Pair
    local: Pair
    squared: Pair = (100.0, 100.0)
    stiffness_reduction: Literal["max", "mean"] = "max"
    rnode: Pair = (0.01, 0.01)
    taynode: tuple[float, int] = (0.01, 2)

    def replaced(self, pair: Pair) -> Weights:
        """One pair for all penalties on the records; the comparators' integrals keep theirs."""
        return dataclasses.replace(self, error=pair, stiffness=pair, both=pair, local=pair, squared=pair)

    def scaled(self, factor: float) -> Weights:
        """All weights times one factor; orders and reductions stay."""
        changed = {
            name: tuple(factor * w for w in getattr(self, name))
            for name in ("error", "stiffness", "both", "local", "squared", "rnode")
        }
        return dataclasses.replace(self, **changed, taynode=(factor * self.taynode[0], self.taynode[1]))


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        record: the steps that the penalty is shown.
        penalty: on the records, or None.
        weight: the penalty's, from start to end of training.
        steer: whether the times are drawn anew in every iteration.
        integrand: whose integral along the solution is penalised, or None. It carries its own weights but one.
        integral_weight: that one.
        stiff: whether an SDE needs the solver that estimates stiffness.
    """

    record: Record = "none"
    penalty: Penalty | None = None
    weight: Pair = (1.0, 1.0)
    steer: bool = False
    integrand: Integrand | None = None
    integral_weight: float = 0.0
    stiff: bool = False


def method(name: str, weights: Weights, *, sde: bool, official_local: bool) -> Method:
    """The method of that name with an experiment's weights.

    Args:
        name: out of `NAMES` or `STUDY`.
        weights: of the experiment.
        sde: whether it is an SDE.
        official_local: a local step as the code of paper B takes it: the first-step heuristic's size, first stage
            constant.

    Raises:
        ValueError: for a name that is unknown, or has no meaning for an SDE.
    """
    if name not in NAMES + STUDY:
        raise ValueError(f"unknown method {name!r}: choose from {', '.join(NAMES + STUDY)}")
    if sde and name in SWEPT:
        raise ValueError(f"{name} penalises derivatives along a smooth solution: a path of an SDE has none")
    if name == "vanilla":
        return Method()
    if name == "steer":
        return Method(steer=True)
    if name.startswith("steer+"):
        return dataclasses.replace(method(name[6:], weights, sde=sde, official_local=official_local), steer=True)
    per_size = 1 / (SOSRI2_SIZE if sde else TSIT5_SIZE)
    if name in ("ernode", "budget"):  # of a budget the weight is found in training
        return Method("all", ErrorPenalty("mean"), weights.error)
    if name == "squared":
        return Method("all", SquaredErrorPenalty("mean"), weights.squared)
    if name == "srnode":
        penalty = per_size * StiffnessPenalty(weights.stiffness_reduction)
        return Method("all", penalty, weights.stiffness, stiff=True)
    if name == "er+sr":
        penalty = ErrorPenalty("mean") + (0.1 * per_size) * StiffnessPenalty("mean")
        return Method("all", penalty, weights.both, stiff=True)
    if name in ("local-time", "local-step"):
        local = Local(sampling="time" if name == "local-time" else "step")
        if official_local:
            local = dataclasses.replace(local, step_size="initial", freeze_first_stage=True)
        return Method(local, ErrorPenalty(), weights.local)
    if name == "rnode":
        kinetic, jacobian = weights.rnode
        return Method(integrand=RNODE(kinetic=kinetic, jacobian=jacobian), integral_weight=1.0)
    weight, order = weights.taynode
    return Method(integrand=TayNODE(order=order), integral_weight=weight)
