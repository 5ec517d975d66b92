"""regnde: neural ODEs and SDEs that are cheap to solve."""

import importlib
from types import ModuleType

from regnde import nn
from regnde._budget import Balance, LossBudget
from regnde._cheapen import Cheapening, Measured, cheapen
from regnde._controller import PI, PID, I
from regnde._diagnose import diagnose
from regnde._dropin import odeint, odeint_adjoint, odeint_dense, odeint_event
from regnde._dropin_sde import sdeint, sdeint_adjoint
from regnde._equation import ODE, SDE, JuliaField
from regnde._errors import (
    EngineUnavailable,
    MaxStepsReached,
    NonFiniteDynamics,
    SolveError,
    StepSizeUnderflow,
    UnsupportedField,
)
from regnde._event import Event
from regnde._fit import Progress, anneal, fit
from regnde._fixed_grid import FixedGrid
from regnde._grid_choice import fixed_grid
from regnde._grid_report import Candidate, GridReport
from regnde._install import Installation, install
from regnde._last_step import LastStep
from regnde._noise import BrownianPath, Increment
from regnde._penalty import ErrorPenalty, Penalty, SquaredErrorPenalty, StepPenalty, StiffnessPenalty, steer
from regnde._recording import Recording, recording
from regnde._report import Advice, Diagnosis
from regnde._solution import Events, Solution, SolutionArrays, Stats, Status, Steps
from regnde._solve import solve
from regnde._solver import Local, Solver
from regnde._tableau import Tableau

__version__ = "0.1.0"

__all__ = [
    "ODE",
    "PI",
    "PID",
    "SDE",
    "Advice",
    "Balance",
    "BrownianPath",
    "Candidate",
    "Cheapening",
    "Diagnosis",
    "EngineUnavailable",
    "ErrorPenalty",
    "Event",
    "Events",
    "FixedGrid",
    "GridReport",
    "I",
    "Increment",
    "Installation",
    "JuliaField",
    "LastStep",
    "Local",
    "LossBudget",
    "MaxStepsReached",
    "Measured",
    "NonFiniteDynamics",
    "Penalty",
    "Progress",
    "Recording",
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
    "fixed_grid",
    "install",
    "nn",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "recording",
    "sdeint",
    "sdeint_adjoint",
    "solve",
    "steer",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `regnde.plot` and `regnde.comparators` at their first use."""
    if name in ("comparators", "plot"):
        return importlib.import_module(f"regnde.{name}")
    hint = f": it is regnde.nn.{name}" if name in nn.__all__ else ""
    raise AttributeError(f"module 'regnde' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), "comparators", "plot"})
