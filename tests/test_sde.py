"""SDE methods: recorded runs of Julia, orders, laws, steps, records."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import regnde
from frozen_sde import FrozenSDE
from problems import SMALL_SDE_P, SMALL_Y0, bounded, geometric, golden_sde, growing_noise, lagging, small_sde
from regnde import PI, SDE, BrownianPath, ErrorPenalty, Local, Solver, StiffnessPenalty
from regnde._tableau import SDE_TABLEAUX
from regnde.nn import MLP, NeuralSDE
from tolerances import GOLDEN_REPLAY, ORDER, ROUNDING, STANDARD_ERRORS

GOLDEN = json.loads((Path(__file__).parent / "golden" / "sde_steps.json").read_text())["runs"]
ADAPTIVE = ("sosri", "sosri2", "sriw1", "sosra")
MULTIPLICATIVE = ("sosri", "sosri2", "sriw1")
FASTPOWER = 1e-4  # Julia's powers are approximate: 4e-5 each at these exponents (sciml.md B.2)


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solver(method: str = "sosri", tolerance: float = 0.05, **options: object) -> Solver:
    return Solver(method=method, rtol=tolerance, atol=tolerance, engine="torch", **options)


# --- recorded runs of StochasticDiffEq.jl ---------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_replay(name: str) -> None:
    """Every recorded step from Julia's own state, t, dt, dW and dZ: the state and the error estimate."""
    run = GOLDEN[name]
    areas = [f64(dz) / (2 * math.sqrt(3)) for dz in run["dZ"]]
    tableau = SDE_TABLEAUX[name.split("/")[0].lower()]
    frozen = FrozenSDE(
        tableau, [0.0, *run["t"]], run["dt"], [f64(dw) for dw in run["dW"]], areas, run["reltol"], run["abstol"]
    )
    assert tableau.delta == run["delta"]
    y = f64([2.0, 0.0])
    for i, (state, error) in enumerate(zip(run["u"], run["error"], strict=True)):
        y1, e, _ = frozen.one(golden_sde(), i, y)
        y = f64(state)
        torch.testing.assert_close(y1, y, rtol=GOLDEN_REPLAY, atol=GOLDEN_REPLAY)
        assert float(e) == pytest.approx(error, rel=GOLDEN_REPLAY)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_first_step_and_control(name: str) -> None:
    """The first step's size, and each next size that Julia chose from its own error estimates."""
    run = GOLDEN[name]
    method = name.split("/")[0].lower()
    chosen = Solver(method=method, rtol=run["reltol"], atol=run["abstol"], engine="torch", max_steps=1)
    start = regnde.solve(golden_sde(), f64([2.0, 0.0]), [0.0, 1.0], chosen, throw=False).stats.dt_first
    assert start == pytest.approx(run["dt_init"], rel=ROUNDING)
    order, h, previous = SDE_TABLEAUX[method].order, start, 1e-4
    for i, (size, error) in enumerate(zip(run["dt"], run["error"], strict=True)):
        if size < h * (1 - FASTPOWER) and i == 0:
            h = size  # the first trials of the strict runs were rejected; their errors are not recorded
        assert size == pytest.approx(min(h, 1 - (run["t"][i] - size)), rel=FASTPOWER)
        q = error ** (7 / (10 * order)) / previous ** (2 / (5 * order)) / 0.9
        h = size / min(max(q, 1e-4 if i == 0 else 8 / 9), 5.0)
        previous = max(error, 1e-4)


# --- order ----------------------------------------------------------------------------------------


def slope(errors: list[float]) -> float:
    """Slope of log2 error over log2 step for step sizes that double."""
    return -float(np.polyfit(np.arange(len(errors)), np.log2(errors), 1)[0])


EXACT = {  # solutions at t = 1 from y0 and W(1)
    "geometric": (geometric(0.4, 0.5), lambda y0, w: y0 * torch.exp(0.4 - 0.125 + 0.5 * w)),
    "bounded": (
        bounded(0.6),
        lambda y0, w: ((1 + y0) * torch.exp(1.2 * w) + y0 - 1) / ((1 + y0) * torch.exp(1.2 * w) + 1 - y0),
    ),
    "growing": (growing_noise(0.3, 0.5), lambda y0, w: (y0 + 0.5 * (1 + 0.3 * w)) / 2),
    "lagging": (lagging(), None),
    "lagging-additive": (lagging(additive=True), None),
}
FINEST = 10  # steps of the reference where there is no formula, log2


def grid(level: int) -> list[float]:
    return [i / 2**level for i in range(2**level + 1)]


def strong_errors(method: str, problem: str, levels: range, *, right_area: bool = True) -> list[float]:
    """Rms error at t = 1 with 2^level steps along one path."""
    path = BrownianPath(0.0, 1.0, (400,), seed=0, resolution=2.0**-FINEST)
    y0 = torch.full(path.shape, 0.3, dtype=torch.float64)
    sde, formula = EXACT[problem]
    exact = formula(y0, path(1.0)) if formula else FrozenSDE.on(path, "sosri", grid(FINEST)).end(sde, y0)
    errors = []
    for level in levels:
        frozen = FrozenSDE.on(path, method, grid(level))
        if not right_area:
            areas = [math.sqrt(h / 12) * torch.randn(path.shape, dtype=torch.float64) for h in frozen.sizes]
            frozen = dataclasses.replace(frozen, area=areas)
        errors.append(float((frozen.end(sde, y0) - exact).square().mean().sqrt()))
    return errors


@pytest.mark.parametrize("problem", ["geometric", "bounded", "lagging"])
@pytest.mark.parametrize("method", MULTIPLICATIVE)
def test_strong_order_of_diagonal_noise(method: str, problem: str) -> None:
    assert abs(slope(strong_errors(method, problem, range(3, 8))) - 1.5) < ORDER


@pytest.mark.parametrize("problem", ["growing", "lagging-additive"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_strong_order_of_additive_noise(method: str, problem: str) -> None:
    """The general 1.5, up to 2 where W(t) is all that matters."""
    assert 1.5 - ORDER < slope(strong_errors(method, problem, range(3, 8))) < 2 + ORDER


@pytest.mark.parametrize(
    ("problem", "order"),
    [("geometric", 0.5), ("bounded", 0.5), ("lagging", 0.5), ("growing", 1.0), ("lagging-additive", 1.0)],
)
def test_strong_order_of_euler_maruyama(problem: str, order: float) -> None:
    assert abs(slope(strong_errors("em", problem, range(4, 9))) - order) < ORDER


@pytest.mark.parametrize("problem", ["lagging", "lagging-additive"])
def test_the_area_of_the_path_makes_the_order(problem: str) -> None:
    """With areas drawn apart from the path, refinement converges at 1.0 only."""
    assert slope(strong_errors("sosri", problem, range(3, 8), right_area=False)) < 1.0 + ORDER


@pytest.mark.parametrize("method", MULTIPLICATIVE)
def test_tolerance_controls_the_error_along_one_path(method: str) -> None:
    path = BrownianPath(0.0, 1.0, (200,), seed=3)
    y0 = torch.full((200,), 0.3, dtype=torch.float64)
    exact = y0 * torch.exp(0.275 + 0.5 * path(1.0))
    errors = []
    for tolerance in (1e-1, 1e-2, 1e-3):
        sol = regnde.solve(geometric(0.4, 0.5), y0, [0.0, 1.0], solver(method, tolerance), noise=path)
        errors.append(float((sol.y1 - exact).square().mean().sqrt()))
    assert errors[0] > 4 * errors[2]
    assert errors[1] < 1e-2


def test_two_methods_see_one_path() -> None:
    path = BrownianPath(0.0, 1.0, (50,), seed=4)
    y0 = torch.full((50,), 0.3, dtype=torch.float64)
    ends = [regnde.solve(bounded(), y0, [0.0, 1.0], solver(m, 1e-2), noise=path).y1 for m in MULTIPLICATIVE]
    fixed = Solver(method="em", dt0=1e-3)
    ends.append(regnde.solve(bounded(), y0, [0.0, 1.0], fixed, noise=path).y1)
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=0.03)


# --- law ------------------------------------------------------------------------------------------

WEAK = 20_000


def assert_mean_and_variance(y: torch.Tensor, mean: float, variance: float) -> None:
    error = float(y.std()) / math.sqrt(len(y))
    assert abs(float(y.mean()) - mean) < STANDARD_ERRORS * error
    spread = (y - mean) ** 2
    assert abs(float(spread.mean()) - variance) < STANDARD_ERRORS * float(spread.std()) / math.sqrt(len(y))


@pytest.mark.parametrize("method", [*MULTIPLICATIVE, "em"])
def test_law_of_geometric_brownian_motion(method: str) -> None:
    mu, sigma, t = 0.4, 0.3, 1.0
    y0 = torch.full((WEAK,), 1.0, dtype=torch.float64)
    noise = BrownianPath(0.0, t, y0.shape, seed=1, resolution=1e-4)
    chosen = Solver(method="em", dt0=1 / 400) if method == "em" else solver(method, 0.05)
    y = regnde.solve(geometric(mu, sigma), y0, [0.0, t], chosen, noise=noise).y1
    mean = math.exp(mu * t)
    assert_mean_and_variance(y, mean, mean**2 * (math.exp(sigma**2 * t) - 1))


@pytest.mark.parametrize("method", [*ADAPTIVE, "em"])
def test_law_of_ornstein_uhlenbeck(method: str) -> None:
    theta, mu, sigma, t = 1.5, 0.7, 0.4, 1.0
    sde = SDE(lambda t, y: theta * (mu - y), lambda t, y: torch.full_like(y, sigma))
    y0 = torch.full((WEAK,), 2.0, dtype=torch.float64)
    noise = BrownianPath(0.0, t, y0.shape, seed=2, resolution=1e-4)
    chosen = Solver(method="em", dt0=1 / 400) if method == "em" else solver(method, 0.05)
    y = regnde.solve(sde, y0, [0.0, t], chosen, noise=noise).y1
    mean = mu + (2.0 - mu) * math.exp(-theta * t)
    assert_mean_and_variance(y, mean, sigma**2 / (2 * theta) * (1 - math.exp(-2 * theta * t)))


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "drifts", "diffusions"), [("sosri", 4, 4), ("sosri2", 4, 4), ("sriw1", 2, 4)])
def test_evaluations_are_counted_apart(method: str, drifts: int, diffusions: int) -> None:
    """Two of each for the first step's size, then the stages of every trial."""
    calls = {"drift": 0, "diffusion": 0}
    sde = golden_sde()

    def drift(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls["drift"] += 1
        return sde.drift(t, y)

    def diffusion(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls["diffusion"] += 1
        return sde.diffusion(t, y)

    stats = regnde.solve(SDE(drift, diffusion), f64([2.0, 0.0]), [0.0, 1.0], solver(method, 0.14)).stats
    trials = stats.accepted + stats.rejected
    assert (stats.nfe, stats.nfe_diffusion) == (2 + drifts * trials, 2 + diffusions * trials)
    assert calls == {"drift": stats.nfe, "diffusion": stats.nfe_diffusion}


def test_evaluations_of_additive_noise() -> None:
    """Three stages of each a trial, and two diffusions more to see that it does not depend on the state."""
    stats = regnde.solve(growing_noise(), f64([0.3]), [0.0, 1.0], solver("sosra")).stats
    trials = stats.accepted + stats.rejected
    assert (stats.nfe, stats.nfe_diffusion) == (2 + 3 * trials, 4 + 3 * trials)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_noise_that_depends_on_the_state_beyond_the_start_is_not_additive(gradient: str) -> None:
    """The diffusion is 0 around the start, and bends where the drift leads."""

    def bends(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.relu(y - 1)

    y0, how = f64([0.5]).requires_grad_(), Solver(method="sosra", gradient=gradient)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'sosra' is for additive noise, but the diffusion changes with the state"):
        regnde.solve(SDE(lambda t, y: torch.ones_like(y), bends), y0, [0.0, 1.0], how)
    matrix = SDE(lambda t, y: torch.ones_like(y), lambda t, y: bends(t, y).unsqueeze(-1), noise="additive")
    with pytest.raises(ValueError, match="the diffusion changes with the state: write noise='general'"):
        regnde.solve(matrix, y0, [0.0, 1.0], Solver(method="em", dt0=0.1, gradient=gradient))  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_case_18_outputs_do_not_change_steps_or_gradients(gradient: str) -> None:
    outcomes = []
    for ts in ([0.0, 1.0], np.linspace(0, 1, 5), np.linspace(0, 1, 100), [0.0, 0.5, 0.5, 1.0]):
        p = SMALL_SDE_P.clone().requires_grad_()
        path = BrownianPath(0.0, 1.0, SMALL_Y0.shape, seed=5)
        chosen = solver("sosri2", 0.5, gradient=gradient)
        sol = regnde.solve(small_sde(p), SMALL_Y0, ts, chosen, record="all", noise=path)
        total = ErrorPenalty()(sol) + StiffnessPenalty()(sol)
        (of_p,) = torch.autograd.grad(total, p)
        outcomes.append((sol.stats, sol.steps.t, sol.steps.error.detach(), sol.steps.stiffness.detach(), of_p, sol.y1))
        assert sol.ys.shape == (len(ts), *SMALL_Y0.shape)
    for other in outcomes[1:]:
        assert other[0] == outcomes[0][0]
        for a, b in zip(other[1:], outcomes[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


def test_outputs_are_linear_between_steps() -> None:
    path = BrownianPath(0.0, 1.0, SMALL_Y0.shape, seed=5)
    sde = small_sde(SMALL_SDE_P)
    ts = [0.0, 0.11, 0.5, 0.83, 1.0]
    sol = regnde.solve(sde, SMALL_Y0, ts, solver(), record="all", noise=path)
    frozen = FrozenSDE.of(sol, path)
    torch.testing.assert_close(frozen.states(sde, SMALL_Y0, ts), sol.ys, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("method", ["sosri2", "sriw1", "sosra", "em"])
def test_fields_are_asked_inside_the_span_only(method: str) -> None:
    """All but SOSRI, whose drift has a stage at 3.75 h."""
    asked = []
    sde = SDE(lambda t, y: asked.append(float(t)) or -y, lambda t, y: asked.append(float(t)) or torch.ones_like(y))
    chosen = Solver(method="em", dt0=0.03) if method == "em" else solver(method, 0.3)
    regnde.solve(sde, f64([1.0]), [0.2, 0.9], chosen)
    assert 0.2 <= min(asked) < max(asked) <= 0.9


def test_zero_length_span() -> None:
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for ts in ([0.3], [0.3, 0.3]):
        sol = regnde.solve(geometric(), y0, ts, solver(), record="all")
        assert torch.equal(sol.ys, y0.expand(len(ts), 2))
        assert len(sol.steps) == sol.stats.nfe == sol.stats.nfe_diffusion == 0
        (grad,) = torch.autograd.grad(sol.y1.sum() + ErrorPenalty()(sol), y0)
        assert torch.equal(grad, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1", "sosra"])
@pytest.mark.parametrize("start", [0.0, 1.0])
def test_case_11_flat_start(method: str, start: float) -> None:
    """Everything zero, as a zero-initialised last layer has it: finite gradients, records 0."""
    w = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.full((2,), start, dtype=torch.float64)
    sde = SDE(lambda t, y: w * y, lambda t, y: torch.zeros_like(y))
    sol = regnde.solve(sde, y0, [0.0, 1.0], solver(method), record="all")
    total = sol.y1.sum() + ErrorPenalty()(sol)
    if method == "sosri2":
        total = total + StiffnessPenalty()(sol)
    (grad,) = torch.autograd.grad(total, w)
    assert float(ErrorPenalty()(sol).detach()) == 0.0
    assert math.isfinite(float(grad))
    if start == 0.0:
        assert float(grad) == 0.0
    assert torch.equal(sol.y1, y0)


@pytest.mark.parametrize("method", MULTIPLICATIVE)
def test_without_noise_it_is_an_ode(method: str) -> None:
    sde = SDE(lambda t, y: -y + torch.cos(t), lambda t, y: torch.zeros_like(y))
    y1 = regnde.solve(sde, f64([1.0]), [0.0, 1.0], solver(method, 1e-2)).y1
    exact = 0.5 * (math.cos(1) + math.sin(1)) + 0.5 * math.exp(-1)
    assert float(y1) == pytest.approx(exact, abs=1e-2)


def test_stiffness_of_a_linear_drift() -> None:
    sde = SDE(lambda t, y: -30 * y, lambda t, y: 0.1 * torch.ones_like(y))
    sol = regnde.solve(sde, f64([1.0, -1.0]), [0.0, 0.5], solver("sosri2"), record="all")
    torch.testing.assert_close(sol.steps.stiffness, torch.full_like(sol.steps.t, 30.0))
    assert sol.steps.stability_size == 10.6
    assert not sol.steps.stiff.any()
    with pytest.raises(ValueError, match="sosri2"):
        _ = regnde.solve(sde, f64([1.0]), [0.0, 0.5], solver("sosri"), record="all").steps.stiffness


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (2, 3)])
def test_dtypes_and_shapes_see_one_path(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    path = BrownianPath(0.0, 1.0, shape, seed=6)
    times = []

    def drift(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        times.append(t.dtype)
        return -y

    y0 = torch.ones(shape, dtype=dtype)
    sde = SDE(drift, lambda t, y: 0.3 * y)
    fixed = Solver(method="em", dt0=0.01)
    sol = regnde.solve(sde, y0, [0.0, 0.4, 1.0], fixed, noise=path)
    reference = regnde.solve(sde, torch.ones(shape).double(), [0.0, 0.4, 1.0], fixed, noise=path)
    assert sol.ys.dtype == dtype
    assert sol.ys.shape == (3, *shape)
    assert set(times) <= {torch.float32, torch.float64}
    torch.testing.assert_close(sol.ys.real.double(), reference.ys, rtol=1e-5, atol=1e-5)
    adaptive = regnde.solve(sde, y0, [0.0, 1.0], solver("sosri"), noise=path, record="all")
    assert adaptive.y1.dtype == dtype


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["drift", "diffusion"])
def test_case_2_non_finite_dynamics(where: str) -> None:
    bad = lambda t, y: torch.where(t > 0.5, math.nan, 0.1) * y  # noqa: E731 - one line reads best
    fine = lambda t, y: 0.1 * y  # noqa: E731
    for sde, t_max in ((SDE(bad, fine), 0.51), (SDE(fine, bad), 0.51)):
        with pytest.raises(regnde.NonFiniteDynamics) as caught:
            regnde.solve(sde, torch.ones(3), [0.0, 1.0], solver(tolerance=0.2))
        assert 0.05 <= caught.value.t <= t_max
        assert "3 of 3 components" in str(caught.value)
        assert len(caught.value.solution.ys) == 1
    always = {"drift": SDE(lambda t, y: math.nan * y, fine), "diffusion": SDE(fine, lambda t, y: math.inf * y)}[where]
    with pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(always, torch.ones(3), [0.0, 1.0], solver())
    assert caught.value.t == 0
    assert caught.value.nfe < 100


def test_blow_up_stops() -> None:
    sde = SDE(lambda t, y: y**3, lambda t, y: 0.1 * y)
    with pytest.raises(regnde.SolveError) as caught:
        regnde.solve(sde, torch.ones(1, dtype=torch.float64), [0.0, 2.0], solver("sriw1", 0.1, max_steps=3000))
    assert 0.2 < caught.value.t < 2
    partial = regnde.solve(sde, f64([1.0]), [0.0, 2.0], solver("sriw1", 0.1, max_steps=300), throw=False)
    assert partial.status != "success"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 0.0],), {}, "increasing"),
        (([0.0, 1.0],), {"solver": Solver(method="tsit5")}, "no SDE method 'tsit5'"),
        (([0.0, 1.0],), {"solver": Solver(method="em")}, "dt0"),
        (([0.0, 1.0],), {"solver": Solver(method="em", dt0=0.1), "record": Local()}, "local"),
        (([0.0, 1.0],), {"solver": Solver(gradient="gauss", engine="torch")}, "julia"),
        (([0.0, 1.0],), {"noise": BrownianPath(0.0, 1.0, (3,))}, "shape"),
        (([0.0, 1.0],), {"noise": BrownianPath(0.0, 0.9, (2,))}, "spans"),
        ((torch.tensor([0.0, 1.0], requires_grad=True),), {}, "detach"),
        (([0.0, 1.0],), {"solver": Solver(method="sosra")}, "additive"),
    ],
)
def test_refuses(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regnde.solve(geometric(), torch.ones(2), *arguments, **options)


def test_refuses_what_is_no_path() -> None:
    with pytest.raises(TypeError, match="BrownianPath"):
        regnde.solve(geometric(), torch.ones(2), [0.0, 1.0], noise=3)
    with pytest.raises(ValueError, match="ODE"):
        regnde.solve(lambda t, y: y, torch.ones(2), [0.0, 1.0], noise=BrownianPath(0.0, 1.0, (2,)))
    with pytest.raises(ValueError, match="no ODE method 'sosri'"):
        regnde.solve(lambda t, y: y, torch.ones(2), [0.0, 1.0], Solver(method="sosri", engine="torch"))


def test_a_diffusion_that_draws_is_found_out() -> None:
    sde = SDE(lambda t, y: -y, lambda t, y: torch.randn_like(y))
    with pytest.warns(UserWarning, match="two calls of diffusion"):
        regnde.solve(sde, torch.ones(2), [0.0, 0.01], solver(tolerance=0.5))


# --- cases 19 and 20 ------------------------------------------------------------------------------


def test_case_19a_long_horizon_with_fine_steps() -> None:
    """Twenty thousand steps: no recursion, and as many evaluations as steps."""
    sde = SDE(lambda t, y: -0.5 * y, lambda t, y: torch.full_like(y, 0.1))
    with torch.no_grad():
        sol = regnde.solve(sde, torch.ones(2, 1), [0.0, 20.0], Solver(method="em", dt0=1e-3))
    assert sol.stats.accepted == sol.stats.nfe == sol.stats.nfe_diffusion == pytest.approx(20_000, abs=1)
    assert torch.isfinite(sol.y1).all()


def test_warns_where_the_path_is_too_coarse() -> None:
    coarse = BrownianPath(0.0, 1.0, (2,), resolution=0.25)
    sde = SDE(lambda t, y: -y, lambda t, y: 0.1 * y)
    with pytest.warns(UserWarning, match="down to 0.1 are shorter than the Brownian path's resolution 0.25"):
        regnde.solve(sde, torch.ones(2), [0.0, 1.0], Solver(method="em", dt0=0.1), noise=coarse)


def test_case_19_last_step_lands_on_the_end_time() -> None:
    """No step past t1, whatever the step sizes add up to; and tiny steps end."""
    asked = []
    sde = SDE(lambda t, y: asked.append(float(t)) or -y, lambda t, y: 0.1 * y)
    for dt0 in (0.1, 0.3, 1e-3, 7.0):
        sol = regnde.solve(sde, torch.ones(1, dtype=torch.float64), [0.0, 0.7], Solver(method="em", dt0=dt0))
        assert float(sol.ts[-1]) == pytest.approx(0.7)
        assert max(asked) < 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny = Solver(method="em", dt0=1e-6, max_steps=1000)
        with pytest.raises(regnde.MaxStepsReached):
            regnde.solve(sde, torch.ones(1, dtype=torch.float64), [0.0, 0.7], tiny)


@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1"])
def test_case_20a_torch_seed_makes_runs_repeatable(method: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(regnde.solve(golden_sde(), f64([2.0, 0.0]), [0.0, 1.0], solver(method, 0.14), record="all"))
    assert torch.equal(runs[0].y1, runs[1].y1)
    assert torch.equal(runs[0].steps.error, runs[1].steps.error)
    assert not torch.equal(runs[0].y1, runs[2].y1)


def test_case_20b_path_does_not_see_steps_outputs_or_gradients() -> None:
    """Rejected steps included: a too long first step is rejected, and the path stays."""
    path = BrownianPath(0.0, 1.0, (2,), seed=1)
    before = [path.increment(i / 10, (i + 1) / 10) for i in range(10)]
    p = f64(0.2).requires_grad_()
    sde = SDE(golden_sde().drift, lambda t, y: p * y)
    long = solver(tolerance=0.14, dt0=0.5)
    sol = regnde.solve(sde, f64([2.0, 0.0]), torch.linspace(0, 1, 30).double(), long, noise=path)
    assert sol.stats.rejected > 0
    torch.autograd.grad(sol.y1.sum(), p)
    after = [path.increment(i / 10, (i + 1) / 10) for i in range(10)]
    assert all(torch.equal(a.w, b.w) and torch.equal(a.h, b.h) for a, b in zip(before, after, strict=True))
    with torch.no_grad():
        again = regnde.solve(sde, f64([2.0, 0.0]), torch.linspace(0, 1, 30).double(), long, noise=path)
    assert torch.equal(again.ys, sol.ys)
    assert again.stats == sol.stats


@pytest.mark.parametrize("method", ["em", "sosri"])
def test_case_20b_refining_the_step_converges_to_one_path(method: str) -> None:
    path = BrownianPath(0.0, 1.0, (500,), seed=2)
    y0 = torch.full((500,), 0.3, dtype=torch.float64)
    ends = []
    for level in range(2, 9):
        ends.append(FrozenSDE.on(path, method, grid(level)).end(lagging(), y0))
    errors = [float((end - ends[-1]).square().mean().sqrt()) for end in ends[:-1]]
    assert slope(errors) > 0.5 - ORDER
    assert errors == sorted(errors, reverse=True)


# --- the layer ------------------------------------------------------------------------------------


def test_layer() -> None:
    """Records in training mode only; a path may be passed; gradients reach drift and diffusion."""
    layer = NeuralSDE(MLP([2, 8, 2]), MLP([2, 2]), (0.0, 0.5, 1.0), solver(tolerance=0.3), record="all")
    y0 = torch.ones(2).expand(20, 2)
    path = BrownianPath(0.0, 1.0, y0.shape, seed=0)
    sol = layer(y0, noise=path)
    assert sol.ys.shape == (3, 20, 2)
    assert sol.ys[-1].std(0).min() > 0
    torch.autograd.backward(sol.ys.square().mean() + ErrorPenalty()(sol))
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    still = copy.deepcopy(layer.eval())
    other = still(y0, noise=path)
    assert other.steps is None
    assert torch.equal(other.ys, sol.ys)
    assert torch.equal(layer(y0, [0.0, 1.0], noise=path).y1, sol.y1)
    assert not torch.equal(layer(y0).y1, sol.y1)


# --- noise without a path --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["sriw1", "lambaem"])
def test_without_noise_the_path_is_that_of_torchs_seed(method: str, dtype: torch.dtype) -> None:
    """Whatever the steps: two tolerances see one path, which is the `BrownianPath` of that seed."""
    sde, y0 = SDE(lambda t, y: -y, lambda t, y: 0.5 + 0.1 * y), torch.ones(40, dtype=dtype)

    def end(tolerance: float, seed: int = 5, noise: BrownianPath | None = None, **more: object) -> torch.Tensor:
        torch.manual_seed(seed)
        solver = Solver(method=method, rtol=tolerance, atol=tolerance, engine="torch")
        return regnde.solve(sde, y0, [0.0, 1.0], solver, noise=noise, **more).y1

    fine, coarse = end(1e-3), end(1e-2)
    assert (fine - coarse).abs().max() < 0.05
    assert (coarse - end(1e-2, seed=6)).abs().mean() > 0.1
    assert torch.equal(coarse, end(1e-2))
    assert torch.equal(coarse, end(1e-2, record="all"))
    torch.manual_seed(5)
    given = BrownianPath(0.0, 1.0, (40,), dtype=dtype)
    assert (fine - end(1e-3, seed=7, noise=given)).abs().max() < 0.05


@pytest.mark.parametrize("span", [(0.0, 1.0), (-0.3, 24.7)], ids=str)
def test_without_noise_steps_end_where_the_path_costs_less(span: tuple[float, float]) -> None:
    """At ends of nodes of the path's tree that are not shorter than a 64th of the step; the last at the end time."""
    torch.manual_seed(1)
    sde, y0 = SDE(lambda t, y: -y, lambda t, y: 0.1 + 0.1 * y), torch.ones(20, dtype=torch.float64)
    given = regnde.solve(sde, y0, span, Solver(engine="torch"), record="all", noise=BrownianPath(*span, (20,), seed=3))
    drawn = regnde.solve(sde, y0, span, Solver(engine="torch", dt_max=0.1 * (span[1] - span[0])), record="all")
    for steps, dyadic in ((given.steps, False), (drawn.steps, True)):
        ends, sizes = (steps.t - span[0]) / (span[1] - span[0]), steps.dt / (span[1] - span[0])
        nodes = ends / (sizes / 64).log2().floor().exp2()
        assert ((nodes - nodes.round()).abs()[:-1].max() < 1e-6) == dyadic
        assert steps.t[-1] == span[1]
        assert len(ends) > 5
    assert drawn.steps.dt.max() <= 0.1 * (span[1] - span[0])


def test_without_noise_a_rejected_step_is_never_tried_again_as_long() -> None:
    """Whatever a controller proposes: steps of the least size end the solve, and small reductions are taken."""
    sde, y0 = SDE(lambda t, y: -y, lambda t, y: 1 + y), torch.ones(20, dtype=torch.float64)
    with pytest.raises(regnde.StepSizeUnderflow, match="dt_min"):
        regnde.solve(sde, y0, [0.0, 1.0], Solver(engine="torch", rtol=1e-6, atol=1e-6, dt_min=0.007, max_steps=1000))
    slow = PI(safety=0.999, beta1=0.002, beta2=0.0)
    sol = regnde.solve(sde, y0, [0.0, 1.0], Solver(engine="torch", rtol=1e-2, atol=1e-2, controller=slow, dt0=0.1))
    assert sol.stats.rejected > 50
    assert sol.status.value == "success"
