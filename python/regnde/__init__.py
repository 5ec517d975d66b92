"""regnde: neural ODEs and SDEs that are cheap to solve."""

from regnde._equation import SDE, JuliaField
from regnde._errors import (
    EngineUnavailable,
    MaxStepsReached,
    NonFiniteDynamics,
    SolveError,
    StepSizeUnderflow,
    UnsupportedField,
)
from regnde._solution import Solution, SolutionArrays, Stats, Steps
from regnde._solve import solve
from regnde._solver import Local, Solver

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "EngineUnavailable",
    "JuliaField",
    "Local",
    "MaxStepsReached",
    "NonFiniteDynamics",
    "Solution",
    "SolutionArrays",
    "SolveError",
    "Solver",
    "Stats",
    "StepSizeUnderflow",
    "Steps",
    "UnsupportedField",
    "solve",
]
