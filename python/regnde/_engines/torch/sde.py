"""A stochastic Runge-Kutta method applied to one SDE and one Brownian path: the loop's stepper, and the local step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regnde._engines.torch.control import first_step_size
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.loop import Anchor, Diagnosis, Trial
from regnde._engines.torch.norm import rms, tolerated
from regnde._engines.torch.ode import NonFiniteStart
from regnde._engines.torch.piece import Kept
from regnde._engines.torch.sde_step import (
    SDEStep,
    StepNoise,
    noise_weights,
    scaled_error,
    sde_error_estimate,
    sde_stiffness_estimate,
    step_noise,
    take_sde_step,
)
from regnde._engines.torch.sde_tableaux import StochasticTableau
from regnde._engines.torch.step import stage_times
from regnde._noise import BrownianPath
from regnde._solver import Local, ResolvedSolver

__all__ = ["StochasticRungeKutta"]

NOISE_SIZE = 3.0  # the first-step heuristic counts the diffusion at three standard deviations
ADDITIVE_TOLERANCE = 100  # in units of the dtype's resolution

Outcome = tuple[SDEStep, Tensor | None, Tensor | None]


class StochasticRungeKutta:
    """Steps one SDE along one path.

    The noise of a step is a constant for the gradients: they are those of the solution along the path.

    Args:
        drift, diffusion: the right-hand sides.
        tableau: the method.
        solver: tolerances and the way of differentiating.
        y0: the initial state.
        noise: the path, over the span of the solve.
        record: whether the estimates of accepted steps are recorded.
    """

    def __init__(
        self,
        drift: CountedField,
        diffusion: CountedField,
        tableau: StochasticTableau,
        solver: ResolvedSolver,
        y0: Tensor,
        noise: BrownianPath,
        *,
        record: bool,
    ) -> None:
        self.field, self.diffusion = drift, diffusion
        self.tableau = tableau
        self.controller = tableau.controller
        self.reach = max(1.0, *tableau.c0, *tableau.c1)
        self.rtol, self.atol = solver.rtol, solver.atol
        self.noise = noise
        self.weights = noise_weights(tableau, y0)
        self.graph = torch.is_grad_enabled()
        self.checkpoint = self.graph and solver.gradient == "checkpoint"
        self.kept: Kept | None = None  # a checkpointed step is torch's own business here
        self.record_error = record and tableau.estimates_error
        self.record_stiffness = record and tableau.stiffness_pair
        self.unresolved = math.inf  # size of the shortest step below the path's resolution
        self.known: tuple[Tensor, Tensor] | None = None  # drift and diffusion at the start, from the heuristic
        self.at: tuple[float, float, Tensor, StepNoise, SDEStep]  # t, h, y, noise and outcome of the last attempt

    # --- the loop's side -------------------------------------------------------------------------

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The size of the first step: `dt0`, or the heuristic's for two evaluations of each field."""
        with torch.no_grad():
            size = self.initial_size(y0, t0, t1) if dt0 is None else min(dt0, t1 - t0)
            if self.tableau.additive and y0.numel():
                self._check_additive(y0, t0, size)
        return size

    def initial_size(self, y: Tensor, t0: float, t1: float) -> float:
        """The first-step heuristic at (t0, y) towards t1."""
        if y.numel() == 0:
            return t1 - t0
        tolerance = tolerated(y.abs(), self.rtol, self.atol)
        (time,) = stage_times((0.0,), t0, 0.0, t0, y)
        f0, g0 = self.field(time, y), self.diffusion(time, y)
        self.known = (f0, g0)
        slope = _larger(f0, NOISE_SIZE * g0)
        d0, d1 = rms(y / tolerance), rms(slope / tolerance)
        if not (math.isfinite(d0) and math.isfinite(d1)):
            bad = int((~torch.isfinite(slope)).sum())
            raise NonFiniteStart(
                f"the dynamics are not finite at the start: {bad} of {y.numel()} components of drift and diffusion"
            )

        def curvature(size: float) -> float | None:
            (later,) = stage_times((1.0,), t0, size, t0 + size, y)
            moved = torch.add(y, f0, alpha=size)
            f1, g1 = self.field(later, moved), self.diffusion(later, moved)
            if torch.equal(f0, f1):
                return None
            change = _larger(f1 - f0, NOISE_SIZE * torch.maximum((g0 - g1).abs(), (g0 + g1).abs()))
            return rms(change / tolerance) / size

        return first_step_size(d0, d1, curvature, t0=t0, span=t1 - t0, order=self.tableau.order + 0.5)

    def _check_additive(self, y0: Tensor, t0: float, size: float) -> None:
        """Refuses a diffusion that depends on the state, for which the method would converge to something else."""
        (time,) = stage_times((0.0,), t0, 0.0, t0, y0)
        here = self.diffusion(time, y0) if self.known is None else self.known[1]
        there = self.diffusion(time, torch.add(y0, here, alpha=math.sqrt(size)))
        tolerance = ADDITIVE_TOLERANCE * torch.finfo(y0.dtype).eps
        if bool(torch.isfinite(here).all()) and not torch.allclose(here, there, rtol=tolerance, atol=0.0):
            raise ValueError(
                f"method {self.tableau.name!r} is for additive noise, but the diffusion changes with the state: "
                "use 'sosri', 'sosri2' or 'sriw1'."
            )

    def attempt(self, t: float, h: float, t_new: float, y: Tensor) -> Trial:
        """Tries a step; the estimates carry a graph only where they are recorded."""
        noise = self._noise_over(self.noise, t, h, t_new, y)

        # Without `self`: a graph keeps a checkpointed step, and must not keep the stepper that holds the graph.
        drift, diffusion, tableau, rtol, atol = self.field, self.diffusion, self.tableau, self.rtol, self.atol
        differentiable, record_stiffness = self.graph and self.record_error, self.record_stiffness

        def run(y: Tensor) -> Outcome:
            step = take_sde_step(drift, diffusion, tableau, y, t, h, t_new, noise)
            error = stiffness = None
            if tableau.estimates_error:
                with torch.set_grad_enabled(differentiable):
                    error = sde_error_estimate(tableau, y, h, noise, step, rtol, atol)
            if record_stiffness:
                stiffness = sde_stiffness_estimate(step)
            return step, error, stiffness

        step, error, stiffness = checkpoint(run, y, use_reentrant=False) if self.checkpoint else run(y)
        if self.known is not None:
            self.field.check_pure(self.known[0], step.drifts[0])
            self.diffusion.check_pure(self.known[1], step.diffusions[0])
            self.known = None
        self.at = (t, h, y, noise, step)
        value = None if error is None else float(error.detach())
        return Trial(step.y1, value, error if self.record_error else None, stiffness)

    def _noise_over(self, path: BrownianPath, t: float, h: float, t_new: float, y: Tensor) -> StepNoise:
        dw, area = path.increment(t, t_new)
        with torch.no_grad():
            return step_noise(self.weights, h, dw.to(y.device, y.dtype), area.to(y.device, y.dtype))

    def rejected(self, h_next: float) -> None:
        """Nothing to keep: the path over the shorter step is the bridge of this one's."""

    def accepted(self) -> None:
        """Nothing to hand on: no stage is the next step's first."""
        t, h, *_ = self.at
        if h < self.noise.resolution and not self.noise.resolves(t, t + h):
            self.unresolved = min(self.unresolved, h)

    def warn_if_unresolved(self) -> None:
        """Warns if steps were so short that the path's law over them is not exact."""
        if self.unresolved < math.inf:
            warnings.warn(
                f"steps down to {self.unresolved:.3g} are shorter than the Brownian path's resolution "
                f"{self.noise.resolution:.3g}, so that their noise is too smooth: pass "
                "noise=BrownianPath(..., resolution=...) with a smaller one.",
                stacklevel=4,
            )

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt, by linear interpolation as in StochasticDiffEq.jl."""
        _, _, y, _, step = self.at
        return torch.stack([torch.lerp(y, step.y1, theta) for theta in thetas])

    # --- diagnosis -------------------------------------------------------------------------------

    def start_is_finite(self) -> bool:
        """Whether drift and diffusion are finite where the last attempt started."""
        step = self.at[-1]
        return bool(torch.isfinite(step.drifts[0]).all() and torch.isfinite(step.diffusions[0]).all())

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """Where the last attempt's trouble sits."""
        _, h, y, noise, step = self.at
        for stages in zip_longest(step.drifts, step.diffusions):  # the first one spoils all that follow
            for name, stage in zip(("drift", "diffusion"), stages, strict=True):
                bad = 0 if stage is None else int((~torch.isfinite(stage)).sum())
                if bad:
                    return Diagnosis(f"{bad} of {y.numel()} components of the {name}")
        if not self.tableau.estimates_error:
            bad = int((~torch.isfinite(step.y1)).sum())
            largest = f"|y| up to {float(step.y1.abs().max()):.3g}"
            return Diagnosis(f"{bad} of {y.numel()} components of the state" if bad else largest)
        worst = scaled_error(self.tableau, y, h, noise, step, self.rtol, self.atol).abs().reshape(-1)
        component = int(worst.argmax())
        where = f"worst component {component} of {y.numel()}, |y| up to {float(y.abs().max()):.3g}"
        return Diagnosis(where, component, float(sde_stiffness_estimate(step)) if self.tableau.stiffness_pair else None)

    # --- the local record ------------------------------------------------------------------------

    def local_step(self, anchor: Anchor, t1: float, local: Local) -> tuple[float, float, Tensor, Tensor | None]:
        """One step from the anchor, apart from the trajectory: its end, size, error and stiffness.

        Its noise comes from a second path of the same seed, independent of the trajectory's, as a
        fresh integrator's would (Pal, Edelman, Rackauckas, ICML 2023). `freeze_first_stage` mimics
        what their code does to a stage carried over from the step before; these methods carry none,
        and all their stages are differentiated there as here.
        """
        t, y = anchor.t, anchor.y
        if local.step_size == "initial":
            with torch.no_grad():
                h = self.initial_size(y, t, t1)
            self.known = None
        else:
            h = min(anchor.h, t1 - t)
        t_new = t1 if h == t1 - t else t + h
        noise = self._noise_over(self.noise.independent(), t, h, t_new, y)
        step = take_sde_step(self.field, self.diffusion, self.tableau, y, t, h, t_new, noise)
        error = sde_error_estimate(self.tableau, y, h, noise, step, self.rtol, self.atol)
        return t_new, h, error, sde_stiffness_estimate(step) if self.tableau.stiffness_pair else None


def _larger(a: Tensor, b: Tensor) -> Tensor:
    """max(|a + b|, |a - b|), entrywise."""
    return torch.maximum((a + b).abs(), (a - b).abs())
