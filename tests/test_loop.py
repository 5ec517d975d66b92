"""The loop over steps alone: a stepper that knows its solution and follows a script of error estimates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from regnde import Local
from regnde._dense import Interpolant
from regnde._engines.torch.control import Bounds
from regnde._engines.torch.failure import Diagnosis
from regnde._engines.torch.loop import Path, Trial, integrate
from regnde._stops import Segment, uniform
from tolerances import ROUNDING, STANDARD_ERRORS

NAN = math.nan


class Control:
    """Doubles an accepted step, halves a rejected one, and takes a fifth of one that was not finite."""

    past = (1e-4,)

    def __init__(self) -> None:
        self.asked: list[tuple[float, float, bool]] = []

    def accepts(self, error: float, past: tuple[float, ...]) -> bool:
        return error <= 1.0

    def updated(self, error: float, past: tuple[float, ...]) -> tuple[float, ...]:
        return (max(error, 1e-4),)

    def factor(self, error: float, past: tuple[float, ...], first: bool) -> float:
        self.asked.append((error, *past, first))
        if math.isfinite(error):
            return 2.0 if error <= 1.0 else 0.5
        return 0.2


class Scripted:
    """A stepper of y' = 1: with y(t0) = t0 the state is the time.

    Args:
        errors: estimates of the attempts, in their order; then 0.5. Or a function of an attempt's t and t1.
        fixed: no estimates, no control.
        breaks: the state is NaN from this time on.
    """

    latest_stage = 1.0
    bounds = Bounds()

    def __init__(
        self,
        errors: Sequence[float] | Callable[[float, float], float] = (),
        *,
        fixed: bool = False,
        breaks: float = math.inf,
    ) -> None:
        self.script: Iterator[float] | None = None if callable(errors) else iter(errors)
        self.rule = errors if callable(errors) else None
        self.controller = None if fixed else Control()
        self.breaks = breaks
        self.attempts: list[tuple[float, float, float]] = []
        self.moved: list[float] = []
        self.entered: list[tuple[Segment, float]] = []
        self.pure, self.finite_start = True, True
        self.purity_asked_at: list[int] = []

    def planned(self, t: float, h: float, t_end: float, y: Tensor) -> float:
        return h

    def attempt(self, t: float, h: float, t1: float, y: Tensor) -> Trial:
        self.attempts.append((t, h, t1))
        self.last = (t, h, y)
        y1 = y + h if t1 < self.breaks else y * NAN
        if self.controller is None:
            return Trial(y1)
        return Trial(y1, self.rule(t, t1) if self.rule else next(self.script or iter(()), 0.5))

    def accepted(self) -> None:
        self.moved.append(self.attempts[-1][2])

    def outputs(self, thetas: Sequence[float]) -> Tensor:
        _, h, y = self.last
        return torch.stack([y + theta * h for theta in thetas])

    def interpolant(self) -> Interpolant:
        t, h, y = self.last
        return Interpolant(t, h, y, [torch.ones_like(y)], np.ones((1, 1)))

    def enter(self, segment: Segment, t: float, y: Tensor) -> Tensor:
        self.entered.append((segment, t))
        return y

    def restart(self, segment: Segment) -> None:
        self.entered.append((segment, math.nan))

    def start_is_finite(self) -> bool:
        return self.finite_start

    def is_pure(self, t: float, y: Tensor) -> bool:
        self.purity_asked_at.append(len(self.attempts))
        return self.pure

    def diagnosis(self) -> Diagnosis:
        return Diagnosis("what the stub shows", 7, 3.0)


def run(stepper: Scripted, times: Sequence[float], h: float, **options: object) -> Path:
    y0 = torch.tensor([times[0]], dtype=torch.float64)
    segments = options.pop("segments", (Segment(times[-1]),))
    return integrate(stepper, y0, times, segments, h, **{"max_steps": 10_000, **options})  # type: ignore[arg-type]


def states(path: Path) -> list[float]:
    return torch.cat(path.chunks).flatten().tolist()


def test_steps_are_accepted_and_rejected() -> None:
    stepper = Scripted([0.25, 2.0, 1.0, 1e-9])
    path = run(stepper, [0.0, 1.0], 0.25)
    assert stepper.attempts == [(0.0, 0.25, 0.25), (0.25, 0.5, 0.75), (0.25, 0.25, 0.5), (0.5, 0.5, 1.0)]
    assert path.ends == stepper.moved == [0.25, 0.5, 1.0]
    assert path.sizes == [0.25, 0.25, 0.5]
    assert (path.accepted, path.rejected, path.t, path.dt_first, path.failure) == (3, 1, 1.0, 0.25, None)
    assert stepper.controller is not None
    assert stepper.controller.asked == [
        (0.25, 1e-4, True),  # the floor is remembered before the first step; it is the first until one is accepted
        (2.0, 0.25, False),
        (1.0, 0.25, False),
        (1e-9, 1.0, False),
    ]


def test_a_rejected_first_step_is_still_the_first() -> None:
    stepper = Scripted([2.0, 1e-9, 0.5])
    run(stepper, [0.0, 1.0], 0.5)
    assert stepper.controller is not None
    assert stepper.controller.asked[:3] == [(2.0, 1e-4, True), (1e-9, 1e-4, True), (0.5, 1e-4, False)]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_states_at_the_save_times(sign: float) -> None:
    times = [sign * t for t in (0.0, 0.0, 0.1, 0.25, 0.3, 0.3, 0.9, 1.0, 1.0)]
    stepper, bare = Scripted(), Scripted()
    path = run(stepper, times, sign * 0.25)
    run(bare, [0.0, sign], sign * 0.25)
    assert stepper.attempts == bare.attempts  # save points do not change the steps
    assert path.saved == len(times)
    assert states(path) == pytest.approx(times, rel=ROUNDING)
    assert states(path)[3] == sign * 0.25
    assert path.ends == [sign * 0.25, sign * 0.75, sign]


@pytest.mark.parametrize("short", [-90, -1, 0, 1, 90])
def test_a_step_that_ends_near_the_end_lands_on_it(short: int) -> None:
    """Within a hundred units of the clock's resolution at the end."""
    end = 1.0 + short * math.ulp(1.0)
    path = run(Scripted(), [0.0, end], 1.0)
    assert path.ends == [end]
    assert path.sizes == [min(end, 1.0)]
    further = 1.0 + 110 * math.ulp(1.0)
    assert run(Scripted(), [0.0, further], 1.0).ends == [1.0, further]


def test_step_limit() -> None:
    stepper = Scripted([0.5, 2.0] * 10)
    path = run(stepper, [0.0, 0.25, 100.0], 1.0, max_steps=4)
    assert len(stepper.attempts) == path.accepted + path.rejected == 4
    assert path.failure is not None
    assert path.failure.kind == "steps"
    assert "4 steps did not reach the end time 100 (error ratio 2, what the stub shows)" in path.failure.reason
    assert (path.failure.error, path.failure.diagnosis.component, path.failure.diagnosis.stiffness) == (2.0, 7, 3.0)
    assert states(path) == [0.0, 0.25]
    assert path.t == path.ends[-1]
    assert run(Scripted(), [0.0, 3.0], 1.0, max_steps=2).failure is None


def test_underflow() -> None:
    path = run(Scripted([2.0] * 100), [1.0, 2.0], 0.5)
    assert path.failure is not None
    assert path.failure.kind == "underflow"
    assert "below the clock's resolution (error ratio 2, what the stub shows)" in path.failure.reason
    assert path.rejected == 51  # from 2^-1 to 2^-51: the resolution at 1, 2^-52, is not tried any more
    path = run(Scripted(), [1.0, 2.0], 1e-20)
    assert path.failure is not None
    assert (path.failure.kind, path.accepted, path.rejected) == ("underflow", 0, 0)


def test_an_accepted_step_goes_on_by_the_clocks_resolution_at_least() -> None:
    for sign in (1.0, -1.0):
        stepper = Scripted()
        assert stepper.controller is not None
        stepper.controller.factor = lambda error, previous, first: 1e-30  # type: ignore[method-assign]
        run(stepper, [sign, 3 * sign], 0.5 * sign, max_steps=3)
        assert [h for _, h, _ in stepper.attempts] == [0.5 * sign, sign * math.ulp(1.5), sign * math.ulp(1.5)]


def test_six_trials_that_are_not_finite_fail() -> None:
    for bad in (NAN, math.inf):
        assert run(Scripted([bad] * 5), [0.0, 1.0], 0.5).failure is None
        path = run(Scripted([bad] * 6), [0.0, 1.0], 0.5)
        assert path.failure is not None
        assert path.failure.kind == "non-finite"
        assert path.failure.reason == "the dynamics are not finite: what the stub shows"
        assert (path.rejected, path.accepted, path.t) == (6, 0, 0.0)


def test_a_step_whose_start_is_not_finite_fails_at_once() -> None:
    stepper = Scripted([NAN])
    stepper.finite_start = False
    path = run(stepper, [0.0, 1.0], 0.5)
    assert path.failure is not None
    assert (path.failure.kind, path.rejected) == ("non-finite", 1)


def test_a_time_that_is_not_finite_and_not_passed_counts_on() -> None:
    """Short steps in front of it are accepted again and again; the trials that see it add up."""
    stepper = Scripted(lambda t, t1: NAN if t1 > 0.5 else 0.5)
    path = run(stepper, [0.0, 1.0], 1.0)
    assert path.failure is not None
    assert (path.failure.kind, path.rejected) == ("non-finite", 6)
    assert path.accepted > 3
    assert 0.4 < path.t <= 0.5


def test_a_time_that_was_not_finite_and_is_passed_is_forgotten() -> None:
    """Three trials see NaN, a step goes beyond the earliest of their ends, then five further trials see NaN."""
    for errors, fails in (
        ([NAN, NAN, 0.5, 0.5, 0.5, *[NAN] * 5], False),  # ends at 0.5, 0.1 | 0.02, 0.06, 0.14: beyond 0.1
        ([NAN, NAN, 0.5, 0.5, *[NAN] * 5], True),  # 0.06 is not beyond it
        ([NAN, NAN, 0.5, 0.5, 0.5, *[NAN] * 6], True),
    ):
        for sign in (1.0, -1.0):
            path = run(Scripted(errors), [0.0, sign], sign * 0.5)
            assert (path.failure is not None) == fails, (errors, sign)


def test_later_stages_are_where_it_was_not_finite() -> None:
    """A stepper may say that its latest stage lies beyond the step's end."""
    stepper = Scripted([NAN, 0.5, 0.5, 0.5, *[NAN] * 5])
    stepper.latest_stage = 3.0
    path = run(stepper, [0.0, 1.0], 0.5)  # NaN somewhere up to 1.5, which the steps to 0.7 do not pass
    assert path.failure is not None
    assert path.rejected == 6


def test_a_field_that_is_no_function_is_asked_after_a_thousand_trials() -> None:
    for pure in (True, False):
        stepper = Scripted([0.5, 2.0] * 3000)
        stepper.pure = pure
        path = run(stepper, [0.0, 1200.0], 1.0)
        assert stepper.purity_asked_at == [1000]
        assert (path.failure is None) == pure
        if path.failure is not None:
            assert path.failure.kind == "steps"
            assert "two evaluations of the field at the same (t, y) differ" in path.failure.reason


# --- the start of a local step ---------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_start_drawn_in_time(sign: float) -> None:
    drawn = []
    for seed in range(200):
        stepper = Scripted()
        path = run(stepper, [0.0, sign * 7.0], sign * 1.0, local=Local(seed=seed))
        start = path.local_start
        assert start is not None
        assert float(start.y) == pytest.approx(start.t, rel=ROUNDING)
        (size,) = [h for t, h, t1 in stepper.attempts if min(t, t1) <= start.t <= max(t, t1)]
        assert start.h == size
        drawn.append(abs(start.t) / 7)
        again = run(Scripted(), [0.0, sign * 0.3, sign * 7.0], sign * 1.0, local=Local(seed=seed)).local_start
        assert again is not None
        assert (again.t, again.h) == (start.t, start.h)  # save points change nothing
    assert abs(sum(drawn) / 200 - 0.5) < STANDARD_ERRORS * math.sqrt(1 / 12 / 200)
    assert min(drawn) < 0.05
    assert max(drawn) > 0.95


def test_a_start_drawn_among_the_steps() -> None:
    """Each of the three steps, whose sizes are 1, 2 and 4, is as likely; rejected ones are none."""
    counts: Counter[tuple[float, float]] = Counter()
    for seed in range(600):
        path = run(Scripted([0.5, 2.0]), [0.0, 3.0, 7.0], 1.0, local=Local(sampling="step", seed=seed))
        start = path.local_start
        assert start is not None
        assert float(start.y) == start.t
        counts[start.t, start.h] += 1
    assert set(counts) == {(0.0, 1.0), (1.0, 1.0), (2.0, 2.0), (4.0, 3.0)}
    bound = STANDARD_ERRORS * math.sqrt(600 * 0.25 * 0.75)
    assert all(abs(n - 150) < bound for n in counts.values())


@pytest.mark.parametrize("sampling", ["time", "step"])
@pytest.mark.parametrize("detach", [True, False])
def test_whether_a_start_has_a_graph(sampling: str, detach: bool) -> None:
    y0 = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    local = Local(sampling=sampling, seed=3, detach_state=detach)  # type: ignore[arg-type]
    path = integrate(Scripted(), y0, [0.0, 7.0], [Segment(7.0)], 1.0, max_steps=10, local=local)  # type: ignore[arg-type]
    assert path.local_start is not None
    assert path.local_start.y.requires_grad != detach


# --- steps of fixed size -----------------------------------------------------------------------------


def test_a_grid_is_followed() -> None:
    stepper = Scripted(fixed=True)
    ends = [0.1, 0.5, 0.75, 1.0]
    path = run(stepper, [0.0, 0.3, 1.0], 9.0, grid=iter(ends))
    assert path.ends == [t1 for _, _, t1 in stepper.attempts] == ends
    assert path.sizes == [0.1, 0.4, 0.25, 0.25]
    assert states(path) == pytest.approx([0.0, 0.3, 1.0], rel=ROUNDING)
    assert stepper.purity_asked_at == []


@pytest.mark.parametrize(
    ("t0", "t1", "h", "count"),
    [
        (0.0, 1.0, 0.1, 10),
        (0.0, 1.0, 2e-5, 50_000),
        (0.0, 1.0, 0.3, 4),
        (5.0, 2.0, -0.1, 30),
        (0.0, 1.0, 3.0, 1),
        (1e6, 1e6 + 1, 1e-3, 1000),
    ],
)
def test_steps_of_one_size(t0: float, t1: float, h: float, count: int) -> None:
    ends = list(uniform(t0, t1, h))
    assert len(ends) == count
    assert ends[-1] == t1
    for n in (0, count // 3, count // 2):
        if n < count - 1:
            assert abs(ends[n] - (t0 + (n + 1) * h)) <= 2 * math.ulp(ends[n])


@pytest.mark.parametrize("at", [1, 15, 16, 17, 23, 40])
def test_a_path_of_fixed_steps_ends_before_the_first_state_that_is_not_finite(at: int) -> None:
    h = 1 / 64
    times = [0.0, *[(n + 0.5) * h for n in range(50)], 1.0]
    stepper = Scripted(fixed=True, breaks=at * h)
    path = run(stepper, times, h, grid=uniform(0.0, 1.0, h), local=None)
    assert path.failure is not None
    assert path.failure.kind == "non-finite"
    assert path.failure.reason == "the state is not finite: what the stub shows"
    assert path.ends == [n * h for n in range(1, at)]
    assert path.sizes == [h] * (at - 1)
    assert path.t == (at - 1) * h
    assert path.failure.dt == h
    assert path.saved == len(states(path)) == at  # the start, and one in each of the steps before
    assert states(path) == pytest.approx(times[:at], rel=ROUNDING)
    assert len(stepper.attempts) < at + 32  # it does not begin anew
    assert stepper.attempts[-1] == ((at - 1) * h, h, at * h)  # so that the diagnosis is of that step
