"""What a request needs of Julia beyond the packages that are always installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regnde._engines.base import Request
from regnde._engines.julia.availability import ADJOINTS, CUDA, FFT, STIFF, Group
from regnde._engines.julia.availability import SDE as STOCHASTIC
from regnde._engines.julia.methods import ADJOINTS as CONTINUOUS
from regnde._engines.julia.methods import ROSENBROCK, SDIRK
from regnde._equation import SDE

__all__ = ["JULIA_FIELD_GRADIENT", "TRANSFORMS", "Need", "needs"]


@dataclass(frozen=True)
class Need:
    """Packages that a request needs.

    Attributes:
        group: what they are installed with.
        packages: their names.
        reason: why they are needed.
        instead: what can be done without them.
    """

    group: Group
    packages: tuple[str, ...]
    reason: str
    instead: str


JULIA_FIELD_GRADIENT = Need(
    ADJOINTS, ("Zygote",), "Zygote differentiates a JuliaField", "use torch.no_grad() for values alone"
)

TRANSFORMS = Need(FFT, tuple(FFT.packages), "the field has Fourier transforms", "set Solver(engine='torch')")


def needs(request: Request) -> Iterator[Need]:
    """What the request needs before it is solved; what a field needs beside this is known once it is exported."""
    method, gradient, use_torch = request.solver.method, request.solver.gradient, "set Solver(engine='torch')"
    if request.y0.device.type == "cuda":
        yield Need(CUDA, tuple(CUDA.packages), "the state lies on a CUDA device", use_torch)
    if isinstance(request.equation, SDE):
        yield Need(STOCHASTIC, tuple(STOCHASTIC.packages), "the equation is an SDE", use_torch)
    elif method in ROSENBROCK:
        package = "OrdinaryDiffEqRosenbrock"
        yield Need(STIFF, (package,), f"method={method!r} is {package}'s", use_torch)
    elif method in SDIRK:
        package = "OrdinaryDiffEqSDIRK"
        yield Need(STIFF, (package,), f"method={method!r} is {package}'s", "use 'rodas5p' or 'rosenbrock23'")
    if gradient in CONTINUOUS:
        reason = f"gradient={gradient!r} is SciMLSensitivity's"
        yield Need(ADJOINTS, tuple(ADJOINTS.packages), reason, "use gradient='discrete'")
