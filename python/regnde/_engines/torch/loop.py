"""The adaptive loop: propose, accept or reject, save, record. It knows a `Stepper`, not a method.

The clock and the step size are Python floats whatever the state's dtype. Save points are
interpolated and never change the steps; the last step lands on the end time exactly; nothing is
evaluated outside the span.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from regnde._engines.torch.control import Controller
from regnde._engines.torch.norm import Measured
from regnde._engines.torch.records import Changes, Records
from regnde._solver import Local, ResolvedSolver

__all__ = ["Anchor", "Diagnosis", "Failure", "Path", "Stepper", "Trial", "integrate"]

NON_FINITE_TRIALS = 6  # before the dynamics, not the step size, are held to be at fault
LAST_STEP_SLACK = 100  # in units of the clock's resolution: a step this close to the end lands on it


@dataclass
class Trial:
    """A step that was tried: its new state and estimates.

    Attributes:
        y1: the new state.
        error: value of the error estimate; None if the method has none.
        error_record: the error estimate to record, with its gradient or what it is formed of; None if not recorded.
        stiffness_record: likewise for the stiffness.
    """

    y1: Tensor
    error: float | None
    error_record: Tensor | Measured | None = None
    stiffness_record: Tensor | Changes | None = None


class Stepper(Protocol):
    """A method applied to one problem."""

    controller: Controller | None
    reach: float  # latest stage, as a multiple of the step (>= 1)

    def attempt(self, t: float, h: float, t_new: float, y: Tensor) -> Trial:
        """Tries a step from (t, y) to t_new = t + h."""

    def rejected(self, h_next: float) -> None:
        """The last attempt is dropped; the next one has size `h_next`."""

    def accepted(self) -> None:
        """The last attempt is kept."""

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt, shape (len(thetas), *y.shape)."""

    def start_is_finite(self) -> bool:
        """Whether the field is finite where the last attempt started."""

    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows: worst component, stiffness, non-finite components."""


class Diagnosis(NamedTuple):
    """What an attempt shows of the trouble.

    Attributes:
        text: for the message.
        component: index of the entry with the largest error, in the flattened state; None if not told.
        stiffness: the stiffness estimate, in units of 1/time; None if the method has none.
    """

    text: str
    component: int | None = None
    stiffness: float | None = None


NO_DIAGNOSIS = Diagnosis("")


@dataclass
class Anchor:
    """Where a local step starts: time, state, the size of the solver's step there, and that step's index."""

    t: float
    h: float
    y: Tensor
    step: int


@dataclass
class Failure:
    """Why the loop stopped early."""

    kind: str
    reason: str
    dt: float
    error: float | None = None
    diagnosis: Diagnosis = NO_DIAGNOSIS


@dataclass
class Path:
    """What the loop gathered.

    Attributes:
        chunks: states at the save times, to be concatenated.
        saved: their number.
        rows: their number before the first step and after each accepted one.
        t: time reached.
        ends, sizes, records: of the accepted steps.
    """

    chunks: list[Tensor] = field(default_factory=list)
    saved: int = 0
    rows: list[int] = field(default_factory=list)
    t: float = 0.0
    ends: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    records: Records = field(default_factory=Records)
    rejected: int = 0
    dt_first: float = 0.0
    anchor: Anchor | None = None
    failure: Failure | None = None

    @property
    def accepted(self) -> int:
        """Number of accepted steps."""
        return len(self.ends)


class _Draw:
    """Picks the anchor of a local record while the loop goes by, without keeping the trajectory."""

    def __init__(self, local: Local, t0: float, t1: float) -> None:
        seed = local.seed if local.seed is not None else int(torch.randint(2**62, ()).item())
        self.random = random.Random(seed)
        self.local = local
        self.t = t0 + self.random.random() * (t1 - t0) if local.sampling == "time" else math.nan

    def visit(self, path: Path, stepper: Stepper, t: float, h: float, t_new: float, y: Tensor) -> None:
        """Looks at an accepted step; called before the stepper moves on."""
        if self.local.sampling == "step":
            if self.random.random() * path.accepted < 1.0:  # reservoir: each step equally likely
                path.anchor = Anchor(t, h, self._kept(y), path.accepted - 1)
        elif path.anchor is None and abs(self.t - t) < abs(t_new - t):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.local.detach_state):
                state = y if self.t == t else stepper.outputs([(self.t - t) / h])[0]
            path.anchor = Anchor(self.t, h, self._kept(state), path.accepted - 1)

    def _kept(self, y: Tensor) -> Tensor:
        return y.detach() if self.local.detach_state else y


def integrate(
    stepper: Stepper, y: Tensor, times: Sequence[float], h: float, solver: ResolvedSolver, local: Local | None
) -> Path:
    """Steps from times[0] to times[-1], saving the states at `times`.

    Args:
        stepper: the method.
        y: state at times[0].
        times: monotone save times; the first and last differ.
        h: first step size, signed.
        solver: for `max_steps`.
        local: draw an anchor for a local record, or None.
    """
    t, t_end = times[0], times[-1]
    path = Path(t=t, dt_first=h)
    draw = _Draw(local, t, t_end) if local else None
    path.saved = _count(times, 0, t, t_end)
    path.chunks.append(y.unsqueeze(0).expand(path.saved, *y.shape))
    path.rows.append(path.saved)
    controller = stepper.controller
    errold = controller.error_floor if controller else 0.0
    error: float | None = None
    non_finite, horizon = 0, t  # trials in a row without passing the earliest time that was not finite

    while t != t_end:
        if path.accepted + path.rejected >= solver.max_steps:
            found = stepper.diagnosis()
            reason = f"{solver.max_steps} steps did not reach the end time {t_end:g}{_evidence(error, found)}"
            path.failure = Failure("steps", reason, h, error, found)
            break
        distance = t_end - t
        slack = LAST_STEP_SLACK * math.ulp(max(abs(t), abs(t_end)))
        last = abs(h) + slack >= abs(distance)
        if last:
            h = math.copysign(min(abs(h), abs(distance)), distance) if controller else distance
        t_new = t_end if last else t + h
        if t_new == t:
            path.failure = Failure("underflow", "the step size fell below the clock's resolution", h)
            break
        trial = stepper.attempt(t, h, t_new, y)
        error = trial.error

        if controller and trial.error is not None and not trial.error <= 1.0:
            path.rejected += 1
            if not math.isfinite(trial.error):
                non_finite += 1
                seen = t + stepper.reach * h
                horizon = seen if non_finite == 1 else min(horizon, seen, key=lambda s: abs(s - t))
                if non_finite >= NON_FINITE_TRIALS or not stepper.start_is_finite():
                    found = stepper.diagnosis()
                    path.failure = Failure("non-finite", f"the dynamics are not finite: {found.text}", h, error, found)
                    break
            h *= controller.rejected(trial.error)
            if abs(h) <= math.ulp(t):
                found = stepper.diagnosis()
                reason = f"the error control asks for a step below the clock's resolution{_evidence(error, found)}"
                path.failure = Failure("underflow", reason, h, error, found)
                break
            stepper.rejected(h)
            continue

        path.ends.append(t_new)
        path.sizes.append(h)
        path.records.add(trial.error_record, trial.stiffness_record)
        _save(path, stepper, times, t, h, t_new, trial.y1)
        path.rows.append(path.saved)
        if draw:
            draw.visit(path, stepper, t, h, t_new, y)
        stepper.accepted()
        if controller and trial.error is not None:
            h *= controller.accepted(trial.error, errold, first=path.accepted == 1)
            errold = max(trial.error, controller.error_floor)
            h = math.copysign(max(abs(h), math.ulp(t_new)), h)
        if non_finite and abs(t_new - times[0]) >= abs(horizon - times[0]):
            non_finite = 0
        t, y = t_new, trial.y1
        path.t = t
        if controller is None and not bool(torch.isfinite(y).all()):
            path.failure = Failure("non-finite", f"the state is not finite: {stepper.diagnosis().text}", h)
            break
    return path


def _evidence(error: float | None, found: Diagnosis) -> str:
    """What the last attempt showed, in brackets."""
    return f" ({found.text})" if error is None else f" (error ratio {error:.3g}, {found.text})"


def _count(times: Sequence[float], start: int, t: float, t_end: float) -> int:
    """Index of the first save time beyond t."""
    forward = t_end >= times[0]
    index = start
    while index < len(times) and (times[index] <= t if forward else times[index] >= t):
        index += 1
    return index


def _save(path: Path, stepper: Stepper, times: Sequence[float], t: float, h: float, t_new: float, y1: Tensor) -> None:
    """Appends the states at the save times in (t, t_new]."""
    stop = _count(times, path.saved, t_new, times[-1])
    if stop == path.saved:
        return
    inside = [s for s in times[path.saved : stop] if s != t_new]
    if inside:
        path.chunks.append(stepper.outputs([(s - t) / h for s in inside]))
    at_end = stop - path.saved - len(inside)
    if at_end:
        path.chunks.append(y1.unsqueeze(0).expand(at_end, *y1.shape))
    path.saved = stop
