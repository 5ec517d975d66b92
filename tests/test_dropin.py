"""The drop-ins: what they cover against exact solutions and, where installed, against the packages they stand for."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

import regnde
from problems import exp_decay
from tolerances import ROUNDING, SOLVER

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("dopri5", "tsit5", "bosh3", "dopri8", "adaptive_heun", "fehlberg2")
STEPS = (None, {"step_size": 0.13}, {"step_size": 0.13, "interp": "cubic"})


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def peer(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"{name} is not installed (pip install regnde[bench])")


def swinging(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[1], -y[0] * (1 + 0.1 * torch.sin(t))])


@pytest.mark.parametrize("solve", [regnde.odeint, regnde.odeint_adjoint])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_decay_and_its_gradients(method: str, solve) -> None:
    w, y0 = f64(-1.0).requires_grad_(), f64([1.0, 2.0]).requires_grad_()
    t = torch.linspace(0, 1, 201, dtype=torch.float64).requires_grad_()
    ys = solve(lambda t, y: w * y, y0, t, method=method)
    rel = 5e-3 if method == "euler" else 1e-4
    torch.testing.assert_close(ys, torch.exp(-t)[:, None] * y0, rtol=rel, atol=0)
    of_w, of_y0, of_t = torch.autograd.grad(ys[-1, 0], [w, y0, t])
    e = math.exp(-1)
    assert float(of_w) == pytest.approx(e, rel=2 * rel)
    assert of_y0.tolist() == pytest.approx([e, 0.0], rel=2 * rel)
    assert float(of_t[-1]) == pytest.approx(-e, rel=2 * rel)
    assert float(of_t[0]) == pytest.approx(e, rel=2 * rel)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_those_of_torchdiffeq(method: str, backwards: bool) -> None:
    theirs = peer("torchdiffeq")
    y0, t = f64([1.0, 0.0]), torch.linspace(0, 2, 7, dtype=torch.float64)
    t = t.flip(0) if backwards else t
    for options in STEPS:
        expected = theirs.odeint(swinging, y0, t, method=method, options=options)
        got = regnde.odeint(swinging, y0, t, method=method, options=options)
        torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods_are_as_precise_as_torchdiffeq(method: str, backwards: bool) -> None:
    """At equal tolerances, between the steps too, where its interpolation has an error of its own."""
    theirs = peer("torchdiffeq")
    y0, t = f64([1.0, 0.0]), torch.linspace(0, 2, 7, dtype=torch.float64)
    t = t.flip(0) if backwards else t
    solution = regnde.solve(swinging, y0, t, regnde.Solver(method="vern7", rtol=1e-12, atol=1e-12)).ys
    known = method if method != "tsit5" else "dopri5"  # the released torchdiffeq has no tsit5 yet
    for tolerance in (1e-3, 1e-5):
        arguments = {"rtol": tolerance, "atol": tolerance}
        distances = [
            float((package.odeint(swinging, y0, t, method=name, **arguments) - solution).abs().max())
            for package, name in ((regnde, method), (theirs, known))
        ]
        assert distances[0] <= 1.2 * distances[1] + ROUNDING
        if method != "fehlberg2":  # whose estimate is a hundredth of its error
            assert distances[0] < SOLVER * tolerance


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_tuples_of_tensors(method: str) -> None:
    y0 = (f64(1.0), f64([[1.0, 2.0]]).requires_grad_(), f64([]))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    a, b, c = regnde.odeint(lambda t, y: (-y[0], -2 * y[1], y[2]), y0, t, method=method)
    assert (a.shape, b.shape, c.shape) == ((101,), (101, 1, 2), (101, 0))
    torch.testing.assert_close(a, torch.exp(-t), rtol=1e-6, atol=0)
    (slope,) = torch.autograd.grad(b[-1].sum(), y0[1])
    torch.testing.assert_close(slope, torch.full_like(slope, math.exp(-2)), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="the shapes must be equal"):
        regnde.odeint(lambda t, y: (-y[1], -y[0], y[2]), y0, t, method=method)
    with pytest.raises(TypeError, match="tensor or a tuple"):
        regnde.odeint(lambda t, y: y, [1.0], t)


def test_grid_constructor_and_first_step() -> None:
    seen = []

    def grid(func, y0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.tolist())
        return torch.linspace(0, 1, 11)

    y0 = torch.tensor(1.0, requires_grad=True)
    y1 = regnde.odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]), method="euler", options={"grid_constructor": grid})
    torch.testing.assert_close(y1[-1].detach(), torch.tensor(1.1**10), rtol=1e-6, atol=0)
    assert seen == [[0.0, 1.0]]
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(regnde.MaxStepsReached):
        regnde.odeint(exp_decay, y0, t, options={"first_step": 1e-3, "max_num_steps": 3, "dtype": torch.float64})
    with pytest.raises(ValueError, match="the grid goes from"):
        regnde.odeint(exp_decay, y0, t, method="euler", options={"grid_constructor": lambda f, y, t: t + 1})
    with pytest.raises(ValueError, match="exclude each other"):
        regnde.odeint(exp_decay, y0, t, method="euler", options={"grid_constructor": grid, "step_size": 0.1})


def test_fixed_steps_evaluate_no_more_than_their_stages() -> None:
    calls = []

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return -y

    regnde.odeint(field, f64([1.0]), f64([0.0, 0.5, 1.0]), method="rk4", options={"step_size": 0.1})
    assert len(calls) == 40
    assert max(calls) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(method="dopri7"), "there is no method 'dopri7'; choose one of dopri5"),
        (dict(method="rk4", options={"interp": "spline"}), "interp='spline'"),
        (dict(rtol=(1e-3, 1e-4, 1e-5)), "does not broadcast"),
        (dict(method="rk4", options={"step_size": 0.0}), "step_size=0"),
        (dict(method="rk4", t=torch.tensor([0.0, 1.0, 0.5])), "t must be non-decreasing or non-increasing"),
        (dict(method="dopri5", t=torch.tensor([0.0, 1.0, 0.5])), "non-decreasing or non-increasing"),
        (dict(method="rk4", t=torch.tensor([0.0, 1.0, 0.5]), options={"step_size": 0.1}), "t must be non-decreasing"),
        (dict(method="rk4", t=torch.tensor(1.0)), "t must be a sequence of times .* got the single time 1"),
    ],
)
def test_what_odeint_can_not_do(arguments: dict, message: str) -> None:
    for solve in (regnde.odeint, regnde.odeint_adjoint):
        with pytest.raises(ValueError, match=message):
            solve(exp_decay, torch.ones(2), **{"t": torch.tensor([0.0, 1.0]), **arguments})
    with pytest.raises(TypeError, match="func must be callable"):
        regnde.odeint(3, torch.ones(2), torch.tensor([0.0, 1.0]))


def test_adjoint_arguments_are_accepted_and_borrowed_parameters_get_gradients() -> None:
    w = f64(-1.0).requires_grad_()
    ys = regnde.odeint_adjoint(
        lambda t, y: w * y,
        f64([1.0]),
        f64([0.0, 1.0]),
        adjoint_rtol=1e-3,
        adjoint_atol=1e-3,
        adjoint_method="dopri5",
        adjoint_options={"norm": "seminorm"},
        adjoint_params=(),
    )
    assert float(torch.autograd.grad(ys[-1], w)[0]) == pytest.approx(math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_default_tolerance_does_not_warn(dtype: torch.dtype) -> None:
    y1 = regnde.odeint(exp_decay, torch.ones(2, dtype=dtype), torch.tensor([0.0, 1.0]))[-1]  # warnings are errors here
    assert y1.tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-5)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_duplicate_and_single_times(method: str) -> None:
    t = torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    ys = regnde.odeint(exp_decay, f64([1.0]), t, method=method)
    assert ys.shape == (6, 1)
    assert torch.equal(ys[::2], ys[1::2])
    assert regnde.odeint(exp_decay, f64([1.0]), t[:1], method=method).tolist() == [[1.0]]
