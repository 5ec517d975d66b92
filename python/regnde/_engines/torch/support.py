"""What the torch engine can solve: the method of a request, and why a request can not be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from regnde._engines.base import OWN_RULES, Request, exporting, unsupported_everywhere
from regnde._equation import SDE, JuliaField
from regnde._grid_method import GridMethod, ImplicitTableau
from regnde._rosenbrock_tableau import AUTOTSIT5, ROSENBROCK_TABLEAUX, RosenbrockTableau
from regnde._sde_method import SDE_METHODS, StochasticMethod, misfit
from regnde._solver import hint
from regnde._tableau import TABLEAUX, Tableau
from regnde._transforms import transformed

__all__ = ["method_of", "why_unsupported"]

ODE_METHODS: Mapping[str, object] = {**TABLEAUX, **ROSENBROCK_TABLEAUX, AUTOTSIT5: None}


def method_of(request: Request) -> Tableau | StochasticMethod | GridMethod | RosenbrockTableau:
    """The method of a request by its coefficients, of one that switches those of the explicit method."""
    solver = request.solver
    if solver.grid_method is not None:
        return solver.grid_method
    if isinstance(request.equation, SDE):
        return SDE_METHODS[solver.method] if solver.sde_method is None else solver.sde_method
    if solver.tableau is not None:
        return solver.tableau
    if solver.method in ROSENBROCK_TABLEAUX:
        return ROSENBROCK_TABLEAUX[solver.method]
    return TABLEAUX["tsit5" if solver.method == AUTOTSIT5 else solver.method]


def why_unsupported(request: Request) -> str | None:
    """What the torch engine has no method, equation or gradient for, or None."""
    solver = request.solver
    if isinstance(request.equation, JuliaField):
        return "a JuliaField runs on the Julia engine alone: set Solver(engine='julia')."
    sde = isinstance(request.equation, SDE)
    known = SDE_METHODS if sde else ODE_METHODS
    if sde and solver.tableau is not None:
        return f"the Tableau {solver.method!r} is a method for ODEs: for an SDE give the name of an SDE method."
    if solver.grid_method is not None and (sde or solver.compile):
        return f"{solver.method!r} is a method for ODEs whose steps are not compiled."
    if isinstance(solver.grid_method, ImplicitTableau) and transformed():
        return f"{solver.method!r} is implicit: torch.func and forward mode do not see through it. Use autograd."
    if solver.sde_method is not None and not sde:
        return f"{solver.method!r} is a method for SDEs."
    given = solver.tableau or solver.grid_method or solver.sde_method
    if given is None and solver.method not in known:
        kind = "SDE" if sde else "ODE"
        text = f"the torch engine has no {kind} method {solver.method!r}; it has {', '.join(known)}."
        if solver.method in (ODE_METHODS if sde else SDE_METHODS) and not hint(solver.method, sde=sde):
            return f"{text} {solver.method!r} is a method for {'ODEs' if sde else 'SDEs'}."
        return f"{text} {hint(solver.method, sde=sde)}".rstrip()
    if isinstance(request.equation, SDE) and (why := misfit(solver.method, request.equation)) is not None:
        return why
    if isinstance(request.equation, SDE) and request.equation.has_matrix and request.y0.ndim == 0:
        return "a diffusion matrix needs a state of one or more dimensions, (..., d): give y0 as [y0]."
    if solver.gradient == "reversible":
        if solver.method != "reversible_heun" or not sde:
            return "gradient='reversible' is for SDEs and the method 'reversible_heun', whose steps have an inverse."
        if request.segments()[1:]:
            return "gradient='reversible' does not go back across stops: use gradient='checkpoint'."
    if solver.gradient not in ("discrete", "checkpoint", "reversible"):
        return f"gradient={solver.gradient!r} is SciMLSensitivity's: set Solver(engine='julia')."
    if sde and solver.compile:
        return "compile=True is for ODEs."
    smallest = sde and request.rules.accept_smallest
    if (sde or solver.batch == "per-sample") and request.rules != replace(OWN_RULES, accept_smallest=smallest):
        return "another package's rules for steps are for one system that is an ODE."
    if request.events and sde:
        return "an SDE crosses zero again and again between the ends of its steps: event= is for ODEs."
    if (why := _why_not_implicit(request)) is not None:
        return why
    return unsupported_everywhere(request, adaptive=method_of(request).adaptive)


def _why_not_implicit(request: Request) -> str | None:
    """What can not be done with a method that solves linear equations."""
    solver = request.solver
    named = solver.tableau is None and solver.grid_method is None
    if not named or not (solver.method in ROSENBROCK_TABLEAUX or solver.method == AUTOTSIT5):
        return None
    if solver.compile:
        return f"{solver.method!r} has steps that are not compiled: set compile=False."
    if exporting():
        return f"{solver.method!r} can not be exported: its steps follow from the error."
    if request.rules != OWN_RULES:
        return f"{solver.method!r} has steps of our own rules alone."
    if request.y0.dtype.to_real() not in (torch.float32, torch.float64):
        return f"{solver.method!r} solves linear equations, which torch does not do in {request.y0.dtype}: use float32."
    if solver.method == AUTOTSIT5 and solver.batch == "per-sample":
        return "'autotsit5' chooses one method for one system: with batch='per-sample' use 'tsit5' or 'rosenbrock23'."
    return None
