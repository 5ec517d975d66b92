"""The Julia engine: DifferentialEquations.jl steps, our Julia package records and differentiates."""

from __future__ import annotations

import torch
from torch import Tensor

from regnde._derivative_check import check_field
from regnde._engines.base import Engine, Request
from regnde._engines.julia import availability, packages, runtime
from regnde._engines.julia.code import Code
from regnde._engines.julia.fields import FieldChanged, code_of, one_sample
from regnde._engines.julia.methods import ADJOINTS, ROSENBROCK, SDIRK
from regnde._engines.julia.needs import JULIA_FIELD_GRADIENT, needs
from regnde._engines.julia.probe import time_within
from regnde._engines.julia.run import Run, needs_gradient
from regnde._engines.julia.support import why_unsupported
from regnde._equation import SDE, JuliaField, takes_samples
from regnde._mass import Mass
from regnde._solution import Solution

__all__ = ["JuliaEngine"]

EARLY = 1e-3  # of the first segment: how far the check of derivatives by the time looks


class JuliaEngine(Engine):
    """Runs fields that can be written as Julia code, on the CPU or, with CUDA.jl, on a CUDA device."""

    name = "julia"

    def unavailable(self) -> str | None:
        """Why Julia can not run here, and what to do."""
        return runtime.why_not()

    def missing_packages(self, request: Request) -> str | None:
        """What a state on a CUDA device, SDEs, implicit methods, adjoints and a `JuliaField`'s gradient need."""
        wanted, solver = list(needs(request)), request.solver
        refused = solver.method in (*ROSENBROCK, *SDIRK)  # with a gradient: `solve` says so, whatever is installed
        if isinstance(request.equation, JuliaField) and not refused and solver.gradient not in ADJOINTS:
            wanted += [JULIA_FIELD_GRADIENT] if needs_gradient(request, _codes(request)[0]) else []
        for need in wanted:
            if names := runtime.missing(*need.packages):
                return availability.what_to_do(need.group, names, need.reason, need.instead)
        return None

    def why_unsupported(self, request: Request) -> str | None:
        """What this engine has no method, state or gradient for."""
        return why_unsupported(request)

    def solve(self, request: Request) -> Solution:
        """Solves and assembles the solution."""
        for need in needs(request):
            if need.group is not packages.ADJOINTS:  # these are loaded on the way back
                runtime.load(*need.packages)
        codes, known = _codes(request)
        solver = request.solver
        if solver.method in SDIRK and solver.gradient not in ADJOINTS and needs_gradient(request, codes):
            raise ValueError(
                f"the steps of {solver.method!r} solve implicit equations and are not differentiated: use 'rodas5p', "
                "an explicit method, gradient='interpolating' (the trajectory's adjoint, with record=Local(...) for a "
                "penalty), or torch.no_grad()."
            )
        if solver.method in ROSENBROCK and isinstance(request.equation, JuliaField) and needs_gradient(request, codes):
            raise ValueError(
                f"the gradient of {solver.method!r} needs derivatives that a JuliaField does not have: write the field "
                "in torch, use an explicit method, or torch.no_grad()."
            )
        if solver.method in ROSENBROCK and not known:
            _check_derivatives(request)
        this = Run(request, codes)
        if this.mass is not None and this.mass.singular:
            _check_algebraic(request, this.mass)
        solution = this.of_samples if solver.batch == "per-sample" else this.solution
        try:
            return solution(check=known)
        except FieldChanged:
            this.use(_codes(request, again=True)[0])
            return solution()


def _codes(request: Request, *, again: bool = False) -> tuple[tuple[Code, ...], bool]:
    """The fields as Julia code, and whether one of them was not exported again because it looked unchanged."""
    equation, samples = request.equation, request.solver.batch == "per-sample"
    y0 = request.y0[:1].detach() if samples else request.y0.detach()
    if isinstance(equation, JuliaField):
        tensors = tuple(equation.parameters)
        return (Code(equation.source, "", tensors, tuple(x.requires_grad for x in tensors)),), False
    if isinstance(equation, SDE):
        written = [
            code_of(equation.drift, y0, "f", again=again),
            code_of(equation.diffusion, y0, "g", again=again, matrix=equation.has_matrix),
        ]
    else:
        tangents = request.solver.method in ROSENBROCK
        written = [code_of(equation, y0, "f", again=again, samples=samples, tangents=tangents)]
    return tuple(code for code, _ in written), any(known for _, known in written)


def _check_algebraic(request: Request, mass: Mass) -> None:
    """Refuses a start that does not satisfy the algebraic equations, or an index above 1."""
    equation, samples = request.equation, request.solver.batch == "per-sample"
    assert not isinstance(equation, JuliaField | SDE)  # else it is refused
    with torch.inference_mode(False):
        y0 = request.y0.detach().clone()
    index = (torch.arange(len(y0)),) if samples and takes_samples(equation) else ()
    t = y0.new_full(
        [len(y0)] + [1] * (y0.ndim - 1) if samples else [], time_within(request.times[0], request.segments())
    )

    def value(y: Tensor) -> Tensor:
        slope = equation(t, y, *index)
        return slope.sum(0) if samples else slope  # samples do not act on each other

    n = len(mass.matrix)
    with torch.inference_mode(False):
        rows = torch.autograd.functional.jacobian(value, y0)  # type: ignore[no-untyped-call]
    by_state = rows.reshape(n, len(y0), n).transpose(0, 1) if samples else rows.reshape(n, n)
    with torch.no_grad():
        mass.check_start(equation(t, y0, *index), by_state, y0, request.rtol, request.atol)


def _check_derivatives(request: Request) -> None:
    """Warns of a field whose Jacobian, as PyTorch forms it, misses a part of it."""
    equation, y0 = request.equation, request.y0
    if isinstance(equation, JuliaField | SDE) or request.times[0] == request.times[-1]:
        return
    field, y0 = (one_sample(equation), y0[:1]) if request.solver.batch == "per-sample" else (equation, y0)
    segments = request.segments()
    t0 = time_within(request.times[0], segments)
    check_field(field, y0.new_tensor(t0), y0, y0.new_tensor(t0 + EARLY * (segments[0].end - t0)))
