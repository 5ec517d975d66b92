"""Step size controllers and bounds: against Julia's step sequences, and rule by rule."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import regnde
import regnde._engines.base
from problems import exp_decay, lotka_volterra
from regnde import PI, PID, I, Local, Solver
from regnde._engines.base import StepRules
from regnde._solve import solve_by_rules
from regnde._times import checked_times
from tolerances import GOLDEN_DT, GOLDEN_ERROR, GOLDEN_REPLAY, GOLDEN_T, ROUNDING, SOLVER

RUNS = json.loads((Path(__file__).parent / "golden" / "control_steps.json").read_text())["runs"]
BATCHES = ("joint", "per-sample")
RALSTON = regnde.Tableau("ralston", 2, a=((), ("2/3",)), b=("1/4", "3/4"), btilde=("3/4", "-3/4"))
VARIANTS: dict[str, dict[str, object]] = {
    "Tsit5/I": {"controller": I()},
    "Tsit5/PID(0.7,-0.4,0)": {"controller": PID(beta1=0.7, beta2=-0.4)},
    "Tsit5/dtmax0.05": {"dt_max": 0.05},
    "BS3": {"method": "bs3"},
    "DP5": {"method": "dp5"},
    "Heun": {"method": "heun"},
    "Ralston": {"method": RALSTON},
}
NAMES = [name for name in RUNS if name.split("/", 1)[1].rsplit("/", 1)[0] in VARIANTS]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sample(t: Tensor, y: Tensor) -> Tensor:
    """`lotka_volterra` for a batch of one."""
    return lotka_volterra(t, y[0]).unsqueeze(0)


def golden(name: str, batch: str, end: float) -> regnde.Solution:
    run, options = RUNS[name], VARIANTS[name.split("/", 1)[1].rsplit("/", 1)[0]]
    solver = Solver(rtol=run["reltol"], atol=run["abstol"], batch=batch, engine="torch", **options)
    with torch.no_grad():
        return regnde.solve(sample, f64([[1.0, 1.0]]), [0.0, end], solver, record="all")


@pytest.mark.parametrize("name", [name for name in NAMES if RUNS[name]["t_end"] == 10.0 and RUNS[name]["nf"] < 2000])
def test_julias_counts(name: str) -> None:
    run, stats = RUNS[name], golden(name, "joint", 10.0).stats
    nfe = run["nf"] - ("Ralston" in name)  # Julia evaluates the slope at the start apart from the first step's stages
    assert (stats.nfe, stats.accepted, stats.rejected) == (nfe, run["naccept"], run["nreject"])
    assert stats.dt_first == pytest.approx(run["dt_init"], rel=GOLDEN_REPLAY)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_julias_steps(name: str, batch: str) -> None:
    run = RUNS[name]
    n = min(len(run["t"]), run["naccept"] - 1)
    sol = golden(name, batch, min(10.0, 2 * run["t"][n - 1]))
    t, dt, error = (x[:n].flatten() for x in (sol.steps.t, sol.steps.dt, sol.steps.error))
    torch.testing.assert_close(t, f64(run["t"][:n]), rtol=GOLDEN_T, atol=0)
    torch.testing.assert_close(dt, f64(run["dt"][:n]), rtol=GOLDEN_DT, atol=0)
    torch.testing.assert_close(error, f64(run["error"][:n]), rtol=GOLDEN_ERROR, atol=0)


def test_an_accepted_step_of_pid_may_exceed_the_tolerance() -> None:
    sol = golden("lotka_volterra/Tsit5/PID(0.7,-0.4,0)/1e-6", "joint", 10.0)
    assert sol.steps.error.max() > 2
    strict = Solver(controller=PID(beta1=0.7, beta2=-0.4, accept_factor=1.0), engine="torch")
    assert regnde.solve(lotka_volterra, f64([1.0, 1.0]), [0.0, 10.0], strict).stats.rejected > 10


def decay_then_attraction(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 1.0, -y, 1000 * torch.cos(y))


def rest_then_growth(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 1.0, 0 * y, 1 + 0 * y)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("field", "dt_min", "end"), [(decay_then_attraction, None, math.pi / 2), (rest_then_growth, 1e-6, 1.5)]
)
def test_pid_that_rejects_allowed_errors_behind_a_jump_says_so(
    field: Callable[[Tensor, Tensor], Tensor], dt_min: float | None, end: float, batch: str
) -> None:
    """The steps before the jump have hardly an error, so that PID asks for one far below the tolerance, as Julia's."""
    solver = Solver(
        controller=PID(beta1=0.7, beta2=-0.4), batch=batch, dt_min=dt_min, rtol=1e-8, atol=1e-8, engine="torch"
    )
    y0 = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(regnde.StepSizeUnderflow, match=r"within the tolerance: the PID controller rejects.*stops="):
        regnde.solve(field, y0, [0.0, 1.5], solver)
    named = regnde.solve(field, y0, [0.0, 1.5], solver, stops=[1.0])
    torch.testing.assert_close(named.y1, torch.full_like(named.y1, end), rtol=1e-7, atol=0)


# --- constants -------------------------------------------------------------------------------------


def same(a: regnde.Solution, b: regnde.Solution) -> bool:
    return torch.equal(a.ys, b.ys) and a.stats == b.stats


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("method", "constants"),
    [
        ("tsit5", PI(beta1=0.14, beta2=0.08, max_factor=10.0)),
        ("dp5", PI(beta1=0.17, beta2=0.04)),
        ("bs3", PI(beta1=7 / 30, beta2=2 / 15)),
        ("tsit5", PI(safety=0.9, min_factor=0.2, first_max_factor=1e4, error_floor=1e-4)),
    ],
)
def test_defaults_are_what_they_are_said_to_be(method: str, constants: PI, batch: str) -> None:
    solver = Solver(method=method, batch=batch, engine="torch")
    given = dataclasses.replace(solver, controller=constants)
    y0 = f64([[1.0, 1.0]])
    assert same(*(regnde.solve(sample, y0, [0.0, 3.0], s) for s in (solver, given)))


def test_defaults_of_an_sde() -> None:
    field, noise = regnde.SDE(exp_decay, lambda t, y: 0.1 * y), regnde.BrownianPath(0.0, 1.0, (2,), seed=3)
    y0 = f64([1.0, 2.0])
    plain, given, wider = (
        regnde.solve(field, y0, [0.0, 0.05], Solver(controller=c, engine="torch"), noise=noise)
        for c in (None, PI(beta1=7 / 15, beta2=4 / 15, max_factor=9 / 8), PI(max_factor=10.0))
    )
    assert same(plain, given)
    assert wider.stats.accepted < plain.stats.accepted


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("constants", "factors"),
    [  # an error of 0 grows by the largest factor
        (PI(first_max_factor=50.0, max_factor=3.0), [50.0, 3.0, 3.0]),
        (I(first_max_factor=50.0, max_factor=3.0), [50.0, 3.0, 3.0]),
        (PID(beta1=5.0, beta2=0.0), [1 + math.pi / 2] * 3),
    ],
)
def test_growth_without_an_error(constants: regnde.PI, factors: list[float], batch: str) -> None:
    solver = Solver(dt0=1e-6, controller=constants, batch=batch, engine="torch")
    sol = regnde.solve(lambda t, y: torch.zeros_like(y), f64([[1.0]]), [0.0, 1.0], solver, record="all")
    sizes = sol.steps.dt.flatten()[:4]
    torch.testing.assert_close(sizes[1:] / sizes[:-1], f64(factors), rtol=1e-3, atol=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_an_accepted_step_is_not_shortened_if_asked(batch: str) -> None:
    """torchdiffeq's rule: steps that grow until they are rejected."""
    solver = Solver(controller=I(accepted_min_factor=1.0, first_max_factor=10.0), batch=batch, engine="torch")
    free = dataclasses.replace(solver, controller=I(first_max_factor=10.0))
    shrinks = []
    for each in (solver, free):
        sol = regnde.solve(sample, f64([[1.0, 1.0]]), [0.0, 10.0], each, record="all")
        dt, error = sol.steps.dt.flatten(), sol.steps.error.flatten()
        shorter = (dt[1:-1] < dt[:-2] * (1 - ROUNDING)) & (0.9 / error[:-2] ** 0.2 < 1)
        shrinks.append((int(shorter.sum()), sol.stats.rejected))
    assert shrinks[0][1] > 0  # where it is shorter, a rejection made it so
    assert shrinks[0][0] <= shrinks[0][1]
    assert shrinks[1][0] > shrinks[1][1]


# --- bounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"dt0": 0.03}, {"method": "vern7"}])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("batch", BATCHES)
def test_no_step_is_longer_than_dt_max(batch: str, sign: float, options: dict[str, object]) -> None:
    solver = Solver(rtol=1e-2, atol=1e-2, dt_max=0.05, batch=batch, engine="torch", **options)
    sol = regnde.solve(lambda t, y: -sign * y, f64([[1.0]]), [0.0, sign], solver, record="all")
    sizes = sign * sol.steps.dt.flatten()
    assert sizes.max() == 0.05
    assert float(sol.y1) == pytest.approx(math.exp(-1), rel=SOLVER * 1e-4)


def test_case_A15_a_short_pulse_is_seen_with_dt_max() -> None:
    def pulse(t: Tensor, y: Tensor) -> Tensor:
        return torch.where((t > 5.0) & (t < 5.1), 10.0, 0.0) * torch.ones_like(y)

    plain, bounded = (
        regnde.solve(pulse, f64([0.0]), [0.0, 10.0], Solver(dt_max=dt_max, engine="torch")) for dt_max in (None, 0.05)
    )
    assert float(plain.y1) == 0.0  # what dt_max is for
    assert float(bounded.y1) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_step_below_dt_min_fails(batch: str) -> None:
    solver = Solver(rtol=1e-10, atol=1e-10, dt_min=0.1, batch=batch, engine="torch")
    with pytest.raises(regnde.StepSizeUnderflow, match=r"dt_min=0\.1") as caught:
        regnde.solve(sample, f64([[1.0, 1.0]]), [0.0, 10.0], solver)
    assert abs(caught.value.dt) == pytest.approx(0.1)


@pytest.mark.parametrize("batch", BATCHES)
def test_no_step_but_the_last_is_shorter_than_dt_min(batch: str) -> None:
    solver = Solver(rtol=1e-3, atol=1e-3, dt_min=0.3, batch=batch, engine="torch")
    sol = regnde.solve(lambda t, y: -y, f64([[1.0]]), [0.0, 1.0], solver, record="all")
    assert sol.steps.dt.flatten()[:-1].min() >= 0.3
    assert sol.stats.dt_first == 0.3


def test_bounds_of_an_sde() -> None:
    field = regnde.SDE(exp_decay, lambda t, y: 0.1 * y)
    sol = regnde.solve(field, f64([1.0]), [0.0, 1.0], Solver(dt_max=0.05, engine="torch"), record="all")
    assert sol.steps.dt.max() <= 0.05
    with pytest.raises(regnde.StepSizeUnderflow, match="dt_min"):
        regnde.solve(field, f64([1.0]), [0.0, 1.0], Solver(rtol=1e-6, atol=1e-6, dt_min=0.1, engine="torch"))


def test_a_local_step_stays_below_dt_max() -> None:
    local = Local(step_size="initial", seed=1)
    sol = regnde.solve(exp_decay, f64([1.0]), [0.0, 0.1], Solver(dt_max=1e-3, engine="torch"), record=local)
    assert float(sol.steps.dt) <= 1e-3


# --- another package's rules -----------------------------------------------------------------------


def largest_part(x: Tensor) -> Tensor:
    """The larger rms of the first entry and of the others."""
    return torch.maximum(x[0].abs(), x[1:].square().mean().sqrt())


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_a_norm_decides_and_is_recorded(gradient: str) -> None:
    y0, solver = f64([1.0, 1e-9, 1e-9, 1e-9]).requires_grad_(), Solver(gradient=gradient, engine="torch")
    rules = StepRules(norm=largest_part)
    plain = regnde.solve(exp_decay, y0, [0.0, 1.0], solver, record="all")
    alone = regnde.solve(exp_decay, y0[:1], [0.0, 1.0], solver, record="all")
    ruled = solve_by_rules(exp_decay, y0, checked_times([0.0, 1.0]), solver, rules, record="all")
    torch.testing.assert_close(ruled.steps.error[:1], 2 * plain.steps.error[:1])  # one of four entries: half its rms
    # The first step is our own heuristic's, over all entries; the steps after it are those of the first entry alone.
    assert ruled.stats.accepted == alone.stats.accepted > plain.stats.accepted
    (slope,) = torch.autograd.grad(ruled.steps.error.sum(), y0)
    assert slope[0] != 0
    assert torch.isfinite(slope).all()
    local = solve_by_rules(exp_decay, y0, checked_times([0.0, 1.0]), solver, rules, record=Local(seed=0))
    assert local.steps.error.shape == (1,)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("method", "calls"), [("tsit5", 2), ("vern7", 2)])
def test_a_rule_for_the_first_step(method: str, calls: int, sign: float) -> None:
    seen: list[tuple[float, float, float, float]] = []

    def rule(field: regnde._engines.base.FirstStep, t0: float, t1: float, y0: Tensor, slope: Tensor) -> float:
        seen.append((t0, t1, float(slope), float(field(t0 + 0.5 * sign, y0))))
        return 0.0625

    sol = solve_by_rules(
        lambda t, y: t * y,
        f64([3.0]),
        checked_times([sign, 3 * sign]),
        Solver(method=method),
        StepRules(first_step=rule),
    )
    assert seen == [(sign, 3 * sign, 3.0 * sign, 4.5 * sign)]
    assert sol.stats.dt_first == 0.0625 * sign
    assert (sol.stats.nfe - calls) % {"tsit5": 6, "vern7": 10}[method] == 0


def test_the_least_step_may_be_accepted_whatever_its_error() -> None:
    solver = Solver(rtol=1e-10, atol=1e-10, dt_min=0.25, controller=I(), engine="torch")
    sol = solve_by_rules(
        exp_decay, f64([1.0]), checked_times([0.0, 1.0]), solver, StepRules(accept_smallest=True), record="all"
    )
    assert sol.steps.dt.tolist() == [0.25] * 4
    assert sol.steps.error.min() > 1
    with pytest.raises(regnde.NonFiniteDynamics):
        solve_by_rules(
            lambda t, y: y * math.nan, f64([1.0]), checked_times([0.0, 1.0]), solver, StepRules(accept_smallest=True)
        )


# --- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "constants"),
    [
        (PI, {"safety": 0.0}),
        (PI, {"safety": 1.5}),
        (PI, {"min_factor": 1.0}),
        (PI, {"max_factor": 1.0}),
        (PI, {"beta1": -0.1}),
        (PI, {"beta2": math.nan}),
        (PI, {"error_floor": 0.0}),
        (I, {"first_max_factor": 0.5}),
        (I, {"accepted_min_factor": 2.0}),
        (PID, {"beta1": math.inf, "beta2": 0.0}),
        (PID, {"beta1": 50.0, "beta2": 0.0}),
        (PID, {"beta1": 0.7, "beta2": -0.4, "accept_factor": 0.1}),
    ],
)
def test_constants_that_can_not_control(kind: type[PI], constants: dict[str, float]) -> None:
    name = list(constants)[-1] if kind is not PID or "accept_factor" in constants else "beta1"
    with pytest.raises(ValueError, match=rf"{kind.__name__}\({name}="):
        kind(**constants)


def test_constants_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match=r"PI\(safety='0.9'\): give one number"):
        PI(safety="0.9")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"by name only.*PID\(beta1=0.7\)"):
        PID(0.7)  # type: ignore[misc, call-arg]
    with pytest.raises(TypeError, match=r"controller='PI'"):
        Solver(controller="PI")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"dt_max": 0.0}, {"dt_min": -1.0}, {"dt_min": 2.0, "dt_max": 1.0}, {"dt0": 2.0, "dt_max": 1.0}],
)
def test_sizes_that_can_not_be(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"Solver\(dt"):
        Solver(**options)


@pytest.mark.parametrize("name", ["controller", "dt_min", "dt_max"])
def test_a_fixed_step_is_not_controlled(name: str) -> None:
    value = {"controller": PI(), "dt_min": 0.01, "dt_max": 1.0}[name]
    solver = Solver(method="rk4", dt0=0.1, engine="torch", **{name: value})
    with pytest.raises(ValueError, match=f"fixed step, which a {name} can not change"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], solver)
