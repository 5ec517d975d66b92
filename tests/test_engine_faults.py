"""Inputs on which an engine once gave a wrong number without a word; each number is a case of the list of faults."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import regnde
from regnde import ErrorPenalty, Solver, StiffnessPenalty, solve
from tolerances import EXACT, GRADIENT, ROUNDING


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


BOTH = pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
METHODS = {"tsit5": {}, "vern7": {}, "bs3": {}, "rk4": {"dt0": 0.05}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("wrap", [torch.from_numpy, lambda b: torch.from_numpy(b).detach(), torch.from_dlpack])
def test_memory_that_a_field_uses_again_behind_new_tensors(method: str, batch: str, wrap: object) -> None:
    buffer, y0 = np.zeros((2, 1)), f64([[1.0], [2.0]]).cpu()

    def field(t: Tensor, y: Tensor) -> Tensor:
        part = buffer[: len(y)]
        np.multiply(y.detach().numpy(), -1.0, out=part)
        return wrap(part)  # type: ignore[operator]

    if method == "rk4" and batch == "per-sample":
        pytest.skip("a fixed step is no step size of its own")
    sol = solve(field, y0, [0.0, 1.0], Solver(method=method, batch=batch, engine="torch", **METHODS[method]))
    torch.testing.assert_close(sol.y1, y0 / math.e, rtol=1e-4, atol=0)


@BOTH
def test_a_trial_that_is_not_finite_leaves_the_gradients_of_a_batch_alone(gradient: str) -> None:
    """The logarithm is NaN only in a trial step of the second sample that is rejected."""
    y0, w = f64([[1.0], [10.0]]).requires_grad_(), f64(1.0).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -w * y * (y + 0 * torch.log(y + 0.2))

    solver = Solver(batch="per-sample", dt0=0.3, rtol=1e-6, atol=1e-6, gradient=gradient, engine="torch")
    sol = solve(field, y0, [0.0, 1.0], solver, record="all")
    assert sol.stats.samples[1].rejected > 0
    of_y0, of_w = torch.autograd.grad(sol.y1.sum() + 0 * ErrorPenalty()(sol), (y0, w))
    exact = 1 / (1 + y0.detach()) ** 2  # y(1) = y0 / (1 + w y0)
    torch.testing.assert_close(of_y0, exact, rtol=1e-4, atol=0)
    assert float(of_w) == pytest.approx(-float((y0.detach() ** 2 * exact).sum()), rel=1e-4)


@BOTH
@pytest.mark.parametrize("inside", [False, True])
def test_a_rejected_trial_without_a_derivative_leaves_gradients_of_states_alone(inside: bool, gradient: str) -> None:
    """The root's derivative is infinite where the second sample's first trials go; the first sample accepts them.

    With a weight inside the root, its gradient is NaN: no row can be taken out of that; a warning says so.
    """
    y0, w = f64([[0.0], [4.0]]).requires_grad_(), f64(1.0).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        shifted = (w * y if inside else y) + 0.01
        return -w * y * (8 + 0 * torch.sqrt(shifted.abs() + shifted))

    solver = Solver(batch="per-sample", dt0=1.0, rtol=1e-6, atol=1e-6, gradient=gradient, engine="torch")
    sol = solve(field, y0, [0.0, 1.0], solver, record="all")
    assert [sample.rejected > 0 for sample in sol.stats.samples] == [False, True]
    with pytest.warns(UserWarning, match="no finite derivative in a trial step"):
        of_y0, of_w = torch.autograd.grad(sol.y1[1], (y0, w))
    assert of_y0[1].item() == pytest.approx(math.exp(-8), rel=1e-3)
    assert of_y0[0].item() == 0.0
    assert math.isnan(of_w) if inside else of_w.item() == pytest.approx(-32 * math.exp(-8), rel=1e-3)


def test_outputs_of_a_sample_do_not_evaluate_the_others() -> None:
    """vern7's further stages: the second sample's trial, where the root has no derivative, is rejected."""
    y0, w = f64([[1.0], [10.0]]).requires_grad_(), f64(1.0).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -w * y * (y + 0 * torch.sqrt((y + 0.2).abs() + y + 0.2))

    solver = Solver(method="vern7", batch="per-sample", dt0=0.3, rtol=1e-6, atol=1e-6, engine="torch")
    sol = solve(field, y0, [0.0, 0.05, 0.11, 1.0], solver)
    of_y0, of_w = torch.autograd.grad(sol.y1.sum() + 0 * sol.ys.sum(), (y0, w))
    exact = 1 / (1 + y0.detach()) ** 2
    torch.testing.assert_close(of_y0, exact, rtol=1e-4, atol=0)
    assert float(of_w) == pytest.approx(-float((y0.detach() ** 2 * exact).sum()), rel=1e-4)


@BOTH
@pytest.mark.parametrize("detach", [True, False])
def test_a_save_point_and_a_local_start_in_one_step_share_its_further_stages(detach: bool, gradient: str) -> None:
    """vern7: one step, ten stages; six further ones once; two evaluations and nine or ten of the local step."""
    w = f64(-1.0).requires_grad_()
    solver = Solver(method="vern7", dt0=1.0, rtol=1.0, atol=1.0, gradient=gradient, engine="torch")
    counts = {}
    for record in ("none", regnde.Local(seed=1, detach_state=detach)):
        for ts in ([0.0, 1.0], [0.0, 0.5, 1.0]):
            sol = solve(lambda t, y: w * y, f64([1.0]), ts, solver, record=record)
            assert sol.stats.accepted == 1
            counts[record == "none", len(ts)] = sol.stats.nfe
    assert counts[True, 3] - counts[True, 2] == 6  # the save point's
    assert counts[False, 3] == counts[False, 2]  # the local start's are the save point's


class Counted(torch.nn.Module):
    """A field whose evaluations write to its buffers, from a time on."""

    def __init__(self, since: float) -> None:
        super().__init__()
        self.norm, self.since = torch.nn.BatchNorm1d(3, dtype=torch.float64), since
        self.seen = torch.zeros(())  # no buffer, a tensor all the same

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.seen += 1
        return torch.tanh(self.norm(y)) if t >= self.since else -y


@pytest.mark.parametrize("since", [0.0, 0.5])
def test_case_A14_running_statistics_are_those_of_one_pass(since: float) -> None:
    torch.manual_seed(0)
    y0, field = torch.randn(8, 3, dtype=torch.float64), Counted(since)
    sol = solve(field, y0, [0.0, 1.0], Solver(rtol=1e-3, atol=1e-3, gradient="checkpoint", engine="torch"))
    before = [x.clone() for x in (*field.buffers(), field.seen)]
    assert int(field.seen) == sol.stats.nfe
    sol.y1.sum().backward()
    for old, new in zip(before, (*field.buffers(), field.seen), strict=True):
        torch.testing.assert_close(new, old, rtol=EXACT, atol=EXACT)


def test_case_A1_a_change_that_the_states_do_not_show() -> None:
    """From y0 = 0 the states are 0 whatever the factor; its gradient is not."""
    solver = Solver(gradient="checkpoint", engine="torch")
    box, y0 = [f64(1.0)], torch.zeros(3, dtype=torch.float64, requires_grad=True)
    sol = solve(lambda t, y: -box[0] * y, y0, [0.0, 1.0], solver)
    box[0] = f64(2.0)
    with pytest.raises(RuntimeError, match=r"saved other tensors than in the solve.*Changed since the solve: box"):
        sol.y1.sum().backward()
    layer = torch.nn.Linear(3, 3, bias=False, dtype=torch.float64)
    sol = solve(lambda t, y: torch.tanh(layer(y)), y0, [0.0, 1.0], solver)
    layer.weight.data = 3 * layer.weight.data
    with pytest.raises(RuntimeError, match=r"Changed since the solve: .*weight"):
        sol.y1.sum().backward()


class Forced(torch.nn.Module):
    """y' = rate y, with a rate that changes with time and lies where a module's own attributes do not show it."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size, self.nested, self.settings = size, [[1.0]], SimpleNamespace(factor=1.0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.size * t * self.settings.factor * self.nested[0][0] * y


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("end", [1.0, 100.0])
def test_case_A1_a_change_that_the_start_does_not_show(batch: str, dtype: torch.dtype, end: float, engine: str) -> None:
    """At the start the field is 0, whatever the factor is; in a long span its values are small everywhere."""
    field, y0, solver = (
        Forced(2 / end**2),
        torch.ones(2, 1, dtype=dtype),
        Solver(batch=batch, rtol=1e-5, atol=1e-5, engine=engine),
    )
    for factor, element in ((1.0, 1.0), (-1.0, 1.0), (-1.0, 0.5), (0.5, 0.5)):
        field.settings.factor, field.nested[0][0] = factor, element
        y1 = solve(field, y0, [0.0, end], solver).y1
        torch.testing.assert_close(y1, y0 * math.exp(factor * element), rtol=1e-3, atol=0)


class Still(torch.nn.Module):
    """No drift."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(y)


class Shaken(Forced):
    """The diffusion of dy = factor t dW, for one process an entry, or for each of two processes of a matrix."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        one = t * self.settings.factor * torch.ones_like(y)
        return one if self.size == 1 else torch.stack([one, -one], -1)


@pytest.mark.parametrize(("noise", "processes"), [("diagonal", 1), ("general", 2)])
def test_case_A1_a_change_of_the_diffusion(noise: Literal["diagonal", "general"], processes: int, engine: str) -> None:
    """The drift stays as it is; the solution's distance from the start is proportional to the factor."""
    shaken, y0 = Shaken(processes), f64([[1.0, 2.0]])
    path = regnde.BrownianPath(0.0, 1.0, (1, 2) if processes == 1 else (1, processes), seed=0)
    sde = regnde.SDE(Still(), shaken, noise=noise)
    distances = []
    for factor in (1.0, -2.0, 0.5):
        shaken.settings.factor = factor
        sol = solve(sde, y0, [0.0, 1.0], Solver(method="em", dt0=0.1, engine=engine), noise=path)
        distances.append((sol.y1 - y0) / factor)
    assert distances[0].abs().min() > 1e-3
    torch.testing.assert_close(distances[1], distances[0])
    torch.testing.assert_close(distances[2], distances[0])


class Held(torch.nn.Module):
    """A field with a setting that lies where the module's own attributes do not show it."""

    def __init__(self, field: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.field, self.settings = field, SimpleNamespace(value=None)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field(self.settings.value, t, y)


WEIGHT = f64([[0.5, -1.0], [0.3, 0.2]])
HIDDEN: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], Any, tuple[Any, Any]]] = {
    "a factor of zeros": (lambda v, t, y: v * y, [0.0, 0.0], (1.0, -1.0)),
    "a factor of one zero": (lambda v, t, y: v * y, [0.0], (1.0, -1.0)),
    "a factor of a small state": (lambda v, t, y: v * y, [1e-30, 1e-30], (1.0, -1.0)),
    "a factor of a net": (lambda v, t, y: v * torch.tanh(y @ WEIGHT.to(y)), [0.0, 0.0], (1.0, -1.0)),
    "a power of ones": (lambda v, t, y: -(y**v), [1.0, 1.0], (2, 3)),
    "the order of equal entries": (lambda v, t, y: y.roll(v, -1) * t.exp(), [2.0, 2.0, 2.0], (1, 2)),
    "the order of large entries": (lambda v, t, y: y.roll(v, -1) * t.exp(), [1e6, 1e6, 1e6], (1, 2)),
    "the sign of zeros": (lambda v, t, y: torch.where(y > 0, v * y, y), [0.0, 0.0], (1.0, 2.0)),
    "a logarithm": (lambda v, t, y: v * torch.log(y), [1.0, 1.0], (1.0, -1.0)),
    "a root": (lambda v, t, y: v * (torch.sqrt(y) - 2**-5), [2**-10, 2**-10], (1.0, -1.0)),
    "an arc cosine": (lambda v, t, y: v * (torch.acos(0.99 * y) - math.acos(0.99)), [1.0, 1.0], (1.0, -1.0)),
    "a field that is NaN beside the start": (lambda v, t, y: v + 0 * torch.log(y - 0.999), [1.0, 1.0], (1.0, 2.0)),
}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("kind", ["joint", "float32", "per-sample", "rodas5p", "complex"])
def test_case_A1_a_change_that_the_first_state_does_not_show(kind: str, hidden: str, engine: str) -> None:
    """The right answer is that of a function, whose code is not found again."""
    field, start, values = HIDDEN[hidden]
    if kind == "complex" and hidden in ("the sign of zeros", "an arc cosine"):
        pytest.skip("it is no field of complex states")
    dtype = {"float32": torch.float32, "complex": torch.complex128}.get(kind, torch.float64)
    options = {"batch": "per-sample"} if kind == "per-sample" else {"method": "rodas5p"} if kind == "rodas5p" else {}
    solver, held = Solver(rtol=1e-5, atol=1e-5, engine=engine, **options), Held(field)

    def answer(field: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        y0 = torch.tensor([start] * 2, dtype=dtype, requires_grad=True)
        y1 = solve(field, y0, [0.0, 0.25], solver).y1
        return y1.detach(), *torch.autograd.grad(y1.abs().sum() if y1.is_complex() and y0.any() else y1.real.sum(), y0)

    for value in (*values, values[0]):
        held.settings.value = value
        right = answer(lambda t, y, value=value: field(value, t, y))
        torch.testing.assert_close(answer(held), right, rtol=ROUNDING, atol=ROUNDING)


def test_case_A1_a_change_that_real_numbers_do_not_show(engine: str) -> None:
    held, y0 = Held(lambda v, t, y: 1j * (y.conj() if v else y)), torch.ones(2, dtype=torch.complex128)
    for value, imaginary in ((False, math.sin(1.0)), (True, math.sinh(1.0))):
        held.settings.value = value
        y1 = solve(held, y0, [0.0, 1.0], Solver(rtol=1e-8, atol=1e-8, engine=engine)).y1
        torch.testing.assert_close(y1.imag, torch.full_like(y1.imag, imaginary), rtol=1e-6, atol=0)


def test_case_A1_a_change_of_a_field_that_raises_beside_the_start(engine: str) -> None:
    """y' = v L of y = L L': from a multiple of the identity y = c I, sqrt(c)' = v / 2."""
    held, y0 = Held(lambda v, t, y: v * torch.linalg.cholesky(y)), 1e-4 * torch.eye(2, dtype=torch.float64)
    for value in (1.0, 2.0):
        held.settings.value = value
        y1 = solve(held, y0, [0.0, 0.1], Solver(rtol=1e-8, atol=1e-8, engine=engine)).y1
        torch.testing.assert_close(y1, (0.01 + 0.05 * value) ** 2 * torch.eye(2).to(y1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_case_A1_a_change_of_an_sde_that_its_first_state_does_not_show(
    noise: Literal["diagonal", "general"], engine: str
) -> None:
    """dy = v y dt + v y dW from 0 by Euler-Maruyama: the gradient is the product of 1 + v (h + dW)."""
    drift = Held(lambda v, t, y: v * y)
    diffusion = Held(lambda v, t, y: v * y if noise == "diagonal" else v * y.unsqueeze(-1))
    path = regnde.BrownianPath(0.0, 1.0, (1, 1), seed=0)
    for of_drift, of_diffusion in ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)):
        drift.settings.value, diffusion.settings.value = of_drift, of_diffusion
        y0 = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        sde, solver = regnde.SDE(drift, diffusion, noise=noise), Solver(method="em", dt0=0.25, engine=engine)
        (slope,) = torch.autograd.grad(solve(sde, y0, [0.0, 1.0], solver, noise=path).y1.sum(), y0)
        moves = [path(t + 0.25) - path(t) for t in (0.0, 0.25, 0.5, 0.75)]
        right = math.prod(1 + of_drift * 0.25 + of_diffusion * float(move) for move in moves)
        assert float(slope) == pytest.approx(right, rel=1e-9)


def test_case_A1_a_tensor_in_a_setting_that_needs_a_gradient_now(engine: str) -> None:
    held, y0 = Held(lambda v, t, y: v * y), f64([[1.0]]).requires_grad_()
    held.settings.value = f64(-1.0)
    for needed in (False, True, False):
        held.settings.value.requires_grad_(needed)
        y1 = solve(held, y0, [0.0, 1.0], Solver(rtol=1e-8, atol=1e-8, engine=engine)).y1
        for slope in torch.autograd.grad(y1.sum(), [y0, held.settings.value] if needed else [y0]):
            assert float(slope) == pytest.approx(math.exp(-1), rel=1e-6)


def test_many_shapes_of_states_and_the_first_one_again(engine: str) -> None:
    """As series of many lengths; a solve draws no numbers, and its states are those of the first time."""
    torch.manual_seed(0)
    field, before = torch.nn.Sequential(torch.nn.Tanh()), torch.get_rng_state()

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = field

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y)

    wrapped, ends = Wrapped(), {}
    for length in (*range(1, 40), *range(1, 40)):
        y0 = torch.linspace(1, 2, length, dtype=torch.float64)
        y1 = solve(wrapped, y0, [0.0, 1.0], Solver(rtol=1e-6, atol=1e-6, engine=engine)).y1
        assert torch.equal(y1, ends.setdefault(length, y1))
        torch.testing.assert_close(torch.sinh(y1), torch.sinh(y0) * math.e, rtol=1e-4, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_what_a_field_makes_at_its_first_call_keeps_its_gradient(method: str, gradient: str) -> None:
    w = f64(0.3).requires_grad_()
    made: dict[str, Tensor] = {}

    def field(t: Tensor, y: Tensor) -> Tensor:
        if "rate" not in made:
            made["rate"] = torch.exp(w)
        return -made["rate"] * y

    solver = Solver(method=method, gradient=gradient, engine="torch", rtol=1e-8, atol=1e-8, **METHODS[method])
    (slope,) = torch.autograd.grad(solve(field, f64([1.0]), [0.0, 1.0], solver).y1.sum(), w)
    rate = math.exp(0.3)
    assert float(slope) == pytest.approx(-rate * math.exp(-rate), rel=1e-5)


def test_an_sde_keeps_the_gradient_of_what_its_drift_makes_first() -> None:
    w, made = f64(0.3).requires_grad_(), {}

    def drift(t: Tensor, y: Tensor) -> Tensor:
        if "rate" not in made:
            made["rate"] = torch.exp(w)
        return -made["rate"] * y

    sde = regnde.SDE(drift, lambda t, y: torch.zeros_like(y))
    sol = solve(sde, f64([1.0]), [0.0, 1.0], Solver(engine="torch"))
    rate = math.exp(0.3)
    assert float(torch.autograd.grad(sol.y1.sum(), w)[0]) == pytest.approx(-rate * math.exp(-rate), rel=5e-2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
def test_case_A6_forward_mode_by_the_times() -> None:
    def end(ts: Tensor) -> Tensor:
        return solve(lambda t, y: -y, f64([1.0]), ts, Solver(rtol=1e-9, atol=1e-9, engine="torch")).y1

    jacobian = torch.func.jacfwd(end)(f64([0.0, 1.0]))
    torch.testing.assert_close(jacobian, f64([[1.0, -1.0]]) / math.e, rtol=1e-7, atol=0)


def test_case_A6_derivatives_by_times_up_to_the_third() -> None:
    ts = f64([0.3, 1.7]).requires_grad_()
    y = solve(lambda t, y: torch.cos(t) * y, f64(2.0), ts, Solver(rtol=1e-12, atol=1e-12, engine="torch")).y1
    s0, s1, c1 = math.sin(0.3), math.sin(1.7), math.cos(1.7)
    exact = 2 * math.exp(s1 - s0)
    orders = [exact * c1, exact * (c1**2 - s1), exact * (c1**3 - 3 * s1 * c1 - c1)]
    for order in orders:
        y = torch.autograd.grad(y, ts, create_graph=True)[0][1]
        assert float(y.detach()) == pytest.approx(order, rel=1e-8)


@BOTH
def test_case_A12_a_field_that_asks_for_derivatives_itself(gradient: str) -> None:
    """It relies on the graph of its argument, with no mode set."""
    y0 = f64([1.0, 2.0]).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -torch.autograd.grad(y.square().sum() / 2, y, create_graph=True)[0]

    sol = solve(field, y0, [0.0, 1.0], Solver(gradient=gradient, engine="torch", rtol=1e-8, atol=1e-8))
    slope = torch.autograd.grad(sol.y1.sum(), y0)[0]
    torch.testing.assert_close(slope, torch.full_like(slope, math.exp(-1)), rtol=1e-6, atol=0)


class Twice(torch.autograd.Function):
    """Reads its saved tensors twice, as autograd allows."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g * ctx.saved_tensors[0].cos() + 0 * ctx.saved_tensors[0]


def test_evaluations_of_a_checkpointed_backward_pass() -> None:
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return Twice.apply(y)

    sol = solve(field, f64([1.0]).requires_grad_(), [0.0, 5.0], Solver(gradient="checkpoint", engine="torch"))
    assert calls == sol.stats.nfe
    sol.y1.sum().backward()
    assert calls - sol.stats.nfe <= 6 * sol.stats.accepted, "one more sweep"


def test_records_do_not_change_the_steps_of_a_large_state() -> None:
    y0 = torch.linspace(0.5, 1.5, 2**17 + 3)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(3 * t) * y

    with_records, without = (solve(field, y0, [0.0, 1.0], Solver(engine="torch"), record=r) for r in ("all", "none"))
    assert with_records.stats == without.stats
    assert torch.equal(with_records.y1, without.y1)


@BOTH
def test_estimates_at_rest_have_finite_second_derivatives(gradient: str) -> None:
    for penalty in (StiffnessPenalty(), ErrorPenalty()):
        y0 = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        sol = solve(lambda t, y: -y, y0, [0.0, 1.0], Solver(gradient=gradient, engine="torch"), record="all")
        (first,) = torch.autograd.grad(penalty(sol), y0, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), y0, allow_unused=True, materialize_grads=True)
        assert first.tolist() == second.tolist() == [0.0] * 3


def test_a_fixed_step_that_is_its_own_first_stage_fails_where_it_fails() -> None:
    bs3 = regnde._tableau.TABLEAUX["bs3"]
    fixed = regnde.Tableau("bs3_fixed", 3, bs3.a, bs3.b)
    sol = solve(
        lambda t, y: torch.where(t > 1.03, math.nan, -y),
        f64([1.0]),
        [0.0, 0.5, 2.0],
        Solver(method=fixed, dt0=0.1, engine="torch"),
        throw=False,
    )
    assert (sol.status, sol.stats.accepted, len(sol.ys)) == ("non-finite dynamics", 10, 2)


def test_a_failing_field_leaves_no_cycle_behind() -> None:
    class Stop(Exception):
        pass

    def field(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.5:
            raise Stop
        return torch.tanh(y * w)

    def run() -> None:
        with pytest.raises(Stop):
            solve(field, f64([1.0]), [0.0, 1.0], Solver(gradient="checkpoint", rtol=1e-8, atol=1e-8, engine="torch"))

    w = f64(1.0).requires_grad_()
    run()
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(x), Tensor) for x in gc.get_objects())
        for _ in range(5):
            run()
        assert sum(issubclass(type(x), Tensor) for x in gc.get_objects()) <= before + 5
    finally:
        gc.enable()


def test_what_a_field_captures_is_looked_at_with_a_limit() -> None:
    huge = [[float(i) for i in range(100)] for _ in range(5000)]

    class Unreadable(dict):  # type: ignore[type-arg]
        def items(self) -> object:
            raise OSError("file closed")

    closed = Unreadable()
    w = f64(0.5).requires_grad_()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -w * y * (1 + 0 * huge[0][0]) if closed is not None else y

    sol = solve(field, f64([1.0]), [0.0, 1.0], Solver(gradient="checkpoint", engine="torch"))
    sol.y1.sum().backward()
    assert w.grad is not None
    assert float(w.grad) == pytest.approx(-math.exp(-0.5), rel=GRADIENT)


@BOTH
def test_case_A17_noise_that_begins_late_is_named(gradient: str) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y + (0.1 * torch.randn_like(y) if t > 0.5 else 0.0)

    solver = Solver(gradient=gradient, engine="torch")
    with pytest.raises(regnde.MaxStepsReached, match="draws noise or dropout"):
        solve(field, torch.ones(16, 8, dtype=torch.float64), [0.0, 1.0], solver)


def test_torch_func_in_a_field_keeps_statistics_and_counts() -> None:
    norm = torch.nn.BatchNorm1d(3, dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -torch.func.grad(lambda x: x.square().sum() / 2)(norm(y))

    y0, counts = torch.linspace(0, 1, 12, dtype=torch.float64).reshape(4, 3), []
    for gradient in ("discrete", "checkpoint"):
        norm.reset_running_stats()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            sol = solve(field, y0, [0.0, 1.0], Solver(gradient=gradient, engine="torch"))
        counts.append((int(norm.num_batches_tracked), sol.stats.nfe, norm.running_mean.tolist()))
    assert counts[0][:2] == counts[1][:2]
    assert counts[0][2] == pytest.approx(counts[1][2], rel=ROUNDING)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("record", ["none", "all"])
@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_an_error_whose_square_overflows_is_large_and_no_failure(kind: str, record: str, batch: str) -> None:
    """In float32: a drift of 1e28 that no step resolves; six trials that are not finite would end the solve."""
    drift = lambda t, y: 1e28 * torch.sin(1e6 * t + y * 0)  # noqa: E731 - one line reads best
    if kind == "sde" and batch == "per-sample":
        pytest.skip("the samples of an SDE share one clock")
    equation = drift if kind == "ode" else regnde.SDE(drift, lambda t, y: 0 * y + 1)
    solver = Solver(batch=batch, dt0=1.0, rtol=0.0, atol=100.0, max_steps=20, engine="torch")
    with pytest.raises(regnde.MaxStepsReached) as caught:
        solve(equation, torch.zeros(2, 3), [0.0, 1.0], solver, record=record)
    assert math.isfinite(caught.value.error_ratio)
    assert caught.value.rejected == 20 * (2 if batch == "per-sample" else 1)


def test_a_change_is_named_with_the_function_that_reads_it() -> None:
    """Drift and diffusion read tensors of one name."""

    def made(scale: float) -> tuple[Tensor, object]:
        w = f64([scale]).requires_grad_()
        return w, lambda t, y: w * y

    (_, drift), (w, diffusion) = made(-1.0), made(0.1)
    noise = regnde.BrownianPath(0.0, 1.0, (2,), seed=0)
    solver = Solver(method="em", dt0=0.1, gradient="checkpoint", engine="torch")
    sol = solve(regnde.SDE(drift, diffusion), f64([1.0, 2.0]), [0.0, 1.0], solver, noise=noise)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match=r"Changed since the solve: diffusion\.w\."):
        sol.y1.sum().backward()
