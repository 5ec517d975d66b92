"""`LastStep`: the first step's size, passed from solve to solve."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import regnde
from problems import exp_decay
from regnde import SDE, LastStep, Local, Solver
from regnde._last_step import FirstStep
from tolerances import ROUNDING

ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solver(last: LastStep, **options: object) -> Solver:
    return Solver(**{"rtol": 1e-3, "atol": 1e-3, "dt0": last, "engine": "torch"} | options)  # type: ignore[arg-type]


def solved(last: LastStep, span: float = 1.0, **options: object) -> regnde.Solution:
    return regnde.solve(exp_decay, f64([[1.0], [2.0]]), [0.0, span], solver(last, **options), record="all")


# --- what it saves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_later_solves_save_the_two_evaluations_and_the_short_step(method: str, batch: str) -> None:
    last = LastStep()
    first, *later = (solved(last, 4.0, method=method, batch=batch) for _ in range(4))
    plain = solved(LastStep(), 4.0, method=method, batch=batch)
    assert first.stats == plain.stats
    for sol in later:
        assert sol.stats.nfe < first.stats.nfe - 2
        assert abs(sol.stats.dt_first) > 2 * abs(first.stats.dt_first)
        assert float((sol.y1 / f64([[1.0], [2.0]]) - math.exp(-4)).abs().max()) < 1e-2
    if batch == "joint":
        start, stages = {"tsit5": (1, 6), "dp5": (1, 6), "bs3": (1, 3), "heun": (1, 2), "vern7": (0, 10)}[method]
        assert later[-1].stats.nfe == start + stages * (later[-1].stats.accepted + later[-1].stats.rejected)


def test_the_first_step_tends_to_an_error_of_a_tenth() -> None:
    last = LastStep()
    errors = [float(solved(last, 6.0).steps.error[0]) for _ in range(6)]
    assert errors[0] < 1e-3
    assert errors[-1] == pytest.approx(0.1, rel=0.05)


def test_a_solve_of_one_step_stays_one() -> None:
    """Its error lies between a tenth and one: a shorter step would make two of it."""
    last = LastStep(1.2)
    for _ in range(3):
        sol = solved(last, 1.2, method="bs3", rtol=1e-2, atol=1e-2)
        assert (sol.stats.accepted, sol.stats.rejected) == (1, 0)
        assert float(sol.steps.error[0]) > 0.1
    assert last.size == 1.2


@pytest.mark.parametrize(
    ("size", "error", "steps", "order", "expected"),
    [
        (0.2, 0.1, 5, 3, 0.2),
        (-0.2, 0.1 / 2**3, 5, 3, 0.4),
        (0.2, 0.1 * 2**3, 5, 3, 0.1),
        (0.2, 0.8, 1, 3, 0.2),  # the only step: not shorter
        (0.2, 0.1 / 2**3, 1, 3, 0.4),
        (0.2, 0.0, 5, 3, 2000.0),
        (0.2, math.nan, 5, 3, 0.0),
        (0.0, math.nan, 0, 3, 0.0),
        ([0.2, 0.3, math.nan], [0.1, 0.1 / 2**3, math.nan], [4, 4, 0], 3, 0.2),
    ],
)
def test_size_of_the_next_first_step(size: object, error: object, steps: object, order: float, expected: float) -> None:
    assert FirstStep(size, error, steps, order).next_size() == pytest.approx(expected, rel=ROUNDING)


def test_per_sample_batches_begin_with_the_smallest_size() -> None:
    last, field = LastStep(), lambda t, y: -y * f64([[1.0], [20.0]])[: len(y)]
    regnde.solve(field, f64([[1.0], [1.0]]), [0.0, 1.0], solver(last, batch="per-sample"))
    alone = LastStep()
    regnde.solve(lambda t, y: -20 * y, f64([[1.0]]), [0.0, 1.0], solver(alone, batch="per-sample"))
    assert last.size == pytest.approx(alone.size, rel=1e-9)


# --- what it must not change -------------------------------------------------------------------------


def test_the_span_bounds_it_and_its_sign_does_not_matter() -> None:
    last = LastStep(5.0)
    back = regnde.solve(exp_decay, f64([1.0]), [0.0, -0.5], solver(last))
    assert back.stats.dt_first == -0.5
    assert last.size is not None
    assert last.size > 0
    assert solved(last, 0.25).stats.dt_first == 0.25


def test_a_step_that_is_too_long_is_rejected_and_counted() -> None:
    last = LastStep(50.0)
    sol = solved(last, 50.0)
    assert sol.stats.rejected >= 1
    assert sol.stats.nfe == 1 + 6 * (sol.stats.accepted + sol.stats.rejected)
    assert solved(last, 50.0).stats.rejected == 0


@pytest.mark.parametrize("record", ["all", Local(seed=3), Local(seed=3, step_size="initial")])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_records_and_gradients_are_those_of_the_size_as_a_number(record: object, gradient: str) -> None:
    results = []
    for dt0 in (LastStep(0.125), 0.125):
        a = f64([[0.0, 1.0], [-1.0, -0.5]]).requires_grad_()
        chosen = Solver(dt0=dt0, gradient=gradient, engine="torch")  # type: ignore[arg-type]
        sol = regnde.solve(lambda t, y, a=a: a @ y, f64([1.0, 0.5]), [0.0, 1.0], chosen, record=record)
        loss = sol.y1.sum() + regnde.ErrorPenalty()(sol)
        results.append((sol.stats, sol.y1, *torch.autograd.grad(loss, a)))
    assert results[0][0] == results[1][0]
    for ours, theirs in zip(*(result[1:] for result in results), strict=True):
        assert torch.equal(ours, theirs)


def test_the_solution_tells_the_size_that_the_solve_was_given() -> None:
    last = LastStep()
    assert solved(last).solver.dt0 is None
    size = last.size
    sol = solved(last)
    assert sol.solver.dt0 == size
    assert last.size == sol.stats.dt_next
    assert pickle.loads(pickle.dumps(sol.stats)).dt_next == sol.stats.dt_next


def test_sdes_pass_it_on() -> None:
    last, sde = LastStep(), SDE(lambda t, y: -y, lambda t, y: 0.1 * y)
    noise = [regnde.BrownianPath(0.0, 1.0, (8,), seed=i) for i in range(3)]
    calls = [regnde.solve(sde, torch.ones(8), [0.0, 1.0], solver(last), noise=path).stats for path in noise]
    assert all(stats.dt_next > 0 for stats in calls)
    assert calls[1].dt_first == pytest.approx(min(calls[0].dt_next, 1.0))


# --- state -------------------------------------------------------------------------------------------


def test_a_solve_that_fails_leaves_it() -> None:
    last = LastStep(0.1)
    with pytest.raises(regnde.SolveError):
        regnde.solve(lambda t, y: y**2, f64([1.0]), [0.0, 2.0], solver(last))
    partial = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], solver(last, max_steps=2, rtol=1e-9), throw=False)
    assert partial.status != "success"
    with pytest.raises(ZeroDivisionError):
        regnde.solve(lambda t, y: y * (1 / 0), f64([1.0]), [0.0, 1.0], solver(last))
    assert last.size == 0.1


def test_a_solve_without_a_step_leaves_it() -> None:
    last = LastStep(0.1)
    assert regnde.solve(exp_decay, f64([1.0]), [1.0, 1.0], solver(last)).stats.dt_next == 0.0
    regnde.solve(exp_decay, torch.ones(0, 3), [0.0, 1.0], solver(last, batch="per-sample"))
    assert last.size == 0.1


@pytest.mark.parametrize("size", [None, 0.1])
def test_a_fixed_step_is_refused(size: float | None) -> None:
    with pytest.raises(ValueError, match="'rk4' has a fixed step, and a LastStep chooses one: give a number"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], solver(LastStep(size), method="rk4"))


def test_copies_and_pickles_have_a_state_of_their_own() -> None:
    model = regnde.nn.NeuralODE(regnde.nn.MLP([2, 4, 2]), [0.0, 1.0], solver(LastStep(0.5)))
    for other in (
        copy.deepcopy(model).solver,
        pickle.loads(pickle.dumps(model.solver)),
        replace(model.solver, dt0=copy.copy(model.solver.dt0)),
    ):
        assert other.dt0.size == 0.5
        other.dt0.size = 0.25
        assert model.solver.dt0.size == 0.5
    shared = replace(model.solver, rtol=1e-5)
    shared.dt0.size = 0.125
    assert model.solver.dt0.size == 0.125
    assert "size" not in "".join(model.state_dict())


def test_a_checkpoint_goes_on() -> None:
    last = LastStep()
    solved(last)
    again = LastStep()
    again.load_state_dict(last.state_dict())
    assert again.size == last.size
    assert solved(again).stats == solved(last).stats


def test_a_solver_with_it_is_hashable_and_equal_to_itself_alone() -> None:
    one, other = solver(LastStep()), solver(LastStep())
    assert one == replace(one)
    assert hash(one) == hash(replace(one))
    assert one != other
    assert "dt0=LastStep(0.5)" in repr(solver(LastStep(0.5)))
    assert repr(LastStep()) == "LastStep()"


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_sizes_that_can_not_be_used(size: float) -> None:
    with pytest.raises(ValueError, match="above zero, or None"):
        LastStep(size)


def test_a_string_is_refused_with_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"or a regnde\.LastStep\(\)"):
        Solver(dt0="last")  # type: ignore[arg-type]


def test_threads_that_share_one_each_find_a_solution() -> None:
    last, wrong = LastStep(), []

    def work() -> None:
        for _ in range(5):
            if abs(float(solved(last).y1[0]) - math.exp(-1)) > 1e-2:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert last.size is not None
