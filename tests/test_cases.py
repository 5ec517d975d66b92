"""Public bug reports as inputs, numbered as in the project's list of cases."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from io import BytesIO

import pytest
import torch

import regnde
from problems import van_der_pol
from regnde import ErrorPenalty, Local, Solver, SquaredErrorPenalty, StiffnessPenalty
from tolerances import GRADIENT, ROUNDING

GRADIENTS = ("discrete", "checkpoint")


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "vern7"])
def test_case_1_nan_in_a_trial_step(method: str, gradient: str) -> None:
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    solver = Solver(method=method, rtol=1e-4, atol=1e-4, gradient=gradient)
    sol = regnde.solve(lambda t, y: y + 0 * torch.sqrt(20 - y), y0, [0.0, math.log(19.9)], solver, record="all")
    assert sol.y1.item() == pytest.approx(19.9, rel=1e-3)
    (slope,) = torch.autograd.grad(sol.y1.sum() + ErrorPenalty()(sol) * 0, y0)
    assert float(slope) == pytest.approx(19.9, rel=1e-3)
    assert torch.isfinite(sol.steps.error).all()


@pytest.mark.parametrize("dt0", [None, 2.0])
def test_case_1_a_first_step_that_is_far_too_long(dt0: float | None) -> None:
    field = lambda t, y: -torch.sqrt(y) if (y >= 0).all() else y * math.nan  # noqa: E731 - one line reads best
    sol = regnde.solve(field, f64([1.0]), [0.0, 1.9], Solver(dt0=dt0))
    assert float(sol.y1) == pytest.approx(0.05**2, rel=1e-3)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "vern7"])
def test_case_2a_nan_from_the_start(method: str, grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(regnde.NonFiniteDynamics) as caught:
        regnde.solve(lambda t, y: math.nan * y, torch.ones(3), [0.0, 1.0], Solver(method=method))
    assert caught.value.nfe < 100
    assert caught.value.t == 0
    assert "3 of 3 components" in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("grad", [False, True])
def test_case_2b_nan_for_good_from_some_time_on(bad: float, grad: bool) -> None:
    with torch.set_grad_enabled(grad), pytest.raises(regnde.NonFiniteDynamics, match="1 of 2 components") as caught:
        regnde.solve(lambda t, y: -y if t <= 0.5 else f64([bad, 0.0]) * y.abs() - y, f64([1.0, 1.0]), [0.0, 1.0])
    assert caught.value.nfe < 100
    assert 0.4 < caught.value.t <= 0.5
    assert caught.value.solution.status == "non-finite dynamics"


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_case_2_fixed_steps_do_not_return_nan(method: str) -> None:
    with pytest.raises(regnde.NonFiniteDynamics):
        regnde.solve(lambda t, y: math.nan * y, torch.ones(1), [0.0, 1.0], Solver(method=method, dt0=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_case_4_blow_up(dtype: torch.dtype) -> None:
    field, y0, ts = lambda t, y: y * y, torch.ones(1, dtype=dtype), [0.0, 0.5, 2.0]
    with pytest.raises((regnde.StepSizeUnderflow, regnde.MaxStepsReached), match=r"t=1[, ].*NFE=") as caught:
        regnde.solve(field, y0, ts, record="all")
    error = caught.value
    assert error.t == pytest.approx(1.0, abs=1e-4)
    assert "|y| up to" in str(error)
    assert error.accepted > 0
    assert error.rejected > 0
    assert error.solution.ys.flatten().tolist() == pytest.approx([1.0, 2.0], rel=1e-4)
    assert regnde.solve(field, y0, ts, throw=False).status == "step size underflow"


@pytest.mark.parametrize("record", ["none", "all", Local()], ids=str)
@pytest.mark.parametrize("ts", [[0.0, 0.0], [0.0], [1.5, 1.5, 1.5]], ids=str)
def test_case_5_zero_length(ts: list[float], record: regnde.Local | str) -> None:
    y0 = f64([1.0, 2.0]).requires_grad_()
    sol = regnde.solve(lambda t, y: -y, y0, ts, record=record)
    assert sol.stats.nfe <= 1
    assert sol.ys.tolist() == [[1.0, 2.0]] * len(ts)
    (slope,) = torch.autograd.grad(sol.y1.sum(), y0, retain_graph=True)
    assert slope.tolist() == [1.0, 1.0]
    if record != "none":
        for penalty in (ErrorPenalty("mean"), SquaredErrorPenalty("max"), StiffnessPenalty(), ErrorPenalty()):
            value = penalty(sol)
            (slope,) = torch.autograd.grad(value, y0, retain_graph=True)
            assert value.item() == 0.0
            assert slope.tolist() == [0.0, 0.0]


def test_case_5_duplicate_times() -> None:
    ys = regnde.solve(lambda t, y: -y, f64([1.0]), [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]).ys.flatten()
    assert ys[0] == ys[1] == 1.0
    assert ys[2] == ys[3]
    assert float(ys[2]) == pytest.approx(0.606531, rel=1e-5)
    assert ys[4] == ys[5]


def test_case_6_decreasing_and_unordered_times() -> None:
    sol = regnde.solve(lambda t, y: -y, f64([1.0]), [1.0, 0.0], record="all")
    assert float(sol.y1) == pytest.approx(math.e, rel=1e-5)
    assert (sol.steps.dt < 0).all()
    assert ErrorPenalty()(sol).item() > 0
    for ts in ([0.0, 1.0, 0.5], [1.0, 0.0, 0.5]):
        with pytest.raises(ValueError, match="non-decreasing or non-increasing"):
            regnde.solve(lambda t, y: -y, f64([1.0]), ts)
    with pytest.raises(ValueError, match="each sample are not offered"):
        regnde.solve(lambda t, y: -y, f64([1.0, 1.0]), [[0.0, 1.0], [0.0, 2.0]])


@pytest.mark.parametrize("ts", [[0, 1], [0.0, 1.0], torch.tensor([0, 1]), torch.tensor([0.0, 1.0])], ids=str)
def test_case_9a_integer_state(ts: object) -> None:
    y1 = regnde.solve(lambda t, y: -y, torch.tensor([1, 2]), ts).y1
    assert y1.dtype == torch.get_default_dtype()
    assert y1.tolist() == pytest.approx([0.367879, 0.735759], rel=1e-5)


def test_case_9b_half_precision_names_the_argument() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match="y0 has dtype"):
            regnde.solve(lambda t, y: -y, torch.ones(2, dtype=dtype), [0, 1])


def test_case_9d_empty_and_scalar_states() -> None:
    assert regnde.solve(lambda t, y: -y, torch.ones(0, 3), [0, 0.5, 1]).ys.shape == (3, 0, 3)
    assert float(regnde.solve(lambda t, y: -y, torch.tensor(1.0), [0, 1]).y1) == pytest.approx(0.367879, rel=1e-5)


def test_case_9e_what_a_field_may_return() -> None:
    y0 = torch.ones(2, 2)
    assert regnde.solve(lambda t, y: -y.double(), y0, [0, 1]).y1.dtype == torch.float32
    for bad in (lambda t, y: -y[:, :1], lambda t, y: torch.zeros(1)):
        with pytest.raises(ValueError, match="returned shape"):
            regnde.solve(bad, y0, [0, 1])
    for bad in (lambda t, y: None, lambda t, y: 1.0):
        with pytest.raises(TypeError, match="must return a tensor"):
            regnde.solve(bad, y0, [0, 1])
    with pytest.raises(TypeError, match="make y0 complex"):
        regnde.solve(lambda t, y: 1j * y, y0, [0, 1])


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_case_11_flat_start(start: float, gradient: str) -> None:
    w = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y0 = torch.full((2,), start, dtype=torch.float64, requires_grad=True)
    sol = regnde.solve(lambda t, y: w * y, y0, [0.0, 1.0], Solver(gradient=gradient), record="all")
    penalty = 3.0 * ErrorPenalty() + SquaredErrorPenalty() + 2.0 * StiffnessPenalty("mean")
    loss = sol.y1.sum() + penalty(sol)
    of_w, of_y0 = torch.autograd.grad(loss, [w, y0])
    assert penalty(sol).item() == 0.0
    assert float(of_w) == pytest.approx(2.0 * start, abs=ROUNDING)
    assert of_y0.tolist() == pytest.approx([1.0, 1.0], abs=ROUNDING)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("k", "y", "slope"), [(50.0, -0.3978018, -3.699358e-4), (200.0, -0.4115901, -2.283476e-5)])
def test_case_12_stiff_decay_backwards(k: float, y: float, slope: float, gradient: str) -> None:
    rate = torch.tensor(k, requires_grad=True)
    solver = Solver(rtol=1e-5, atol=1e-6, gradient=gradient)
    sol = regnde.solve(lambda t, y: -rate * (y - torch.cos(t)), torch.zeros(1), [0.0, 2.0], solver)
    (got,) = torch.autograd.grad(sol.y1, rate)
    assert sol.y1.item() == pytest.approx(y, rel=1e-4)
    assert float(got) == pytest.approx(slope, rel=0.02)


class Borrower(torch.nn.Module):
    """Uses a parameter that it does not own."""

    def __init__(self, w: torch.Tensor) -> None:
        super().__init__()
        self.borrowed = [w]

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.borrowed[0] * y


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("owner", ["closure", "module"])
def test_case_13_parameters_outside_the_module(owner: str, gradient: str) -> None:
    w = torch.nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
    field = Borrower(w) if owner == "module" else lambda t, y: w * y
    regnde.solve(field, f64([1.0]), [0.0, 1.0], Solver(gradient=gradient)).y1.sum().backward()
    assert float(w.grad) == pytest.approx(math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_13_frozen_unused_and_no_parameters(gradient: str) -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = torch.nn.Parameter(f64(-1.0))
            self.frozen = torch.nn.Parameter(f64(0.5), requires_grad=False)
            self.unused = torch.nn.Parameter(torch.zeros(3, 5, dtype=torch.float64))

        def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.used * self.frozen * y

    odd = Odd()
    solver = Solver(gradient=gradient)
    regnde.solve(odd, f64([1.0]), [0.0, 1.0], solver).y1.sum().backward()
    assert float(odd.used.grad) == pytest.approx(0.5 * math.exp(-0.5), rel=1e-5)
    assert odd.frozen.grad is None
    assert odd.unused.grad is None
    y0 = f64([1.0]).requires_grad_()
    regnde.solve(lambda t, y: -y, y0, [0.0, 1.0], solver).y1.sum().backward()
    assert float(y0.grad) == pytest.approx(math.exp(-1), rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_17a_layers_are_copied_and_stored(gradient: str) -> None:
    layer = regnde.nn.NeuralODE(regnde.nn.MLP([2, 8, 2]), solver=Solver(gradient=gradient), record="all")
    y0 = torch.ones(4, 2)
    for _ in range(2):  # before and after a backward pass
        twin, thawed = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
        file = BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        twin.load_state_dict(torch.load(file, weights_only=True))
        for other in (twin, thawed):
            assert torch.equal(other(y0).y1, layer(y0).y1)
        layer(y0).y1.sum().backward()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_17b_no_leaks(gradient: str) -> None:
    layer = regnde.nn.NeuralODE(regnde.nn.MLP([2, 8, 2]), solver=Solver(gradient=gradient), record="all")
    y0 = torch.ones(4, 2)

    def live() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    layer(y0)
    gc.collect()
    gc.disable()
    try:
        before = live()
        for _ in range(100):
            layer(y0)
        assert live() <= before
        watched = weakref.ref(layer)
        del layer
        assert watched() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("solver", [Solver(batch="per-sample"), Solver(gradient="checkpoint", batch="per-sample")])
def test_case_17b_no_leaks_per_sample(solver: Solver) -> None:
    check_no_leak(lambda t, y: -y, solver)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_17b_no_leaks_of_sdes(gradient: str) -> None:
    check_no_leak(regnde.SDE(lambda t, y: -y, lambda t, y: 0.1 * y), Solver(rtol=0.1, atol=0.1, gradient=gradient))


def check_no_leak(equation: object, solver: Solver) -> None:
    """Repeated solves leave no tensors behind, though the garbage collector is off."""
    y0 = torch.ones(4, 1, requires_grad=True)
    regnde.solve(equation, y0, [0.0, 1.0], solver, record="all")
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
        for _ in range(10):
            regnde.solve(equation, y0, [0.0, 1.0], solver, record="all")
        assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("method", ["tsit5", "vern7"])
def test_case_18_outputs_do_not_change_the_records(method: str, gradient: str) -> None:
    outcomes = []
    for ts in ([0.0, 1.0], torch.linspace(0, 1, 5).tolist(), torch.linspace(0, 1, 200).tolist()):
        mu = f64(3.0).requires_grad_()
        y0 = f64([2.0, 0.0])
        solver = Solver(method=method, gradient=gradient)
        sol = regnde.solve(lambda t, y, mu=mu: van_der_pol(mu)(t, y), y0, ts, solver, record="all")
        loss = ErrorPenalty()(sol) + StiffnessPenalty("mean")(sol)
        outcomes.append((sol.steps.dt, sol.steps.error.detach(), torch.autograd.grad(loss, mu)[0]))
        assert len(sol.steps) == sol.stats.accepted
        assert float(sol.steps.dt[0]) == sol.stats.dt_first
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=ROUNDING, atol=0)


def test_case_18_rejected_steps_are_not_recorded() -> None:
    sol = regnde.solve(van_der_pol(5.0), f64([2.0, 0.0]), [0.0, 12.0], record="all")
    assert sol.stats.rejected > 0
    assert len(sol.steps) == sol.stats.accepted
    assert (sol.steps.error <= 1).all()
    assert float(sol.steps.dt.sum()) == pytest.approx(12.0, rel=GRADIENT)
