"""A method for SDEs applied to one of them and one Brownian path: the loop's stepper, and the local step."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regnde._additive import check_additive, moved_by_noise
from regnde._dense import Interpolant
from regnde._engines.torch.checkpoint import Checkpoint, step_end
from regnde._engines.torch.control import Bounds, controller_of
from regnde._engines.torch.failure import Diagnosis, diagnosed
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.first_step import NonFiniteStart, probe_size, size_from_probe
from regnde._engines.torch.grid_noise import GridNoise
from regnde._engines.torch.local import LocalStart
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.recorder import GROUP, StepRecorder
from regnde._engines.torch.sde_kernel import kernel_of
from regnde._engines.torch.sde_step import Interval
from regnde._engines.torch.step import Estimates, Tolerance, all_finite, rms, tolerance, whole_rms
from regnde._engines.torch.stepper import Counts, MethodStepper
from regnde._equation import SDE
from regnde._noise import BrownianPath
from regnde._sde_method import StochasticMethod
from regnde._solver import Local, ResolvedSolver
from regnde._stops import Segment

__all__ = ["Noise", "SDEStepper"]

Noise = BrownianPath | GridNoise  # a path; or new noise of fixed steps

NOISE_SIZE = 3.0  # the first-step heuristic counts the diffusion at three standard deviations
SLOPES = (" of the drift", " of the diffusion")


class SDEStepper(MethodStepper):
    """Steps one SDE along one path.

    The noise of a step is a constant for the gradients: they are those of the solution along the path.

    Args:
        sde: kind of noise and calculus.
        drift, diffusion: its right-hand sides, which count their evaluations.
        method: the method.
        solver: its control of the step size.
        tolerances: relative and absolute.
        y0: the initial state.
        segment: in which the solve begins.
        noise: the path over the span of the solve, or the noise of its steps.
        drawn: whether the noise was drawn for this solve.
        record: whether the estimates of accepted steps are recorded.
        accept_smallest: whether a step of the least size, or below it, is accepted whatever its error.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.
    """

    def __init__(
        self,
        sde: SDE,
        drift: CountedField,
        diffusion: CountedField,
        method: StochasticMethod,
        solver: ResolvedSolver,
        tolerances: tuple[Tolerance, Tolerance],
        y0: Tensor,
        segment: Segment,
        noise: Noise,
        *,
        drawn: bool,
        record: bool,
        accept_smallest: bool = False,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(drift, method.order + 0.5, segment, checkpoint)
        self.diffusion, self.tableau = diffusion, method
        self.kernel = kernel_of(method, sde, y0)
        self.controller = controller_of(solver, method)
        self.bounds = Bounds(solver.dt_min, solver.dt_max, accept_smallest)
        self.latest_stage = self.kernel.latest_stage
        self.must_be_additive = method.additive or sde.noise == "additive"
        self.rtol, self.atol = tolerances
        self.noise, self.drawn = noise, drawn
        of_steps = functools.partial(self.kernel.estimates, rtol=self.rtol, atol=self.atol)
        self.recorded = record and method.adaptive  # else there is nothing to estimate
        record = self.recorded
        self.recorder = StepRecorder(self.kernel.stacked, of_steps) if record else None
        self.at_once = record and (checkpoint is not None or y0.numel() >= GROUP)  # estimates are formed with the step
        self.exceeded = False  # whether the last attempt's error is above the tolerance
        self.forced = 0  # steps that were accepted whatever their error
        self.unresolved = math.inf  # size of the shortest step below the path's resolution
        self.additive_start: tuple[Tensor, Tensor] | None = None  # time and diffusion, where it must be additive
        self.known: tuple[Tensor, Tensor] | None = None  # drift and diffusion at the start, from the heuristic
        self.last_attempt: tuple[float, float, Any, Estimates | None]  # t, h and outcome
        self.tried = math.nan  # where it started

    # --- the loop's side -------------------------------------------------------------------------

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The size of the first step: `dt0`, or the heuristic's for two evaluations of each field."""
        size = self.initial_size(y0, t0, t1) if dt0 is None else dt0
        size = min(size if self.controller is None else self.bounds.within(size), t1 - t0)
        if self.must_be_additive and y0.numel():
            self._check_additive(y0, t0, size)
        return size

    def initial_size(self, y: Tensor, t0: float, t1: float) -> float:
        """The first-step heuristic at (t0, y) towards t1."""
        span = min(t1 - t0, self.bounds.largest)
        if y.numel() == 0:
            return span
        time = self._time(t0, y)
        f0, g0 = self.field(time, y).detach(), self.diffusion(time, y).detach()
        self.known = (f0, g0)
        with torch.no_grad():
            allowed = tolerance(y.abs(), self.rtol, self.atol)
            slope = _largest_sum(_like(g0, f0), NOISE_SIZE * g0)
            d0, d1 = rms(y / allowed), rms(slope / _like(g0, allowed))
        if not (math.isfinite(d0) and math.isfinite(d1)):
            bad = int((~torch.isfinite(slope)).sum())
            raise NonFiniteStart(
                f"the dynamics are not finite at the start: {bad} of {slope.numel()} components of drift and diffusion"
            )
        size = probe_size(d0, d1, t0=t0, span=span)
        later = self._time(t0 + size, y)
        moved = torch.add(y, f0, alpha=size)
        f1, g1 = self.field(later, moved).detach(), self.diffusion(later, moved).detach()
        with torch.no_grad():
            change = _largest_sum(_like(g0, f1 - f0), NOISE_SIZE * torch.maximum((g0 - g1).abs(), (g0 + g1).abs()))
            d2 = math.nan if torch.equal(f0, f1) else rms(change / _like(g0, allowed)) / size
        return size_from_probe(size, d1, d2, t0=t0, span=span, order=self.order)

    def _check_additive(self, y0: Tensor, t0: float, size: float) -> None:
        """Checks beside the start that the diffusion does not depend on the state."""
        time = self._time(t0, y0)
        here = self.diffusion(time, y0).detach() if self.known is None else self.known[1]
        self.additive_start = (time.detach(), here)
        self._must_equal_start(moved_by_noise(y0, here, math.sqrt(size)))

    def _must_equal_start(self, y: Tensor) -> None:
        """Raises a ValueError if the diffusion is another at y: the method would converge to something else."""
        assert self.additive_start is not None
        time, here = self.additive_start
        check_additive(self.tableau.name, y, here, self.diffusion(time, y).detach())

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        """The proposed size; along a path drawn for this solve one within a 64th of it, where the path costs less."""
        if self.controller is None or not self.drawn or not isinstance(self.noise, BrownianPath) or t + h >= t_end:
            return h
        size = self.noise.cheaper(t, t + h) - t
        if h <= self.bounds.smallest or self.bounds.within(size) != size or (size > h and t == self.tried):
            return h  # of the least size, or a rejected step's: a longer one would be rejected again and again
        return size

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step; its error estimate is a number here, and has a graph where it is recorded."""
        step, known = self._step(t, h, t1, y)
        if self.known is not None:
            self.field.check_pure(self.known[0], step.k[0])
            self.diffusion.check_pure(self.known[1], step.g[0])
            self.known = None
        self.last_attempt, self.tried = (t, h, step, known), t
        if self.controller is None:
            return Trial(step.y1)
        if known is not None and known.error is not None:
            error = known.error.item()
        else:
            with torch.no_grad():
                error = rms(self.kernel.ratio(step, self.rtol, self.atol))
        self.exceeded = error > 1
        return Trial(step.y1, error)

    def _step(self, t: float, h: float, t1: float, y: Tensor) -> tuple[Any, Estimates | None]:
        """The step from (t, y), and its estimates if they are formed with it."""
        run = self._run(Interval(t, h, t1, self.segment.within), self._noise_over(self.noise, t, h, t1, y))
        return self._evaluated(run, y, ends=step_end)

    def _run(self, interval: Interval, noise: Any) -> Callable[[Tensor], tuple[Any, Estimates | None]]:
        """The step as a function that does not hold this object, which holds the graph."""
        drift, diffusion, kernel, rtol, atol = self.field, self.diffusion, self.kernel, self.rtol, self.atol
        recorded, at_once = self.recorded, self.at_once

        def run(y: Tensor) -> tuple[Any, Estimates | None]:
            step = kernel.take(drift, diffusion, y, interval, noise, recorded=recorded)
            return step, kernel.estimates(step, rtol, atol, whole_rms) if at_once else None

        return run

    def _noise_over(self, path: Noise, t: float, h: float, t1: float, y: Tensor) -> Any:
        """The noise of a step as the method needs it; of a doubled one that of its halves, too."""
        if self.kernel.halved:
            middle = 0.5 * (t + t1)
            return [self._noise_of(path, *part, y) for part in ((t, t1), (t, middle), (middle, t1))]
        return self._noise_of(path, t, t1, y, h)

    def _noise_of(self, path: Noise, t: float, t1: float, y: Tensor, h: float | None = None) -> Any:
        dw, area = path.increment(t, t1)
        if isinstance(path, BrownianPath):
            dw, area = dw.to(y.device, y.dtype), area.to(y.device, y.dtype)
        return self.kernel.noise(t1 - t if h is None else h, dw, area)

    def accepted(self) -> None:
        """Records the step; no stage is the next step's first."""
        t, h, step, known = self.last_attempt
        self.forced += self.exceeded and self.bounds.forced
        if isinstance(self.noise, BrownianPath) and h < self.noise.resolution and not self.noise.resolves(t, t + h):
            self.unresolved = min(self.unresolved, h)
        if self.recorder is not None:
            self.recorder.add(step, known, step.y.numel())

    def counts(self) -> Counts:
        """Evaluations of both fields so far."""
        return Counts(self.field.calls, self.diffusion.calls)

    def finish(self) -> None:
        """Checks an additive diffusion at the end too; warns of steps whose noise is not exact, and of forced ones."""
        if self.additive_start is not None:
            with torch.no_grad():
                self._must_equal_start(self.last_attempt[2].y1)  # the diffusion may bend beyond the start
        if self.forced:
            warnings.warn(
                f"the error control asked for steps below dt_min={self.bounds.smallest:g}, and {self.forced} of that "
                "size were taken whatever their error: give a smaller dt_min or larger tolerances.",
                stacklevel=4,
            )
        if isinstance(self.noise, BrownianPath) and self.unresolved < math.inf:
            warnings.warn(
                f"steps down to {self.unresolved:.3g} are shorter than the Brownian path's resolution "
                f"{self.noise.resolution:.3g}, so that their noise is too smooth: pass "
                "noise=BrownianPath(..., resolution=...) with a smaller one.",
                stacklevel=4,
            )

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt, by linear interpolation as in StochasticDiffEq.jl."""
        step = self.last_attempt[2]
        return torch.stack([torch.lerp(step.y, step.y1, theta) for theta in thetas])

    def interpolant(self) -> Interpolant:
        """The same as a function of time."""
        t, h, step, _ = self.last_attempt
        return Interpolant(t, h, step.y, [(step.y1 - step.y) / h], np.ones((1, 1)))

    # --- diagnosis -------------------------------------------------------------------------------

    def start_is_finite(self) -> bool:
        """Whether drift and diffusion are finite where the last attempt started."""
        step = self.last_attempt[2]
        return all_finite(step.k[0]) and all_finite(step.g[0])

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether two evaluations of drift and diffusion at (t, y) agree."""
        time = self._time(t, y)
        return self.field.is_pure(time, y) and self.diffusion.is_pure(time, y)

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        step = self.last_attempt[2]
        pairs = zip_longest(step.k, step.g)  # in the order of their evaluation
        named = ((slope, name) for pair in pairs for slope, name in zip(pair, SLOPES, strict=True) if slope is not None)
        ratio = self.kernel.ratio(step, self.rtol, self.atol) if self.tableau.adaptive else None
        return diagnosed(step.y, step.y1, named, ratio, None if ratio is None else self.kernel.stiffness(step))

    # --- the local record ------------------------------------------------------------------------

    def local_step(self, start: LocalStart, local: Local) -> tuple[float, float, Estimates]:
        """One step that is not a part of the trajectory: its end, size and estimates, each of shape (1,).

        Its noise comes from a second path of the same seed, independent of the trajectory's, as a
        fresh integrator's would (Pal, Edelman, Rackauckas, ICML 2023). `freeze_first_stage` mimics
        what their code does to a stage carried over from the step before; these methods carry none,
        and all their stages are differentiated there as here.
        """
        t, y, t1 = start.t, start.y, start.segment.end
        self.segment = start.segment
        if local.step_size == "initial":
            h = self.initial_size(y, t, t1)
            self.known = None
        else:
            h = min(start.h, t1 - t)
        end = t1 if h == t1 - t else t + h
        assert isinstance(self.noise, BrownianPath)  # a record is of adaptive steps
        noise = self._noise_over(self.noise.independent(), t, h, end, y)
        interval = Interval(t, h, end, start.segment.within)
        step = self.kernel.take(self.field, self.diffusion, y, interval, noise, recorded=True)
        return end, h, self.kernel.estimates(step, self.rtol, self.atol, whole_rms)


def _like(g: Tensor, x: Tensor) -> Tensor:
    """A tensor of the state's shape that broadcasts against a diffusion."""
    return x.unsqueeze(-1) if g.ndim > x.ndim else x


def _largest_sum(a: Tensor, b: Tensor) -> Tensor:
    """max(|a + b|, |a - b|), entrywise."""
    return torch.maximum((a + b).abs(), (a - b).abs())
