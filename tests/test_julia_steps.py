"""The Julia engine's steps: controllers, bounds, stops, tolerances of each entry. They are the torch engine's."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import regnde
from frozen import relative
from problems import SMALL_P, SMALL_Y0, exp_decay, lotka_volterra, small_net
from regnde import PI, PID, SDE, BrownianPath, I, Local, Solver
from regnde._sde_method import SDE_METHODS
from regnde._solve import solve_by_rules
from regnde._tableau import TABLEAUX
from regnde._times import checked_times
from test_controller import NAMES, RUNS, VARIANTS
from test_sde_kinds import END, EVERY, NOT_IN_JULIA, Y0, P, path_for, small
from tolerances import GOLDEN_T, ROUNDING, SOLVER

# Julia fuses multiply-adds and sums in another order: a step from equal states agrees to this, relative.
STEP = 1e-9
# Its powers are off by 1e-5, by which step sizes differ, and with them errors of the order of the tolerance.
POWERS = 1e-4
ENDS = 5e-3  # to what this adds up over the steps of a solve
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("julia")]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def both(f: object, y0: Tensor, ts: object, solver: Solver, **options: object) -> tuple[regnde.Solution, ...]:
    return tuple(
        regnde.solve(f, y0, ts, dataclasses.replace(solver, engine=engine), record="all", **options)  # type: ignore[arg-type]
        for engine in ("torch", "julia")
    )


def assert_same_steps(ours: regnde.Solution, theirs: regnde.Solution) -> None:
    counts = [(s.stats.nfe, s.stats.nfe_diffusion, s.stats.accepted, s.stats.rejected) for s in (ours, theirs)]
    assert counts[0] == counts[1]
    assert theirs.stats.dt_first == pytest.approx(ours.stats.dt_first, rel=ROUNDING)
    assert ours.steps is not None
    assert theirs.steps is not None
    torch.testing.assert_close(theirs.steps.t, ours.steps.t, rtol=ENDS, atol=ENDS)
    torch.testing.assert_close(theirs.ys, ours.ys, rtol=POWERS, atol=POWERS)


@pytest.mark.parametrize("name", [n for n in NAMES if RUNS[n]["t_end"] == 10.0 and "Ralston" not in n])
def test_golden_runs_of_the_control(name: str) -> None:
    run, options = RUNS[name], VARIANTS[name.split("/", 1)[1].rsplit("/", 1)[0]]
    solver = Solver(rtol=run["reltol"], atol=run["abstol"], engine="julia", **options)
    with torch.no_grad():
        sol = regnde.solve(lotka_volterra, f64([1.0, 1.0]), [0.0, 10.0], solver, record="all")
    assert (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected) == (run["nf"], run["naccept"], run["nreject"])
    n = min(len(run["t"]), run["naccept"] - 1)
    torch.testing.assert_close(sol.steps.t[:n], f64(run["t"][:n]), rtol=GOLDEN_T, atol=0)


@pytest.mark.parametrize("method", ["tsit5", "vern7"])
@pytest.mark.parametrize(
    "options",
    [
        {"controller": PI(safety=0.8, beta1=0.15, beta2=0.05, max_factor=5.0, first_max_factor=50.0, min_factor=0.1)},
        {"controller": PI(error_floor=0.1)},
        {"controller": I(safety=0.8, max_factor=3.0)},
        {"controller": PID(beta1=1 / 18, beta2=1 / 9, beta3=1 / 18, accept_factor=0.9)},
        {"dt_max": 0.1},
        {"dt_min": 0.15, "rtol": 1e-3},
        {"dt_min": 0.02, "rtol": 1e-7, "atol": 1e-7},
        {"atol": (1e-6, 1e-2)},
        {"atol": (1e-6, math.inf)},
        {"rtol": (1e-4, 1e-2)},
    ],
)
def test_steps_are_torchs(method: str, options: dict[str, object]) -> None:
    chosen = {"rtol": 1e-4, "atol": 1e-6, **options}
    chosen = {name: f64(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
    with torch.no_grad():
        sols = both(
            lotka_volterra, f64([1.0, 1.0]), [0.0, 3.0, 10.0], Solver(method=method, **chosen), stops=[3.3, 7.1]
        )
    assert_same_steps(*sols)


def switched(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 1.0, -y, torch.where(t < 2.5, 2 - y, -5 * y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "heun", "vern7"])
def test_steps_between_stops_are_torchs(method: str, sign: float, dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float64 else 1e-2
    ts, stops = ([sign * t for t in times] for times in ((0.0, 0.3, 1.0, 1.7, 4.0), (2.5, 1.0, 1.0, -3.0, 4.0)))

    def field(t: Tensor, y: Tensor) -> Tensor:
        return sign * switched(sign * t, y)

    with torch.no_grad():
        sols = both(
            field, torch.ones(1, dtype=dtype), ts, Solver(method=method, rtol=tolerance, atol=tolerance), stops=stops
        )
    if dtype == torch.float64:  # in float32 the first estimates are rounding, which sizes the steps after them
        assert_same_steps(*sols)
    assert {sign * 1.0, sign * 2.5} <= set(sols[1].steps.t.tolist())
    torch.testing.assert_close(sols[1].ys, sols[0].ys, rtol=SOLVER * tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["rosenbrock23", "rodas5p", "trbdf2", "kencarp4", "autotsit5"])
def test_implicit_methods_stop(method: str) -> None:
    """Solved anew from each stop, the result is the same."""
    tolerances = {"rtol": 1e-8, "atol": f64([1e-8, 1e-6])}
    chosen, field = Solver(method=method, engine="julia", dt_max=0.5, **tolerances), lambda t, y: switched(t, y)
    with torch.no_grad():
        sol = regnde.solve(field, f64([1.0, 2.0]), [0.0, 1.0, 4.0], chosen, stops=[1.0, 2.5], record="all")
    first = math.exp(-1)
    assert float(sol.ys[1, 0]) == pytest.approx(first, rel=SOLVER * 1e-6)
    exact = (2 + (first - 2) * math.exp(-1.5)) * math.exp(-7.5)
    assert float(sol.y1[0]) == pytest.approx(exact, abs=1e-5)
    assert {1.0, 2.5} <= set(sol.steps.t.tolist())
    assert sol.steps.dt.max() <= 0.5


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(
    "method", ["tsit5", "bs3", "dp5", "heun", "vern7", "rosenbrock23", "rodas4", "rodas5p", "autotsit5"]
)
def test_gradients_between_stops_equal_torchs(method: str, gradient: str) -> None:
    """A loose tolerance and a first step over the whole span: both engines make one step in each segment.

    With respect to parameters, state, save times (one of them a stop) and the stops; tolerances differ.
    """
    results = []
    for engine in ("torch", "julia"):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        ts, stops = f64([0.0, 0.11, 0.3, 0.5, 0.9]).requires_grad_(), f64([0.6, 0.3]).requires_grad_()
        net = small_net(p)

        def field(t: Tensor, y: Tensor, net: object = net) -> Tensor:
            slope = net(t, y)  # type: ignore[operator]
            return torch.where(t < 0.3, slope, torch.where(t < 0.6, -2 * slope + t, 0.5 * slope + y))

        # an infinite atol makes rtol differ between entries, which a Rosenbrock method does not take
        atol = f64([[1e3, 2e3], [3e3, 4e3 if method.startswith(("ro", "auto")) else math.inf]])
        chosen = Solver(method=method, dt0=0.9, rtol=1e3, atol=atol, gradient=gradient, engine=engine)
        sol = regnde.solve(field, y0, ts, chosen, record="all", stops=stops)
        weights = torch.linspace(1, 2, sol.ys.numel(), dtype=torch.float64).reshape(sol.ys.shape)
        value = (sol.ys * weights).sum() + 1e6 * sol.steps.error.square().sum()
        if method != "bs3":
            value = value + sol.steps.stiffness.sum()
        results.append((sol, torch.autograd.grad(value, (p, y0, ts, stops))))
    (ours, grads), (theirs, others) = results
    assert ours.steps.t.tolist() == theirs.steps.t.tolist() == [0.3, 0.6, 0.9]
    assert ours.stats.nfe + (10 if method == "vern7" else 0) >= theirs.stats.nfe
    torch.testing.assert_close(ours.ys, theirs.ys, rtol=STEP, atol=STEP)
    torch.testing.assert_close(ours.steps.error, theirs.steps.error, rtol=1e-6, atol=0)
    for a, b in zip(grads, others, strict=True):
        assert relative(a, b) < 1e-6


@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1", "sosra", "em"])
def test_sdes_on_the_same_path(method: str) -> None:
    """Stops, controllers, the longest step, tolerances of each entry: the same steps."""

    def drift(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 0.4, 1 - y, -2 * y)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        return 0.3 * torch.ones_like(y) if method == "sosra" else 0.3 * torch.sin(y)

    several: tuple[dict[str, object], ...] = (
        {"dt_max": 0.02},
        {"controller": I()},
        {"controller": PID(beta1=0.7, beta2=-0.4)},
        {"atol": f64([0.05, 0.5, math.inf])},
    )
    for options in several if method != "em" else ({"dt0": 0.07, "rtol": None, "atol": None},):
        solver = Solver(**{"method": method, "rtol": 0.05, "atol": 0.05, **options})  # type: ignore[arg-type]
        path = BrownianPath(0.0, 1.0, (3,), seed=1)
        with torch.no_grad():
            y0 = f64([0.5, 0.1, -0.2])
            sols = both(SDE(drift, diffusion), y0, [0.0, 0.4, 1.0], solver, noise=path, stops=[0.4])
        assert 0.4 in sols[1].steps.t.tolist()
        assert [s.stats.accepted for s in sols] == [sols[0].stats.accepted] * 2
        torch.testing.assert_close(sols[1].ys, sols[0].ys, rtol=POWERS, atol=POWERS)


@pytest.mark.parametrize("sampling", ["time", "step"])
@pytest.mark.parametrize("step_size", ["solver", "initial"])
def test_local_records_between_stops_equal_torchs(sampling: str, step_size: str) -> None:
    for seed in range(3):
        results = []
        for engine in ("torch", "julia"):
            p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
            net = small_net(p)

            def field(t: Tensor, y: Tensor, net: object = net) -> Tensor:
                return torch.where(t < 0.3, 1.0, -2.0) * net(t, y)  # type: ignore[operator]

            chosen = Solver(dt0=0.9, rtol=1e3, atol=1e3, dt_max=0.9, engine=engine)
            local = Local(seed=seed, sampling=sampling, step_size=step_size)  # type: ignore[arg-type]
            sol = regnde.solve(field, y0, [0.0, 0.9], chosen, record=local, stops=[0.3])
            value = 1e6 * sol.steps.error.sum() + sol.steps.stiffness.sum() + sol.y1.sum()
            results.append((sol, torch.autograd.grad(value, (p, y0))))
        (ours, grads), (theirs, others) = results
        torch.testing.assert_close(ours.steps.t, theirs.steps.t, rtol=STEP, atol=STEP)
        torch.testing.assert_close(ours.steps.dt, theirs.steps.dt, rtol=STEP, atol=STEP)
        torch.testing.assert_close(ours.steps.error, theirs.steps.error, rtol=1e-6, atol=0)
        for a, b in zip(grads, others, strict=True):
            assert relative(a, b) < 1e-6


def test_times_with_a_gradient_and_a_local_step() -> None:
    """The drawn time is none of them."""
    values = []
    for engine in ("torch", "julia"):
        ts = f64([0.0, 0.4, 0.9]).requires_grad_()
        sol = regnde.solve(small_net(SMALL_P), SMALL_Y0, ts, Solver(engine=engine), record=Local(seed=1))
        values.append(torch.autograd.grad(sol.ys.square().sum() + sol.steps.error.sum(), ts)[0])
    assert relative(values[1], values[0]) < POWERS


def test_clocks_are_double() -> None:
    sol = regnde.solve(exp_decay, torch.ones(2), [0.0, 1.0], Solver(rtol=1e-3, engine="julia"), record="all")
    assert (sol.steps.t.dtype, sol.steps.dt.dtype) == (torch.float64, torch.float64)
    assert sol.steps.error.dtype == torch.float32


def test_a_field_that_has_no_value_at_the_start() -> None:
    """It is solved where the start is a stop, and read again where its module has changed."""

    class Rate(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = 1.0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.where(t <= 0.0, math.nan * y, -self.rate * y)

    module = Rate()
    for module.rate in (1.0, 2.0):
        sol = regnde.solve(module, f64([1.0]), [0.0, 1.0], Solver(rtol=1e-8, atol=1e-8, engine="julia"), stops=[0.0])
        assert float(sol.y1) == pytest.approx(math.exp(-module.rate), rel=SOLVER * 1e-8)


TIMES = [0.0, 0.05, 0.3, 0.3, 0.61, 0.899, 0.9]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", ["tsit5", "bs3", "dp5", "heun", "vern6", "vern7", "vern8", "vern9"])
def test_dense_output_is_the_state_at_save_times(method: str, sign: float) -> None:
    chosen, ts = Solver(method=method, rtol=1e-4, atol=1e-4, engine="julia"), [sign * t for t in TIMES]
    with torch.no_grad():
        sol = regnde.solve(small_net(SMALL_P), SMALL_Y0, [0.0, sign * 0.9], chosen, dense=True, stops=[sign * 0.4])
        saved = regnde.solve(small_net(SMALL_P), SMALL_Y0, ts, chosen, stops=[sign * 0.4])
        if method in TABLEAUX:
            other = dataclasses.replace(chosen, engine="torch")
            torchs = regnde.solve(
                small_net(SMALL_P), SMALL_Y0, [0.0, sign * 0.9], other, dense=True, stops=[sign * 0.4]
            )
            assert torchs.stats.nfe == sol.stats.nfe
    torch.testing.assert_close(sol(ts), saved.ys, rtol=STEP, atol=STEP)  # vern9's weights are large, and cancel


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "bs3", "dp5", "heun", "vern7"])
def test_gradients_of_dense_output_equal_torchs(method: str, gradient: str) -> None:
    results = []
    for engine in ("torch", "julia"):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        t, ts = f64(TIMES).requires_grad_(), f64([0.0, 0.11, 0.9]).requires_grad_()
        chosen = Solver(method=method, dt0=0.9, rtol=1e3, atol=1e3, gradient=gradient, engine=engine)
        sol = regnde.solve(small_net(p), y0, ts, chosen, record="all", stops=[0.4], dense=True)
        value = sol(t).square().sum() + sol.ys.sum() + 1e6 * sol.steps.error.square().sum()
        results.append((sol, torch.autograd.grad(value, (p, y0, t, ts))))
    (ours, grads), (theirs, others) = results
    assert ours.steps.t.tolist() == theirs.steps.t.tolist() == [0.4, 0.9]
    for a, b in zip(grads, others, strict=True):
        assert relative(a, b) < 1e-6


def test_dense_output_of_an_sde() -> None:
    results = []
    for engine in ("torch", "julia"):
        y0 = f64([0.5, 0.1, -0.2]).requires_grad_()
        path = BrownianPath(0.0, 0.9, (3,), seed=1)
        chosen = Solver(method="em", dt0=0.1, engine=engine)
        sol = regnde.solve(
            SDE(exp_decay, lambda t, y: 0.3 * torch.sin(y)), y0, [0.0, 0.9], chosen, noise=path, dense=True
        )
        results.append((sol(TIMES), *torch.autograd.grad(sol(TIMES).square().sum(), y0)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=STEP, atol=STEP)


SINGLE = 2e-6  # of float32, where the engines sum in another order


@pytest.mark.parametrize(("method", "noise", "calculus"), [kind for kind in EVERY if kind[0] not in NOT_IN_JULIA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sde_steps_are_torchs(method: str, noise: str, calculus: str, dtype: torch.dtype) -> None:
    """Steps, states, records, evaluations and gradients on one path, with a stop.

    Errors are so far below 1 that all steps but the first are as long as `dt_max`. Else Julia's powers change the ends
    of steps a little, and with them the noise by much more.
    """
    adaptive, found = SDE_METHODS[method].adaptive, []
    options = {"rtol": 1e4, "atol": 1e4, "dt0": 0.03, "dt_max": 0.06} if adaptive else {"dt0": 0.06}
    for engine in ("torch", "julia"):
        p, y0 = (x.to(dtype, copy=True).requires_grad_() for x in (P, Y0))
        sde, solver = small(noise, calculus, p), Solver(method=method, engine=engine, **options)
        if sde.has_matrix:
            sde = dataclasses.replace(sde, diffusion=cast(sde.diffusion))
        record = "all" if adaptive else "none"
        sol = regnde.solve(sde, y0, [0.0, 0.13, END], solver, record=record, noise=path_for(noise), stops=[0.2])
        loss = sol.ys.square().sum()
        if sol.steps is not None:
            loss = loss + (sol.steps.error / sol.steps.error.detach().mean()).sum()
        found.append((sol, torch.autograd.grad(loss, [p, y0])))
    (ours, gradients), (theirs, their_gradients) = found
    counts = [(s.stats.nfe, s.stats.nfe_diffusion, s.stats.accepted, s.stats.rejected) for s in (ours, theirs)]
    assert counts[0] == counts[1]
    bound = STEP if dtype == torch.float64 else 100 * SINGLE
    if adaptive:
        assert theirs.stats.dt_first == pytest.approx(ours.stats.dt_first, rel=bound)
        torch.testing.assert_close(theirs.steps.t, ours.steps.t, rtol=bound, atol=0)
        if dtype == torch.float64:  # in float32 the differences that estimate errors are rounding in short steps
            torch.testing.assert_close(theirs.steps.error, ours.steps.error, rtol=bound, atol=0)
    torch.testing.assert_close(theirs.ys, ours.ys, rtol=bound, atol=bound)
    if dtype == torch.float64 or not adaptive:
        for a, b in zip(their_gradients, gradients, strict=True):
            assert relative(a, b) < 10 * bound


def cast(diffusion):
    """The same diffusion in the precision of the state."""
    return lambda t, y: diffusion(t, y).to(y.dtype)


FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "rk38")


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", FIXED)
def test_steps_of_fixed_size_are_torchs(method: str, sign: float) -> None:
    """The same grid, states and evaluations: outputs within steps, where steps end, at a stop, in a last short step."""
    ts = [sign * t for t in (0.0, 0.05, 0.3, 0.6, 0.61, 0.93, 0.95)]
    for stops in ([], [sign * 0.42]):
        with torch.no_grad():
            sols = both(small_net(SMALL_P), SMALL_Y0, ts, Solver(method=method, dt0=0.1), stops=stops)
        counts = [(s.stats.nfe, s.stats.accepted, s.stats.rejected, s.stats.dt_first, s.stats.dt_next) for s in sols]
        assert counts[0] == counts[1]
        assert sols[0].steps.t.tolist() == sols[1].steps.t.tolist()
        assert sols[0].steps.dt.tolist() == sols[1].steps.dt.tolist()
        torch.testing.assert_close(sols[1].ys, sols[0].ys, rtol=STEP, atol=STEP)
    with pytest.raises(ValueError, match="estimates no error"):
        _ = sols[1].steps.error


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", FIXED)
def test_gradients_of_steps_of_fixed_size_equal_torchs(method: str, gradient: str) -> None:
    """With respect to parameters, state, save times and the stop; of states and of the dense output."""
    results = []
    for engine in ("torch", "julia"):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        t, ts = f64(TIMES).requires_grad_(), f64([0.0, 0.11, 0.4, 0.9]).requires_grad_()
        stops, net = f64([0.4]).requires_grad_(), small_net(p)

        def field(t: Tensor, y: Tensor, net: object = net) -> Tensor:
            return torch.where(t < 0.4, 1.0, -2.0) * net(t, y)  # type: ignore[operator]

        chosen = Solver(method=method, dt0=0.07, gradient=gradient, engine=engine)
        sol = regnde.solve(field, y0, ts, chosen, record="all", stops=stops, dense=True)
        value = sol(t).square().sum() + sol.ys.sum()
        results.append((sol, torch.autograd.grad(value, (p, y0, t, ts, stops))))
    (ours, grads), (theirs, others) = results
    assert ours.steps.t.tolist() == theirs.steps.t.tolist()
    for a, b in zip(grads, others, strict=True):
        assert relative(a, b) < 1e-6


def test_a_fixed_grid_is_torchs() -> None:
    """A drop-in's: steps between the save times, of unequal size."""
    values = []
    for engine in ("torch", "julia"):
        y0, t = SMALL_Y0.clone().requires_grad_(), f64([0.0, 0.3, 0.35, 0.9])
        request = Solver(method="rk4", engine=engine)
        ys = solve_by_rules(small_net(SMALL_P), y0, checked_times(t), request, grid=t.tolist()).ys
        values.append((ys, *torch.autograd.grad(ys.square().sum(), y0)))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=STEP, atol=STEP)


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_steps_of_fixed_size_that_fail(method: str) -> None:
    def ends(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.55, math.nan, 1.0) * torch.ones_like(y)

    for field, options, error in (
        (ends, {}, regnde.NonFiniteDynamics),
        (exp_decay, {"max_steps": 3}, regnde.MaxStepsReached),
        (exp_decay, {"dt0": 1e-20}, regnde.StepSizeUnderflow),
    ):
        found = []
        for engine in ("torch", "julia"):
            solver = Solver(**{"method": method, "dt0": 0.1, "engine": engine, **options})  # type: ignore[arg-type]
            with pytest.raises(error) as caught:
                regnde.solve(field, f64([0.0]), [1.0, 1.2, 2.0] if options else [0.0, 0.2, 1.0], solver)
            found.append((caught.value.t, len(caught.value.solution.ys), caught.value.solution.stats.accepted))
        assert found[0] == found[1]


def test_a_sample_of_a_julia_field() -> None:
    """Its source for a batch is that for one sample."""
    w = f64([[-1.0]]).requires_grad_()
    field = regnde.JuliaField("(t, y, w) -> w * y .+ t", [w])
    y0 = f64([[1.0], [2.0], [3.0]])
    values = []
    for batch in ("joint", "per-sample"):
        chosen = Solver(batch=batch, rtol=1e-9, atol=1e-9, engine="julia")
        sol = regnde.solve(field, y0, [0.0, 0.5, 1.0], chosen)
        values.append((sol.ys, *torch.autograd.grad(sol.ys.square().sum(), w)))
    for joint, apart in zip(*values, strict=True):
        torch.testing.assert_close(joint, apart, rtol=1e-6, atol=1e-6)
