"""What the Julia engine can solve: why a request can not be run."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from regnde._controller import I
from regnde._engines.base import OWN_RULES, Request, unsupported_everywhere
from regnde._engines.julia.methods import (
    ADJOINTS,
    EXPLICIT,
    FIXED,
    IMPLICIT,
    ROSENBROCK,
    SDIRK,
    SIZES,
    STOCHASTIC,
    adaptive,
)
from regnde._equation import SDE, JuliaField
from regnde._mass import Mass
from regnde._sde_method import misfit
from regnde._solver import Local
from regnde._transforms import has_derivative, transformed

__all__ = ["STATES", "why_unsupported"]

STATES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
"""Dtypes that a state may have."""


def why_unsupported(request: Request) -> str | None:
    """What the engine has no method, state or gradient for, or None."""
    solver, y0 = request.solver, request.y0
    sde = isinstance(request.equation, SDE)
    if solver.tableau is not None:
        return f"the Tableau {solver.method!r} runs on the torch engine: set Solver(engine='torch')."
    if request.mass is not None and (why := _unsupported_mass(request, request.mass)) is not None:
        return why
    if solver.grid_method is not None or (sde and request.grid is not None):
        return f"{solver.method!r} along given times runs on the torch engine: set Solver(engine='torch')."
    if transformed():
        return (
            "torch.func and forward mode see what torch computes, and so not this engine: set Solver(engine='torch')."
        )
    if request.rules != OWN_RULES:
        return "another package's rules for steps run on the torch engine: set Solver(engine='torch')."
    if request.events and (why := _unsupported_events(request)) is not None:
        return why
    if request.dense and (solver.method in SDIRK or solver.gradient in ADJOINTS):
        return (
            "the Julia engine has dense output with discrete gradients, and not of 'trbdf2' and 'kencarp4': "
            f"not for {solver.method!r} with gradient={solver.gradient!r}: give the times as ts."
        )
    if solver.sde_method is not None:
        return "the steps of another package run on the torch engine: set Solver(engine='torch')."
    known = STOCHASTIC if sde else SIZES
    if solver.method not in known:
        kind = "SDE" if sde else "ODE"
        return f"the Julia engine has no {kind} method {solver.method!r}; it has {', '.join(known)}."
    if isinstance(request.equation, SDE) and (why := _unsupported_noise(request.equation, request)) is not None:
        return why
    if y0.dtype not in STATES:
        return (
            "the Julia engine solves float32, float64, complex64 and complex128 states, not "
            f"{y0.dtype}: set Solver(engine='torch')."
        )
    field = request.equation
    if isinstance(field, JuliaField) and (y0.is_complex() or any(x.is_complex() for x in field.parameters)):
        return "a JuliaField takes real states and parameters: write the field in torch."
    if y0.is_complex() and (why := _unsupported_complex(request)) is not None:
        return why
    if y0.numel() == 0:
        return "the Julia engine solves states of one or more entries: set Solver(engine='torch')."
    if y0.device.type not in ("cpu", "cuda"):
        return f"the Julia engine solves on CPU and CUDA, but y0 lies on {y0.device}: set Solver(engine='torch')."
    if y0.device.type == "cuda" and (solver.method in IMPLICIT or solver.gradient in ADJOINTS):
        return (
            "on CUDA devices the Julia engine has explicit and stochastic methods with their discrete gradient, "
            f"not {solver.method!r} with gradient={solver.gradient!r}: set Solver(engine='torch')."
        )
    if solver.batch == "per-sample" and (y0.device.type == "cuda" or solver.gradient in ADJOINTS):
        return (
            "batch='per-sample' on the Julia engine is for states on the CPU and their discrete gradient: set "
            "Solver(engine='torch')."
        )
    return (
        unsupported_everywhere(request, adaptive=adaptive(request))
        or _unsupported_control(request)
        or _unsupported_gradient(request)
    )


def _unsupported_complex(request: Request) -> str | None:
    """What runs for real states alone."""
    solver = request.solver
    if isinstance(request.equation, SDE):
        return "SDEs of complex states run on the torch engine: set Solver(engine='torch')."
    if solver.method in IMPLICIT:
        return (
            f"{solver.method!r} of a complex state, whose slope may have no complex Jacobian, runs on the torch "
            "engine: set Solver(engine='torch'), or give torch.view_as_real(y0)."
        )
    if solver.gradient in ADJOINTS:
        return f"gradient={solver.gradient!r} is for real states: use 'discrete' or 'checkpoint'."
    if request.y0.device.type != "cpu":
        return "complex states on CUDA devices run on the torch engine: set Solver(engine='torch')."
    return None


def _unsupported_mass(request: Request, mass: Tensor) -> str | None:
    """Mass matrices whose equation this engine does not solve, or not differentiate."""
    if has_derivative(mass) and torch.is_grad_enabled():
        return "the gradient with respect to a mass matrix runs on the torch engine: set Solver(engine='torch')."
    if request.segments()[1:] and Mass.of(mass).singular:
        return "stops of a differential-algebraic equation run on the torch engine: set Solver(engine='torch')."
    if request.solver.gradient in ADJOINTS:
        return (
            f"gradient={request.solver.gradient!r} is for ODEs without a mass matrix: use 'discrete' or 'checkpoint'."
        )
    return None


def _unsupported_events(request: Request) -> str | None:
    """Methods and records with which events are not looked for."""
    sde = isinstance(request.equation, SDE)
    methods = (*EXPLICIT, *FIXED, *ROSENBROCK)
    if sde or request.solver.method not in methods or request.solver.gradient in ADJOINTS:
        return (
            "the Julia engine looks for events with explicit and Rosenbrock methods and their discrete gradient, "
            f"not with {request.solver.method!r}: set Solver(engine='torch')."
        )
    if isinstance(request.record, Local):
        return "a Local record of a solve with events runs on the torch engine: set Solver(engine='torch')."
    return None


def _unsupported_control(request: Request) -> str | None:
    """Ways to choose steps that OrdinaryDiffEq's integrators do not have."""
    method, controller = request.solver.method, request.solver.controller
    if isinstance(controller, I) and controller.accepted_min_factor not in (None, controller.min_factor):
        return "I(accepted_min_factor=...) runs on the torch engine: set Solver(engine='torch')."
    if method in IMPLICIT and controller is not None:
        return f"{method!r} has a controller of its own: leave out controller=."
    if isinstance(request.equation, SDE) and request.solver.dt_min > 0:
        return "dt_min= of an SDE runs on the torch engine: set Solver(engine='torch')."
    if method in ROSENBROCK and isinstance(request.rtol, Tensor):
        return f"{method!r} takes one number as rtol; atol may differ between entries."
    return None


def _unsupported_gradient(request: Request) -> str | None:
    """Combinations of method, gradient and record that have no gradient, or another one than asked for."""
    gradient, record = request.solver.gradient, request.record
    if gradient == "reversible":
        return "gradient='reversible' is for the torch engine's 'reversible_heun': set Solver(engine='torch')."
    if gradient in ADJOINTS:
        if not adaptive(request) and not isinstance(request.equation, SDE):
            return f"gradient={gradient!r} is for methods that adapt their step: use 'discrete' or 'checkpoint'."
        if isinstance(request.equation, SDE):
            return (
                f"gradient={gradient!r} is for ODEs: for an SDE SciMLSensitivity's adjoints "
                "fail or are wrong. Use 'discrete' or 'checkpoint'."
            )
        if record == "all" and torch.is_grad_enabled():
            return (
                f"gradient={gradient!r} is a continuous adjoint of the trajectory, in which the solver's estimates "
                "do not occur: the records' gradient would be zero without a word. Use gradient='discrete', "
                "record=Local(...), or torch.no_grad() to look at them."
            )
        controlled = request.solver.controller is not None or request.solver.dt_max < math.inf or request.stops
        if controlled or isinstance(request.rtol, Tensor) or isinstance(request.atol, Tensor):
            return (
                f"gradient={gradient!r} solves again on the way back, with neither stops, a controller, dt_max nor "
                "tolerances of each entry: use 'discrete' or 'checkpoint'."
            )
        if request.ts.requires_grad:
            return f"gradient={gradient!r} gives no derivative with respect to the times: use 'discrete'."
    return None


def _unsupported_noise(sde: SDE, request: Request) -> str | None:
    """Equations that the method is not for, and diffusion matrices that StochasticDiffEq's integrators do not take."""
    method = request.solver.method
    if (why := misfit(method, sde)) is not None:
        return why
    if sde.has_matrix and request.y0.ndim == 0:
        return f"SDE(noise={sde.noise!r}) needs a state of one or more dimensions, (..., d)."
    if sde.has_matrix and request.y0.device.type != "cpu":
        return "diffusion matrices on CUDA devices run on the torch engine: set Solver(engine='torch')."
    return None
