"""Events: zeros of a condition, where a solve stops or goes on, with exact gradients."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import regnde
from frozen import Frozen, central_differences, combined, relative, stages_of
from problems import SMALL_P, exp_decay, harmonic, small_net
from regnde import Event, Local, Solver, Status
from tolerances import GRADIENT, ROUNDING, SOLVER, STANDARD_ERRORS

METHODS = ("tsit5", "dp5", "bs3", "vern7", "rk4")
ACCURATE = 1e-10


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def accurate(method: str = "tsit5", **options: object) -> Solver:
    sizes = {"dt0": 0.01} if method == "rk4" else {"rtol": ACCURATE, "atol": ACCURATE}
    return Solver(method=method, **{"engine": "torch", **sizes, **options})


def first(t: Tensor, y: Tensor) -> Tensor:
    return y[0]


# --- where it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_terminal_event_stops_the_solve(method: str, engine: str) -> None:
    """cos t, which falls through zero at pi/2."""
    ts = [0.0, 1.0, 1.5, 1.6, 9.0]
    sol = regnde.solve(harmonic, f64([1.0, 0.0]), ts, accurate(method, engine=engine), event=Event(first), record="all")
    assert sol.status == Status.EVENT == "event"
    assert sol.events.which.tolist() == [0]
    assert float(sol.events.t[0]) == pytest.approx(math.pi / 2, rel=SOLVER * ACCURATE)
    assert sol.ts.tolist() == [0.0, 1.0, 1.5, float(sol.events.t[0])]
    assert sol.ts.dtype == torch.float64
    assert torch.equal(sol.y1, sol.events.y[0])
    torch.testing.assert_close(sol.y1, f64([0.0, -1.0]), rtol=SOLVER * ACCURATE, atol=SOLVER * ACCURATE)
    torch.testing.assert_close(sol.ys[:3, 0], torch.cos(f64(ts[:3])), rtol=SOLVER * ACCURATE, atol=0)
    begin = float(sol.steps.t[-1] - sol.steps.dt[-1])
    assert begin < float(sol.ts[-1]) <= float(sol.steps.t[-1])  # the step that passed it is recorded as a whole


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_is_located_to_the_resolution_of_the_clock(method: str, engine: str) -> None:
    """It is that of the interpolant, whatever the accuracy of the solve."""
    solver = Solver(method=method, rtol=1e-2, atol=1e-2, dt0=0.3 if method == "rk4" else None, engine=engine)
    for level in (0.7, 0.1, -0.4):
        event = Event(lambda t, y, level=level: y[0] - level)
        sol = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 3.0], solver, event=event)
        assert float(sol.y1[0]) == pytest.approx(level, abs=ROUNDING)


@pytest.mark.parametrize(("direction", "expected"), [(0, [0.5, 1.5, 2.5, 3.5]), (1, [1.5, 3.5]), (-1, [0.5, 2.5])])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_directions(direction: int, expected: list[float], sign: float, engine: str) -> None:
    """In the order of the solve: backward in time, too, the first zero is one where the condition falls."""
    event = Event(first, direction=direction, terminal=False)
    sol = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, sign * 12.0], accurate(engine=engine), event=event)
    torch.testing.assert_close(sol.events.t, sign * math.pi * f64(expected), rtol=SOLVER * ACCURATE, atol=0)
    torch.testing.assert_close(sol.events.y[:, 1], -torch.sin(sol.events.t), rtol=SOLVER * ACCURATE, atol=0)
    assert sol.status == Status.SUCCESS
    assert sol.ts.tolist() == [0.0, sign * 12.0]


def test_what_only_looks_changes_nothing(engine: str) -> None:
    """Neither steps nor evaluations nor states."""
    plain = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 5.0, 12.0], accurate(engine=engine), record="all")
    sol = regnde.solve(
        harmonic,
        f64([1.0, 0.0]),
        [0.0, 5.0, 12.0],
        accurate(engine=engine),
        record="all",
        event=Event(first, terminal=False),
    )
    assert len(sol.events.t) == 4
    assert sol.stats == plain.stats
    assert torch.equal(sol.ys, plain.ys)
    assert torch.equal(sol.steps.error, plain.steps.error)


def test_several_events_in_their_order(engine: str) -> None:
    events = [
        Event(lambda t, y: y[0] + 0.5, terminal=True),
        Event(first, terminal=False),
        Event(lambda t, y: t - 1.0, terminal=False),
        Event(lambda t, y: y[0] - 0.5, terminal=False, direction=1),
    ]
    for solver in (
        accurate(engine=engine),
        Solver(method="rk4", dt0=1.2, engine=engine),
    ):  # in steps of their own, or together
        sol = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 9.0], solver, event=events)
        assert sol.events.which.tolist() == [2, 1, 0]
        assert sol.events.t.tolist() == sorted(sol.events.t.tolist())
        assert float(sol.y1[0]) == pytest.approx(-0.5)


def test_what_comes_after_a_terminal_event_in_its_step_did_not_happen(engine: str) -> None:
    late, early = (Event(lambda t, y, at=at: t - at, terminal=True) for at in (0.8, 0.2))
    sol = regnde.solve(
        exp_decay, f64([1.0]), [0.0, 0.7, 2.0], Solver(method="euler", dt0=1.0, engine=engine), event=[late, early]
    )
    assert sol.events.which.tolist() == [1]
    assert sol.ts.tolist() == [0.0, 0.2]


def test_no_event_occurs(engine: str) -> None:
    sol = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], Solver(engine=engine), event=Event(lambda t, y: y[0] + 1))
    assert sol.status == Status.SUCCESS
    assert sol.events.t.shape == (0,)
    assert sol.events.y.shape == (0, 1)
    assert regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], Solver(engine=engine)).events is None


# --- zeros at the ends of steps --------------------------------------------------------------------


def test_a_zero_at_the_start_is_no_event(engine: str) -> None:
    """Nor is it one to rounding: a solve may go on from where an event stopped another."""
    for y0 in ([0.0, 1.0], [1e-18, 1.0], [-1e-18, 1.0]):
        sol = regnde.solve(harmonic, f64(y0), [0.0, 9.0], accurate(engine=engine), event=Event(first))
        assert float(sol.events.t[0]) == pytest.approx(math.pi, rel=SOLVER * ACCURATE)


def test_solves_that_go_on_from_event_to_event(engine: str) -> None:
    """A zero is passed once, from either side of it, and in float32."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        solver = Solver(rtol=tolerance, atol=tolerance, engine=engine)
        t, y, found = 0.0, torch.tensor([1.0, 0.0], dtype=dtype), []
        for _ in range(6):
            sol = regnde.solve(harmonic, y, [t, 30.0], solver, event=Event(first))
            t, y = float(sol.ts[-1]), sol.y1
            found.append(t)
        torch.testing.assert_close(
            f64(found), math.pi * (torch.arange(6.0).double() + 0.5), rtol=1e3 * tolerance, atol=0
        )


def test_a_ball_that_bounces(engine: str) -> None:
    def falling(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.full_like(y[1], -9.81)])

    t, y, found = 0.0, f64([1.0, 0.0]), []
    for _ in range(5):
        sol = regnde.solve(falling, y, [t, 30.0], accurate(engine=engine), event=Event(first))
        t, y = float(sol.ts[-1]), sol.y1 * f64([0.0, -0.8])
        found.append(t)
    fall = math.sqrt(2 / 9.81)
    expected = [fall * (1 + 2 * sum(0.8**n for n in range(1, k + 1))) for k in range(5)]
    torch.testing.assert_close(f64(found), f64(expected), rtol=SOLVER * ACCURATE, atol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("height", [0.0, 1e-18, -1e-18])
def test_a_jump_from_the_ground_within_the_first_step(method: str, height: float, engine: str) -> None:
    """The condition is zero at the start, and below zero again at the end of a long step."""

    def thrown(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.full_like(y[1], -9.81), torch.ones_like(y[1])])

    for solver in (Solver(method=method, dt0=0.3, engine=engine), Solver(method=method, dt0=0.15, engine=engine)):
        sol = regnde.solve(thrown, f64([height, 1.0, 100.0]), [0.0, 9.0], solver, event=Event(first, direction=-1))
        assert sol.events.t.tolist() == pytest.approx([2 / 9.81], rel=SOLVER * ROUNDING)


def test_an_event_where_a_step_ended_is_seen_again_in_the_next_step(engine: str) -> None:
    """Of an event that does not stop the solve: up through zero at 1, down again half a step later."""
    event = Event(lambda t, y: (y[0] - 1.0) * (1.5 - y[0]), terminal=False)
    solver = Solver(method="euler", dt0=1.0, engine=engine)
    sol = regnde.solve(lambda t, y: torch.ones_like(y), f64([0.0]), [0.0, 4.0], solver, event=event)
    torch.testing.assert_close(sol.events.t, f64([1.0, 1.5]), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("beyond", [0.0, 1.0])
def test_the_first_zero_of_a_condition_that_ends_in_zeros(beyond: float, engine: str) -> None:
    """It is zero after 0.6, as torchdiffeq's learn_physics.py ends its solves; there may be a zero before."""

    def condition(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.6, torch.zeros_like(y[0]), 0.4 * (1 + beyond) - y[0])

    solver = Solver(method="rk4", dt0=1.0, engine=engine)
    sol = regnde.solve(lambda t, y: torch.ones_like(y), f64([0.0]), [0.0, 4.0], solver, event=Event(condition))
    assert sol.events.t.tolist() == pytest.approx([0.6 if beyond else 0.4], rel=ROUNDING)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_zero_where_a_step_ends(terminal: bool, engine: str) -> None:
    """It occurs once."""
    event = Event(lambda t, y: y[0] - 0.5, terminal=terminal)
    solver = Solver(method="euler", dt0=0.25, engine=engine)
    sol = regnde.solve(lambda t, y: torch.ones_like(y), f64([0.0]), [0.0, 0.5, 1.0], solver, event=event)
    assert sol.events.t.tolist() == [0.5]
    assert sol.ts.tolist() == ([0.0, 0.5] if terminal else [0.0, 0.5, 1.0])


def test_two_zeros_in_one_step_are_seen_with_dt_max(engine: str) -> None:
    """The condition is above zero for a tenth."""
    event = Event(lambda t, y: torch.sin(y[0]) - math.cos(0.05), terminal=False)
    counts = []
    for dt_max in (None, 0.05):
        sol = regnde.solve(
            lambda t, y: torch.ones_like(y), f64([0.0]), [0.0, 4.0], Solver(dt_max=dt_max, engine=engine), event=event
        )
        counts.append(len(sol.events.t))
    assert counts == [0, 2]


def test_events_between_stops(engine: str) -> None:
    def switched(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1.0, 1.0, -2.0) * torch.ones_like(y)

    event = Event(lambda t, y: y[0] - 0.5, terminal=False)
    sol = regnde.solve(switched, f64([0.0]), [0.0, 3.0], Solver(engine=engine), stops=[1.0], event=event)
    torch.testing.assert_close(sol.events.t, f64([0.5, 1.25]))


def test_conditions_get_the_fields_times() -> None:
    seen = []

    def condition(t: Tensor, y: Tensor) -> Tensor:
        seen.append((t.dtype, t.shape))
        return t - 0.5 + 0 * y.sum().real

    for y0 in (torch.ones(2), f64([1.0]), torch.ones(1, dtype=torch.complex128)):
        seen.clear()
        sol = regnde.solve(exp_decay, y0, [0.0, 1.0], Solver(rtol=1e-4, engine="torch"), event=Event(condition))
        assert set(seen) == {(y0.real.dtype, torch.Size([]))}
        assert float(sol.events.t[0]) == pytest.approx(0.5, rel=1e-6)
        assert sol.events.t.dtype == torch.float64
        assert sol.events.y.dtype == y0.dtype


# --- gradients -------------------------------------------------------------------------------------


def condition_of(q: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Depends on time, state, and two parameters of its own."""
    return lambda t, y: y[..., 0].sum() * q[0] - torch.sin(t) * q[1]


Q = f64([1.5, 0.4])
START = f64([[0.8, -0.2]])


def frozen_event(frozen: Frozen, theta: Tensor, t: float) -> Tensor:
    """Time and state of the event on the given steps, by Newton's method on the interpolant of the last one."""
    p, q, y = theta[:6], theta[6:8], theta[8:].reshape(1, 2)
    f, condition = small_net(p), condition_of(q)
    for begin, h in zip(frozen.begins[:-1], frozen.sizes[:-1], strict=True):
        y = frozen.one(f, begin, h, y)[0]
    begin, h = frozen.begins[-1], frozen.sizes[-1]
    stages = stages_of(f, frozen.tableau, begin, h, y)

    def state(at: Tensor) -> Tensor:
        weights = [sum(d * ((at - begin) / h) ** n for n, d in enumerate(row, 1)) for row in frozen.tableau.dense]
        return y + h * combined(weights, stages.k, y)

    at = f64(t).requires_grad_()
    for _ in range(4):
        value = condition(at, state(at))
        (slope,) = torch.autograd.grad(value, at)
        at = (at - value.detach() / slope).detach().requires_grad_()
    return torch.cat([at.detach().reshape(1), state(at).detach().flatten()])


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "bs3", "vern7"])
def test_gradients_on_frozen_steps(method: str, gradient: str, engine: str) -> None:
    theta = torch.cat([SMALL_P, Q, START.flatten()]).requires_grad_()
    solver = Solver(method=method, rtol=1e-4, atol=1e-4, gradient=gradient, engine=engine)
    sol = regnde.solve(
        small_net(theta[:6]),
        theta[8:].reshape(1, 2),
        [0.0, 4.0],
        solver,
        record="all",
        event=Event(condition_of(theta[6:8])),
    )
    assert len(sol.steps) > 2
    found = torch.stack([sol.events.t[0], *sol.events.y[0].flatten()])
    jacobian = torch.stack([torch.autograd.grad(x, theta, retain_graph=True)[0] for x in found])
    frozen, t = Frozen.of(sol, 0.0), sol.events.t[0].item()
    torch.testing.assert_close(frozen_event(frozen, theta.detach(), t), found.detach(), rtol=1e-10, atol=1e-12)
    expected = central_differences(lambda at: frozen_event(frozen, at, t), theta.detach())
    assert relative(jacobian, expected) < GRADIENT
    (of_ts,) = torch.autograd.grad(sol.ts[-1], theta, retain_graph=True)
    assert torch.equal(of_ts, jacobian[0])


def exact_fall(theta: Tensor) -> Tensor:
    """Time and velocity where a body that fell from a height by a gravity passes a level."""
    height, gravity, level = theta
    time = torch.sqrt(2 * (height - level) / gravity)
    return torch.stack([time, -gravity * time])


def solved_fall(theta: Tensor) -> Tensor:
    height, gravity, level = theta
    y0 = torch.stack([height, torch.zeros_like(height)])
    event = Event(lambda t, y: y[0] - level)
    sol = regnde.solve(lambda t, y: torch.stack([y[1], -gravity + 0 * y[1]]), y0, [0.0, 9.0], accurate(), event=event)
    return torch.stack([sol.events.t[0], sol.y1[1]])


THETA = f64([10.0, 9.81, 0.5])


def test_first_and_second_derivatives() -> None:
    found, expected = (torch.autograd.functional.jacobian(f, THETA) for f in (solved_fall, exact_fall))
    assert relative(found, expected) < GRADIENT
    for row in (0, 1):
        found, expected = (
            torch.autograd.functional.hessian(lambda theta, f=f, row=row: f(theta)[row], THETA)
            for f in (solved_fall, exact_fall)
        )
        assert relative(found, expected) < GRADIENT


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
def test_derivatives_by_torch_func() -> None:
    expected = torch.autograd.functional.jacobian(exact_fall, THETA)
    assert relative(torch.func.jacrev(solved_fall, chunk_size=1)(THETA), expected) < GRADIENT
    tangent = f64([0.3, -0.2, 0.1])
    assert relative(torch.func.jvp(solved_fall, (THETA,), (tangent,))[1], expected @ tangent) < GRADIENT


def test_derivative_by_the_initial_time(engine: str) -> None:
    """The event moves with it, as the field does not depend on time."""
    ts = f64([0.0, 1.0, 9.0]).requires_grad_()
    sol = regnde.solve(harmonic, f64([1.0, 0.0]), ts, accurate(engine=engine), event=Event(first))
    (slope,) = torch.autograd.grad(sol.ts[-1], ts, retain_graph=True)
    torch.testing.assert_close(slope, f64([1.0, 0.0, 0.0]), rtol=GRADIENT, atol=GRADIENT)
    (slope,) = torch.autograd.grad(sol.ys[1, 0], ts)
    torch.testing.assert_close(slope, math.sin(1.0) * f64([1.0, -1.0, 0.0]), rtol=GRADIENT, atol=GRADIENT)


def test_an_event_that_depends_on_nothing_with_a_gradient_has_none(engine: str) -> None:
    p = f64(2.0).requires_grad_()
    sol = regnde.solve(
        lambda t, y: -p * y, f64([1.0]), [0.0, 1.0], accurate(engine=engine), event=Event(lambda t, y: t - 0.5)
    )
    assert not sol.events.t.requires_grad
    (slope,) = torch.autograd.grad(sol.y1.sum(), p)
    assert float(slope) == pytest.approx(-0.5 * math.exp(-1.0), rel=GRADIENT)


def test_a_condition_without_a_slope_has_no_derivative(engine: str) -> None:
    def flat(t: Tensor, y: Tensor) -> Tensor:
        return torch.sign(y[0] - 0.5) + 0 * y[0]

    y0 = f64([0.0]).requires_grad_()
    solver = Solver(engine=engine)
    with pytest.raises(ValueError, match=r"event 0 has slope 0 .* no derivative"):
        regnde.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], solver, event=Event(flat))
    with torch.no_grad():
        sol = regnde.solve(lambda t, y: torch.ones_like(y), y0, [0.0, 1.0], solver, event=Event(flat))
    assert float(sol.events.t[0]) == pytest.approx(0.5, rel=ROUNDING)


# --- records ---------------------------------------------------------------------------------------


def test_records_have_gradients_up_to_the_event(engine: str) -> None:
    y0 = f64([1.0, 0.0]).requires_grad_()
    sol = regnde.solve(harmonic, y0, [0.0, 9.0], Solver(rtol=1e-4, engine=engine), record="all", event=Event(first))
    assert len(sol.steps) == sol.stats.accepted
    (slope,) = torch.autograd.grad(regnde.ErrorPenalty()(sol), y0)
    assert slope.abs().sum() > 0


@pytest.mark.parametrize("sampling", ["time", "step"])
def test_a_local_step_is_drawn_before_the_event(sampling: str) -> None:
    """In time uniformly: its mean is half of the event's time. Steps are equal here, so that it is so in both ways."""
    starts = []
    solver = Solver(rtol=1e3, atol=1e3, dt0=0.05, dt_max=0.05, engine="torch")
    with torch.no_grad():
        for seed in range(120):
            local = Local(sampling=sampling, seed=seed)
            sol = regnde.solve(
                lambda t, y: torch.ones_like(y),
                f64([0.0]),
                [0.0, 5.0],
                solver,
                record=local,
                event=Event(lambda t, y: y[0] - 1.0),
            )
            starts.append(float(sol.steps.t - sol.steps.dt))
    assert min(starts) >= 0.0
    assert max(starts) < 1.0 + ROUNDING
    half_step = 0.0 if sampling == "time" else 0.025
    bound = STANDARD_ERRORS * math.sqrt(1 / 12 / len(starts))
    assert sum(starts) / len(starts) + half_step == pytest.approx(0.5, abs=bound)


def test_copies_have_the_events(engine: str) -> None:
    y0 = f64([1.0, 0.0]).requires_grad_()
    sol = regnde.solve(harmonic, y0, [0.0, 9.0], accurate(engine=engine), event=Event(first))
    for twin in (pickle.loads(pickle.dumps(sol)), copy.deepcopy(sol)):
        assert torch.equal(twin.events.t, sol.events.t)
        assert not twin.events.y.requires_grad
    assert copy.copy(sol).events.y.requires_grad
    assert "status='event'" in repr(sol)


# --- failures and arguments ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_a_failure_before_an_event(method: str, engine: str) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.55, math.nan, 1.0) * torch.ones_like(y)

    events = [Event(lambda t, y: y[0] - 0.3, terminal=False), Event(lambda t, y: y[0] - 0.8)]
    solver = Solver(method=method, dt0=0.1, engine=engine)
    with pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(field, f64([0.0]), [0.0, 0.2, 2.0], solver, event=events)
    assert caught.value.solution.events.which.tolist() == [0]
    assert len(caught.value.solution.ys) == 2


def test_a_first_step_is_passed_on_from_a_solve_that_an_event_stopped(engine: str) -> None:
    last = regnde.LastStep()
    regnde.solve(
        exp_decay, f64([1.0]), [0.0, 9.0], Solver(dt0=last, engine=engine), event=Event(lambda t, y: y[0] - 0.5)
    )
    assert last.size is not None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda y: y, r"real 0-dim tensor, got shape \(2,\)"),
        (lambda y: y[0].item(), "real 0-dim tensor, got float"),
        (lambda y: torch.complex(y[0], y[0]), "real 0-dim tensor, got shape .*complex"),
    ],
)
def test_what_a_condition_returns(value: Callable[[Tensor], object], message: str, engine: str) -> None:
    with pytest.raises(TypeError, match=message):
        regnde.solve(exp_decay, f64([1.0, 2.0]), [0.0, 1.0], Solver(engine=engine), event=Event(lambda t, y: value(y)))  # type: ignore


def test_a_condition_that_is_nan(engine: str) -> None:
    with pytest.raises(ValueError, match="event 0 is nan at t="):
        regnde.solve(
            exp_decay, f64([1.0]), [0.0, 9.0], Solver(engine=engine), event=Event(lambda t, y: torch.sqrt(y[0] - 0.5))
        )


def test_a_function_is_no_event() -> None:
    with pytest.raises(TypeError, match=r"write Event\(first\)"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], event=first)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a list with"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], event=[Event(first), first])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="give a function"):
        Event(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose 1"):
        Event(first, direction=2)  # type: ignore[arg-type]


def test_where_events_are_refused() -> None:
    sde = regnde.SDE(exp_decay, exp_decay)
    with pytest.raises(ValueError, match="event= is for ODEs"):
        regnde.solve(sde, f64([1.0]), [0.0, 1.0], Solver(engine="torch"), event=Event(first))


def test_an_event_of_a_state_of_several_parts_is_given_its_structure(engine: str) -> None:
    """The event's states have the structure of y0, also in a pickle."""
    y0 = {"height": torch.tensor(10.0, dtype=torch.float64), "speed": torch.zeros(2, dtype=torch.float64)}

    def falling(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"height": y["speed"][0], "speed": torch.full_like(y["speed"], -9.81)}

    ground = Event(lambda t, y: y["height"], direction=-1)
    sol = regnde.solve(falling, y0, [0.0, 5.0], Solver(rtol=1e-9, atol=1e-9, engine=engine), event=ground)
    assert sol.events is not None
    assert float(sol.events.t[0]) == pytest.approx(math.sqrt(20 / 9.81), rel=SOLVER * 1e-9)
    assert sol.events.y["speed"].shape == (1, 2)
    assert torch.equal(pickle.loads(pickle.dumps(sol)).events.y["speed"], sol.events.y["speed"])


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "vern7", "rodas5p", "autotsit5"])
def test_parts_a_stop_an_event_dense_output_and_records_in_one_solve(method: str, gradient: str, engine: str) -> None:
    """y = 1 / (1 + k t) is 0.4 at t = 1.5 / k; w = max(0, t - 0.25) bends at the stop."""
    k = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": -k * state["y"] ** 2, "w": torch.where(t < 0.25, 0.0, 1.0) + 0 * state["w"]}

    sol = regnde.solve(
        field,
        {"y": f64([1.0]), "w": f64([0.0])},
        [0.0, 4.0],
        Solver(method=method, gradient=gradient, rtol=1e-8, atol=1e-8, engine=engine),
        stops=[0.25],
        event=Event(lambda t, state: state["y"][0] - 0.4),
        dense=True,
        record="all",
    )
    assert sol.events is not None
    assert sol.events.t.item() == pytest.approx(1.5 / 0.9, rel=SOLVER * 1e-8)
    assert sol.events.y["w"].item() == pytest.approx(1.5 / 0.9 - 0.25, rel=SOLVER * 1e-8)
    assert math.isfinite(regnde.ErrorPenalty()(sol).item())
    total = sol.events.t.sum() + sol.events.y["w"].sum() + sol(0.5)["y"].sum()
    (found,) = torch.autograd.grad(total, k)
    assert float(found) == pytest.approx(-2 * 1.5 / 0.81 - 0.5 / 1.45**2, rel=GRADIENT)
