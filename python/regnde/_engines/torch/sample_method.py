"""What a batch with per-sample step sizes asks of a method, explicit or linearly implicit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from regnde._engines.torch import rosenbrock_step, step
from regnde._engines.torch.jacobian import Jacobian
from regnde._engines.torch.rosenbrock_step import RosenbrockStep
from regnde._engines.torch.step import Estimates, Field, Step, Tolerance
from regnde._mass import Mass
from regnde._rosenbrock_tableau import RosenbrockTableau
from regnde._tableau import Tableau

__all__ = ["AnyStep", "Explicit", "LinearlyImplicit", "SampleMethod"]

AnyStep = Step | RosenbrockStep
Guard = Callable[[Tensor], Tensor]


class SampleMethod(Protocol):
    """A method for the samples of a batch, with step sizes as a column."""

    @property
    def tableau(self) -> Tableau | RosenbrockTableau:
        """Its coefficients."""

    @property
    def knows_slope(self) -> bool:
        """Whether a step evaluates the field at its end, and the next one again there within its Jacobian."""

    @property
    def mass(self) -> Mass | None:
        """The mass matrix; None for the identity."""

    @property
    def implicit(self) -> bool:
        """Whether a step factorises a matrix."""

    def begin_attempt(self) -> None:
        """A new attempt follows, not one that a checkpoint takes again."""

    def take(
        self, field: Field, guard: Guard, y: Tensor, first: Tensor | None, h: Tensor, times: Sequence[Tensor]
    ) -> AnyStep:
        """The step of size h from y; `first` is its first stage if that is known.

        Args:
            field: the right-hand side.
            guard: of its arguments: what decides which of their rows have a gradient.
            y: state.
            first: the first stage if it is known.
            h: sizes.
            times: of the stages.
        """

    def estimates(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Estimates:
        """The records of the samples' steps."""

    def error(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error estimates, shape (b,)."""

    def shown(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> tuple[Tensor, Tensor | None]:
        """The error over the tolerance, entrywise, and the stiffness, shape (b,), for a message."""

    def inside(self, taken: AnyStep, index: Tensor, change: Tensor) -> Tensor:
        """The states of the samples at these places, changed by a weighted sum of their stages."""


class Explicit:
    """An explicit Runge-Kutta method.

    Args:
        tableau: its coefficients.
    """

    knows_slope = implicit = False
    mass = None

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau

    def begin_attempt(self) -> None:
        """Nothing to prepare."""

    def take(
        self, field: Field, guard: Guard, y: Tensor, first: Tensor | None, h: Tensor, times: Sequence[Tensor]
    ) -> Step:
        """The step of size h from y."""
        return step.take_step(lambda t, y: field(t, guard(y)), self.tableau, y, first, h, times)

    def estimates(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Estimates:
        """The records of the samples' steps."""
        assert isinstance(taken, Step)
        return step.estimates(self.tableau, taken, rtol, atol)

    def error(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error estimates."""
        assert isinstance(taken, Step)
        return step.error_estimate(self.tableau, taken, rtol, atol)

    def shown(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> tuple[Tensor, Tensor | None]:
        """Error over tolerance, and stiffness."""
        assert isinstance(taken, Step)
        stiffness = step.stiffness_estimate(taken) if self.tableau.stiffness_pair else None
        return step.error_ratio(self.tableau, taken, rtol, atol), stiffness

    def inside(self, taken: AnyStep, index: Tensor, change: Tensor) -> Tensor:
        """The states of the samples at these places, changed."""
        assert isinstance(taken.h, Tensor)
        return torch.addcmul(taken.y.index_select(0, index), taken.h.index_select(0, index), change)


class LinearlyImplicit:
    """A Rosenbrock method; the Jacobian is one block for each sample.

    Args:
        tableau: its coefficients.
        mass: the mass matrix of each sample; None for the identity.
    """

    implicit = True

    def __init__(self, tableau: RosenbrockTableau, mass: Mass | None = None) -> None:
        self.tableau, self.mass, self.jacobian = tableau, mass, Jacobian(samples=True)
        self.knows_slope = tableau.fsal

    def begin_attempt(self) -> None:
        """A new attempt follows."""
        self.jacobian.begin_attempt()

    def take(
        self, field: Field, guard: Guard, y: Tensor, first: Tensor | None, h: Tensor, times: Sequence[Tensor]
    ) -> RosenbrockStep:
        """The step of size h from y."""
        return rosenbrock_step.take_step(field, self.jacobian, self.tableau, y, h, times, self.mass, guard)

    def estimates(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Estimates:
        """The records of the samples' steps."""
        assert isinstance(taken, RosenbrockStep)
        return rosenbrock_step.estimates(self.tableau, taken, rtol, atol, mass=self.mass)

    def error(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error estimates."""
        assert isinstance(taken, RosenbrockStep)
        return rosenbrock_step.error_estimate(self.tableau, taken, rtol, atol)

    def shown(self, taken: AnyStep, rtol: Tolerance, atol: Tolerance) -> tuple[Tensor, Tensor | None]:
        """Error over tolerance, and stiffness."""
        assert isinstance(taken, RosenbrockStep)
        ratio = rosenbrock_step.error_ratio(self.tableau, taken, rtol, atol)
        return ratio, rosenbrock_step.stiffness_estimate(taken, self.mass)

    def inside(self, taken: AnyStep, index: Tensor, change: Tensor) -> Tensor:
        """The states of the samples at these places, changed; the stages hold the step size."""
        return taken.y.index_select(0, index) + change
