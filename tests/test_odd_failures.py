"""Failures of the kinds in the list of cases: the number in a name is the case whose kind it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch

import regnde
from problems import exp_decay, seeded
from regnde import SDE, Solver

ADAPTIVE = ("tsit5", "dp5", "bs3", "vern7")
Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- case 2: what is not finite --------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "solver", [Solver(), Solver(dt0=0.1), Solver(method="rk4", dt0=0.1), Solver(method="vern7")], ids=repr
)
@pytest.mark.parametrize("field", [exp_decay, lambda t, y: torch.ones_like(y)], ids=["decay", "constant"])
def test_case_2_initial_state_that_is_not_finite(field: Field, solver: Solver, bad: float) -> None:
    with pytest.raises(regnde.NonFiniteDynamics, match="y0 is not finite: 1 of 3 components") as caught:
        regnde.solve(field, f64([1.0, bad, 2.0]), [0.0, 1.0], solver)
    assert caught.value.nfe < 100
    sde = SDE(field, lambda t, y: 0.1 * torch.ones_like(y))
    with pytest.raises(regnde.NonFiniteDynamics, match="y0 is not finite: 1 of 3 components"):
        regnde.solve(sde, f64([1.0, bad, 2.0]), [0.0, 1.0], Solver(dt0=solver.dt0))


def test_case_2_parameter_that_is_not_finite() -> None:
    w = torch.nn.Parameter(torch.tensor(math.nan))
    with pytest.raises(regnde.NonFiniteDynamics, match=r"at the start: 2 of 2 components of f") as caught:
        regnde.solve(lambda t, y: w * y, torch.ones(2), [0.0, 1.0])
    assert caught.value.solution.ys.tolist() == [[1.0, 1.0]]
    assert caught.value.solution.ts.tolist() == [0.0]


@pytest.mark.parametrize("begins", [-1.0, 0.5])
def test_case_2_one_row_of_a_batch(begins: float) -> None:
    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where((torch.arange(4)[:, None] == 2) & (t > begins), math.nan, -y)

    with pytest.raises(regnde.NonFiniteDynamics, match="3 of 12 components") as caught:
        regnde.solve(field, torch.ones(4, 3), [0.0, 1.0])
    assert caught.value.t == pytest.approx(max(begins, 0.0), abs=0.1)
    assert caught.value.nfe < 200


@pytest.mark.parametrize("method", ["sosri", "sosri2", "sriw1", "em"])
@pytest.mark.parametrize("where", ["drift", "diffusion"])
def test_case_2_sde(where: str, method: str) -> None:
    bad = lambda t, y: torch.where(t > 0.5, math.nan, 0.1 * y)  # noqa: E731 - one line reads best
    good = lambda t, y: 0.1 * y  # noqa: E731
    sde = SDE(bad, good) if where == "drift" else SDE(good, bad)
    with pytest.raises(regnde.NonFiniteDynamics, match=f"1 of 1 components of the ({where}|state)") as caught:
        regnde.solve(sde, f64([1.0]), [0.0, 1.0], Solver(method=method, dt0=0.01))
    assert 0.3 < caught.value.t < 0.7
    partial = regnde.solve(sde, f64([1.0]), [0.0, 0.1, 1.0], Solver(method=method, dt0=0.01), throw=False)
    assert partial.status == "non-finite dynamics"
    assert partial.ys.shape == (2, 1)


# --- case 4: blow-ups ------------------------------------------------------------------------------

BLOW_UPS = {  # field, y0, span, time of the pole
    "square": (lambda t, y: y * y, [1.0], [0.0, 2.0], 1.0),
    "square, backwards": (lambda t, y: -y * y, [1.0], [2.0, 0.0], 1.0),
    "tangent": (lambda t, y: 1 + y * y, [0.0], [0.0, 3.0], math.pi / 2),
    "exponential": (lambda t, y: torch.exp(y), [1.0], [0.0, 2.0], math.exp(-1)),
    "cube of one in two": (lambda t, y: y**3 * f64([0.0, 1.0]), [1.0, 2.0], [0.0, 3.0], 1 / 8),
    "pole of the field": (lambda t, y: 1 / (1 - t) + 0 * y, [1.0], [0.0, 3.0], 1.0),
}


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("name", BLOW_UPS)
def test_case_4_other_blow_ups(name: str, method: str) -> None:
    field, y0, ts, pole = BLOW_UPS[name]
    with pytest.raises(regnde.SolveError) as caught:
        regnde.solve(field, f64(y0), ts, Solver(method=method), record="all")
    error = caught.value
    assert not isinstance(error, regnde.NonFiniteDynamics) or name == "exponential"
    assert error.t == pytest.approx(pole, abs=1e-4)
    assert error.dt * (ts[1] - ts[0]) > 0
    assert error.error_ratio > 1 or not math.isfinite(error.error_ratio)
    assert error.accepted == len(error.solution.steps)
    assert torch.isfinite(error.solution.ys).all()
    if isinstance(error, regnde.StepSizeUnderflow):
        assert error.component == len(y0) - 1
        assert (error.stiffness is None) == (method == "bs3")
        assert re.search(r"error ratio .* worst component .* \[t=.*, dt=.*, NFE=\d+, accepted=\d+, rej", str(error))


def test_case_4_step_limit_says_what_held_it_up() -> None:
    with pytest.raises(regnde.MaxStepsReached, match=r"error ratio .*component 0 of 1.*stiffness 1e\+03") as caught:
        regnde.solve(lambda t, y: -1000 * y, f64([1.0]), [0.0, 1e6], Solver(max_steps=50))
    assert caught.value.stiffness == pytest.approx(1000, rel=1e-3)
    assert caught.value.error_ratio <= 1 or caught.value.rejected > 0
    for equation, method in ((exp_decay, "rk4"), (SDE(exp_decay, exp_decay), "em")):
        with pytest.raises(regnde.MaxStepsReached, match=r"end time 1e\+06 \(\|y\| up to "):
            regnde.solve(equation, f64([1.0]), [0.0, 1e6], Solver(method=method, dt0=1e-3, max_steps=50))


def test_case_4_overflow_of_float32() -> None:
    with pytest.raises(regnde.NonFiniteDynamics, match="1 of 1 components") as caught:
        regnde.solve(lambda t, y: y, torch.ones(1), [0.0, 100.0])
    assert caught.value.t == pytest.approx(math.log(3.4e38), abs=0.1)


# --- samples with their own steps ---------------------------------------------------------------

EACH = Solver(batch="per-sample")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dt0", [None, 0.1])
def test_case_2_per_sample(dt0: float | None, bad: float) -> None:
    solver = Solver(batch="per-sample", dt0=dt0)
    with pytest.raises(regnde.NonFiniteDynamics, match="y0 is not finite: 1 of 2 components"):
        regnde.solve(lambda t, y: torch.ones_like(y), f64([[1.0], [bad]]), [0.0, 1.0], solver)
    field = lambda t, y: torch.where((y < 2) | (t < 0.5), -y, bad)  # noqa: E731 - one line reads best
    with pytest.raises(regnde.NonFiniteDynamics, match="sample 1 of 2, 1 of its 3 components") as caught:
        regnde.solve(field, f64([[1.0, 1.0, 1.0], [1.0, 1.0, 9.0]]), [0.0, 1.0], solver)
    assert 0.3 < caught.value.t <= 0.5
    assert caught.value.nfe < 150


@pytest.mark.parametrize("method", ADAPTIVE)
def test_case_4_per_sample(method: str) -> None:
    solver = Solver(method=method, batch="per-sample")
    with pytest.raises(regnde.StepSizeUnderflow, match="sample 1 of 3, worst component 1 of its 2") as caught:
        regnde.solve(lambda t, y: y * y, f64([[0.1, 0.1], [0.1, 1.0], [0.2, 0.1]]), [0.0, 0.5, 2.0], solver)
    assert caught.value.t == pytest.approx(1.0, abs=1e-4)
    assert caught.value.component == 3
    assert caught.value.error_ratio > 1
    assert (caught.value.stiffness is None) == (method == "bs3")
    assert caught.value.solution.ys.shape == (2, 3, 2)
    with pytest.raises(regnde.MaxStepsReached, match=r"error ratio .* sample 0 of 1, worst component 0"):
        regnde.solve(lambda t, y: -y, f64([[1.0]]), [0.0, 1e6], Solver(method=method, batch="per-sample", max_steps=9))


def test_case_9_per_sample() -> None:
    for field, message in (
        (lambda t, y: y.mul_(-1), "changed its argument"),
        (lambda t, y: -y[:1], "returned shape"),
        (lambda t, y: None, "must return a tensor"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            regnde.solve(field, torch.ones(3, 2), [0.0, 1.0], EACH)
    assert regnde.solve(lambda t, y: -y, [[1], [2]], [1, 0], EACH).y1.flatten().tolist() == pytest.approx(
        [math.e, 2 * math.e], rel=1e-4
    )
    w = f64(0.0).requires_grad_()
    sol = regnde.solve(lambda t, y: w * y, f64([[1.0, 1.0], [0.0, 0.0]]), [0.0, 1.0], EACH, record="all")
    total = sol.y1.sum() + regnde.ErrorPenalty()(sol) + regnde.StiffnessPenalty()(sol)
    assert float(torch.autograd.grad(total, w)[0]) == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_state_that_fails_says_so(shape: tuple[int, ...]) -> None:
    sde = SDE(exp_decay, exp_decay)
    for equation, methods in ((exp_decay, ("tsit5", "vern7", "bs3", "rk4")), (sde, ("sosri2", "sriw1", "em"))):
        for method in methods:
            solver = Solver(method=method, dt0=1e-3, max_steps=1)
            with pytest.raises(regnde.MaxStepsReached, match="the state is empty"):
                regnde.solve(equation, torch.zeros(shape), [0.0, 1.0], solver)
            sol = regnde.solve(equation, torch.zeros(shape), [0.0, 1.0], solver, throw=False)
            assert (sol.status, sol.ys.shape) == ("max steps reached", (1, *shape))
    if shape == (2, 0):
        with pytest.raises(regnde.MaxStepsReached, match="sample 0 of 2, the state is empty"):
            regnde.solve(exp_decay, torch.zeros(shape), [0.0, 1.0], Solver(batch="per-sample", dt0=1e-3, max_steps=1))


def test_an_underflow_of_one_sample_asks_whether_the_field_is_a_function() -> None:
    """As the joint solve does: noise whose size grows as the step shrinks."""
    generator = seeded(0)

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.randn(y.shape, dtype=y.dtype, generator=generator) * 1e30

    for batch in ("joint", "per-sample"):
        solver = Solver(batch=batch, dt0=1e-3, rtol=1e-6, atol=1e-6, engine="torch")
        with pytest.raises(regnde.MaxStepsReached, match="draws noise or dropout"):
            regnde.solve(field, torch.zeros(2, 1, dtype=torch.float64), [1.0, 2.0], solver)
