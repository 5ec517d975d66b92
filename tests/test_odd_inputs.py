"""Further inputs of the kinds in the list of cases: the number in a name is the case whose kind it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch

import regnde
from problems import exp_decay
from regnde import SDE, ErrorPenalty, Solver
from tolerances import GRADIENT, ROUNDING, SOLVER

ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")
Field = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- cases 5 and 6: times --------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("ts", [[0.0, 0.5, 0.5, 1.0], [1.0, 0.5, 0.5, 0.0], [1.0, 1.0], [1.0]], ids=str)
def test_case_5_and_6_gradients_of_duplicate_and_decreasing_times(ts: list[float], gradient: str) -> None:
    times = f64(ts).requires_grad_()
    sol = regnde.solve(exp_decay, f64([1.0]), times, Solver(rtol=1e-9, atol=1e-9, gradient=gradient), record="all")
    (slope,) = torch.autograd.grad(sol.ys.sum(), times)
    ys = [math.exp(ts[0] - t) for t in ts]
    expected = [sum(ys[1:]), *(-y for y in ys[1:])]  # y_i = exp(t_0 - t_i); y_0 does not move
    torch.testing.assert_close(slope, f64(expected), rtol=0, atol=SOLVER * 1e-9)


SPANS = [1e-12, 1e-300, 5e-324]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4"])
def test_case_5_tiny_spans(method: str, span: float, sign: float) -> None:
    y0 = f64([1.0]).requires_grad_()
    solver = Solver(method=method, dt0=0.1 if method == "rk4" else None)
    sol = regnde.solve(exp_decay, y0, [0.0, sign * span / 2, sign * span], solver, record="all")
    assert sol.stats.accepted == 1
    torch.testing.assert_close(sol.y1, y0 * math.exp(-sign * span), rtol=ROUNDING, atol=0)
    loss = sol.y1.sum() + (ErrorPenalty()(sol) if method != "rk4" else 0.0)
    assert float(torch.autograd.grad(loss, y0)[0]) == pytest.approx(1.0, rel=GRADIENT)


def test_case_5_long_spans() -> None:
    """A million units of time: few steps where little happens, and no field time beyond the span."""
    slow = regnde.solve(lambda t, y: torch.cos(t / 1e5) / 1e5 + 0 * y, f64([0.0]), [0.0, 1e6])
    assert float(slow.y1) == pytest.approx(math.sin(10), abs=SOLVER * 1e-6)
    assert slow.stats.accepted < 100
    still = regnde.solve(lambda t, y: 0 * y, f64([1.0]), [1e6, 0.0])
    assert still.y1.tolist() == [1.0]
    assert still.stats.accepted < 20


def rounded_times(dtype: torch.dtype) -> AbstractContextManager[object]:
    """The field of a float32 state gets float32 times: here they are further apart than the span is long."""
    return pytest.warns(UserWarning, match="times in torch.float32") if dtype == torch.float32 else nullcontext()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_case_5_far_from_the_origin_of_time(method: str, dtype: torch.dtype) -> None:
    with rounded_times(dtype):
        sol = regnde.solve(exp_decay, torch.ones(1, dtype=dtype), [1e9, 1e9 + 1], Solver(method=method), record="all")
    assert float(sol.y1) == pytest.approx(math.exp(-1), rel=1e-4)
    near = regnde.solve(exp_decay, torch.ones(1, dtype=dtype), [0.0, 1.0], Solver(method=method))
    assert abs(sol.stats.accepted - near.stats.accepted) <= 2
    with rounded_times(dtype), pytest.raises(regnde.StepSizeUnderflow, match="clock's resolution"):
        regnde.solve(exp_decay, torch.ones(1, dtype=dtype), [1e16, 1e16 + 4], Solver(method=method))


@pytest.mark.parametrize("method", [*ADAPTIVE, "euler", "midpoint", "rk4"])
def test_case_6_first_step_longer_than_the_span(method: str) -> None:
    for ts in ([0.0, 1e-3], [1e-3, 0.0]):
        sol = regnde.solve(exp_decay, f64([1.0]), ts, Solver(method=method, dt0=50.0))
        assert sol.stats.dt_first == ts[1] - ts[0]
        assert float(sol.y1) == pytest.approx(math.exp(ts[0] - ts[1]), rel=1e-5)


def test_case_6_the_message_shows_where_the_order_breaks() -> None:
    ts = torch.linspace(0, 1, 10_000, dtype=torch.float64)
    ts[7000] = 0.5
    with pytest.raises(ValueError, match=r"got \[\.\.\., 0\.69\d+, 0\.69\d+, 0\.5, 0\.70\d+, \.\.\.\]") as caught:
        regnde.solve(exp_decay, f64([1.0]), ts)
    assert len(str(caught.value)) < 200
    ts[7000] = math.nan
    with pytest.raises(ValueError, match=r"finite, got .*nan"):
        regnde.solve(exp_decay, f64([1.0]), ts)
    with pytest.raises(ValueError, match=r"finite, got \[inf\]"):
        regnde.solve(exp_decay, f64([1.0]), [math.inf])


# --- case 9: odd but legal -------------------------------------------------------------------------

FORMS = {
    "list of ints": ([1, 2], [0, 1]),
    "numpy ints": (np.array([1, 2]), np.array([0, 1])),
    "numpy int8 times": ((1.0, 2.0), np.array([0, 1], dtype=np.int8)),
    "reversed view": (np.array([2.0, 1.0])[::-1], np.array([1.0, 0.0])[::-1]),
    "other byte order": (np.array([1.0, 2.0]).astype(">f8"), np.array([0.0, 1.0]).astype(">f8")),
    "list of tensors": ([torch.tensor(1.0), torch.tensor(2.0)], [torch.tensor(0.0), torch.tensor(1.0)]),
    "range": ([1, 2], range(2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_case_9_forms_of_state_and_times(form: str) -> None:
    y0, ts = FORMS[form]
    assert regnde.solve(exp_decay, y0, ts).y1.tolist() == pytest.approx([math.exp(-1), 2 * math.exp(-1)], rel=1e-5)


def test_case_9_booleans_and_read_only_arrays() -> None:
    assert regnde.solve(exp_decay, np.array([True, False]), [0, 1]).y1.tolist() == pytest.approx([math.exp(-1), 0.0])
    fixed = np.array([1.0])
    fixed.setflags(write=False)
    sol = regnde.solve(exp_decay, fixed, [0, 1])
    sol.ys.zero_()
    assert fixed.tolist() == [1.0]


def test_case_9_lists_of_tensors_keep_their_gradients() -> None:
    a, end = torch.tensor(2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y1 = regnde.solve(exp_decay, [a, torch.tensor(1.0)], [torch.tensor(0.0), end]).y1
    of_a, of_end = torch.autograd.grad(y1.sum(), [a, end])
    assert float(of_a) == pytest.approx(math.exp(-1), rel=1e-4)
    assert float(of_end) == pytest.approx(-3 * math.exp(-1), rel=1e-4)


def test_case_9_dtypes_of_times_and_state_are_apart() -> None:
    ts = f64([0.0, 1 / 3, 1.0])
    sol = regnde.solve(exp_decay, torch.ones(2), ts, record="all")
    assert (sol.ys.dtype, sol.ts.dtype, sol.steps.dt.dtype) == (torch.float32, torch.float64, torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        sol = regnde.solve(exp_decay, [1, 2], [0, 1], record="all")
        assert {sol.ys.dtype, sol.ts.dtype, sol.steps.error.dtype} == {torch.float64}
        assert regnde.solve(exp_decay, torch.ones(2, dtype=torch.float32), [0, 1]).y1.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_case_9c_complex_gradients_of_times() -> None:
    ts = f64([0.0, 0.5, 1.0]).requires_grad_()
    y0 = torch.ones(1, dtype=torch.complex128, requires_grad=True)
    sol = regnde.solve(lambda t, y: -1j * t * y, y0, ts, Solver(rtol=1e-9, atol=1e-9))
    (slope,) = torch.autograd.grad(sol.ys.real.sum() + 2 * sol.ys.imag.sum(), ts)
    at = ts.detach()
    moved = -1j * at * torch.exp(-1j * at.square() / 2)
    torch.testing.assert_close(slope, moved.real + 2 * moved.imag, rtol=0, atol=SOLVER * 1e-9)


def test_case_9_zero_tolerance_is_named() -> None:
    with pytest.raises(ValueError, match="atol=0 leaves entries of y0"):
        regnde.solve(exp_decay, f64([0.0, 1.0]), [0, 1], Solver(atol=0.0))
    assert float(regnde.solve(exp_decay, f64([1.0]), [0, 1], Solver(atol=0.0)).y1) == pytest.approx(math.exp(-1))
    with pytest.raises(regnde.NonFiniteDynamics, match="overflows"):
        regnde.solve(exp_decay, f64([1e300]), [0, 1], Solver(rtol=0.0, atol=1e-12))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", [*ADAPTIVE, "rk4", "em", "sosri"])
def test_case_9_fields_that_hand_out_or_change_what_is_not_theirs(method: str, grad: bool) -> None:
    """Views of the argument are fine; changing it, or a buffer handed out before, is refused or harmless."""
    sde = method in ("em", "sosri")
    tolerance = 1e-2 if sde else 1e-6
    dt0 = None if method in (*ADAPTIVE, "sosri") else 1e-2
    solver = Solver(method=method, dt0=dt0, rtol=tolerance, atol=tolerance)

    def run(field: Field, y0: torch.Tensor) -> torch.Tensor:
        y0 = y0.clone()
        kept = y0.clone()
        equation = SDE(field, lambda t, y: torch.zeros_like(y)) if sde else field
        try:
            with torch.set_grad_enabled(grad):
                return regnde.solve(equation, y0, [0.0, 1.0], solver).y1
        finally:
            assert torch.equal(y0, kept) or field in changing

    buffer = torch.empty(2, 2, dtype=torch.float64)
    changing = [
        lambda t, y: y.mul_(-1),
        lambda t, y: (y.clamp_(max=1.5), -y)[1],
        lambda t, y: -y + 0 * t.add_(1.0),
    ]
    square = f64([[1.0, 2.0], [2.0, 1.0]])
    rel = 2e-2 if method == "em" else SOLVER * tolerance
    for views in (lambda t, y: y, lambda t, y: y.T, lambda t, y: y.view(2, 2), lambda t, y: y.detach()):
        torch.testing.assert_close(run(views, square), square * math.e, rtol=rel, atol=0)
    for field in changing:
        with pytest.raises(ValueError, match="changed its argument in place"):
            run(field, square)
    reusing = lambda t, y: torch.mul(y, -1.0, out=buffer)  # noqa: E731 - one line reads best
    buffers = itertools.cycle([buffer, buffer.clone()])
    alternating = lambda t, y: torch.mul(y, -1.0, out=next(buffers))  # noqa: E731
    for field in (reusing, alternating, lambda t, y: torch.mul(y, -1.0, out=buffer).view(2, 2)):
        torch.testing.assert_close(run(field, square), square / math.e, rtol=rel, atol=0)
