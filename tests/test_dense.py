"""Dense output: a solution that is called at any time."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor

import regnde
from frozen import relative
from problems import SMALL_P, SMALL_Y0, exp_decay, forced, harmonic, small_net
from regnde import Event, Local, Solver
from tolerances import EXACT, GRADIENT, ROUNDING, SOLVER

ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "rk38")


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def solver(method: str = "tsit5", tolerance: float = 1e-6, **options: object) -> Solver:
    sizes = {"dt0": 0.1} if method in FIXED else {"rtol": tolerance, "atol": tolerance}
    return Solver(method=method, **{"engine": "torch", **sizes, **options})


def solve(f: object, y0: Tensor, ts: object, how: Solver, **options: object) -> regnde.Solution:
    """`regnde.solve`; a test of an engine that has no dense output is skipped."""
    try:
        return regnde.solve(f, y0, ts, how, **options)  # type: ignore[arg-type]
    except ValueError as why:
        if how.engine == "julia" and "torch engine" in str(why):
            pytest.skip(str(why))
        raise


TIMES = [0.0, 0.013, 0.4, 0.4, 1.7, 2.0, 2.999, 3.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_it_is_the_state_at_save_times(method: str, sign: float) -> None:
    ts = [sign * t for t in TIMES]
    sol = regnde.solve(harmonic, f64([1.0, 0.5]), [0.0, sign * 3.0], solver(method), dense=True)
    saved = regnde.solve(harmonic, f64([1.0, 0.5]), ts, solver(method))
    torch.testing.assert_close(sol(ts), saved.ys, rtol=ROUNDING, atol=ROUNDING)


def test_both_engines(engine: str) -> None:
    sol = solve(forced, f64([0.5]), [0.0, 3.0], solver(tolerance=1e-9, engine=engine), dense=True)
    saved = solve(forced, f64([0.5]), TIMES, solver(tolerance=1e-9, engine=engine))
    torch.testing.assert_close(sol(TIMES), saved.ys, rtol=SOLVER * 1e-9, atol=0)


@pytest.mark.parametrize(
    ("method", "a_step", "once"),
    [*((m, 0, 0) for m in ("tsit5", "dp5", "bs3", "heun")), ("vern7", 6, 0), *((m, 0, 1) for m in FIXED)],
)
def test_no_evaluations_beyond_those_of_the_interpolant(method: str, a_step: int, once: int) -> None:
    """That of fixed steps needs the slope at the end, which is the next step's first stage."""
    calls = 0

    def counted(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return harmonic(t, y)

    plain = regnde.solve(counted, f64([1.0, 0.0]), [0.0, 3.0], solver(method, 1e-4)).stats
    calls = 0
    sol = regnde.solve(counted, f64([1.0, 0.0]), [0.0, 3.0], solver(method, 1e-4), dense=True)
    assert calls == sol.stats.nfe == plain.nfe + a_step * plain.accepted + once
    assert sol.stats.accepted == plain.accepted
    sol(TIMES)
    assert calls == sol.stats.nfe  # a call evaluates nothing


def test_shapes() -> None:
    sol = regnde.solve(exp_decay, torch.ones(2, 3), [0.0, 1.0], Solver(rtol=1e-4), dense=True)
    for t, shape in ((0.5, ()), (1, ()), ([0.5], (1,)), ([], (0,)), ([[0.1, 0.2], [0.3, 1.0]], (2, 2))):
        assert sol(t).shape == (*shape, 2, 3)
        assert sol(torch.tensor(t, dtype=torch.float32)).shape == (*shape, 2, 3)
        assert sol(t).dtype == torch.float32
    torch.testing.assert_close(sol([[0.9, 0.2], [0.3, 0.1]])[0, 1], sol(0.2), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("record", ["none", "all", Local(seed=1)])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ["tsit5", "vern7", "rk4"])
def test_gradients_are_those_of_save_times(method: str, gradient: str, record: object) -> None:
    if method == "rk4" and isinstance(record, Local):
        pytest.skip("it estimates no error")
    found = []
    for dense in (True, False):
        p, y0 = SMALL_P.clone().requires_grad_(), SMALL_Y0.clone().requires_grad_()
        ts = [0.0, 3.0] if dense else TIMES
        how = solver(method, 1e-4, gradient=gradient)
        sol = regnde.solve(small_net(p), y0, ts, how, record=record, dense=dense)  # type: ignore[arg-type]
        loss = (sol(TIMES) if dense else sol.ys).square().sum()
        if record != "none" and method != "rk4":
            loss = loss + sol.steps.error.sum()
        found.append(torch.autograd.grad(loss, (p, y0)))
    for a, b in zip(*found, strict=True):
        assert relative(a, b) < 1e-9


@pytest.mark.parametrize("method", ["tsit5", "bs3", "vern7", "rk4"])
def test_derivative_by_the_time_is_the_slope(method: str) -> None:
    sol = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 3.0], solver(method, 1e-8, gradient="checkpoint"), dense=True)
    t = torch.linspace(0.0, 3.0, 31, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sol(t)[:, 0].sum(), t)
    torch.testing.assert_close(slope, -torch.sin(t.detach()), rtol=1e-4, atol=1e-4)
    assert torch.autograd.gradcheck(sol, t[[3, 10, 22]].detach().requires_grad_())


def test_derivative_by_the_initial_time() -> None:
    ts = f64([0.0, 2.0]).requires_grad_()
    sol = regnde.solve(exp_decay, f64([1.0]), ts, solver(tolerance=1e-9), dense=True)
    (slope,) = torch.autograd.grad(sol(1.0).sum(), ts)
    torch.testing.assert_close(slope, math.exp(-1) * f64([1.0, 0.0]), rtol=GRADIENT, atol=GRADIENT)


def test_of_a_state_of_several_parts() -> None:
    """In its structure, with each part's dtype."""
    y0 = {"x": torch.ones(2, 1), "v": (torch.zeros(2, dtype=torch.float64), torch.tensor(1j))}

    def field(t: Tensor, y: dict[str, object]) -> dict[str, object]:
        v, z = y["v"]
        return {"x": v.float().unsqueeze(1), "v": (-y["x"].squeeze(1).double(), 1j * z)}

    sol = regnde.solve(field, y0, [0.0, 3.0], Solver(rtol=1e-4, atol=1e-4), dense=True)
    saved = regnde.solve(field, y0, [0.0, 1.0, 2.0, 2.5, 3.0], Solver(rtol=1e-4, atol=1e-4))
    found = pickle.loads(pickle.dumps(sol))([[1.0, 2.0]])
    assert found["x"].shape == (1, 2, 2, 1)
    for a, b in ((found["x"], saved.ys["x"]), *zip(found["v"], saved.ys["v"], strict=True)):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a[0], b[1:3])


def test_without_gradients() -> None:
    with torch.no_grad():
        sol = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], solver("vern7", 1e-9), dense=True)
    assert float(sol(0.5)) == pytest.approx(math.exp(-0.5), rel=SOLVER * 1e-9)
    scalar = regnde.solve(exp_decay, 1.0, [0.0, 1.0], dense=True)(0.5)
    assert scalar.shape == ()
    assert float(scalar) == pytest.approx(math.exp(-0.5), rel=1e-5)


def test_up_to_an_event() -> None:
    sol = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 9.0], solver(), event=Event(lambda t, y: y[0]), dense=True)
    torch.testing.assert_close(sol(sol.ts[-1]), sol.y1, rtol=ROUNDING, atol=ROUNDING)
    with pytest.raises(ValueError, match=r"outside the span \[0\.0, 1\.57"):
        sol(1.6)


def test_across_stops() -> None:
    def ramp(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t < 1.0, 1.0, -2.0) * torch.ones_like(y)

    for method in ("tsit5", "vern7", "rk4"):
        sol = regnde.solve(ramp, f64([0.0]), [0.0, 2.0], solver(method), stops=[1.0], dense=True)
        torch.testing.assert_close(
            sol([0.5, 0.999, 1.0, 1.001, 1.5]).flatten(), f64([0.5, 0.999, 1.0, 0.998, 0.0]), rtol=1e-10, atol=1e-10
        )


def test_of_an_sde_it_is_linear_between_steps() -> None:
    path = regnde.BrownianPath(0.0, 1.0, (2,), seed=1)
    sde, how = regnde.SDE(exp_decay, lambda t, y: 0.2 * y), Solver(dt0=0.1, engine="torch")
    sol = regnde.solve(sde, f64([1.0, 2.0]), [0.0, 1.0], how, noise=path, dense=True)
    saved = regnde.solve(sde, f64([1.0, 2.0]), [0.0, 0.3, 0.31, 1.0], how, noise=path)
    torch.testing.assert_close(sol(saved.ts), saved.ys, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_of_a_solve_that_failed(method: str) -> None:
    """Up to the last state."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.where(t > 0.56, math.nan, 1.0) * torch.ones_like(y)

    sol = regnde.solve(field, f64([0.0]), [0.0, 0.1, 2.0], solver(method), dense=True, throw=False)
    assert sol.status == regnde.Status.NON_FINITE
    assert float(sol(0.4)) == pytest.approx(0.4, rel=ROUNDING)
    with pytest.raises(ValueError, match="outside the span"):
        sol(0.7)


def test_copies_can_be_called() -> None:
    y0 = f64([1.0, 0.0]).requires_grad_()
    sol = regnde.solve(harmonic, y0, [0.0, 3.0], solver("vern7"), dense=True)
    for twin in (pickle.loads(pickle.dumps(sol)), copy.deepcopy(sol)):
        assert torch.equal(twin(TIMES), sol(TIMES))
        assert not twin(TIMES).requires_grad
    assert copy.copy(sol)(TIMES).requires_grad


def test_no_span() -> None:
    sol = regnde.solve(exp_decay, f64([[1.0, 2.0]]), [1.0], dense=True)
    assert sol([1.0, 1.0]).tolist() == [[[1.0, 2.0]]] * 2
    with pytest.raises(ValueError, match="outside the span"):
        sol(1.5)


def test_times_outside_the_span() -> None:
    sol = regnde.solve(exp_decay, f64([1.0]), [0.1, 0.7], dense=True)
    for t in (0.0999, 0.701, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"outside the span \[0\.1, 0\.7\]"):
            sol([0.5, t])
    assert sol(torch.tensor([0.1, 0.7])).shape == (2, 1)  # in float32 the end is 0.69999999


def test_it_must_be_asked_for() -> None:
    with pytest.raises(ValueError, match="dense=True"):
        regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0])(0.5)
    with pytest.raises(ValueError, match=r"per-sample.*no dense output"):
        regnde.solve(exp_decay, f64([[1.0]]), [0.0, 1.0], Solver(batch="per-sample", engine="torch"), dense=True)
