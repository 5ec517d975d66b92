"""The stepper of methods that step along a given grid: implicit ones, and Adams' methods with their history."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.checkpoint import Checkpoint
from regnde._engines.torch.control import Bounds, Controller
from regnde._engines.torch.failure import Diagnosis, diagnosed
from regnde._engines.torch.field import CountedField
from regnde._engines.torch.implicit import implicit_stages
from regnde._engines.torch.loop import Trial
from regnde._engines.torch.step import all_finite, shifted, stage_times, take_step, weighted
from regnde._grid_method import LEAST_SLOPES, Adams, GridMethod, ImplicitTableau, adams_weights
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


def _ends(step: GridStep) -> Sequence[Tensor]:
    """The tensors by which a step that is evaluated again is compared."""
    return step.y1, step.start


class GridStepper:
    """Steps one ODE with a `GridMethod`; the states inside a step are those of the cubic Hermite interpolant.

    Args:
        field: the right-hand side.
        method: an `ImplicitTableau`, or `Adams`.
        checkpoint: evaluates steps so that the backward pass evaluates them again; None to keep their graph whole.
    """

    controller: Controller | None = None
    bounds = Bounds()
    recorder = None
    latest_stage = 1.0

    def __init__(self, field: CountedField, method: GridMethod, checkpoint: Checkpoint | None) -> None:
        self.field, self.tableau, self.checkpoint = field, method, checkpoint
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
        step = run(y, *slopes) if self.checkpoint is None else self.checkpoint(run, y, *slopes, ends=_ends)
        self.last_attempt, self.end = (t, h, t1, step), None
        return Trial(step.y1)

    def _run(self, t: float, h: float, t1: float) -> Run:
        """The step as a function that does not hold this object, which holds the graph."""
        field, method = self.field, self.tableau
        if isinstance(method, ImplicitTableau):
            return lambda y: _implicit(field, method, t, h, t1, y)
        assert isinstance(method, Adams)
        nodes = [0.0, *((before - t) / h for before, _ in self.past)]
        return lambda y, *past: _adams(field, method, nodes, t, h, t1, y, past)

    def accepted(self) -> None:
        """Keeps the slope at the start of the last attempt."""
        t, _, _, step = self.last_attempt
        if not step.converged and self.past and len(self.past) != self.past.maxlen:
            self.past.pop()  # one order less, as in torchdiffeq
        self.past.appendleft((t, step.start))

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt; the slope at its end is evaluated here, once."""
        _, h, t1, step = self.last_attempt
        if self.end is None:
            (time,) = stage_times((1.0,), t1, 0.0, t1, step.y1)
            self.end = self.field(time, step.y1)
        change = step.y1 - step.y
        rows = [
            step.y
            + (3 * s**2 - 2 * s**3) * change
            + (h * s * (1 - s) ** 2) * step.start
            - (h * s**2 * (1 - s)) * self.end
            for s in thetas
        ]
        return torch.stack(rows)

    def start_is_finite(self) -> bool:
        """Whether the slope at the start of the last attempt is finite."""
        return all_finite(self.last_attempt[3].start)

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether two evaluations of the field at (t, y) agree."""
        (time,) = stage_times((0.0,), t, 0.0, t, y)
        return self.field.is_pure(time, y)

    @torch.no_grad()
    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows."""
        step = self.last_attempt[3]
        return diagnosed(step.y, step.y1, ((k, "") for k in step.k), None, None)


def _implicit(field: CountedField, tableau: ImplicitTableau, t: float, h: float, t1: float, y: Tensor) -> GridStep:
    times = stage_times((0.0, *tableau.c), t, h, t1, y)
    start, *k = implicit_stages(field, tableau, y, h, times)
    return GridStep(y, shifted(y, k, tableau.b, h), start, [start, *k])


def _adams(
    field: CountedField,
    method: Adams,
    nodes: Sequence[float],
    t: float,
    h: float,
    t1: float,
    y: Tensor,
    past: Sequence[Tensor],
) -> GridStep:
    """A step from the slopes at the nodes, which are times in units of the step; the first one is the start."""
    first, last = stage_times((0.0, 1.0), t, h, t1, y)
    start = field(first, y)
    slopes = [start, *past]
    if len(slopes) < LEAST_SLOPES:
        rule = TABLEAUX["rk38"]
        step = take_step(field, rule, y, start, h, stage_times(rule.c, t, h, t1, y))
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
            f"the corrector of {method.name!r} did not converge in {method.max_iters} iterations at t={t:.6g}, "
            f"dt={h:.3g}: take smaller steps, set options max_iters, or larger tolerances.",
            stacklevel=2,
        )
    return GridStep(y, y + change, start, [*slopes, end], converged)


@torch.no_grad()
def _agree(before: Tensor, after: Tensor, method: Adams) -> bool:
    """Whether two values of a step's change differ by less than the tolerance in each entry."""
    allowed = method.atol + method.rtol * torch.maximum(before.abs(), after.abs())
    return bool(((after - before).abs() < allowed).all())
