"""Stops: times at which a field may jump or bend. Steps end there, and the field is never evaluated there."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import regnde
from frozen import central_differences, combined, relative, stages_of
from problems import exp_decay, seeded
from regnde import SDE, Local, Solver
from regnde._engines import engines
from regnde._engines.base import Request
from regnde._tableau import TABLEAUX
from tolerances import GRADIENT, ORDER, ROUNDING, SOLVER

BATCHES = ("joint", "per-sample")
ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")
FIXED = ("euler", "midpoint", "heun3", "rk4")
STOPS = [1.0, 2.5]
Field = Callable[[Tensor, Tensor], Tensor]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solve(f: object, y0: Tensor, ts: object, solver: Solver, **options: object) -> regnde.Solution:
    """`regnde.solve`; a test of an engine that has no stops is skipped."""
    try:
        return regnde.solve(f, y0, ts, solver, **options)  # type: ignore[arg-type]
    except ValueError as why:
        if solver.engine == "julia" and "torch engine" in str(why):
            pytest.skip(str(why))
        raise


def switched(t: Tensor, y: Tensor) -> Tensor:
    """The problem of tests/golden/control_steps.json. It has no value at its stops."""
    field = torch.where(t < 1.0, -y, torch.where(t < 2.5, 2 - y, -5 * y))
    return torch.where((t == 1.0) | (t == 2.5), math.nan * y, field)


def switched_exact(t: float) -> float:
    at_1 = math.exp(-1)
    at_2 = 2 + (at_1 - 2) * math.exp(-1.5)
    if t <= 1.0:
        return math.exp(-t)
    return 2 + (at_1 - 2) * math.exp(1 - t) if t <= 2.5 else at_2 * math.exp(-5 * (t - 2.5))


def mirrored(f: Field) -> Field:
    """The same problem with the time running back."""
    return lambda t, y: -f(-t, y)


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("stops", [STOPS, [2.5, 1.0, 1.0, 7.0, -3.0, 2.5], [1.0, 1.0 + 1e-15, 2.5]])
def test_steps_end_at_the_stops(engine: str, stops: list[float], sign: float) -> None:
    field = switched if sign > 0 else mirrored(switched)
    ts = [sign * t for t in (0.0, 0.5, 1.0, 1.7, 2.5, 4.0)]
    solver = Solver(rtol=1e-8, atol=1e-10, engine=engine)
    sol = solve(field, f64([1.0]), ts, solver, stops=[sign * t for t in stops], record="all")
    ends = (sign * sol.steps.t).tolist()
    assert {1.0, 2.5, 4.0} <= set(ends)
    assert float((sol.steps.t[:-1] - (sol.steps.t - sol.steps.dt)[1:]).abs().max()) <= ROUNDING
    for t, y in zip(ts, sol.ys, strict=True):
        assert float(y) == pytest.approx(switched_exact(sign * t), rel=SOLVER * 1e-8)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("tolerances", [(1e-3, 1e-6), (1e-6, 1e-9)])
def test_stops_spare_rejections(tolerances: tuple[float, float], batch: str) -> None:
    """Of the plain solve the jumps take most trials; Julia's own tstops, which evaluate at the stop, take yet more."""
    rtol, atol = tolerances
    solver = Solver(rtol=rtol, atol=atol, batch=batch, engine="torch")
    stopped = solve(switched, f64([[1.0]]), [0.0, 4.0], solver, stops=STOPS).stats
    plain = solve(switched, f64([[1.0]]), [0.0, 4.0], solver).stats
    trials = stopped.accepted + stopped.rejected
    assert stopped.nfe == 3 + 6 * trials + len(STOPS)  # the slope after each stop is evaluated once
    assert stopped.rejected <= 2
    assert trials < 0.6 * (plain.accepted + plain.rejected)


def test_after_a_stop_the_step_is_as_long_as_before() -> None:
    """Not as the short one that the stop cut."""
    solver = Solver(rtol=1e-3, atol=1e-3, engine="torch")
    free = regnde.solve(exp_decay, f64([1.0]), [0.0, 4.0], solver, record="all").steps
    cut = regnde.solve(exp_decay, f64([1.0]), [0.0, 4.0], solver, stops=[float(free.t[2]) + 1e-3], record="all").steps
    assert cut.dt[:3].tolist() == free.dt[:3].tolist()
    assert float(cut.dt[3]) == pytest.approx(1e-3)
    assert cut.dt[4] == pytest.approx(float(free.dt[3]))


@pytest.mark.parametrize("batch", BATCHES)
def test_many_knots(batch: str) -> None:
    """A field that is driven by a path of straight pieces."""
    knots = torch.linspace(0.0, 5.0, 26, dtype=torch.float64)
    slopes = torch.randn(25, dtype=torch.float64, generator=seeded(1))

    def driven(t: Tensor, y: Tensor) -> Tensor:
        place = (torch.bucketize(t.detach(), knots, right=True) - 1).clamp(0, 24)
        return slopes[place] * torch.ones_like(y)

    solver = Solver(rtol=1e-6, atol=1e-6, batch=batch, engine="torch")
    stopped, plain = (solve(driven, f64([[0.0]]), [0.0, 5.0], solver, stops=stops) for stops in (knots, ()))
    assert float(stopped.y1) == pytest.approx(float(slopes.sum() * 0.2), rel=ROUNDING)
    assert stopped.stats.accepted <= 25 + 4
    assert stopped.stats.rejected == 0
    assert stopped.stats.nfe < plain.stats.nfe / 5


def test_samples_stop_on_their_own() -> None:
    solver = Solver(rtol=1e-8, atol=1e-10, batch="per-sample", engine="torch")
    y0 = f64([[1.0], [3.0], [-2.0]])
    sol = solve(switched, y0, [0.0, 1.0, 2.0, 4.0], solver, stops=STOPS, record="all")
    for sample in range(3):
        alone = solve(switched, y0[sample : sample + 1], [0.0, 1.0, 2.0, 4.0], solver, stops=STOPS, record="all")
        taken = sol.steps.mask[:, sample]
        torch.testing.assert_close(sol.steps.t[taken, sample], alone.steps.t[:, 0], rtol=1e-9, atol=0)
        torch.testing.assert_close(sol.ys[:, sample], alone.ys[:, 0], rtol=1e-9, atol=0)
        assert {1.0, 2.5} <= set(sol.steps.t[taken, sample].tolist())


@pytest.mark.parametrize("stop", [0.3 - 1e-16, 0.3, 0.3 + 1e-16])
def test_a_stop_at_an_end_of_the_span(engine: str, stop: float) -> None:
    """It cuts nothing; the field is not evaluated there."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where((t <= 0.0) | (t >= stop), math.nan * y, -y)

    sol = solve(field, f64([1.0]), [0.0, 0.3], Solver(rtol=1e-8, atol=1e-8, engine=engine), stops=[stop, 0.0])
    plain = solve(exp_decay, f64([1.0]), [0.0, 0.3], Solver(rtol=1e-8, atol=1e-8, engine=engine))
    assert sol.stats.accepted == plain.stats.accepted
    assert float(sol.y1) == pytest.approx(math.exp(-0.3), rel=SOLVER * 1e-8)


# --- where the field is evaluated ------------------------------------------------------------------


def times_seen(method: str, batch: str, dtype: torch.dtype, stops: Sequence[float], sign: float) -> Tensor:
    """Every time at which a field is evaluated in a solve with save points between the stops."""
    seen: list[Tensor] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        assert t.dtype == dtype
        seen.append(t.flatten())
        return torch.where(sign * t < stops[0], -y, y)

    ts = [sign * t for t in (0.0, 0.31, 0.7, stops[0], 1.3, 2.0)]
    options = {"dt0": 0.3} if method in FIXED else {"rtol": 1e-4, "atol": 1e-4}
    solver = Solver(method=method, batch=batch, engine="torch", **options)
    y0 = torch.ones(1, 1, dtype=dtype)
    regnde.solve(field, y0, ts, solver, stops=[sign * stop for stop in stops])
    return torch.cat(seen)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("method", "batch"), [*((m, b) for m in ADAPTIVE for b in BATCHES), *((m, "joint") for m in FIXED)]
)
def test_never_at_a_stop(method: str, batch: str, dtype: torch.dtype, sign: float) -> None:
    """Just before and just after it, in the dtype that the field gets, where 1.1 may be another number."""
    stop = 1.1
    seen = sign * times_seen(method, batch, dtype, [stop, 1.6], sign)
    rounded = torch.tensor(stop, dtype=dtype)
    before, after = (torch.nextafter(rounded, torch.tensor(to, dtype=dtype)) for to in (0.0, 2.0))
    assert not (seen == rounded).any()
    assert not (seen == stop).any()
    assert (seen == after).any()
    assert (seen == before).any() or method in ("euler", "midpoint", "heun3")  # these have no stage at the end
    assert seen.min() == 0.0
    assert seen.max() <= 2.0


def test_a_stop_at_zero_is_passed_by_normal_numbers() -> None:
    seen: list[float] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.log(t.abs()) * torch.ones_like(y)

    regnde.solve(field, f64([0.0]), [-1.0, 1.0], Solver(rtol=1e-2, atol=1e-2, engine="torch"), stops=[0.0])
    assert min(map(abs, seen)) == torch.finfo(torch.float64).tiny


def test_an_sde_between_stops() -> None:
    """With "sosri", whose drift has stages far beyond the step."""
    seen: list[float] = []

    def drift(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.where(t < 0.4, 1.0, -2.0) * torch.ones_like(y)

    path = regnde.BrownianPath(0.0, 1.0, (3,), seed=1)
    for method in ("sosri", "sosra", "sriw1", "em"):
        tolerance = None if method == "em" else 0.3
        solver = Solver(method=method, dt0=0.07, rtol=tolerance, atol=tolerance, engine="torch")
        problem = SDE(drift, lambda t, y: torch.full_like(y, 0.3))
        sol = regnde.solve(problem, f64([0.0] * 3), [0.0, 0.4, 1.0], solver, noise=path, stops=[0.4], record="all")
        assert 0.4 in sol.steps.t.tolist()
        w = torch.stack([path.increment(0.0, t)[0] for t in (0.4, 1.0)]).to(torch.float64)
        torch.testing.assert_close(sol.ys[1:], f64([[0.4], [-0.8]]) + 0.3 * w, rtol=1e-6, atol=1e-6)
    assert 0.4 not in seen
    early, late = ([t for t in seen if (t < 0.4) == before] for before in (True, False))
    assert max(early) == math.nextafter(0.4, 0.0)
    assert min(late) == math.nextafter(0.4, 1.0)


# --- case A15, fixed steps -------------------------------------------------------------------------


def pulse(t: Tensor, y: Tensor) -> Tensor:
    return torch.where((t > 50.0) & (t < 50.1), 10.0, 0.0) * torch.ones_like(y) - 0.01 * y


@pytest.mark.parametrize("method", ["tsit5", "bs3", "vern7"])
def test_case_A15_a_short_pulse_in_a_long_span(engine: str, method: str) -> None:
    solver = Solver(method=method, rtol=1e-6, atol=1e-6, engine=engine)
    sol = solve(pulse, f64([0.0]), [0.0, 100.0], solver, stops=[50.0, 50.1])
    exact = 1000 * (1 - math.exp(-0.001)) * math.exp(-0.01 * 49.9)
    assert float(sol.y1) == pytest.approx(exact, rel=SOLVER * 1e-6)


@pytest.mark.parametrize("method", FIXED)
def test_order_of_fixed_steps_across_stops(method: str) -> None:
    """Steps begin anew at each stop, so that a jump inside of none of them spoils the order."""
    errors, sizes = [], [2.0**-n for n in range(3, 8)]
    for dt0 in sizes:
        solver = Solver(method=method, dt0=dt0, engine="torch")
        sol = regnde.solve(switched, f64([1.0]), [0.0, 3.1], solver, stops=STOPS, record="all")
        assert {1.0, 2.5} <= set(sol.steps.t.tolist())
        assert sol.steps.dt.max() <= dt0
        errors.append(abs(float(sol.y1) - switched_exact(3.1)))
    order = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}[method]
    slopes = [math.log(a / b, 2) for a, b in itertools.pairwise(errors)]
    assert sum(slopes) / len(slopes) == pytest.approx(order, abs=ORDER)


def test_fixed_steps_that_are_not_finite_after_a_stop() -> None:
    """The step at fault is found again, in its own segment."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 1.5, math.inf, torch.where(t == 1.0, math.nan, 1.0)) * torch.ones_like(y)

    solver = Solver(method="rk4", dt0=0.1, engine="torch")
    with pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(field, f64([0.0]), [0.0, 1.0, 1.25, 3.0], solver, stops=[1.0], record="all")
    assert caught.value.t == pytest.approx(1.5)
    torch.testing.assert_close(caught.value.solution.ys.flatten(), f64([0.0, 1.0, 1.25]))


def test_a_field_that_ends_at_a_stop() -> None:
    """It is not finite behind the stop, which is the end time."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1.0, -y, math.nan * y)

    assert float(regnde.solve(field, f64([1.0]), [0.0, 1.0], stops=[1.0]).y1) == pytest.approx(math.exp(-1), rel=1e-5)
    with pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(field, f64([1.0]), [0.0, 2.0], Solver(engine="torch"), stops=[1.0])
    assert caught.value.t == 1.0


# --- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", ["solver", "initial"])
@pytest.mark.parametrize("sampling", ["time", "step"])
def test_a_local_step_stays_between_stops(engine: str, sampling: str, step_size: str) -> None:
    stops = [0.7, 0.71, 1.2, 1.9]
    solver = Solver(rtol=1e-2, atol=1e-2, engine=engine)
    for seed in range(8):
        local = Local(sampling=sampling, step_size=step_size, seed=seed)
        steps = solve(pieces, f64([1.0]), [0.0, 2.0], solver, stops=stops, record=local).steps
        end = float(steps.t)
        begin = end - float(steps.dt)
        assert not [stop for stop in stops if begin + ROUNDING < stop < end - ROUNDING]
        assert torch.isfinite(steps.error).all()


def pieces(t: Tensor, y: Tensor) -> Tensor:
    """Another field between any two of four stops, and none at them."""
    value = torch.zeros_like(y)
    for stop in (0.7, 0.71, 1.2, 1.9):
        value = value + torch.where(t > stop, torch.sin(10 * stop * y), -y) + torch.where(t == stop, math.nan, 0.0)
    return value


# --- gradients -------------------------------------------------------------------------------------


def forced(p: Tensor, segment: int) -> Field:
    """A smooth field for each segment."""
    return lambda t, y: torch.tanh(p[0] * y.flip(-1) + p[1] * t + p[2] * (segment - 1))


def jumping(p: Tensor) -> Field:
    def field(t: Tensor, y: Tensor) -> Tensor:
        parts = [forced(p, segment)(t, y) for segment in range(3)]
        return torch.where(t < 1.0, parts[0], torch.where(t < 2.5, parts[1], parts[2]))

    return field


P = f64([1.3, -0.8, 0.9])
Y0 = f64([[0.3, -0.4]])


def replayed(sol: regnde.Solution, p: Tensor, y0: Tensor) -> Tensor:
    """End state, and the scaled error vectors of all steps, on the given steps."""
    tableau, solver = TABLEAUX[sol.solver.method], sol.solver
    y, rows = y0, []
    for t1, h in zip(sol.steps.t.flatten().tolist(), sol.steps.dt.flatten().tolist(), strict=True):
        t = t1 - h
        field = forced(p, sum(t + h / 2 > stop for stop in STOPS))
        stages = stages_of(field, tableau, t, h, y)
        allowed = solver.atol + solver.rtol * torch.maximum(y.abs(), stages.y1.abs())
        rows.append((h * combined(tableau.btilde, stages.k, y) / allowed).flatten())
        y = stages.y1
    return torch.cat([y.flatten(), *rows])


def weighted_error(sol: regnde.Solution) -> Tensor:
    return (sol.steps.error.flatten() * torch.arange(1.0, sol.steps.error.numel() + 1)).sum()


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(("method", "batch"), [("tsit5", "joint"), ("tsit5", "per-sample"), ("vern7", "joint")])
def test_gradients_on_frozen_steps(method: str, batch: str, gradient: str) -> None:
    solver = Solver(method=method, rtol=1e-4, atol=1e-4, batch=batch, gradient=gradient, engine="torch")
    p, y0 = P.clone().requires_grad_(), Y0.clone().requires_grad_()
    sol = solve(jumping(p), y0, [0.0, 4.0], solver, stops=STOPS, record="all")
    found = torch.autograd.grad(sol.y1.sum() + weighted_error(sol), (p, y0))

    def penalty(pieces: Tensor) -> Tensor:
        rows = pieces[2:].reshape(-1, 2)
        return pieces[:2].sum() + (rows.square().mean(1).sqrt() * torch.arange(1.0, len(rows) + 1)).sum()

    for at, value, replay in (
        (P, found[0], lambda p: replayed(sol, p, Y0)),
        (Y0, found[1], lambda y0: replayed(sol, P, y0)),
    ):
        base = replay(at).detach().requires_grad_()
        (weights,) = torch.autograd.grad(penalty(base), base)
        expected = (weights @ central_differences(replay, at).reshape(len(weights), -1)).reshape(at.shape)
        assert relative(value, expected) < GRADIENT


def test_gradients_of_both_engines(engine: str) -> None:
    values = []
    for name in ("torch", engine):
        p = P.clone().requires_grad_()
        sol = solve(jumping(p), Y0, [0.0, 4.0], Solver(rtol=1e-8, atol=1e-8, engine=name), stops=STOPS)
        values.append(torch.autograd.grad(sol.y1.sum(), p)[0])
    assert relative(values[1], values[0]) < GRADIENT


@pytest.mark.parametrize("at", [1.0, 2.5])
def test_derivative_by_a_save_time_at_a_stop(at: float) -> None:
    """That of the field before it."""
    ts = f64([0.0, at, 4.0]).requires_grad_()
    field = jumps(f64(STOPS))
    sol = regnde.solve(field, f64([1.0]), ts, Solver(rtol=1e-9, atol=1e-9, engine="torch"), stops=STOPS)
    (slope,) = torch.autograd.grad(sol.ys[1].sum(), ts)
    expected = -math.exp(-1) if at == 1.0 else 2 - switched_exact(2.5)
    assert float(slope[1]) == pytest.approx(expected, rel=SOLVER * 1e-9)


# --- stops that move -------------------------------------------------------------------------------


def jumps(stops: Tensor, sign: float = 1.0) -> Field:
    """The switched problem with these switches, with a derivative."""
    a, b = (sign * stops).tolist()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return sign * torch.where(sign * t < a, -y, torch.where(sign * t < b, 2 - y, -5 * y))

    return field


def moving(stops: Tensor, sign: float = 1.0, **options: object) -> Tensor:
    """State at 4 of the switched problem whose switches are these stops."""
    solver, field = Solver(rtol=1e-10, atol=1e-10, engine="torch", **options), jumps(stops.detach(), sign)
    return regnde.solve(field, f64([1.0]), [0.0, 4.0 * sign], solver, stops=stops).y1[0]


def moving_exact(stops: Tensor) -> Tensor:
    a, b = stops
    return (2 + (torch.exp(-a) - 2) * torch.exp(a - b)) * torch.exp(-5 * (4.0 - b))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_derivative_by_a_stop(gradient: str, sign: float) -> None:
    stops = (sign * f64(STOPS)).requires_grad_()
    (found,) = torch.autograd.grad(moving(stops, sign, gradient=gradient), stops)
    (expected,) = torch.autograd.grad(moving_exact(sign * stops), stops)
    assert relative(found, expected) < GRADIENT


def test_second_derivative_by_a_stop() -> None:
    found = torch.autograd.functional.hessian(moving, f64(STOPS))
    expected = torch.autograd.functional.hessian(moving_exact, f64(STOPS))
    assert relative(found, expected) < GRADIENT


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
def test_derivative_by_a_stop_in_forward_mode() -> None:
    tangent = f64([0.3, -0.2])
    _, found = torch.func.jvp(moving, (f64(STOPS),), (tangent,))
    _, expected = torch.func.jvp(moving_exact, (f64(STOPS),), (tangent,))
    assert relative(found, expected) < GRADIENT


def test_stops_cost_nothing_where_no_gradient_is_asked_for() -> None:
    counts = []
    for stops in (f64(STOPS), f64(STOPS).requires_grad_()):
        with torch.no_grad():
            counts.append(regnde.solve(switched, f64([1.0]), [0.0, 4.0], Solver(engine="torch"), stops=stops).stats.nfe)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("stops", [[1.0, 1.0], [0.0, 1.0], [1.0, 4.0]])
def test_stops_that_have_no_derivative(stops: list[float]) -> None:
    with pytest.raises(ValueError, match="no derivative with respect to it"):
        regnde.solve(switched, f64([1.0]), [0.0, 4.0], Solver(engine="torch"), stops=f64(stops).requires_grad_())


def test_moving_stops_are_refused_where_there_is_no_gradient() -> None:
    stops = f64([0.5]).requires_grad_()
    with pytest.raises(ValueError, match="detach ts and the stops"):
        regnde.solve(exp_decay, f64([[1.0]]), [0.0, 1.0], Solver(batch="per-sample", engine="torch"), stops=stops)
    with pytest.raises(ValueError, match="detach ts and the stops"):
        regnde.solve(SDE(exp_decay, exp_decay), f64([1.0]), [0.0, 1.0], Solver(engine="torch"), stops=stops)


# --- arguments -------------------------------------------------------------------------------------


def test_stops_that_a_dtype_can_not_tell_apart() -> None:
    stops = [0.5, 0.5 + 1e-8]
    with pytest.raises(ValueError, match=r"no time of torch\.float32 lies between 0\.5 and 0\.50000001.*y0\.double"):
        regnde.solve(exp_decay, torch.ones(1), [0.0, 1.0], Solver(rtol=1e-3, engine="torch"), stops=stops)
    assert regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], Solver(engine="torch"), stops=stops).stats.accepted > 2


@pytest.mark.parametrize("stops", [0.5, [[0.5]], torch.tensor(0.5)])
def test_stops_are_a_sequence(stops: object) -> None:
    with pytest.raises(ValueError, match="stops must be a sequence of times"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], stops=stops)  # type: ignore[arg-type]


@pytest.mark.parametrize("stops", ["now", [1j], torch.tensor([True]), [None]])
def test_stops_are_real_times(stops: object) -> None:
    with pytest.raises(TypeError, match="stops must be"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], stops=stops)  # type: ignore[arg-type]


def test_stops_are_finite() -> None:
    with pytest.raises(ValueError, match="stops must be finite"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], stops=[math.inf])


@pytest.mark.parametrize("stops", [[], (), torch.zeros(0)])
def test_no_stops(stops: Sequence[float]) -> None:
    plain = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0])
    assert torch.equal(regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], stops=stops).ys, plain.ys)


def test_no_span() -> None:
    assert regnde.solve(exp_decay, f64([1.0]), [1.0, 1.0], stops=[1.0]).ys.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_given_grid_gets_the_stops(sign: float) -> None:
    field = jumps(sign * f64(STOPS), sign)
    coarse = [*(0.13 * n for n in range(24)), 3.0]
    grids = [[sign * t for t in grid] for grid in (coarse, sorted({*coarse, *STOPS}))]
    request = Request(
        equation=field,
        y0=f64([1.0]),
        ts=sign * f64([0.0, 3.0]),
        times=(0.0, sign * 3.0),
        solver=Solver(method="rk4", engine="torch").resolve(sde=False),
        record="none",
        noise=None,
        throw=True,
        stops=tuple(sign * stop for stop in STOPS),
    )
    found = [engines()["torch"].solve(dataclasses.replace(request, grid=tuple(grid))).ys for grid in grids]
    assert torch.equal(*found)
    assert float(found[0][-1]) == pytest.approx(switched_exact(3.0), rel=1e-2)
