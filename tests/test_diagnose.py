"""What `diagnose` measures on known problems, and each of its rules."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings
from collections.abc import Callable

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import problems
import regnde
from problems import seeded
from regnde._advice import RULES, advised
from regnde._diagnose import observed_order
from regnde._modules import Activations, found
from regnde._report import Diagnosis, Smoothness
from regnde._run import Run
from regnde._tableau import TABLEAUX

matplotlib.use("Agg")

ADAPTIVE = [name for name, tableau in TABLEAUX.items() if tableau.adaptive]
MEASURED_ERROR = 0.05
"""Relative, of a measured error against the exact one: the error of the reference."""


def perceptron(activation: type[nn.Module], dtype: torch.dtype = torch.float64, size: int = 4) -> nn.Module:
    """An untrained field with enough curvature for some steps."""
    torch.manual_seed(0)
    layers = (nn.Linear(size, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, size))
    network = nn.Sequential(*layers).to(dtype)
    for parameter in network.parameters():
        parameter.data *= 2.0

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.network(y)

    return Field()


def states(dtype: torch.dtype = torch.float64, size: int = 4, count: int = 8) -> Tensor:
    return torch.randn(count, size, generator=seeded(1), dtype=torch.float64).to(dtype)


def tight(tolerance: float = 1e-7) -> regnde.Solver:
    return regnde.Solver(rtol=tolerance, atol=tolerance, engine="torch")


def of(field: regnde.nn.MLP | object, y0: object, solver: regnde.Solver | None = None, **more: object) -> Diagnosis:
    """A diagnosis over [0, 1] that compares the given method with one other."""
    return regnde.diagnose(field, y0, [0.0, 1.0], solver, **{"methods": ["bs3"]} | more)  # type: ignore[arg-type]


def rules(report: Diagnosis) -> list[str]:
    return [advice.rule for advice in report.advice]


# --- measures ------------------------------------------------------------------------------------


def test_evaluations_and_errors_are_those_of_the_solves() -> None:
    y0 = torch.ones(1, dtype=torch.float64)
    report = regnde.diagnose(problems.exp_decay, y0, [0.0, 1.0, 2.0], tight(1e-5))
    assert {run.method for run in report.runs} == set(ADAPTIVE)
    assert [run.tolerance for run in report.runs if run.method == "tsit5"][1:] == [1e-7, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1]
    for run in report.runs:
        sol = regnde.solve(problems.exp_decay, y0, [0.0, 1.0, 2.0], run.solver)
        assert (run.evaluations, run.accepted, run.rejected) == (sol.stats.nfe, sol.stats.accepted, sol.stats.rejected)
        exact = torch.exp(-sol.ts)[:, None]
        error = float((sol.ys - exact).abs().max() / exact.square().mean().sqrt())
        assert run.error == pytest.approx(error, rel=MEASURED_ERROR, abs=1e-9)
    assert report.reference is not None
    assert report.reference.tolerance <= 1e-8
    assert report.solves <= 36


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("dt0", [None, 0.1])
def test_the_floor_is_two_steps(method: str, dt0: float | None) -> None:
    now = of(problems.exp_decay, [1.0], regnde.Solver(method=method, rtol=0.1, atol=0.1, dt0=dt0)).now
    stages = TABLEAUX[method].stages - TABLEAUX[method].fsal
    assert now.floor == now.evaluations + (2 - now.steps) * stages


def test_a_decaying_exponential_is_at_the_floor() -> None:
    report = regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.5], tight(0.1))
    assert {"at_floor", "error_penalty"} & set(rules(report)) == {"at_floor"}
    assert "at_floor" not in rules(regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.5], tight(1e-7)))


@pytest.mark.parametrize(
    ("y0", "ts"),
    [
        (np.ones((2, 3, 1)), np.array([1.0, 0.0])),
        (torch.tensor(1.0), [0.0, 1.0]),
        (torch.ones(1, 1), [0.0, 0.0, 0.5, 1.0]),
        (torch.ones(2, dtype=torch.complex64), [2.0, 1.0]),
        (torch.zeros(3, dtype=torch.float64), [0.0, 1.0]),
    ],
)
def test_states_and_times_of_any_kind_and_no_parameters(y0: object, ts: object) -> None:
    report = regnde.diagnose(lambda t, y: -y + t, y0, ts, tight(1e-5), methods=["bs3"])  # type: ignore[arg-type]
    assert report.now.error is not None
    assert report.now.error < 1e-4
    assert report.best.evaluations <= report.now.evaluations
    assert report.smoothness is not None  # by y0
    assert not report.trainable
    assert "error_penalty" not in rules(report)
    assert str(report)


def test_kinks_are_named_and_found_in_the_gradient() -> None:
    kinked, smooth = (of(perceptron(activation), states(), tight()) for activation in (nn.ReLU, nn.Tanh))
    assert kinked.kinks == ("relu (2)",)
    assert smooth.kinks == ()
    assert kinked.smoothness is not None
    assert smooth.smoothness is not None
    assert smooth.smoothness.change < 1e-3 < kinked.smoothness.change
    assert kinked.orders is not None
    assert smooth.orders is not None
    assert kinked.orders[0] < 5 <= smooth.orders[0]
    assert "smooth_activations" not in rules(smooth)
    advice = kinked.advice[rules(kinked).index("smooth_activations")]
    assert "relu (2)" in advice.text
    assert advice.evaluations is not None
    assert advice.evaluations < 0.8 * kinked.now.evaluations
    assert kinked.smoothness_without is not None
    assert kinked.smoothness_without.change < 1e-3


KINKED = {
    "relu": [torch.relu, nn.ReLU(inplace=True), Tensor.relu, lambda x: x.clone().relu_()],
    "leaky_relu": [nn.LeakyReLU(), lambda x: functional.leaky_relu_(x.clone())],
    "hardtanh": [nn.Hardtanh(), nn.ReLU6()],
    **{name.lower(): [getattr(nn, name)()] for name in ("RReLU", "PReLU", "ELU", "SELU", "CELU", "Hardswish")},
    **{name.lower(): [getattr(nn, name)()] for name in ("Hardsigmoid", "Softshrink", "Hardshrink")},
    "threshold": [nn.Threshold(0.1, 1.0), lambda x: functional.threshold(x, 0.1, 1.0)],
}


@pytest.mark.parametrize("name", KINKED)
def test_activations_are_found_and_replaced_however_they_are_called(name: str) -> None:
    x = torch.linspace(-3, 3, 20, dtype=torch.float64)
    smooth = {"hardtanh": torch.tanh, "hardsigmoid": torch.sigmoid}.get(name, functional.silu)
    for activation in KINKED[name]:
        activation = activation.double().eval() if isinstance(activation, nn.Module) else activation
        with Activations(replace=True) as activations:
            assert torch.equal(activation(x.clone()), smooth(x))
        assert activations.calls == {name: 1}


def test_an_activation_that_acts_in_place_is_replaced_in_place() -> None:
    x = torch.tensor([-1.0, 1.0])
    with Activations(replace=True):
        x.relu_()
    assert torch.equal(x, functional.silu(torch.tensor([-1.0, 1.0])))


def test_kinks_of_a_function_and_modules_it_refers_to() -> None:
    lin = nn.Linear(2, 2)
    report = of(lambda t, y: torch.relu(lin(y)), torch.ones(2), tight(1e-3))
    assert report.kinks == ("relu (1)",)
    assert report.trainable


def test_stability_limits_the_steps_of_a_stiff_problem() -> None:
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    by_bs3 = dataclasses.replace(tight(1e-4), method="bs3")  # estimates no stiffness: tsit5 does
    for solver in (tight(1e-4), by_bs3):
        stiff = of(problems.van_der_pol(100.0), y0, solver)
        assert stiff.stiff is not None
        assert stiff.stiff > 0.8
        assert "stiffness" in rules(stiff)
    easy = of(problems.van_der_pol(1.0), y0, tight(1e-4))
    assert easy.stiff == 0
    assert "stiffness" not in rules(easy)


def test_stability_is_named_where_a_tight_tolerance_takes_slightly_shorter_steps() -> None:
    def stiff(t: Tensor, y: Tensor) -> Tensor:
        return -1000 * (y - torch.cos(t))

    y0 = torch.zeros(2, dtype=torch.float64)
    steps = regnde.solve(stiff, y0, [0.0, 1.0], tight(1e-6), record="all").steps
    assert steps is not None
    assert float(steps.stiff.double().mean()) < 0.1  # at 0.9 of the limit and below
    report = of(stiff, y0, tight(1e-6))
    assert report.stiff is not None
    assert report.stiff > 0.8
    assert "stiffness" in rules(report)


def test_float32_at_a_tight_tolerance_is_rounding() -> None:
    field, y0 = perceptron(nn.Tanh, torch.float32), states(torch.float32)
    report = of(field, y0, tight(1e-8))
    assert report.rounding is not None
    assert report.rounding > 0.2
    assert "float32's rounding" in report.advice[rules(report).index("rounding")].text
    loose = of(field, y0, tight(1e-3))
    assert loose.rounding == pytest.approx(0, abs=0.05)
    assert "rounding" not in rules(loose)
    assert "rounding" not in rules(of(field.double(), y0.double(), tight(1e-8)))


@pytest.mark.parametrize("where", ["outside", "inside", "by hand"])
def test_a_field_of_a_lower_precision_is_told_from_float32(where: str) -> None:
    """What bfloat16 rounds off is not float32's fault, and a smaller tolerance is no remedy."""
    network, y0 = perceptron(nn.Tanh, torch.float32), states(torch.float32)

    def field(t: Tensor, y: Tensor) -> Tensor:
        if where == "by hand":
            slope = network(t, y)
            return slope if y.dtype == torch.float64 else slope.bfloat16().float()
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "inside" or torch.is_autocast_enabled("cpu")):
            return network(t, y).to(y.dtype)

    with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
        report = of(field, y0, tight(1e-4))
        assert of(network, y0, tight(1e-4)).smoothness is not None  # the weights keep their gradients in this context
    assert report.roundoff is not None
    assert 1e-4 < report.roundoff < 1e-2
    text = report.advice[rules(report).index("rounding")].text
    assert "in the dtype of its state" in text
    assert "float32" not in text
    assert report.now.error is not None
    assert 1e-4 < report.now.error < 1e-2  # the reference does not round so


def test_times_that_float32_rounds_ask_for_float64() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(2 * math.pi * t) * torch.ones_like(y)

    report = regnde.diagnose(field, torch.ones(2), [1e6, 1e6 + 0.25], tight(1e-4), methods=[])
    assert rules(report)[0] == "inaccurate"
    assert report.advice[rules(report).index("rounding")].text.startswith("float64")
    assert "t from 1000000 to 1000000.2" in str(report)


def test_a_float64_state_of_a_float32_network() -> None:
    """The network can not be converted: errors are known all the same."""
    network = perceptron(nn.Tanh, torch.float32)
    report = of(lambda t, y: network(t, y.float()).double(), states(), tight(1e-4))
    assert report.reference is not None
    assert report.best.evaluations < report.now.evaluations


def test_one_hard_sample_of_a_batch() -> None:
    rates = torch.ones(16, 1, dtype=torch.float64)
    rates[5] = 200.0

    def field(t: Tensor, y: Tensor) -> Tensor:
        rate, state = y[:, :1], y[:, 1:]
        return torch.cat((0 * rate, -rate * (state - torch.cos(t))), 1)

    y0 = torch.cat((rates, torch.ones(16, 1, dtype=torch.float64)), 1)
    report = of(field, y0, tight(1e-5))
    assert len(report.samples) == 16
    assert max(report.samples) == report.samples[5] > 3 * report.samples[4]
    advice = report.advice[rules(report).index("per_sample")]
    assert advice.evaluations == pytest.approx(sum(report.samples) / 16, abs=1)
    assert "sample 5 needs" in advice.text
    even = of(field, y0[:5], tight(1e-5))
    assert len(even.samples) == 5
    assert "per_sample" not in rules(even)


def test_a_state_that_is_no_batch() -> None:
    coupled = of(lambda t, y: -y + y.mean(0), states())
    assert coupled.samples == ()
    assert "not independent" in coupled.samples_why_not
    mixing = torch.randn(8, 8, dtype=torch.float64)
    assert "RuntimeError: " in of(lambda t, y: -(mixing @ y), states()).samples_why_not
    assert of(problems.spiral, problems.SPIRAL[0]).samples_why_not == ""

    def asserting(t: Tensor, y: Tensor) -> Tensor:
        assert y.shape == (8, 4)  # its error has no text
        return -y

    assert of(asserting, states()).samples_why_not.startswith("AssertionError")


def test_a_solver_that_steps_each_sample_alone() -> None:
    rates = torch.tensor([[1.0], [1.0], [50.0]], dtype=torch.float64)

    def field(t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        return -rates[samples] * torch.relu(y)

    solver = dataclasses.replace(tight(1e-5), batch="per-sample")
    report = of(field, torch.ones(3, 1, dtype=torch.float64), solver)
    assert report.kinks == ("relu (1)",)
    assert report.samples == ()
    assert report.recommended.batch == "per-sample"
    assert report.best.evaluations < report.now.evaluations


def test_noise_in_the_field_is_refused() -> None:
    """The report of a solve that fails would not say why."""
    for noisy in (lambda t, y: -y + 0.3 * torch.rand_like(y), lambda t, y: functional.dropout(-y, 0.5)):
        with pytest.raises(ValueError, match="two calls of f at the same"):
            of(noisy, torch.ones(40), dataclasses.replace(tight(), max_steps=100))


def test_too_few_steps_are_a_failed_solve() -> None:
    report = of(lambda t, y: -y, torch.ones(4), dataclasses.replace(tight(), max_steps=2))
    assert report.now.status == regnde.Status.MAX_STEPS
    assert report.best is report.now
    assert "*" not in str(report).split("tolerance")[1]  # nothing is good


def test_a_largest_step_bounds_the_first_steps_that_are_tried() -> None:
    solver = dataclasses.replace(tight(), dt_max=0.05)
    report = of(lambda t, y: -y, torch.ones(4, dtype=torch.float64), solver)
    assert {run.solver.dt_max for run in (*report.runs, *report.starts)} == {0.05}
    assert all((run.solver.dt0 or 0.0) <= 0.05 for run in (*report.starts, *report.fixed))


def test_a_field_that_needs_a_graph() -> None:
    def hamiltonian(t: Tensor, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        energy = y.square().sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return -slope

    report = of(hamiltonian, torch.ones(2, 1))
    assert report.now.succeeded
    assert len(report.samples) == 2


# --- the metric ----------------------------------------------------------------------------------


def test_a_metric_that_tolerances_do_not_change() -> None:
    def metric(solution: regnde.Solution) -> float:
        return float((solution.y1 > 0).double().mean())

    y0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
    report = regnde.diagnose(problems.lotka_volterra, y0, [0.0, 1.0], tight(), metric=metric, error_allowed=0.0)
    assert report.recommended.rtol == 0.1
    assert "looser_tolerance" in rules(report)
    sol = regnde.solve(problems.lotka_volterra, y0, [0.0, 1.0], report.recommended)
    assert sol.stats.nfe == report.chosen.evaluations <= report.best.evaluations < 0.5 * report.now.evaluations


def test_a_metric_that_every_tolerance_changes() -> None:
    def metric(solution: regnde.Solution) -> float:
        return float((solution.y1 - math.exp(-1)).abs().log())

    y0 = torch.ones(1, dtype=torch.float64)
    report = regnde.diagnose(problems.exp_decay, y0, [0.0, 1.0], tight(1e-4), metric=metric, metric_slack=1e-3)
    assert report.best is report.now
    assert rules(report) == ["inaccurate"]
    assert "learnt the error" in report.advice[0].text


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused_at_once(wrong: float) -> None:
    calls = []
    with pytest.raises(ValueError, match=f"the metric is {wrong} for Solver"):
        of(problems.exp_decay, [1.0], metric=lambda solution: calls.append(solution) or wrong)
    assert len(calls) == 1


def test_a_metric_that_a_loose_solve_makes_infinite_is_a_bad_run() -> None:
    report = of(
        problems.exp_decay,
        torch.ones(1, dtype=torch.float64),
        tight(1e-6),
        metric=lambda solution: 1.0 if abs(float(solution.y1) - math.exp(-1)) < 1e-5 else math.nan,
    )
    assert report.recommended.rtol is not None
    assert 1e-6 < report.recommended.rtol < 0.1


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"one real number, got a Tensor of shape \(2,\)"):
        of(problems.exp_decay, [1.0, 2.0], metric=lambda solution: solution.y1)


def test_the_error_allowed_bounds_the_recommendation() -> None:
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    best = [
        regnde.diagnose(problems.harmonic, y0, [0.0, 6.0], tight(), error_allowed=allowed).best
        for allowed in (1e-1, 1e-3, 1e-5)
    ]
    for run, allowed in zip(best, (1e-1, 1e-3, 1e-5), strict=True):
        assert run.error is not None
        assert run.error <= allowed
    assert best[0].evaluations < best[1].evaluations < best[2].evaluations


# --- the rules -----------------------------------------------------------------------------------


FLOORS = {"tsit5": 15, "bs3": 9}


def run(method: str, tolerance: float, evaluations: int, error: float | None, **more: object) -> Run:
    solver = regnde.Solver(method=method, rtol=tolerance, atol=tolerance)
    values = {"accepted": evaluations // 6, "rejected": 0, "error": error, "floor": FLOORS.get(method), **more}
    return Run(solver, method, evaluations, **values)  # type: ignore[arg-type]


def with_dt0(dt0: float, tolerance: float | None, method: str, evaluations: int, error: float) -> Run:
    solver = regnde.Solver(method=method, rtol=tolerance, atol=tolerance, dt0=dt0)
    return Run(solver, method, evaluations, 3, 0, FLOORS.get(method, 10) - 2, error)


def report(*runs: Run, **more: object) -> Diagnosis:
    """A report on these runs; the first is the present one."""
    values = {
        "reference": run("vern7", 1e-10, 200, 0.0),
        "problem": "float64 state (2,), t from 0 to 1",
        "error_allowed": 1e-2,
        "metric_slack": 0.02,
        **more,
    }
    found = Diagnosis(now=runs[0], runs=runs, **values)  # type: ignore[arg-type]
    return dataclasses.replace(found, advice=advised(found))


NOW = run("tsit5", 1e-6, 81, 1e-6)
LOOSE = run("tsit5", 1e-2, 27, 1e-3)
CHEAP = run("bs3", 1e-2, 12, 2e-3)
START = with_dt0(0.5, 1e-2, "tsit5", 19, 1e-3)
SMOOTH, NOISY = Smoothness(1e-6, 1.0), Smoothness(1.2, 0.1)

CASES: dict[str, tuple[tuple[Run, ...], dict[str, object]]] = {
    "inaccurate": ((run("tsit5", 1e-1, 21, 0.5), LOOSE), {}),
    "looser_tolerance": ((NOW, LOOSE), {}),
    "other_method": ((NOW, LOOSE, CHEAP), {}),
    "first_step": ((NOW,), {"starts": (START,)}),
    "fewer_steps": ((NOW,), {"fixed": (with_dt0(1.0, None, "rk4", 4, 1e-4),)}),
    "rounding": ((NOW,), {"rounding": 0.4}),
    "smooth_activations": ((NOW,), {"kinks": ("relu (2)",), "without_kinks": 30, "smoothness": NOISY}),
    "per_sample": ((NOW,), {"samples": (20, 20, 20, 90, 20)}),
    "stiffness": ((NOW,), {"stiff": 0.9, "trainable": True}),
    "rejections": ((run("tsit5", 1e-6, 81, 1e-6, accepted=10, rejected=3),), {}),
    "error_penalty": ((NOW,), {"trainable": True, "smoothness": SMOOTH}),
    "at_floor": ((run("tsit5", 1e-2, 21, 1e-4),), {}),
}


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_names_its_change_and_is_silent_without_its_measure(name: str) -> None:
    runs, measures = CASES[name]
    found = report(*runs, **measures)
    assert name in rules(found)
    assert found.advice[rules(found).index(name)].text in re.sub(r"\s+", " ", str(found))
    assert name not in rules(report(*runs) if measures else report(NOW))


def test_what_saves_most_stands_first_and_what_is_wrong_before_it() -> None:
    found = report(NOW, LOOSE, CHEAP, rounding=0.2, trainable=True, smoothness=NOISY, smoothness_then=SMOOTH)
    assert rules(found) == ["other_method", "looser_tolerance", "rounding"]  # bs3 is at its floor: no penalty
    assert found.recommended == CHEAP.solver
    wrong = report(run("tsit5", 1e-2, 81, 0.5), run("tsit5", 1e-3, 99, 1e-4), rounding=0.5)
    assert rules(wrong)[0] == "inaccurate"
    assert wrong.recommended.rtol == 1e-3


def test_nothing_to_do_is_said() -> None:
    found = report(NOW, run("tsit5", 1e-5, 75, 1e-1))
    assert found.advice == ()
    assert str(found).endswith("nothing: no change saves a tenth of the evaluations")


def test_luck_is_not_recommended() -> None:
    lucky = report(NOW, run("tsit5", 1e-3, 39, 0.1), run("tsit5", 1e-1, 21, 1e-3))
    assert lucky.best is NOW
    steady = report(NOW, run("tsit5", 1e-3, 39, 1e-4), run("tsit5", 1e-1, 21, 1e-3))
    assert steady.recommended.rtol == 0.1


def test_a_change_that_saves_little_is_not_named() -> None:
    assert report(NOW, run("tsit5", 1e-5, 75, 1e-5)).best is NOW
    assert report(NOW, LOOSE, run("bs3", 1e-2, 26, 1e-3)).best is LOOSE


def test_a_penalty_needs_a_gradient_that_is_reproducible() -> None:
    assert "error_penalty" not in rules(report(NOW, trainable=True, smoothness=NOISY))
    then = report(NOW, LOOSE, trainable=True, smoothness=NOISY, smoothness_then=SMOOTH)
    advice = next(a for a in then.advice if a.rule == "error_penalty")
    assert (advice.before, advice.evaluations) == (27, 22)
    assert "LossBudget" in advice.text


def test_a_smooth_activation_is_named_for_what_it_mends() -> None:
    kinks = {"kinks": ("relu (2)",), "smoothness": NOISY, "without_kinks": 70}
    assert "smooth_activations" in rules(report(NOW, **kinks, smoothness_without=SMOOTH))
    assert "smooth_activations" not in rules(report(NOW, **kinks, smoothness_without=NOISY))
    assert "smooth_activations" not in rules(report(NOW, **kinks | {"smoothness": SMOOTH}))


def test_what_follows_on_another_change_stands_after_it() -> None:
    found = report(NOW, LOOSE, starts=(START,), rounding=0.15, trainable=True, smoothness_then=SMOOTH)
    assert [(a.before, a.rule) for a in found.advice] == [
        (81, "looser_tolerance"),
        (81, "rounding"),
        (27, "first_step"),
    ]
    assert found.recommended == START.solver


def test_equal_quality_by_the_metric() -> None:
    def measured(tolerance: float, evaluations: int, metric: float) -> Run:
        return run("tsit5", tolerance, evaluations, 0.5, metric=metric)

    runs = (measured(1e-6, 81, 1.0), measured(1e-3, 39, 1.015), measured(1e-1, 21, 1.03))
    assert report(*runs).recommended.rtol == 1e-3  # errors do not count
    assert report(*runs, metric_slack=0.05).recommended.rtol == 0.1


def test_observed_order() -> None:
    def order(*steps: int) -> float | None:
        tolerances = (1e-8, 1e-6, 1e-4)
        return observed_order([run("tsit5", t, 0, None, accepted=n) for t, n in zip(tolerances, steps, strict=True)])

    assert order(1000, 316, 100) == pytest.approx(4, rel=0.01)
    assert order(50, 50, 50) == math.inf
    assert order(9, 2, 1) is None


# --- failures and manners ------------------------------------------------------------------------


def test_failed_solves_are_rows_that_say_so() -> None:
    blows_up = regnde.diagnose(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0], tight(1e-3))
    assert not blows_up.now.succeeded
    assert blows_up.now.error is None
    assert "fails" in str(blows_up)
    assert rules(blows_up)[0] == "inaccurate"
    few = dataclasses.replace(tight(1e-6), max_steps=12)
    cut = regnde.diagnose(problems.harmonic, torch.ones(2, dtype=torch.float64), [0.0, 6.0], few)
    assert cut.now.status == regnde.Status.MAX_STEPS
    assert "max steps reached" in str(cut)
    assert cut.best.succeeded
    assert cut.best.error is not None
    assert cut.best.error <= 1e-2


def test_fixed_steps_are_compared_with_adaptive_ones() -> None:
    found = of(problems.harmonic, torch.ones(2, dtype=torch.float64), regnde.Solver(method="rk4", dt0=0.05))
    assert found.now.evaluations == 80
    assert found.best.method == "bs3"
    assert rules(found)[0] == "other_method"
    assert "rk4 with steps of 0.05" in str(found)
    assert re.search(r"\nfixed +80 ", str(found))


def test_a_tableau_of_the_user() -> None:
    ralston = regnde.Tableau("ralston", 2, a=((), ("2/3",)), b=("1/4", "3/4"), btilde=("3/4", "-3/4"))
    solver = regnde.Solver(method=ralston, rtol=1e-3, atol=1e-3)
    found = of(problems.exp_decay, torch.ones(1, dtype=torch.float64), solver)
    assert found.now.method == "ralston"
    assert found.now.floor == 2 + 2 * 2
    assert "ralston" in str(found)


def test_nothing_is_changed() -> None:
    torch.manual_seed(0)
    field = perceptron(nn.ReLU, torch.float32)
    field.network.append(nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)))
    field.network[-1][1].eval()
    field.scale = torch.tensor(1.5)
    for parameter in field.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: (x, x.clone(), x.data_ptr()) for name, x in field.state_dict(keep_vars=True).items()}
    modes, scale, generator = [m.training for m in field.modules()], field.scale, torch.get_rng_state()
    nodes = [torch.autograd.graph.get_gradient_edge(p).node for p in field.parameters()]
    y0 = states(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = of(field, y0, tight(1e-5))
    assert found.reference is not None
    assert found.reference.tolerance < 1e-7  # in float64
    assert [m.training for m in field.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert field.scale is scale
    for name, x in field.state_dict(keep_vars=True).items():
        old, value, place = before[name]
        assert x is old
        assert x.dtype == value.dtype
        assert x.data_ptr() == place
        assert torch.equal(x, value)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in field.parameters())
    for p, node in zip(field.parameters(), nodes, strict=True):  # where DistributedDataParallel has its hooks
        assert torch.autograd.graph.get_gradient_edge(p).node is node
    assert y0.grad is None
    assert not y0.requires_grad


def test_fewer_methods_cost_fewer_solves() -> None:
    assert of(problems.exp_decay, [1.0], methods=[]).methods == ["tsit5"]
    few = of(problems.exp_decay, [1.0])
    assert few.methods == ["tsit5", "bs3"]
    assert few.solves < regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0]).solves


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="diagnose is for ODEs"):
        of(problems.geometric(), [1.0])
    with pytest.raises(ValueError, match="'rk4' is not one of the adaptive methods"):
        of(problems.exp_decay, [1.0], methods=["rk4"])
    with pytest.raises(ValueError, match="needs a span of time"):
        regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="a state with entries"):
        of(problems.exp_decay, torch.ones(0, 2))
    with pytest.raises(ValueError, match="1 of the 2 entries of y0 are not finite"):
        of(problems.exp_decay, [1.0, math.nan])
    with pytest.raises(TypeError, match="solver must be a Solver, got 'tsit5'"):
        of(problems.exp_decay, [1.0], "tsit5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="error_allowed=-1"):
        of(problems.exp_decay, [1.0], error_allowed=-1)
    with pytest.raises(ValueError, match="shape"):  # the field's own mistake is not swallowed
        of(lambda t, y: y[:1], [1.0, 2.0])


def test_the_report_prints_and_draws() -> None:
    found = regnde.diagnose(perceptron(nn.Tanh), states(), [0.0, 1.0], tight())
    text = str(found)
    assert max(map(len, text.split("\n"))) <= 120
    assert re.search(rf"1e-07 +{found.now.evaluations} .*<", text)
    assert repr(found.recommended) in re.sub(r"\s+", " ", text)
    axes = found.plot()
    assert {text.get_text() for text in axes.get_legend().get_texts()} >= {"tsit5", "bs3"}
    labels = [text.get_text() for text in axes.texts]
    assert any(label.startswith("now") for label in labels)
    assert any(label.startswith("recommended") for label in labels)
    matplotlib.pyplot.close(axes.figure)
    with pytest.raises(ValueError, match="no reference"):
        regnde.plot.diagnosis(report(run("tsit5", 1e-6, 81, None)))


# --- what a newcomer gave it ---------------------------------------------------------------------


def test_the_reference_is_finer_than_a_tight_solve_with_a_given_first_step() -> None:
    for dt0 in (None, 0.1):
        reference = of(problems.exp_decay, [1.0], dataclasses.replace(tight(1e-10), dt0=dt0)).reference
        assert reference is not None
        assert reference.tolerance == 1e-12


def test_a_last_step_is_left_alone_and_no_run_depends_on_those_before() -> None:
    last = regnde.LastStep()
    solver = dataclasses.replace(tight(), dt0=last)
    reports = [of(perceptron(nn.Tanh), states(), solver) for _ in range(2)]
    assert last.size is None
    assert [r.evaluations for r in reports[0].runs] == [r.evaluations for r in reports[1].runs]
    assert reports[0].smoothness is not None
    assert reports[0].smoothness.change < 1e-2
    for _ in range(2):  # what a solve costs once the step is known
        solution = regnde.solve(perceptron(nn.Tanh), states(), [0.0, 1.0], solver)
    assert reports[0].now.evaluations == solution.stats.nfe
    axes = reports[0].plot()  # a first step that is an object and no number
    assert any("LastStep" in text.get_text() for text in axes.texts)
    matplotlib.pyplot.close(axes.figure)


def test_the_metrics_modules_run_in_evaluation_mode() -> None:
    """Dropout would make noise of the metric, and batch norm would learn from the states of loose solves."""
    readout = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    before = {name: x.clone() for name, x in readout.state_dict().items()}
    report = of(perceptron(nn.Tanh), states(), tight(), metric=lambda sol: readout(sol.y1).square().mean())
    assert report.reference is not None
    assert report.now.metric == pytest.approx(report.reference.metric)
    assert all(torch.equal(x, before[name]) for name, x in readout.state_dict().items())
    assert all(module.training for module in readout.modules())


def test_modules_in_a_partial_are_found() -> None:
    def field(network: nn.Module, t: Tensor, y: Tensor) -> Tensor:
        return network(t, y)

    report = of(functools.partial(field, perceptron(nn.ReLU)), states(), methods=["tsit5"])
    assert report.trainable
    assert report.kinks == ("relu (2)",)


NETWORK = nn.Linear(4, 4)
LAYERS = [NETWORK, nn.Tanh()]


class Holder:
    """No module, but it has one, and is one's caller in two ways."""

    def __init__(self) -> None:
        self.layers = {"first": NETWORK}

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers["first"](y)


HOLDER = Holder()


def through_a_list(t: Tensor, y: Tensor) -> Tensor:
    for layer in LAYERS:
        y = layer(y)
    return y


def through_a_helper(t: Tensor, y: Tensor) -> Tensor:
    return through_a_list(t, y)


def through_an_object(t: Tensor, y: Tensor) -> Tensor:
    return HOLDER(t, y)


@pytest.mark.parametrize("way", [through_a_list, through_a_helper, through_an_object, HOLDER, HOLDER.__call__])
def test_modules_are_found_through_what_a_field_refers_to(way: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert NETWORK in found(way)
    assert NETWORK in found(functools.partial(way))
