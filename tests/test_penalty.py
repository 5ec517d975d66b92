"""Penalties: their algebra, their reductions, what they say when records are missing."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

import regnde
from problems import exp_decay, seeded, van_der_pol
from regnde import ErrorPenalty, Local, Solver, SquaredErrorPenalty, StiffnessPenalty, steer
from tolerances import ROUNDING


@pytest.fixture(scope="module")
def solution() -> regnde.Solution:
    return regnde.solve(van_der_pol(2.0), torch.tensor([2.0, 0.0], dtype=torch.float64), [3.0, 0.0], record="all")


def test_formulas(solution: regnde.Solution) -> None:
    error, dt, stiffness = solution.steps.error, solution.steps.dt, solution.steps.stiffness
    assert (dt < 0).all()
    for penalty, terms in (
        (ErrorPenalty, error * dt.abs()),
        (SquaredErrorPenalty, error**2),
        (StiffnessPenalty, stiffness),
    ):
        assert torch.equal(penalty()(solution), terms.sum())
        assert torch.equal(penalty("sum")(solution), terms.sum())
        assert torch.equal(penalty("mean")(solution), terms.mean())
        assert torch.equal(penalty("max")(solution), terms.max())


def test_algebra(solution: regnde.Solution) -> None:
    a, b = ErrorPenalty("mean"), StiffnessPenalty("max")
    expected = 2 * a(solution) + 0.5 * b(solution) + a(solution)
    for penalty in (2 * a + b * 0.5 + a, a * 2 + (0.5 * b + a), 1 * (2 * a + 0.5 * b) + a):
        torch.testing.assert_close(penalty(solution), expected, rtol=1e-14, atol=0)
    with pytest.raises(TypeError):
        a + 1  # a number is no penalty


def test_missing_records_are_named() -> None:
    bare = regnde.solve(exp_decay, [1.0], [0.0, 1.0])
    for penalty in (ErrorPenalty(), SquaredErrorPenalty("max"), StiffnessPenalty()):
        with pytest.raises(ValueError, match=r"record='all' or record=Local\(\)"):
            penalty(bare)
    fixed = regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(method="rk4", dt0=0.1), record="all")
    with pytest.raises(ValueError, match="'rk4' estimates no error"):
        ErrorPenalty()(fixed)
    local = regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(method="bs3"), record=Local())
    assert ErrorPenalty()(local) > 0
    with pytest.raises(ValueError, match="'bs3' estimates no stiffness"):
        StiffnessPenalty()(local)


def test_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="'sum', 'mean' or 'max'"):
        ErrorPenalty("median")


def test_steer_draws_the_end_time_uniformly() -> None:
    generator = seeded(0)
    draws = torch.tensor([steer((0.0, 0.4, 1.0), 0.5, generator=generator) for _ in range(4000)], dtype=torch.float64)
    assert (draws[:, :2] == torch.tensor([0.0, 0.4], dtype=torch.float64)).all()
    ends = draws[:, 2]
    assert 0.5 <= ends.min() < 0.51
    assert 1.49 < ends.max() <= 1.5
    assert abs(float(ends.mean()) - 1.0) < 3 * float(ends.std()) / 4000**0.5
    assert float(ends.std()) == pytest.approx(1 / 12**0.5, rel=0.05)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.6, 2.0])
def test_steer_keeps_the_order(width: float) -> None:
    with pytest.raises(ValueError, match="last gap"):
        steer((0.0, 0.4, 1.0), width)


def test_local_records_vary_with_the_seed_alone() -> None:
    def times(**options: object) -> tuple[float, float]:
        steps = regnde.solve(exp_decay, [1.0], [0.0, 3.0], record=Local(**options)).steps
        return float(steps.t[0]), float(steps.dt[0])

    assert times(seed=4) == times(seed=4)
    assert len({times(seed=i) for i in range(10)}) == 10
    torch.manual_seed(7)
    first = times()
    torch.manual_seed(7)
    assert times() == first
    assert times() != first


def test_time_sampling_is_uniform_and_step_sampling_is_not() -> None:
    """Over many draws: start times uniform in the span, against every accepted step equally likely."""
    chosen, span, count = Solver(rtol=1e-4, atol=1e-4), [0.0, 4.0], 150

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -2.0 * t**3 * y  # stiff late: short steps in the second half

    y0 = torch.ones(1, dtype=torch.float64)
    whole = regnde.solve(field, y0, span, chosen, record="all").steps
    starts = whole.t - whole.dt

    def draws(sampling: str) -> torch.Tensor:
        steps = [
            regnde.solve(field, y0, span, chosen, record=Local(sampling=sampling, seed=i)).steps for i in range(count)
        ]
        return torch.cat([one.t - one.dt for one in steps])

    error = 3 / count**0.5  # three standard errors, in standard deviations
    uniform = draws("time")
    assert abs(float(uniform.mean()) - 2.0) < error * 4 / 12**0.5
    by_step = draws("step")
    assert all(float((starts - t).abs().min()) < 1e-5 for t in by_step)
    assert abs(float(by_step.mean() - starts.mean())) < error * float(starts.std())
    assert abs(float(starts.mean()) - 2.0) > error * 4 / 12**0.5  # the test can tell the two apart


def test_local_step_of_the_solver_is_the_accepted_step() -> None:
    """sampling="step", step_size="solver" records one of the accepted steps, number for number."""
    field, y0 = van_der_pol(2.0), torch.tensor([2.0, 0.0], dtype=torch.float64)
    whole = regnde.solve(field, y0, [0.0, 3.0], record="all").steps
    for seed in range(5):
        one = regnde.solve(field, y0, [0.0, 3.0], record=Local(sampling="step", seed=seed)).steps
        index = int((whole.t == one.t).nonzero())
        for a, b in ((one.error, whole.error), (one.stiffness, whole.stiffness)):
            torch.testing.assert_close(a[0], b[index], rtol=1e-6, atol=0)


def test_local_step_ends_in_the_span() -> None:
    for seed in range(40):
        for options in ({}, {"step_size": "initial"}, {"sampling": "step"}):
            steps = regnde.solve(exp_decay, [1.0], [1.0, 0.2], record=Local(seed=seed, **options)).steps
            assert len(steps) == 1
            assert 0.2 <= float(steps.t) < 1.0
            assert float(steps.dt) < 0


def test_solutions_without_a_graph_can_be_pickled() -> None:
    with torch.no_grad():
        solution = regnde.solve(lambda t, y: -y, [1.0, 2.0], [0.0, 1.0], record="all")
    again = pickle.loads(pickle.dumps(solution))
    assert torch.equal(again.steps.stiffness, solution.steps.stiffness)
    assert torch.equal(again.steps.error, solution.steps.error)


# --- case A14: the algebra of penalties, as of numbers ---------------------------------------------------


def test_case_A14_sums_differences_and_quotients(solution: regnde.Solution) -> None:
    a, b = ErrorPenalty("mean"), StiffnessPenalty("max")
    x, y = a(solution), b(solution)
    for penalty, expected in (
        (sum([a, b, 2 * a]), 3 * x + y),
        (sum([0.5 * a]), 0.5 * x),
        (a - b, x - y),
        (-a, -x),
        (-(2 * a - b), y - 2 * x),
        (a / 4, x / 4),
        ((a + b) / 3 - a * 0.5, (x + y) / 3 - 0.5 * x),
        (np.float64(2) * a, 2 * x),
        (a * np.float32(2), 2 * x),
        (np.int64(2) * a / np.float64(4), x / 2),
        (0 + a, x),
        (a - 0, x),
        (0 - a, -x),
    ):
        assert isinstance(penalty, regnde.Penalty)
        torch.testing.assert_close(penalty(solution), expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda a: a + 1,
        lambda a: 1 - a,
        lambda a: a - 2.0,
        lambda a: a * "2",
        lambda a: a * a,
        lambda a: 1 / a,
        lambda a: a / None,
        lambda a: a < a,
        lambda a: a * torch.ones(2),
        lambda a: torch.ones(2) * a,
        lambda a: a / torch.ones(1),
        lambda a: a * torch.tensor(1j),
        lambda a: np.ones(2) * a,
    ],
)
def test_case_A14_what_is_no_penalty(wrong: Callable[[regnde.Penalty], object]) -> None:
    with pytest.raises(TypeError):
        wrong(ErrorPenalty())
    with pytest.raises(ZeroDivisionError):
        ErrorPenalty() / 0


def test_case_A14_tensors_as_weights_keep_their_gradient(solution: regnde.Solution) -> None:
    w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    a = ErrorPenalty("mean")
    x = float(a(solution))
    for penalty, slope in ((w * a, x), (a * w, x), (a / w, -x / 4), (-w * a, -x), (a - w * a + a / 2, -x)):
        for _ in range(2):  # the penalty, made once, serves every iteration
            (got,) = torch.autograd.grad(penalty(solution), w, retain_graph=True)
            assert float(got) == pytest.approx(slope)
    before = float((w * a)(solution).detach())
    penalty = w * a
    with torch.no_grad():
        w.mul_(3)
    assert float(penalty(solution).detach()) == pytest.approx(3 * before)  # the tensor's value when it is asked for


def test_case_A14_comparisons() -> None:
    a, w = ErrorPenalty("mean"), torch.tensor(2.0)
    assert a == ErrorPenalty("mean") != ErrorPenalty() != SquaredErrorPenalty()
    assert 2 * a == a * 2.0 != 3 * a
    assert a / 2 != 2 * a
    assert w * a == w * a != torch.tensor(2.0) * a
    assert 2 * a != w * a
    assert a + 2 * a == a + 2 * a != 2 * a + a
    assert len({2 * a, a * 2, w * a, w * a, a / 2, a, ErrorPenalty("mean")}) == 4


class Late(regnde.StepPenalty):
    """A penalty of one's own, whose term is not 0 where a sample took no step."""

    def term(self, steps: regnde.Steps) -> torch.Tensor:
        return 1 + steps.error * steps.t


def test_a_penalty_of_ones_own() -> None:
    joint = regnde.solve(exp_decay, [1.0], [0.0, 1.0], record="all")
    wanted = 1 + joint.steps.error * joint.steps.t
    assert Late()(joint) == wanted.sum()
    assert Late("mean")(joint) == wanted.mean()
    assert Late("max")(joint) == wanted.max()
    with pytest.raises(ValueError, match=r"Late needs the records"):
        Late()(regnde.solve(exp_decay, [1.0], [0.0, 1.0]))
    rates = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    apart = regnde.solve(
        lambda t, y, samples: -rates[samples] * y, rates / rates, [0.0, 1.0], Solver(batch="per-sample"), record="all"
    )
    mask = apart.steps.mask
    assert not mask.all()
    wanted = (1 + apart.steps.error * apart.steps.t)[mask]
    torch.testing.assert_close(Late()(apart), wanted.sum(), rtol=ROUNDING, atol=0)
    torch.testing.assert_close(Late("mean")(apart), wanted.mean(), rtol=ROUNDING, atol=0)


def test_steer_takes_tensors_and_any_default_device() -> None:
    torch.set_default_device("meta")
    try:
        draws = [steer(ts, 0.3) for ts in ((0.0, 1.0), torch.tensor([0.0, 1.0], device="cpu", requires_grad=True))]
    finally:
        torch.set_default_device(None)
    assert all(d[0] == 0.0 and 0.7 < d[1] < 1.3 for d in draws)
