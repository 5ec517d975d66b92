"""What a request needs of Julia beyond the packages that are always installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from regnde._engines.base import Request
from regnde._engines.julia import packages
from regnde._engines.julia.methods import ADJOINTS, ROSENBROCK, SDIRK
from regnde._engines.julia.packages import Group, Package
from regnde._equation import SDE

__all__ = ["JULIA_FIELD_GRADIENT", "TRANSFORMS", "Need", "needs"]


@dataclass(frozen=True)
class Need:
    """Packages of a group that a request needs.

    Attributes:
        group: what they are installed with.
        reason: why they are needed.
        instead: what can be done without them.
        only: the one that is needed; by default all of the group.
    """

    group: Group
    reason: str
    instead: str
    only: Package | None = None

    @property
    def packages(self) -> tuple[str, ...]:
        """Their names."""
        return (self.only.name,) if self.only is not None else self.group.names


JULIA_FIELD_GRADIENT = Need(
    packages.ADJOINTS, "Zygote differentiates a JuliaField", "use torch.no_grad() for values alone", packages.ZYGOTE
)

TRANSFORMS = Need(packages.FFT, "the field has Fourier transforms", "set Solver(engine='torch')")


def needs(request: Request) -> Iterator[Need]:
    """What the request needs before it is solved; what a field needs beside this is known once it is exported."""
    method, gradient, use_torch = request.solver.method, request.solver.gradient, "set Solver(engine='torch')"
    if request.y0.device.type == "cuda":
        yield Need(packages.CUDA, "the state lies on a CUDA device", use_torch)
    if isinstance(request.equation, SDE):
        yield Need(packages.SDE, "the equation is an SDE", use_torch)
    elif method in ROSENBROCK:
        steps = packages.ROSENBROCK
        yield Need(packages.STIFF, f"method={method!r} is {steps.name}'s", use_torch, steps)
    elif method in SDIRK:
        steps = packages.SDIRK
        yield Need(packages.STIFF, f"method={method!r} is {steps.name}'s", "use 'rodas5p' or 'rosenbrock23'", steps)
    if gradient in ADJOINTS:
        yield Need(packages.ADJOINTS, f"gradient={gradient!r} is SciMLSensitivity's", "use gradient='discrete'")
