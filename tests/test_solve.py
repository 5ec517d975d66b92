"""The numerical contract of design.md 4: steps, outputs, counts, dtypes, devices."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import regnde
from problems import SMALL_P, SMALL_Y0, SMOOTH, Smooth, exp_decay, small_net, van_der_pol
from regnde import Local, Solver
from tolerances import CANCELLED, EXACT, ORDER, ROUNDING, SOLVER

ADAPTIVE = ("tsit5", "bs3", "heun", "dp5", "vern7")
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "rk38": 4}


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("problem", SMOOTH, ids=lambda p: p.name)
def test_exact_solutions_both_directions(engine: str, problem: Smooth, method: str) -> None:
    tolerance = 1e-5 if method == "heun" else 1e-8
    solver = Solver(method=method, rtol=tolerance, atol=tolerance, engine=engine)
    there = regnde.solve(problem.f, f64(problem.y0), [0.0, problem.end], solver)
    torch.testing.assert_close(there.y1, f64(problem.exact), rtol=SOLVER * tolerance, atol=SOLVER * tolerance)
    back = regnde.solve(problem.f, f64(problem.exact), [problem.end, 0.0], solver)
    growth = 1e3  # a decaying problem grows backwards and takes its errors along
    torch.testing.assert_close(back.y1, f64(problem.y0), rtol=0, atol=growth * SOLVER * tolerance)


@pytest.mark.parametrize(
    ("method", "order"), [*FIXED.items(), ("tsit5", 5), ("dp5", 5), ("bs3", 3), ("heun", 2), ("vern7", 7)]
)
def test_order_of_one_step(method: str, order: int) -> None:
    """The local error of single steps has slope order + 1; adaptive methods accept anything at this tolerance."""
    problem = SMOOTH[2]
    sizes = [0.4 * 0.75**i for i in range(6)] if order > 3 else [0.2 * 0.7**i for i in range(6)]
    errors = []
    for h in sizes:
        solver = Solver(method=method, dt0=h, rtol=1e6, atol=1e6)
        sol = regnde.solve(problem.f, f64(problem.y0), [0.0, h], solver, record="all")
        assert sol.stats.accepted == 1
        particular = (4 * math.cos(h) + 2 * math.sin(h)) / 5
        errors.append(abs(float(sol.y1) - (particular + (0.5 - 0.8) * math.exp(-2 * h))))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope > order + 1 - ORDER


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_order_of_dense_output(method: str) -> None:
    """States inside a step are as good as the field's order, or the interpolant's, allows."""
    expected = {"tsit5": 5, "dp5": 5, "bs3": 4, "vern7": 8, "euler": 2, "rk4": 4, "rk38": 4}
    expected |= {"midpoint": 3, "heun": 3, "heun2": 3, "heun3": 4}
    expected = expected[method]
    problem, errors = SMOOTH[2], []
    sizes = [0.8 * 0.75**i for i in range(6)]
    for h in sizes:
        solver = Solver(method=method, dt0=h, rtol=1e6, atol=1e6)
        inside = [0.0, *(h * theta for theta in (0.2, 0.45, 0.77)), h]
        sol = regnde.solve(problem.f, f64(problem.y0), inside, solver)
        exact = [(4 * math.cos(t) + 2 * math.sin(t)) / 5 - 0.3 * math.exp(-2 * t) for t in inside]
        errors.append(float((sol.ys.flatten() - f64(exact)).abs()[1:-1].max()))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] > expected - ORDER


def test_error_and_stiffness_of_a_linear_field() -> None:
    """On y' = a y every estimate is known: S is |a|, and E the embedded pair's polynomial in a h."""
    a = -3.0
    sol = regnde.solve(lambda t, y: a * y, torch.ones(3, dtype=torch.float64), [0.0, 2.0], record="all")
    torch.testing.assert_close(sol.steps.stiffness, torch.full_like(sol.steps.dt, abs(a)), rtol=1e-6, atol=0)
    assert (sol.steps.error <= 1).all()
    assert (sol.steps.error > 0).all()
    torch.testing.assert_close(sol.steps.dt.cumsum(0), sol.steps.t, rtol=ROUNDING, atol=0)


def test_stiff_flag() -> None:
    """At a loose tolerance stability sets the steps of a stiff decay, and the flag says so."""
    stiff = regnde.solve(lambda t, y: -1000 * y, torch.ones(1), [0.0, 1.0], Solver(rtol=1e-2, atol=1e-2), record="all")
    gentle = regnde.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], record="all")
    assert stiff.steps.stiff.float().mean() > 0.5
    assert not gentle.steps.stiff.any()


@pytest.mark.parametrize("method", ["tsit5", "dp5", "heun", "vern7"])
@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_stiff_flag_begins_at_nine_tenths_of_the_stability_size(method: str, batch: str) -> None:
    """On y' = -y the estimate is 1, so that the flag tells the step's size; the tolerance accepts any."""
    size = regnde.solve(exp_decay, f64([[1.0]]), [0.0, 1.0], Solver(method=method), record="all").steps.stability_size
    for share in (0.89, 0.91):
        solver = Solver(method=method, batch=batch, dt0=share * size, rtol=1e6, atol=1e6)
        sol = regnde.solve(exp_decay, f64([[1.0]]), [0.0, share * size], solver, record="all")
        assert sol.steps.stiffness.flatten().tolist() == pytest.approx([1.0], rel=1e-6)
        assert sol.steps.stiff.flatten().tolist() == [share > 0.9]


@pytest.mark.parametrize("sampling", ["time", "step"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_local_records_with_save_points_and_without_a_graph(method: str, sampling: str) -> None:
    """The interpolant's further stages, the start of the local step and the records, with a graph and without one."""
    p = SMALL_P.clone().requires_grad_()
    solver, local = Solver(method=method, rtol=1e-4, atol=1e-4), Local(sampling=sampling, seed=2)
    for ts in ([0.0, 1.5], [0.0, 0.2, 0.21, 0.9, 1.5], [1.5, 0.7, 0.0]):
        with_graph = regnde.solve(small_net(p), SMALL_Y0, ts, solver, record=local)
        with torch.no_grad():
            without = regnde.solve(small_net(p), SMALL_Y0, ts, solver, record=local)
        assert without.stats == with_graph.stats
        assert not without.ys.requires_grad
        assert not without.steps.error.requires_grad
        torch.testing.assert_close(without.ys, with_graph.ys.detach(), rtol=ROUNDING, atol=ROUNDING)
        for name in ("t", "dt", "error", *(["stiffness"] if method != "bs3" else [])):
            torch.testing.assert_close(
                getattr(without.steps, name), getattr(with_graph.steps, name).detach(), rtol=CANCELLED, atol=0
            )


@pytest.mark.parametrize("method", ADAPTIVE)
def test_nfe_is_what_the_field_counts(engine: str, method: str) -> None:
    calls = 0

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return van_der_pol(3.0)(t, y)

    if engine == "julia":
        pytest.skip("Julia runs exported code, which can not count in Python; tests/golden holds its counts")
    tolerance = 1e-3 if method == "heun" else 1e-6  # of order 2: fewer steps than after which a field is asked again
    solver = Solver(method=method, rtol=tolerance, atol=tolerance)
    for record in ("none", "all", Local(seed=1), Local(step_size="initial", sampling="step")):
        calls = 0
        sol = regnde.solve(field, f64([2.0, 0.0]), [0.0, 1.3, 6.0], solver, record=record)
        assert sol.stats.nfe == calls
        assert sol.stats.rejected > 0 or method in ("bs3", "heun")


@pytest.mark.parametrize("method", ADAPTIVE)
def test_nfe_formula(engine: str, method: str) -> None:
    start, stages = {"tsit5": (3, 6), "dp5": (3, 6), "bs3": (3, 3), "heun": (3, 2), "vern7": (2, 10)}[method]
    solver = Solver(method=method, rtol=1e-4, atol=1e-4, engine=engine)
    stats = regnde.solve(van_der_pol(3.0), f64([2.0, 0.0]), [0.0, 6.0], solver).stats
    assert stats.nfe == start + stages * (stats.accepted + stats.rejected)


@pytest.mark.parametrize("grad", [False, True])
def test_graph_and_buffer_give_the_same_numbers(grad: bool) -> None:
    p = SMALL_P.clone().requires_grad_(grad)
    sol = regnde.solve(small_net(p), SMALL_Y0, [0.0, 0.2, 1.5], record="all")
    with torch.no_grad():
        other = regnde.solve(small_net(p), SMALL_Y0, [0.0, 0.2, 1.5], record="all")
    assert sol.stats == other.stats
    torch.testing.assert_close(sol.ys.detach(), other.ys, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(sol.steps.dt, other.steps.dt, rtol=1e-6, atol=0)
    torch.testing.assert_close(sol.steps.error.detach(), other.steps.error, rtol=1e-6, atol=0)


def test_last_step_lands_on_the_end(engine: str) -> None:
    for end in (1.0, 0.1 + 0.2, -1 / 3):
        sol = regnde.solve(exp_decay, f64([1.0]), [0.0, end], Solver(engine=engine), record="all")
        assert float(sol.steps.t[-1]) == end


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_nothing_is_evaluated_outside_the_span(method: str) -> None:
    for span in ([0.1, 0.7], [0.7, 0.1], [0.0, 1e-9]):
        seen = []

        def field(t: torch.Tensor, y: torch.Tensor, seen: list[float] = seen) -> torch.Tensor:
            seen.append(float(t))
            return torch.cos(t) - y

        middle = (span[0] + span[1]) / 2
        dt0 = abs(span[1] - span[0]) / 7 if method in FIXED else None
        regnde.solve(field, f64([0.0]), [span[0], middle, span[1]], Solver(method=method, dt0=dt0), record="all")
        assert min(span) <= min(seen)
        assert max(seen) <= max(span)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (0, 3)])
@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
@pytest.mark.parametrize("grad", [False, True])
def test_any_shape(shape: tuple[int, ...], method: str, grad: bool) -> None:
    solver = Solver(method=method, dt0=0.1 if method == "rk4" else None)
    with torch.set_grad_enabled(grad):
        sol = regnde.solve(exp_decay, torch.ones(shape, dtype=torch.float64), [0.0, 0.3, 1.0], solver, record="all")
    assert sol.ys.shape == (3, *shape)
    assert sol.y1.shape == shape
    torch.testing.assert_close(sol.y1, torch.full(shape, math.exp(-1), dtype=torch.float64), rtol=1e-4, atol=0)


def test_complex_state(engine: str) -> None:
    for dtype in (torch.complex64, torch.complex128):
        kinds = set()

        def field(t: torch.Tensor, y: torch.Tensor, kinds: set[torch.dtype] = kinds) -> torch.Tensor:
            kinds.add(t.dtype)
            return -1j * y

        y0 = torch.ones(2, dtype=dtype, requires_grad=True)
        sol = regnde.solve(field, y0, [0.0, 0.5, 1.0], Solver(engine=engine), record="all")
        assert sol.y1.dtype == dtype
        assert kinds == {y0.real.dtype}
        torch.testing.assert_close(
            sol.y1, torch.full((2,), complex(math.cos(1), -math.sin(1)), dtype=dtype), rtol=1e-5, atol=1e-6
        )
        regnde.ErrorPenalty()(sol).backward()
        assert torch.isfinite(y0.grad).all()


def test_numpy_in_and_out(engine: str) -> None:
    sol = regnde.solve(exp_decay, np.ones(3), np.linspace(0, 1, 4), Solver(engine=engine), record="all")
    arrays = sol.numpy()
    assert isinstance(arrays.ys, np.ndarray)
    assert arrays.ys.shape == (4, 3)
    assert arrays.ys.dtype == np.float64
    np.testing.assert_allclose(arrays.ys[:, 0], np.exp(-np.linspace(0, 1, 4)), rtol=1e-5)
    assert arrays.error.shape == arrays.stiffness.shape == (sol.stats.accepted,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"y0 has dtype .*solve in float32"):
        regnde.solve(exp_decay, torch.ones(2, dtype=dtype), [0, 1])


def test_warns_below_the_resolution_of_float32() -> None:
    with pytest.warns(UserWarning, match="rounding noise"):
        regnde.solve(exp_decay, torch.ones(2), [0, 1], Solver(rtol=1.4e-8, atol=1.4e-8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regnde.solve(exp_decay, torch.ones(2), [0, 1], Solver(rtol=1e-6, atol=1e-6))
        regnde.solve(exp_decay, f64([1.0]), [0, 1], Solver(rtol=1.4e-8, atol=1.4e-8))


def test_warns_of_a_field_that_is_no_function() -> None:
    with pytest.warns(UserWarning, match="same \\(t, y\\) differ"):
        regnde.solve(lambda t, y: -y * torch.rand(()), torch.ones(2), [0, 0.01], Solver(rtol=0.1, atol=0.1))


def test_float32_keeps_a_float64_clock() -> None:
    """A thousand steps of 1e-3 in float32 end at 1 exactly, with the times that float64 has."""
    sol = regnde.solve(exp_decay, torch.ones(1), [0.0, 1.0], Solver(method="rk4", dt0=1e-3), record="all")
    assert sol.stats.accepted == 1000
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(sol.steps.t, times, rtol=ROUNDING, atol=0)


def test_max_steps(engine: str) -> None:
    solver = Solver(max_steps=5, engine=engine)
    with pytest.raises(regnde.MaxStepsReached, match="5 steps") as caught:
        regnde.solve(exp_decay, f64([1.0]), [0.0, 0.01, 10.0], solver, record="all")
    error = caught.value
    assert error.accepted + error.rejected == 5
    assert 0 < error.t < 10
    assert error.solution.ys.shape[0] == error.solution.ts.shape[0] == 2
    assert len(error.solution.steps) == error.accepted
    partial = regnde.solve(exp_decay, f64([1.0]), [0.0, 0.01, 10.0], solver, throw=False)
    assert partial.status == "max steps reached"


def test_ten_thousand_outputs_change_nothing(engine: str) -> None:
    ts = torch.linspace(0, 3, 10_000, dtype=torch.float64)
    many = regnde.solve(exp_decay, f64([1.0]), ts, Solver(engine=engine))
    few = regnde.solve(exp_decay, f64([1.0]), [0.0, 3.0], Solver(engine=engine))
    assert many.stats == few.stats
    torch.testing.assert_close(many.ys.flatten(), torch.exp(-ts), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(many.y1, few.y1, rtol=EXACT, atol=EXACT)


def test_a_field_may_hand_out_its_own_buffer() -> None:
    buffer = torch.empty(2, dtype=torch.float64)

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.mul(y, -1.0, out=buffer)

    with torch.no_grad():
        sol = regnde.solve(field, f64([1.0, 2.0]), [0.0, 1.0])
    torch.testing.assert_close(sol.y1, f64([1.0, 2.0]) * math.exp(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("reused", [False, True])
def test_a_large_state_is_stepped_as_a_small_one(reused: bool) -> None:
    """Stages of large states are not copied where the field hands out new tensors, and are where it does not."""
    many = 2**18
    buffer = torch.empty(many, dtype=torch.float64)

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.mul(y, -1.0, out=buffer) if reused else -y

    start = torch.linspace(1, 2, many, dtype=torch.float64)
    with torch.no_grad():
        sol = regnde.solve(field, start, [0.0, 0.4, 1.0], Solver(engine="torch"))
        small = regnde.solve(lambda t, y: -y, f64([1.0, 2.0]), [0.0, 0.4, 1.0], Solver(engine="torch"))
    assert sol.stats.nfe == small.stats.nfe
    torch.testing.assert_close(sol.y1, start * math.exp(-1), rtol=1e-5, atol=0)


def test_inputs_are_left_alone() -> None:
    y0, ts = f64([1.0, 2.0]), f64([0.0, 1.0])
    sol = regnde.solve(exp_decay, y0, ts, record="all")
    sol.ys.add_(1.0)
    assert y0.tolist() == [1.0, 2.0]
    assert ts.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (dict(f=3), TypeError, "f must be callable"),
        (dict(y0=None), (TypeError, RuntimeError), "."),
        (dict(ts=[0.0, 1.0, 0.5]), ValueError, "non-decreasing or non-increasing"),
        (dict(ts=[[0.0, 1.0], [0.0, 2.0]]), ValueError, "not offered"),
        (dict(ts=[]), ValueError, "one or more times"),
        (dict(ts=[0.0, math.nan]), ValueError, "finite"),
        (dict(ts=[0.0, 1j]), TypeError, "real times"),
        (dict(solver=Solver(method="rk4")), ValueError, "fixed step"),
        (dict(solver=Solver(method="rk4", dt0=0.1), record=Local()), ValueError, "estimates no error"),
        (dict(solver=Solver(method="nope", engine="torch")), ValueError, "no ODE method 'nope'"),
        (dict(solver=Solver(gradient="gauss", engine="torch")), ValueError, "SciMLSensitivity"),
        (dict(record="some"), ValueError, "record="),
        (dict(noise=object()), ValueError, "Brownian path"),
    ],
)
def test_what_is_refused(arguments: dict, kind: type, message: str) -> None:
    given = {"f": exp_decay, "y0": [1.0], "ts": [0.0, 1.0], **arguments}
    with pytest.raises(kind, match=message):
        regnde.solve(**given)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(rtol=-1.0),
        dict(atol=math.nan),
        dict(rtol=0.0, atol=0.0),
        dict(dt0=0.0),
        dict(max_steps=0),
        dict(gradient="exact"),
        dict(engine="c"),
    ],
)
def test_what_a_solver_refuses(arguments: dict) -> None:
    with pytest.raises(ValueError, match=r"Solver\("):
        Solver(**arguments)


def test_unknown_engine_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGNDE_ENGINE", "fortran")
    with pytest.raises(regnde.EngineUnavailable, match="no engine 'fortran'"):
        regnde.solve(exp_decay, [1.0], [0.0, 1.0])
    assert regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(engine="torch")).engine == "torch"
