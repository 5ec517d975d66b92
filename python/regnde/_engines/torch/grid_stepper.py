"""The stepper of methods that step along a given grid: implicit ones, and Adams' methods with their history."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.checkpoint import Checkpoint, last_size
from regnde._engines.torch.failure import Diagnosis, diagnosed
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.implicit import implicit_stages
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.step import all_finite, shifted, stage_times, take_step, weighted
from regnde._engines.torch.stepper import MethodStepper
from regnde._grid_method import LEAST_SLOPES, Adams, GridMethod, ImplicitTableau, adams_weights
from regnde._stops import Segment
from regnde._tableau import TABLEAUX

__all__ = ["GridStepper"]


class GridStep(NamedTuple):
    """A step from y to y1: its slope at the start, and all slopes that it found."""

    y: Tensor
    y1: Tensor
    start: Tensor
    k: Sequence[Tensor]
    converged: bool = True


Run = Callable[..., GridStep]
Times = Callable[
    [Sequence[float], Tensor], tuple[Tensor, ...]
]  # of stages, from their shares of the step and the state
HERMITE = np.array([[0.0, 3.0, -2.0], [1.0, -2.0, 1.0], [0.0, -1.0, 1.0]])  # of the mean slope, and those at the ends


def _ends(step: GridStep) -> Sequence[Tensor]:
    """The tensors by which a step that is evaluated again is compared."""
    return step.y1, step.start


class GridStepper(MethodStepper):
    """Steps one ODE with a `GridMethod`; the states inside a step are those of the cubic Hermite interpolant.

    Adams' methods use the slopes from before a stop, as in torchdiffeq.

    Args:
        field: the right-hand side.
        method: an `ImplicitTableau`, or `Adams`.
        segment: in which the solve begins.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.
    """

    def __init__(
        self, field: CountedField, method: GridMethod, segment: Segment, checkpoint: Checkpoint | None
    ) -> None:
        super().__init__(field, method.order, segment, checkpoint)
        self.tableau = method
        past = method.max_order - 2 if isinstance(method, Adams) else 0
        self.past: deque[tuple[float, Tensor]] = deque(maxlen=max(past, 0))  # times and slopes, the latest first
        self.last_attempt: tuple[float, float, float, GridStep]  # t, h, t1 and the step
        self.end: Tensor | None = None  # slope at the end of the last attempt, if an output needed it

    def first_step(self, y0: Tensor, t0: float, t1: float, dt0: float | None) -> float:
        """The signed size of the first step, which the grid gives."""
        assert dt0 is not None
        return dt0 if t1 > t0 else -dt0

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Takes a step."""
        run = self._run(t, h, t1)
        slopes = [slope for _, slope in self.past]
        step = self._evaluated(run, y, *slopes, ends=_ends)
        self.last_attempt, self.end = (t, h, t1, step), None
        return Trial(step.y1)

    def _run(self, t: float, h: float, t1: float) -> Run:
        """The step as a function that does not hold this object, which holds the graph."""
        field, method, within = self.field, self.tableau, self.segment.within

        def times(c: Sequence[float], y: Tensor) -> tuple[Tensor, ...]:
            return stage_times(c, t, h, t1, y, within)

        if isinstance(method, ImplicitTableau):
            return lambda y: _implicit(field, method, h, y, times)
        assert isinstance(method, Adams)
        nodes = [0.0, *((before - t) / h for before, _ in self.past)]
        return lambda y, *past: _adams(field, method, nodes, h, y, past, times)

    def accepted(self) -> None:
        """Keeps the slope at the start of the last attempt."""
        t, _, _, step = self.last_attempt
        if not step.converged and self.past and len(self.past) != self.past.maxlen:
            self.past.pop()  # one order less, as in torchdiffeq
        self.past.appendleft((t, step.start))

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere, in that segment: no slope is known."""
        super().restart(segment)
        self.past.clear()

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt."""
        t, h, _, _ = self.last_attempt
        return self.interpolant()(torch.tensor([t + theta * h for theta in thetas], dtype=torch.float64))

    def interpolant(self) -> Interpolant:
        """The solution inside the last attempt, as a function of time; the slope at its end is evaluated here, once."""
        t, h, t1, step = self.last_attempt
        field, time = self.field, self._time(t1, step.y1)

        def slope(step: GridStep) -> list[Tensor]:
            return [field(time, step.y1)]

        if self.end is None:
            (self.end,) = self._evaluated_further(slope, step, last_size)
        return Interpolant(t, h, step.y, [(step.y1 - step.y) / h, step.start, self.end], HERMITE)

    def start_is_finite(self) -> bool:
        """Whether the slope at the start of the last attempt is finite."""
        return all_finite(self.last_attempt[3].start)

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        step = self.last_attempt[3]
        return diagnosed(step.y, step.y1, ((k, "") for k in step.k), None, None)


def _implicit(field: CountedField, tableau: ImplicitTableau, h: float, y: Tensor, times: Times) -> GridStep:
    start, *k = implicit_stages(field, tableau, y, h, times((0.0, *tableau.c), y))
    return GridStep(y, shifted(y, k, tableau.b, h), start, [start, *k])


def _adams(
    field: CountedField,
    method: Adams,
    nodes: Sequence[float],
    h: float,
    y: Tensor,
    past: Sequence[Tensor],
    times: Times,
) -> GridStep:
    """A step from the slopes at the nodes, which are times in units of the step; the first one is the start."""
    first, last = times((0.0, 1.0), y)
    start = field(first, y)
    slopes = [start, *past]
    if len(slopes) < LEAST_SLOPES:
        rule = TABLEAUX["rk38"]
        step = take_step(field, rule, y, start, h, times(rule.c, y))
        return GridStep(y, step.y1, start, step.k)
    change = h * weighted(slopes, tuple(adams_weights(nodes)))
    if not method.implicit:
        return GridStep(y, y + change, start, slopes)
    weight, *weights = adams_weights([1.0, *nodes])
    known, end, converged = h * weighted(slopes, tuple(weights)), start, False
    for _ in range(method.max_iters):
        end = field(last, y + change)
        before, change = change, torch.add(known, end, alpha=h * weight)
        converged = _agree(before, change, method)
        if converged:
            break
    if not converged:
        warnings.warn(
            f"the corrector of {method.name!r} did not converge in {method.max_iters} iterations at "
            f"t={float(first):.6g}, dt={h:.3g}: take smaller steps, set options max_iters, or larger tolerances.",
            stacklevel=2,
        )
    return GridStep(y, y + change, start, [*slopes, end], converged)


@torch.no_grad()
def _agree(before: Tensor, after: Tensor, method: Adams) -> bool:
    """Whether two values of a step's change differ by less than the tolerance in each entry."""
    allowed = method.atol + method.rtol * torch.maximum(before.abs(), after.abs())
    return bool(((after - before).abs() < allowed).all())
