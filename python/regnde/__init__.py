"""regnde: neural ODEs and SDEs that are cheap to solve."""

import importlib
from types import ModuleType

from regnde import nn
from regnde._budget import Balance, LossBudget
from regnde._cheapen import Cheapening, Measured, cheapen
from regnde._diagnose import diagnose
from regnde._dropin import odeint, odeint_adjoint
from regnde._dropin_sde import sdeint
from regnde._equation import SDE, JuliaField
from regnde._errors import (
    EngineUnavailable,
    MaxStepsReached,
    NonFiniteDynamics,
    SolveError,
    StepSizeUnderflow,
    UnsupportedField,
)
from regnde._fit import Progress, anneal, fit
from regnde._last_step import LastStep
from regnde._noise import BrownianPath, Increment
from regnde._penalty import ErrorPenalty, Penalty, SquaredErrorPenalty, StepPenalty, StiffnessPenalty, steer
from regnde._report import Advice, Diagnosis
from regnde._solution import Solution, SolutionArrays, Stats, Status, Steps
from regnde._solve import solve
from regnde._solver import Local, Solver
from regnde._tableau import Tableau

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "Advice",
    "Balance",
    "BrownianPath",
    "Cheapening",
    "Diagnosis",
    "EngineUnavailable",
    "ErrorPenalty",
    "Increment",
    "JuliaField",
    "LastStep",
    "Local",
    "LossBudget",
    "MaxStepsReached",
    "Measured",
    "NonFiniteDynamics",
    "Penalty",
    "Progress",
    "Solution",
    "SolutionArrays",
    "SolveError",
    "Solver",
    "SquaredErrorPenalty",
    "Stats",
    "Status",
    "StepPenalty",
    "StepSizeUnderflow",
    "Steps",
    "StiffnessPenalty",
    "Tableau",
    "UnsupportedField",
    "anneal",
    "cheapen",
    "diagnose",
    "fit",
    "nn",
    "odeint",
    "odeint_adjoint",
    "sdeint",
    "solve",
    "steer",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `regnde.plot` and `regnde.comparators` at their first use."""
    if name in ("comparators", "plot"):
        return importlib.import_module(f"regnde.{name}")
    raise AttributeError(f"module 'regnde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "comparators", "plot"})
