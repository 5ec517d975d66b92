"""The loop over steps: propose, accept or reject, save, record. It knows a `Stepper`, not a method.

The clock and the step size are Python floats whatever the state's dtype. Save points are
interpolated and never change the steps; the last step ends at the end time exactly; no step leaves
the span.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from regnde._dense import Interpolant
from regnde._engines.torch.control import NON_FINITE_TRIALS, Bounds, Controller, landed, ulp
from regnde._engines.torch.event import EventDetector
from regnde._engines.torch.failure import IMPURE_TRIALS, Diagnosis, Failure, asked_below, impure_reason
from regnde._engines.torch.local import Draw, LocalStart
from regnde._engines.torch.step import all_finite
from regnde._event_locator import Hit
from regnde._solver import Local
from regnde._stops import Segment

__all__ = ["Path", "Stepper", "Trial", "integrate"]

CHECKED_EVERY = 16  # steps of fixed size; adaptive methods see in the error that a state is not finite


class Trial(NamedTuple):
    """A step that was tried: its new state, and the error estimate (None if the method has none)."""

    y1: Tensor
    error: float | None = None


class Stepper(Protocol):
    """A method applied to one problem."""

    controller: Controller | None  # None: the step size is fixed
    bounds: Bounds  # of the sizes that the controller chooses
    latest_stage: float  # time of the latest stage, in units of the step (>= 1)

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        """The signed size of the next attempt from (t, y), where h is proposed and the segment ends at t_end."""

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        """Tries a step from (t, y) to t1 = t + h."""

    def accepted(self) -> None:
        """The last attempt is accepted; without this call, the next attempt starts where it did."""

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        """The next attempt starts from (t, y), a stop, in another segment; y with its derivative by the stop."""

    def restart(self, segment: Segment) -> None:
        """The next attempt starts elsewhere, in that segment."""

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        """States inside the last attempt, shape (len(thetas), *y.shape)."""

    def interpolant(self) -> Interpolant:
        """The solution inside the last attempt, as a function of time."""

    def start_is_finite(self) -> bool:
        """Whether the field is finite where the last attempt started."""

    def is_pure(self, t: float, y: Tensor) -> bool:
        """Whether the field is a function of (t, y): whether two evaluations agree."""

    def diagnosis(self) -> Diagnosis:
        """What the last attempt shows: worst component, stiffness, non-finite components."""


@dataclass
class Path:
    """The result of the loop.

    Attributes:
        chunks: states at the save times, to be concatenated.
        saved: their number.
        t: time reached.
        ends, sizes: of the accepted steps.
        first_error: estimate of the first of them; NaN without one.
        interpolants: interpolants of the accepted steps, if they are asked for.
        hits: the events that occurred.
        stopped: the terminal one of them.
    """

    chunks: list[Tensor] = field(default_factory=list)
    saved: int = 0
    t: float = 0.0
    ends: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)
    rejected: int = 0
    dt_first: float = 0.0
    first_error: float = math.nan
    local_start: LocalStart | None = None
    interpolants: list[Interpolant] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)
    stopped: Hit | None = None
    failure: Failure | None = None

    @property
    def accepted(self) -> int:
        """Number of accepted steps."""
        return len(self.ends)


def integrate(
    stepper: Stepper,
    y: Tensor,
    times: Sequence[float],
    segments: Sequence[Segment],
    h: float,
    *,
    max_steps: int,
    local: Local | None = None,
    grid: Iterator[float] | None = None,
    detector: EventDetector | None = None,
    dense: bool = False,
) -> Path:
    """Steps from times[0] to times[-1], saving the states at `times`.

    Args:
        stepper: the method.
        y: state at times[0].
        times: monotone save times; the first and last differ.
        segments: of the span; the stepper is in the first one.
        h: first step size, signed.
        max_steps: trial steps after which to give up.
        local: draw the start of a local record, or None.
        grid: ends of the steps, if they are fixed.
        detector: of events, or None.
        dense: whether the interpolants of all steps are asked for.
    """
    t, t_end = times[0], times[-1]
    path = Path(t=t, dt_first=h)
    draw = Draw(local, t, t_end if detector is None else None) if local else None
    path.saved = _count(times, 0, t, t_end)
    path.chunks += [y.unsqueeze(0)] * path.saved
    controller, bounds = stepper.controller, stepper.bounds
    past = controller.past if controller else ()
    error: float | None = None
    at = 0  # index of the segment
    finite = _Place(0, t, y, path.saved, path.saved, at)
    non_finite, earliest = 0, t  # non-finite trials in a row without passing the earliest of their times

    while t != t_end:
        if t == segments[at].end:
            at += 1
            y = stepper.enter(segments[at], t, y)
        trials = path.accepted + path.rejected
        if trials >= max_steps:
            found = stepper.diagnosis()
            reason = f"{max_steps} steps did not reach the end time {t_end:g}{_evidence(error, found)}"
            path.failure = Failure("steps", reason, h, error, found)
            break
        if controller and trials == IMPURE_TRIALS and not stepper.is_pure(t, y):
            path.failure = Failure("steps", impure_reason(trials), h, error)
            break
        wanted = h = stepper.planned(t, h, segments[at].end, y)
        if grid is not None:
            t1 = next(grid)
            h = t1 - t
        else:
            h, t1 = landed(t, h, segments[at].end)
        if t1 == t:
            path.failure = Failure("underflow", "the step size fell below the clock's resolution", h)
            break
        y1, error = stepper.attempt(t, h, t1, y)

        if (
            controller
            and error is not None
            and not (
                controller.accepts(error, past) or (bounds.forced and abs(h) <= bounds.smallest and error < math.inf)
            )
        ):
            path.rejected += 1
            if not math.isfinite(error):
                non_finite += 1
                seen = t + stepper.latest_stage * h
                earliest = seen if non_finite == 1 else min(earliest, seen, key=lambda s: abs(s - t))
                if non_finite >= NON_FINITE_TRIALS or not stepper.start_is_finite():
                    found = stepper.diagnosis()
                    path.failure = Failure("non-finite", f"the dynamics are not finite: {found.text}", h, error, found)
                    break
            factor = controller.factor(error, past, path.accepted == 0)
            below = "the clock's resolution" if abs(h * factor) <= ulp(t) else ""
            below = f"dt_min={bounds.smallest:g}" if abs(h) <= bounds.smallest else below
            h = math.copysign(max(abs(h * factor), bounds.smallest), h)
            if below:
                found, pure = stepper.diagnosis(), stepper.is_pure(t, y)
                reason = asked_below(below, _evidence(error, found), error)
                reason = reason if pure else impure_reason(path.accepted + path.rejected)
                path.failure = Failure("underflow" if pure else "steps", reason, h, error, found)
                break
            continue

        path.ends.append(t1)
        path.sizes.append(h)
        if dense:
            path.interpolants.append(stepper.interpolant())
        if detector is not None:
            if controller is None and not all_finite(y1):  # a condition has no sign there
                y = y1
                break
            hits = detector.seen(stepper.interpolant, t, t1, y1)
            path.hits += hits
            path.stopped = detector.terminal(hits)
        end = t1 if path.stopped is None else path.stopped.at
        _save(path, stepper, times, t, h, t1, y1, path.stopped)
        if draw:
            draw.visit(stepper.outputs, t, h, end, y, segments[at])
        stepper.accepted()
        if controller and error is not None:
            if path.accepted == 1:
                path.first_error = error
            size = abs(h * controller.factor(error, past, path.accepted == 1))
            if abs(h) < abs(wanted):  # a stop cut the step: its error says little of those that the control wants
                size = max(size, abs(wanted))
            else:
                past = controller.updated(error, past)
            h = math.copysign(max(bounds.within(size), ulp(t1)), h)
            if non_finite and abs(t1 - times[0]) >= abs(earliest - times[0]):
                non_finite = 0
        t, y = t1, y1
        path.t = end
        if path.stopped is not None:
            break
        if controller is None and (path.accepted % CHECKED_EVERY == 0 or t == t_end):
            if not all_finite(y):
                break
            finite = _Place(path.accepted, t, y, len(path.chunks), path.saved, at)
    if controller is None and path.accepted > finite.accepted and not all_finite(y):
        _fail_at_first_non_finite(path, stepper, times, segments, finite)
    path.local_start = draw.start if draw else None
    return path


class _Place(NamedTuple):
    """A place on a path whose state is finite: accepted steps, time, state, chunks, saved states, segment's index."""

    accepted: int
    t: float
    y: Tensor
    chunks: int
    saved: int
    segment: int


def _fail_at_first_non_finite(
    path: Path, stepper: Stepper, times: Sequence[float], segments: Sequence[Segment], place: _Place
) -> None:
    """Goes back to where the state was finite, and takes the steps again up to the one at fault."""
    n, t, y, chunks, path.saved, at = place
    stepper.restart(segments[at])
    ends, path.ends, path.sizes, path.chunks = path.ends[n:], path.ends[:n], path.sizes[:n], path.chunks[:chunks]
    path.interpolants, dense = path.interpolants[:n], len(path.interpolants) > n
    h = 0.0
    for t1 in ends:
        if t == segments[at].end:
            at += 1
            y = stepper.enter(segments[at], t, y)
        h = t1 - t
        y1, _ = stepper.attempt(t, h, t1, y)
        if not all_finite(y1):
            break
        path.ends.append(t1)
        path.sizes.append(h)
        if dense:
            path.interpolants.append(stepper.interpolant())
        _save(path, stepper, times, t, h, t1, y1)
        t, y = t1, y1
    path.t = t
    found = stepper.diagnosis()
    path.failure = Failure("non-finite", f"the state is not finite: {found.text}", h, None, found)


def _evidence(error: float | None, found: Diagnosis) -> str:
    """The diagnosis of the last attempt, in brackets."""
    return f" ({found.text})" if error is None else f" (error ratio {error:.3g}, {found.text})"


def _count(times: Sequence[float], start: int, t: float, t_end: float) -> int:
    """Index of the first save time beyond t."""
    forward = t_end >= times[0]
    index = start
    while index < len(times) and (times[index] <= t if forward else times[index] >= t):
        index += 1
    return index


def _save(
    path: Path,
    stepper: Stepper,
    times: Sequence[float],
    t: float,
    h: float,
    t1: float,
    y1: Tensor,
    stopped: Hit | None = None,
) -> None:
    """Appends the states at the save times in (t, t1], or before an event that stops the solve."""
    stop = _count(times, path.saved, t1 if stopped is None else stopped.at, times[-1])
    while stopped is not None and stop > path.saved and times[stop - 1] == stopped.at:
        stop -= 1
    if stop == path.saved:
        return
    inside = [s for s in times[path.saved : stop] if s != t1]
    if inside:
        path.chunks.append(stepper.outputs([(s - t) / h for s in inside]))
    if at_end := stop - path.saved - len(inside):
        path.chunks += [y1.unsqueeze(0)] * at_end
    path.saved = stop
