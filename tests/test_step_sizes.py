"""Sizes of steps, seen from outside: the first one, growth, rejections, and where the last one ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regnde
from problems import exp_decay
from regnde import SDE, BrownianPath, Local, Solver
from tolerances import ROUNDING

BATCHES = ("joint", "per-sample")
ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")
Field = Callable[[Tensor, Tensor], Tensor]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sizes(field: Field, y0: float, ts: list[float], batch: str = "joint", **options: object) -> list[float]:
    """Sizes of the accepted steps of one sample of one component."""
    solver = Solver(batch=batch, engine="torch", **options)  # type: ignore[arg-type]
    sol = regnde.solve(field, f64([[y0]]), ts, solver, record="all")
    assert sol.steps is not None
    return sol.steps.dt.flatten().tolist()


def rough(**options: object) -> dict[str, object]:
    """Tolerances that accept any finite step."""
    return {"rtol": 1e6, "atol": 1e6, **options}


# --- the first step --------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("y0", "slope", "curvature", "span", "expected"),
    [
        (1.0, 2.0, 0.0, 10.0, 0.5),  # the slope does not change: a hundred probes of |y| / |f| / 100
        (1.0, 2.0, 0.0, 0.3, 0.3),  # as long as the span at most
        (1e-4, 1e-2, 1e-3, 10.0, 1e-2),  # it hardly changes: a hundred probes again
        (0.0, 1e-2, 1e-3, 10.0, 1e-4),  # a probe of 1e-6 where the state is 0 to the tolerance
        (1.0, 1e-6, 1e-3, 10.0, 1e-4),  # or the slope
        (0.0, 1e-2, 1e-3, 1e-5, 1e-5),
        (1.0, 0.1, 1e-3, 1e-2, 1e-2),  # all of the span
    ],
)
def test_size_of_the_first_step(
    y0: float, slope: float, curvature: float, span: float, expected: float, batch: str, sign: float
) -> None:
    """E. Hairer, S. P. Norsett, G. Wanner, II.4, with OrdinaryDiffEq.jl's bounds. The tolerance is 1."""
    solver = Solver(rtol=0.0, atol=1.0, batch=batch, engine="torch")
    field = lambda t, y: slope + curvature * (y - y0)  # noqa: E731 - one line reads best
    sol = regnde.solve(field, f64([[y0]]), [0.0, sign * span], solver)
    assert sol.stats.dt_first == pytest.approx(sign * expected, rel=ROUNDING)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_probe_of_the_first_step_stays_within_the_span(batch: str) -> None:
    for end in (1e-3, -1e-3):
        seen: list[float] = []

        def field(t: Tensor, y: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(t.flatten()[0]))
            return 0.1 + 0 * y

        regnde.solve(field, f64([[1.0]]), [0.0, end], Solver(batch=batch, engine="torch"))
        assert seen[2] == end  # a hundredth of 10 else
        assert max(map(abs, seen)) == 1e-3


@pytest.mark.parametrize("batch", BATCHES)
def test_size_of_the_first_step_by_its_order(batch: str) -> None:
    """Where the probe does not bound it: 10^(-(2 + log10 of the larger slope) / order)."""
    for method, order in (("tsit5", 5), ("bs3", 3)):
        solver = Solver(method=method, rtol=0.0, atol=1.0, batch=batch, engine="torch")
        sol = regnde.solve(lambda t, y: 0.1 * y, f64([[1.0]]), [0.0, 100.0], solver)
        assert sol.stats.dt_first == pytest.approx(0.1 ** (1 / order), rel=1e-3)  # d1 is 0.1, d2 is 0.01
        sol = regnde.solve(lambda t, y: 0.1 - 20.0 * (y - 1), f64([[1.0]]), [0.0, 100.0], solver)
        assert sol.stats.dt_first == pytest.approx((0.01 / 2) ** (1 / order), rel=1e-3)  # d2 is 2


def test_size_of_the_first_step_of_an_sde() -> None:
    """The same bounds; the diffusion counts three times."""
    for diffusion, span, expected in ((0.0, 10.0, 0.5), (0.0, 0.3, 0.3), (1.0, 10.0, 0.2)):
        sde = SDE(lambda t, y: torch.full_like(y, 2.0), lambda t, y, diffusion=diffusion: torch.full_like(y, diffusion))
        solver = Solver(rtol=0.0, atol=10.0, engine="torch")
        torch.manual_seed(0)
        sol = regnde.solve(sde, f64([1.0]), [0.0, span], solver)
        assert sol.stats.dt_first == pytest.approx(expected, rel=ROUNDING)


# --- growth and rejections ---------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_growth_at_a_flat_field(method: str, batch: str, sign: float) -> None:
    """Nothing happens: 10,000 times the first step, and ten times each one after it."""
    found = sizes(lambda t, y: 0 * y, 1.0, [0.0, sign * 1200.0], batch, method=method)
    assert found[:4] == pytest.approx([sign * h for h in (1e-4, 1.0, 10.0, 100.0)], rel=ROUNDING)
    assert len(found) == 6


@pytest.mark.parametrize("batch", BATCHES)
def test_a_rejected_first_step_may_grow_as_a_first_one(batch: str) -> None:
    """The bound of 10,000 holds until a step is accepted, and no longer."""
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y * math.nan if calls == 3 else 0 * y

    found = sizes(field, 1.0, [0.0, 1000.0], batch, dt0=5e-4)
    assert found[:3] == pytest.approx([1e-4, 1.0, 10.0], rel=ROUNDING)


def test_growth_of_an_sde_that_rests() -> None:
    still = SDE(lambda t, y: 0 * y, lambda t, y: 0 * y)
    solver, path = Solver(method="sriw1", engine="torch", dt0=1e-3), BrownianPath(0.0, 100.0, (1,), seed=0)
    sol = regnde.solve(still, f64([1.0]), [0.0, 100.0], solver, record="all", noise=path)  # whose ends are not rounded
    ratios = (sol.steps.dt[1:] / sol.steps.dt[:-1]).tolist()
    assert ratios[0] == pytest.approx(1e4, rel=ROUNDING)
    assert all(ratio <= 10.0 for ratio in ratios[1:])


@pytest.mark.parametrize("trials", [1, 3, 5])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_trial_that_is_not_finite_is_followed_by_a_fifth_of_it(bad: float, batch: str, trials: int) -> None:
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        wrong = calls % 6 == 2 and calls < 6 * trials  # the second stage of each of the first trials
        return torch.full_like(y, bad) if wrong else -y

    first = sizes(field, 1.0, [0.0, 0.8], batch, **rough(dt0=0.4))[0]
    assert first == pytest.approx(0.4 / 5**trials, rel=ROUNDING)


def test_a_trial_of_an_sde_that_is_not_finite_is_followed_by_a_fifth_of_it() -> None:
    calls = 0

    def drift(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y * math.nan if calls == 2 else -y  # a first stage fails at once

    sde, solver = SDE(drift, lambda t, y: 0.1 + 0 * y), Solver(engine="torch", **rough(dt0=0.4))
    path = BrownianPath(0.0, 0.8, (1,), seed=0)  # along a path that is given no step's end is rounded
    sol = regnde.solve(sde, f64([1.0]), [0.0, 0.8], solver, record="all", noise=path)
    assert float(sol.steps.dt[0]) == pytest.approx(0.08, rel=ROUNDING)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_trial_that_is_far_off_is_followed_by_a_fifth_of_it(batch: str) -> None:
    solver = Solver(dt0=1.0, max_steps=1, batch=batch, engine="torch")
    with pytest.raises(regnde.MaxStepsReached) as caught:
        regnde.solve(lambda t, y: -1e3 * y, f64([[1.0]]), [0.0, 1.0], solver)
    assert caught.value.dt == pytest.approx(0.2, rel=ROUNDING)


# --- a time that is not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", BATCHES)
def test_places_that_are_not_finite_once_and_are_passed(batch: str) -> None:
    """Twenty of them: the count of trials begins anew behind each, else six were the end."""
    met: set[int] = set()

    def field(t: Tensor, y: Tensor) -> Tensor:
        place = math.floor(float(t.flatten()[0]))
        if place in met:
            return torch.cos(3 * t) * y
        met.add(place)
        return y * math.nan

    met.add(0)
    solver = Solver(batch=batch, dt0=0.1, engine="torch")
    sol = regnde.solve(field, f64([[1.0]]), [0.0, 20.5], solver)
    assert met == set(range(21))
    assert sol.stats.rejected >= 20
    assert float(sol.y1) == pytest.approx(math.exp(math.sin(61.5) / 3), rel=1e-4)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_place_that_is_not_finite_and_is_not_passed(batch: str) -> None:
    """Accepted steps in front of it do not begin the count anew."""
    solver = Solver(batch=batch, engine="torch")
    with pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(lambda t, y: torch.where(t > 0.5, math.nan, 0 * y), f64([[1.0]]), [0.0, 1.0], solver)
    assert caught.value.rejected == 6
    assert caught.value.accepted > 2


# --- the end ---------------------------------------------------------------------------------------

AWKWARD = [(0.1, 0.7), (0.7, 0.1), (-0.3, 0.1), (1.1, 3.3), (1e-3, 0.6)]
"""Spans that rounding does not add up to their end."""


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
def test_stages_at_the_end_of_a_step_are_there_exactly(method: str, batch: str) -> None:
    if method == "rk4" and batch == "per-sample":
        pytest.skip("samples with step sizes of their own need an adaptive method")
    assert any(t0 + (t1 - t0) != t1 for t0, t1 in AWKWARD)
    for t0, t1 in AWKWARD:
        seen: list[float] = []

        def field(t: Tensor, y: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(t.flatten()[0]))
            return -y

        whole = abs(t1 - t0)
        for dt0 in (whole, whole / 3):
            seen.clear()
            solver = Solver(method=method, batch=batch, engine="torch", **rough(dt0=dt0))
            sol = regnde.solve(field, f64([[1.0]]), [t0, t1], solver, record="all")
            assert seen[-1] == t1
            assert set(sol.steps.t.flatten().tolist()) <= set(seen)
            assert all(min(t0, t1) <= t <= max(t0, t1) for t in seen)


@pytest.mark.parametrize("method", ["sosri2", "sosra"])
def test_stages_at_the_end_of_a_step_of_an_sde_are_there_exactly(method: str) -> None:
    for t0, t1 in AWKWARD:
        if t1 < t0:
            continue
        seen: list[float] = []

        def drift(t: Tensor, y: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(t))
            return -y

        sde = SDE(drift, lambda t, y: 0.1 + 0 * y)
        regnde.solve(sde, f64([1.0]), [t0, t1], Solver(method=method, engine="torch", **rough(dt0=t1 - t0)))
        assert t1 in seen


@pytest.mark.parametrize("batch", [*BATCHES, "fixed"])
def test_a_step_near_the_end_lands_on_it(batch: str) -> None:
    """Within a hundred units of the clock's resolution; neither a step of next to nothing follows, nor one too many."""
    for units, steps in ((-90, 1), (0, 1), (90, 1), (130, 2)):
        end = 1.0 + units * math.ulp(1.0)
        chosen = Solver(method="rk4", dt0=1.0) if batch == "fixed" else Solver(batch=batch, **rough(dt0=1.0))
        sol = regnde.solve(exp_decay, f64([[1.0]]), [0.0, end], chosen, record="all")
        ends = sol.steps.t.flatten().tolist()
        assert len(ends) == steps
        assert ends[-1] == end
        assert float(sol.steps.dt.flatten()[0]) == (min(1.0, end) if batch != "fixed" else ends[0])


@pytest.mark.parametrize("step_size", ["solver", "initial"])
def test_a_local_step_to_the_end_ends_there_exactly(step_size: str) -> None:
    """Whatever its start: t + (t1 - t) is not always t1."""
    off = 0
    for seed in range(60):
        seen: list[float] = []

        def field(t: Tensor, y: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(t))
            return 0.1 + 0 * y

        solver = Solver(engine="torch", dt0=5.0)
        local = Local(step_size=step_size, seed=seed)  # type: ignore[arg-type]
        sol = regnde.solve(field, f64([1.0]), [-3.3, 0.7], solver, record=local)
        start, size = seen[-7], float(sol.steps.dt)
        off += start + size != 0.7
        assert float(sol.steps.t) == seen[-1] == seen[-2] == 0.7
    assert off > 0


def test_a_local_step_is_no_longer_than_what_is_left() -> None:
    for seed in range(20):
        sol = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], record=Local(seed=seed))
        assert 0 < float(sol.steps.dt) <= 1.0
        assert float(sol.steps.t) <= 1.0
