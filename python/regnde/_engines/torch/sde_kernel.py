"""What the stepper of SDEs needs of a method: one class for tableaux, one for steps that are written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from regnde._engines.torch.sde_scheme import (
    SCHEMES,
    SchemeStep,
    Stages,
    scheme_error_ratio,
    scheme_estimates,
    scheme_stacked,
)
from regnde._engines.torch.sde_step import (
    Interval,
    SDEStep,
    StepNoise,
    noise_weights,
    sde_error_ratio,
    sde_estimates,
    sde_stacked,
    sde_stiffness_estimate,
    step_noise,
    take_sde_step,
)
from regnde._engines.torch.step import Estimates, Field, Norm, Tolerance, sample_rms, whole_rms
from regnde._equation import SDE
from regnde._sde_method import Doubled, StochasticMethod
from regnde._tableau import SDE_TABLEAUX, StochasticTableau

__all__ = ["Kernel", "kernel_of", "uses_area"]


class Kernel(Protocol):
    """A method: its step, and what it estimates."""

    latest_stage: float
    """Time of the latest stage, in units of the step (>= 1)."""
    halved: bool
    """Whether the noise over both halves of a step is asked for, beside that over the whole."""

    def noise(self, h: float, dw: Tensor, area: Tensor) -> Any:
        """The noise of a step of that size from its increment and space-time Levy area."""

    def take(self, drift: Field, diffusion: Field, y: Tensor, interval: Interval, noise: Any, *, recorded: bool) -> Any:
        """The step from y over an interval; `recorded` says whether its estimates are differentiated."""

    def ratio(self, step: Any, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error of a step over the tolerance, entrywise."""

    def estimates(self, steps: Any, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms) -> Estimates:
        """What the method estimates of each step of a batch, shape (batch,)."""

    def stacked(self, steps: Sequence[Any]) -> Any:
        """Steps of one system as a batch of samples."""

    def stiffness(self, step: Any) -> Tensor | None:
        """The stiffness estimate of one step, shape (1,), if the method has one."""


class TableauKernel:
    """A method in Roessler's form.

    Args:
        tableau: the method.
        like: the initial state.
    """

    halved = False

    def __init__(self, tableau: StochasticTableau, like: Tensor) -> None:
        self.tableau = tableau
        self.weights = noise_weights(tableau, like)
        self.latest_stage = max(1.0, *tableau.c0, *tableau.c1)

    def noise(self, h: float, dw: Tensor, area: Tensor) -> StepNoise:
        """The iterated integrals, weighted."""
        return step_noise(self.weights, h, dw, area)

    def take(
        self, drift: Field, diffusion: Field, y: Tensor, interval: Interval, noise: StepNoise, *, recorded: bool
    ) -> SDEStep:
        """The step; its estimates follow from its stages."""
        return take_sde_step(drift, diffusion, self.tableau, y, interval, noise)

    def ratio(self, step: SDEStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error over the tolerance."""
        return sde_error_ratio(self.tableau, step, rtol, atol)

    def estimates(self, steps: SDEStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms) -> Estimates:
        """Error and stiffness."""
        return sde_estimates(self.tableau, steps, rtol, atol, norm)

    def stacked(self, steps: Sequence[SDEStep]) -> SDEStep:
        """Steps as a batch."""
        return sde_stacked(steps)

    def stiffness(self, step: SDEStep) -> Tensor | None:
        """The stiffness estimate."""
        return sde_stiffness_estimate(step, whole_rms) if self.tableau.stiffness_pair else None


class SchemeKernel:
    """A method whose step is written out.

    Args:
        method: the method.
        sde: kind of noise and calculus.
    """

    latest_stage = 1.0
    halved = False

    def __init__(self, method: StochasticMethod, sde: SDE) -> None:
        self.method, self.sde = method, sde

    def noise(self, h: float, dw: Tensor, area: Tensor) -> Tensor:
        """The increment."""
        return dw

    def take(
        self, drift: Field, diffusion: Field, y: Tensor, interval: Interval, noise: Tensor, *, recorded: bool
    ) -> SchemeStep:
        """The step and its error."""
        h, estimated = interval.h, self.method.adaptive

        def time_at(fraction: float) -> Tensor:
            return interval.times((fraction,), y)[0]

        stages = Stages(self.sde, drift, diffusion, time_at, y, h, noise, estimated=estimated, recorded=recorded)
        y1, error = SCHEMES[self.method.name](stages)
        return SchemeStep(y, h, stages.k, stages.g, y1, error)

    def ratio(self, step: SchemeStep, rtol: Tolerance, atol: Tolerance) -> Tensor:
        """The error over the tolerance."""
        return scheme_error_ratio(step, rtol, atol)

    def estimates(self, steps: SchemeStep, rtol: Tolerance, atol: Tolerance, norm: Norm = sample_rms) -> Estimates:
        """The error."""
        return scheme_estimates(steps, rtol, atol, norm)

    def stacked(self, steps: Sequence[SchemeStep]) -> SchemeStep:
        """Steps as a batch."""
        return scheme_stacked(steps)

    def stiffness(self, step: SchemeStep) -> Tensor | None:
        """None."""
        return None


class DoubledKernel(SchemeKernel):
    """A method each of whose steps is compared with two of half its size. The error is their difference.

    Args:
        method: the method.
        sde: kind of noise and calculus.
        of: the kernel of the steps that are compared.
    """

    halved = True

    def __init__(self, method: Doubled, sde: SDE, of: Kernel) -> None:
        super().__init__(method, sde)
        self.of, self.latest_stage = of, of.latest_stage

    def noise(self, h: float, dw: Tensor, area: Tensor) -> Any:
        """As the compared steps need it."""
        return self.of.noise(h, dw, area)

    def take(
        self, drift: Field, diffusion: Field, y: Tensor, interval: Interval, noise: Any, *, recorded: bool
    ) -> SchemeStep:
        """Both halves, and the whole step: without a graph unless the error is recorded."""
        (t, h, t1, within), (whole, *halves), take = interval, noise, self.of.take
        middle = 0.5 * (t + t1)
        early, late = Interval(t, middle - t, middle, within), Interval(middle, t1 - middle, t1, within)
        first = take(drift, diffusion, y, early, halves[0], recorded=False)
        second = take(drift, diffusion, first.y1, late, halves[1], recorded=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and recorded):
            one = take(drift, diffusion, y, interval, whole, recorded=False)
            error = second.y1 - one.y1
        return SchemeStep(y, h, first.k + second.k, first.g + second.g, second.y1, error)


def kernel_of(method: StochasticMethod, sde: SDE, like: Tensor) -> Kernel:
    """The method applied to equations of a kind, for states like the given one."""
    if isinstance(method, Doubled):
        return DoubledKernel(method, sde, kernel_of(method.of, sde, like))
    return SchemeKernel(method, sde) if not uses_area(method) else TableauKernel(method, like)


def uses_area(method: StochasticMethod) -> TypeGuard[StochasticTableau]:
    """Whether a step needs iterated integrals, and with them the path's space-time Levy area."""
    return isinstance(method, StochasticTableau) and method is not SDE_TABLEAUX["em"]
