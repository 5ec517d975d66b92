"""What `diagnose` measures on known problems, and each of its rules."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import warnings

import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import problems
import regnde
from regnde._advice import RULES, Diagnosis, Run, Samples, Smoothness, observed_order
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
    return torch.randn(count, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def tight(tolerance: float = 1e-7) -> regnde.Solver:
    return regnde.Solver(rtol=tolerance, atol=tolerance, engine="torch")


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
def test_the_floor_is_two_steps(method: str) -> None:
    solver = regnde.Solver(method=method, rtol=0.1, atol=0.1)
    floor = regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0], solver).floor
    stats = regnde.solve(problems.exp_decay, [1.0], [0.0, 1.0], solver).stats
    stages = TABLEAUX[method].stages - TABLEAUX[method].fsal
    assert floor == stats.nfe + (2 - stats.accepted - stats.rejected) * stages


def test_a_decaying_exponential_is_at_the_floor() -> None:
    report = regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.5], tight(0.1))
    assert report.headroom is not None
    assert report.headroom <= 1.5
    assert "at_floor" in rules(report)
    assert "error_penalty" not in rules(report)
    assert "at_floor" not in rules(regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.5], tight(1e-7)))


def test_a_backward_span_a_numpy_state_and_no_parameters() -> None:
    report = regnde.diagnose(problems.exp_decay, np.ones((2, 3, 1)), np.array([1.0, 0.0]), tight())
    assert report.now.error is not None
    assert report.now.error < 1e-5
    assert report.smoothness is not None  # by y0
    assert not report.trainable
    assert "error_penalty" not in rules(report)


@pytest.mark.parametrize("y0", [torch.tensor(1.0), torch.ones(1, 1), torch.ones(2, dtype=torch.complex64)])
def test_states_of_any_shape(y0: Tensor) -> None:
    report = regnde.diagnose(lambda t, y: -y, y0, [0.0, 1.0])
    assert report.best.evaluations <= report.now.evaluations
    assert str(report)


def test_kinks_are_named_and_found_in_the_gradient() -> None:
    kinked = regnde.diagnose(perceptron(nn.ReLU), states(), [0.0, 1.0], tight(1e-8))
    smooth = regnde.diagnose(perceptron(nn.Tanh), states(), [0.0, 1.0], tight(1e-8))
    assert kinked.kinks == ("nn.ReLU (2)",)
    assert smooth.kinks == ()
    assert kinked.smoothness is not None
    assert smooth.smoothness is not None
    assert smooth.smoothness.change < 1e-3 < kinked.smoothness.change
    assert kinked.order is not None
    assert smooth.order is not None
    assert kinked.order < 5 <= smooth.order
    assert "smooth_activations" in rules(kinked)
    assert "smooth_activations" not in rules(smooth)
    advice = next(a for a in kinked.advice if a.rule == "smooth_activations")
    assert "nn.ReLU" in advice.text
    assert advice.evaluations is not None
    assert advice.evaluations < 0.8 * kinked.now.evaluations
    assert kinked.smoothness_without is not None
    assert kinked.smoothness_without.change < 1e-3


def test_kinks_of_a_function_and_modules_it_refers_to() -> None:
    lin = nn.Linear(2, 2)
    report = regnde.diagnose(lambda t, y: torch.relu(lin(y)), torch.ones(2), [0.0, 1.0], tight(1e-3))
    assert report.kinks == ("relu",)
    assert report.trainable


def test_stability_limits_the_steps_of_a_stiff_problem() -> None:
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    stiff = regnde.diagnose(problems.van_der_pol(100.0), y0, [0.0, 1.0], tight(1e-4), methods=["bs3"])
    assert stiff.stiff is not None
    assert stiff.stiff > 0.8
    assert "stiffness" in rules(stiff)
    by_bs3 = dataclasses.replace(tight(1e-4), method="bs3")  # estimates no stiffness: tsit5 does
    assert (regnde.diagnose(problems.van_der_pol(100.0), y0, [0.0, 1.0], by_bs3, methods=["bs3"]).stiff or 0) > 0.8
    easy = regnde.diagnose(problems.van_der_pol(1.0), y0, [0.0, 1.0], tight(1e-4), methods=["bs3"])
    assert easy.stiff == 0
    assert "stiffness" not in rules(easy)


def test_float32_at_a_tight_tolerance_is_rounding() -> None:
    field, y0 = perceptron(nn.Tanh, torch.float32), states(torch.float32)
    report = regnde.diagnose(field, y0, [0.0, 1.0], tight(1e-8))
    assert report.rounding is not None
    assert report.rounding > 0.2
    assert "rounding" in rules(report)
    loose = regnde.diagnose(field, y0, [0.0, 1.0], tight(1e-3))
    assert loose.rounding == pytest.approx(0, abs=0.05)
    assert "rounding" not in rules(loose)
    assert "rounding" not in rules(regnde.diagnose(field.double(), y0.double(), [0.0, 1.0], tight(1e-8)))


def test_one_hard_sample_of_a_batch() -> None:
    rates = torch.ones(16, 1, dtype=torch.float64)
    rates[5] = 200.0

    def field(t: Tensor, y: Tensor) -> Tensor:
        rate, state = y[:, :1], y[:, 1:]
        return torch.cat((0 * rate, -rate * (state - torch.cos(t))), 1)

    y0 = torch.cat((rates, torch.ones(16, 1, dtype=torch.float64)), 1)
    report = regnde.diagnose(field, y0, [0.0, 1.0], tight(1e-5))
    assert report.samples is not None
    assert report.samples.hardest == 5
    assert report.samples.most > 3 * report.samples.median
    advice = next(a for a in report.advice if a.rule == "per_sample")
    assert "sample 5" in advice.text.lower()
    even = regnde.diagnose(field, y0[:5], [0.0, 1.0], tight(1e-5))
    assert even.samples is not None
    assert "per_sample" not in rules(even)


def test_a_state_that_is_no_batch() -> None:
    coupled = regnde.diagnose(lambda t, y: -y + y.mean(0), states(), [0.0, 1.0])
    assert coupled.samples is None
    assert "not independent" in coupled.samples_why_not
    mixing = torch.randn(8, 8, dtype=torch.float64)
    refused = regnde.diagnose(lambda t, y: -(mixing @ y), states(), [0.0, 1.0])
    assert "RuntimeError" in refused.samples_why_not
    assert regnde.diagnose(problems.spiral, problems.SPIRAL[0], [0.0, 1.0]).samples_why_not == ""


def test_a_solver_that_steps_each_sample_alone() -> None:
    rates = torch.tensor([[1.0], [1.0], [50.0]], dtype=torch.float64)

    def field(t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        return -rates[samples] * (y - torch.cos(t))

    solver = dataclasses.replace(tight(1e-5), batch="per-sample")
    report = regnde.diagnose(field, torch.ones(3, 1, dtype=torch.float64), [0.0, 1.0], solver)
    assert report.samples is None
    assert report.recommended.batch == "per-sample"
    assert report.best.evaluations < report.now.evaluations


def test_noise_in_the_field_is_a_failed_solve() -> None:
    def noisy(t: Tensor, y: Tensor) -> Tensor:
        return -y + 0.3 * torch.rand_like(y)

    report = regnde.diagnose(noisy, torch.ones(4), [0.0, 1.0], dataclasses.replace(tight(), max_steps=100))
    assert report.now.status == regnde.Status.MAX_STEPS
    assert report.best is report.now


def test_a_field_that_needs_a_graph() -> None:
    def hamiltonian(t: Tensor, y: Tensor) -> Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        energy = y.square().sum()
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return -slope

    assert regnde.diagnose(hamiltonian, torch.ones(2), [0.0, 1.0]).now.succeeded


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


def run(method: str, tolerance: float, evaluations: int, error: float | None, **more: object) -> Run:
    solver = regnde.Solver(method=method, rtol=tolerance, atol=tolerance)
    values = {"accepted": evaluations // 6, "rejected": 0, "error": error, **more}
    return Run(solver=solver, method=method, evaluations=evaluations, **values)  # type: ignore[arg-type]


def report(*runs: Run, **more: object) -> Diagnosis:
    """A report on these runs; the first is the present one."""
    values = {
        "reference": run("vern7", 1e-10, 200, 0.0),
        "floors": {"tsit5": 15, "bs3": 9},
        "problem": "float64 state (2,), t from 0 to 1",
        "error_allowed": 1e-2,
        "metric_slack": 0.02,
        **more,
    }
    return Diagnosis(now=runs[0], runs=runs, **values)  # type: ignore[arg-type]


NOW = run("tsit5", 1e-6, 81, 1e-6)
LOOSE = run("tsit5", 1e-2, 27, 1e-3)
CHEAP = run("bs3", 1e-2, 12, 2e-3)
SMOOTH, NOISY = Smoothness(1e-6, 1.0), Smoothness(1.2, 0.1)

CASES = {
    "inaccurate": (run("tsit5", 1e-1, 21, 0.5), run("tsit5", 1e-2, 27, 1e-3)),
    "looser_tolerance": (NOW, LOOSE),
    "other_method": (NOW, LOOSE, CHEAP),
    "first_step": (NOW,),
    "fewer_steps": (NOW,),
    "rounding": (NOW,),
    "smooth_activations": (NOW,),
    "per_sample": (NOW,),
    "stiffness": (NOW,),
    "rejections": (run("tsit5", 1e-6, 81, 1e-6, accepted=10, rejected=3),),
    "error_penalty": (NOW,),
    "at_floor": (run("tsit5", 1e-2, 21, 1e-4),),
}
MORE = {
    "fewer_steps": {"fixed": (Run(regnde.Solver(method="rk4", dt0=1.0), "rk4", 4, 1, 0, 1e-4),)},
    "first_step": {"starts": (Run(regnde.Solver(rtol=1e-6, atol=1e-6, dt0=0.5), "tsit5", 61, 10, 0, 1e-6),)},
    "rounding": {"rounding": 0.4},
    "smooth_activations": {"kinks": ("nn.ReLU (2)",), "without_kinks": 30, "smoothness": NOISY},
    "per_sample": {"samples": Samples(3, 90, 20, 25.0, 95)},
    "stiffness": {"stiff": 0.9, "trainable": True},
    "error_penalty": {"trainable": True, "smoothness": SMOOTH},
}


def test_every_rule_has_a_case() -> None:
    assert {rule.__name__ for rule in RULES} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_names_its_change(name: str) -> None:
    found = report(*CASES[name], **MORE.get(name, {}))
    assert name in rules(found)
    assert found.advice[rules(found).index(name)].text in re.sub(r"\s+", " ", str(found))


@pytest.mark.parametrize("name", [name for name in CASES if name in MORE])
def test_no_rule_speaks_without_its_measure(name: str) -> None:
    assert name not in rules(report(*CASES[name]))


def test_what_saves_most_stands_first_and_what_is_wrong_before_it() -> None:
    found = report(NOW, LOOSE, CHEAP, rounding=0.2, trainable=True, smoothness=NOISY, smoothness_then=SMOOTH)
    assert rules(found) == ["other_method", "looser_tolerance", "rounding"]  # bs3 is at its floor: no penalty
    assert found.recommended == CHEAP.solver
    wrong = report(run("tsit5", 1e-2, 81, 0.5), run("tsit5", 1e-3, 99, 1e-4), rounding=0.5)
    assert rules(wrong)[0] == "inaccurate"
    assert wrong.recommended.rtol == 1e-3


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
    kinks = {"kinks": ("nn.ReLU (2)",), "smoothness": NOISY, "without_kinks": 70}
    assert "smooth_activations" in rules(report(NOW, **kinks, smoothness_without=SMOOTH))
    assert "smooth_activations" not in rules(report(NOW, **kinks, smoothness_without=NOISY))
    assert "smooth_activations" not in rules(report(NOW, **kinks | {"smoothness": SMOOTH}))


def test_what_follows_on_another_change_stands_after_it() -> None:
    start = Run(regnde.Solver(rtol=1e-2, atol=1e-2, dt0=0.5), "tsit5", 19, 3, 0, 1e-3)
    found = report(NOW, LOOSE, starts=(start,), rounding=0.15, trainable=True, smoothness_then=SMOOTH)
    assert [(a.before, a.rule) for a in found.advice] == [
        (81, "looser_tolerance"),
        (81, "rounding"),
        (27, "first_step"),
    ]
    assert found.recommended == start.solver


def test_equal_quality_by_the_metric() -> None:
    def measured(tolerance: float, evaluations: int, metric: float) -> Run:
        return run("tsit5", tolerance, evaluations, 0.5, metric=metric)

    runs = (measured(1e-6, 81, 1.0), measured(1e-3, 39, 1.015), measured(1e-1, 21, 1.03))
    assert report(*runs).recommended.rtol == 1e-3  # errors do not count
    assert report(*runs, metric_slack=0.05).recommended.rtol == 0.1


def test_observed_order() -> None:
    tolerances = [1e-8, 1e-6, 1e-4]
    assert observed_order(tolerances, [round(1000 * (t / 1e-8) ** -0.25) for t in tolerances]) == pytest.approx(4, 0.02)
    assert observed_order(tolerances, [50, 50, 50]) == math.inf
    assert observed_order(tolerances, [9, 2, 1]) is None


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
    solver = regnde.Solver(method="rk4", dt0=0.05)
    found = regnde.diagnose(problems.harmonic, torch.tensor([1.0, 0.0], dtype=torch.float64), [0.0, 3.0], solver)
    assert found.now.evaluations == 240
    assert found.best.method in ADAPTIVE
    assert rules(found)[0] == "other_method"
    assert "fixed" in str(found)


def test_a_tableau_of_the_user() -> None:
    ralston = regnde.Tableau("ralston", 2, a=((), ("2/3",)), b=("1/4", "3/4"), btilde=("3/4", "-3/4"))
    solver = regnde.Solver(method=ralston, rtol=1e-3, atol=1e-3)
    found = regnde.diagnose(problems.exp_decay, torch.ones(1, dtype=torch.float64), [0.0, 1.0], solver)
    assert found.now.method == "ralston"
    assert found.floor == 2 + 2 * 2
    assert str(found)


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
    y0 = states(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = regnde.diagnose(field, y0, [0.0, 1.0], tight(1e-5))
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
    assert y0.grad is None
    assert not y0.requires_grad


def test_fewer_methods_cost_fewer_solves() -> None:
    few = regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0], methods=["bs3"])
    assert {run.method for run in few.runs} == {"tsit5", "bs3"}
    assert few.solves < regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0]).solves


def test_what_is_refused() -> None:
    with pytest.raises(TypeError, match="diagnose is for ODEs"):
        regnde.diagnose(problems.geometric(), [1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="'rk4' is not one of the adaptive methods"):
        regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0], methods=["rk4"])
    with pytest.raises(ValueError, match="needs a span of time"):
        regnde.diagnose(problems.exp_decay, [1.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="a state with entries"):
        regnde.diagnose(problems.exp_decay, torch.ones(0, 2), [0.0, 1.0])
    with pytest.raises(ValueError, match="error_allowed=-1"):
        regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0], error_allowed=-1)
    with pytest.raises(ValueError, match="shape"):  # the field's own mistake is not swallowed
        regnde.diagnose(lambda t, y: y[:1], [1.0, 2.0], [0.0, 1.0])


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
    found = [
        regnde.diagnose(problems.exp_decay, [1.0], [0.0, 1.0], dataclasses.replace(tight(1e-10), dt0=dt0)).reference
        for dt0 in (None, 0.1)
    ]
    assert [run.tolerance for run in found if run is not None] == [1e-12, 1e-12]


def test_a_last_step_is_left_alone_and_no_run_depends_on_those_before() -> None:
    last = regnde.LastStep()
    solver = dataclasses.replace(tight(), dt0=last)
    reports = [regnde.diagnose(perceptron(nn.Tanh), states(), [0.0, 1.0], solver) for _ in range(2)]
    assert last.size is None
    assert [r.evaluations for r in reports[0].runs] == [r.evaluations for r in reports[1].runs]
    assert reports[0].smoothness is not None
    assert reports[0].smoothness.change < 1e-2
    for _ in range(2):  # what a solve costs once the step is known
        solution = regnde.solve(perceptron(nn.Tanh), states(), [0.0, 1.0], solver)
    assert reports[0].now.evaluations == solution.stats.nfe


def test_the_metrics_modules_run_in_evaluation_mode() -> None:
    """Dropout would make noise of the metric, and batch norm would learn from the states of loose solves."""
    readout = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    before = {name: x.clone() for name, x in readout.state_dict().items()}
    report = regnde.diagnose(
        perceptron(nn.Tanh), states(), [0.0, 1.0], tight(), metric=lambda sol: readout(sol.y1).square().mean()
    )
    assert report.reference is not None
    assert report.now.metric == pytest.approx(report.reference.metric)
    assert all(torch.equal(x, before[name]) for name, x in readout.state_dict().items())
    assert all(module.training for module in readout.modules())


def test_modules_in_a_partial_are_found() -> None:
    def field(network: nn.Module, t: Tensor, y: Tensor) -> Tensor:
        return network(t, y)

    network = perceptron(nn.ReLU)
    report = regnde.diagnose(functools.partial(field, network), states(), [0.0, 1.0], methods=["tsit5"])
    assert report.trainable
    assert report.kinks == ("nn.ReLU (2)",)


def test_a_report_with_a_last_step_is_drawn() -> None:
    """A first step that is an object and not a number stands in the picture's text."""
    y0 = torch.ones(1, dtype=torch.float64)
    solver = regnde.Solver(rtol=1e-3, atol=1e-3, dt0=regnde.LastStep(), engine="torch")
    axes = regnde.diagnose(problems.exp_decay, y0, [0.0, 1.0], solver).plot()
    assert any("LastStep" in text.get_text() for text in axes.texts)
    matplotlib.pyplot.close(axes.figure)
