"""Modes of torch around a solve, autograd inside a field, and what stays behind after a solve."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

import regnde
from problems import exp_decay, harmonic, seeded
from regnde import SDE, ErrorPenalty, Local, Solver, SquaredErrorPenalty, StiffnessPenalty
from tolerances import CANCELLED, EXACT, GRADIENT, ROUNDING, SOLVER

ADAPTIVE = ("tsit5", "dp5", "bs3", "heun", "vern7")


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def harmonic_rows(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[..., 1], -y[..., 0]], -1)


# --- case 11: components at rest -------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_case_11_one_component_rests(method: str, gradient: str) -> None:
    w = f64(0.0).requires_grad_()
    y0 = f64([1.0, 0.0, 0.0]).requires_grad_()
    sol = regnde.solve(
        lambda t, y: torch.stack([-y[0], w * y[1], 0 * y[2]]),
        y0,
        [0.0, 1.0],
        Solver(method=method, gradient=gradient),
        record="all",
    )
    loss = sol.y1.sum() + ErrorPenalty()(sol) + SquaredErrorPenalty("max")(sol)
    if method != "bs3":
        assert sol.steps.stiffness.tolist() == pytest.approx([1.0] * len(sol.steps), rel=1e-5)
        loss = loss + StiffnessPenalty()(sol)
    of_w, of_y0 = torch.autograd.grad(loss, [w, y0])
    assert float(of_w) == 0.0
    assert of_y0[1:].tolist() == pytest.approx([1.0, 1.0], rel=GRADIENT)
    assert torch.isfinite(of_y0).all()


# --- case 17: nothing stays behind -----------------------------------------------------------------


def live() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_case_17_no_leaks_from_failed_solves(gradient: str) -> None:
    w = torch.ones((), requires_grad=True)

    def fail(i: int) -> None:
        with pytest.raises(regnde.SolveError):
            regnde.solve(lambda t, y: w * y * y, torch.ones(2), [0, 2], Solver(max_steps=20, gradient=gradient))
        with pytest.raises(TypeError):
            regnde.solve(lambda t, y: None, torch.ones(2), [0, 2], Solver(gradient=gradient))

    fail(0)
    gc.collect()
    before = live()
    for i in range(20):
        fail(i)
    gc.collect()  # an exception and its traceback refer to each other: that much is Python's
    assert live() <= before


# --- modes of torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["none", "all", Local(seed=0)], ids=str)
def test_inference_mode(record: regnde.Local | str) -> None:
    for method in ADAPTIVE:
        outside = regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 0.5, 1.0], Solver(method=method), record=record)
        with torch.inference_mode():
            y0 = f64([1.0, 0.0])
            inside = regnde.solve(harmonic, y0, [0.0, 0.5, 1.0], Solver(method=method), record=record)
            mutated = regnde.solve(lambda t, y: y.mul_(-1), y0, [0.0, 0.5, 1.0], Solver(method=method))
            noisy = regnde.solve(SDE(exp_decay, lambda t, y: 0.1 * y), y0, [0.0, 1.0])
            assert y0.tolist() == [1.0, 0.0]
        torch.testing.assert_close(inside.ys.clone(), outside.ys, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(mutated.y1[0].clone(), f64(math.exp(-1)), rtol=1e-5, atol=0)
        assert torch.isfinite(noisy.y1).all()


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_inference_mode_of_a_trained_net_with_a_context(batch: str) -> None:
    """A first solve in the mode, with tensors that were made in it; the net can be trained afterwards."""
    net, width, solver = torch.nn.Linear(2, 2, dtype=torch.float64), torch.nn.Linear(1, 2).double(), Solver(batch=batch)
    y0, place = torch.ones(3, 2, dtype=torch.float64), f64([[0.5]])
    with torch.inference_mode():
        context = width(place)
        inside = regnde.solve(lambda t, y: torch.tanh(net(y) + context), y0 * 1, [0.0, 1.0], solver).y1
        module = regnde.solve(Rows(net), y0 * 1, [0.0, 1.0], solver).y1
    after = regnde.solve(lambda t, y: torch.tanh(net(y) + width(place)), y0, [0.0, 1.0], solver).y1
    torch.testing.assert_close(inside.clone(), after.detach(), rtol=ROUNDING, atol=ROUNDING)
    after = regnde.solve(Rows(net), y0, [0.0, 1.0], solver).y1
    torch.testing.assert_close(module.clone(), after.detach(), rtol=ROUNDING, atol=ROUNDING)
    after.sum().backward()
    assert net.weight.grad is not None
    assert float(net.weight.grad.abs().min()) > 0


class Rows(torch.nn.Module):
    """A net of the state alone."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.net(y))


def test_no_grad_with_tensors_that_require_it() -> None:
    y0 = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        sol = regnde.solve(exp_decay, y0, torch.tensor([0.0, 1.0], requires_grad=True), record="all")
    assert not sol.y1.requires_grad
    assert not sol.steps.error.requires_grad


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_autograd_inside_the_field(gradient: str, grad: bool) -> None:
    """A gradient flow, whose field differentiates a potential: peers' adjoints run it without a graph and fail."""

    def by_grad(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(x.square().sum() / 2, x, create_graph=True)
        return -slope

    def by_func(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -torch.func.grad(lambda x: x.square().sum() / 2)(y)

    for field in (by_grad, by_func):
        y0 = f64([1.0, 2.0]).requires_grad_(grad)
        whole = grad and gradient == "checkpoint" and field is by_func
        told = pytest.warns(UserWarning, match="transform of torch.func") if whole else nullcontext()
        with torch.set_grad_enabled(grad), told:
            sol = regnde.solve(field, y0, [0.0, 1.0], Solver(gradient=gradient))
        y1 = sol.y1
        assert sol.stats.nfe == 3 + 6 * sol.stats.accepted
        torch.testing.assert_close(y1.detach(), y0.detach() / math.e, rtol=1e-5, atol=0)
        if grad:
            slope = torch.autograd.grad(y1.sum(), y0)[0]
            torch.testing.assert_close(slope, torch.full_like(slope, math.exp(-1)), rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
def test_torch_func() -> None:
    def end(w: torch.Tensor) -> torch.Tensor:
        return regnde.solve(lambda t, y: w * y, f64(1.0), [0.0, 1.0], Solver(rtol=1e-9, atol=1e-9)).y1

    w = f64(2.0)
    assert float(torch.func.grad(end)(w)) == pytest.approx(math.exp(2), rel=SOLVER * 1e-9)
    assert float(torch.func.grad(torch.func.grad(end))(w)) == pytest.approx(math.exp(2), rel=SOLVER * 1e-9)
    c, s = math.cos(1), math.sin(1)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        got = jacobian(lambda y0: regnde.solve(harmonic, y0, [0.0, 1.0]).y1)(f64([1.0, 2.0]))
        torch.testing.assert_close(got, f64([[c, s], [-s, c]]), rtol=1e-4, atol=1e-5)

    layer = regnde.nn.NeuralODE(regnde.nn.MLP([2, 4, 2]), record="all").double()  # single precision rounds a percent

    def loss(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        sol = torch.func.functional_call(layer, parameters, (torch.ones(3, 2, dtype=torch.float64),))
        return sol.y1.sum() + ErrorPenalty()(sol)

    gradients = torch.func.grad(loss)(dict(layer.named_parameters()))
    loss(dict(layer.named_parameters())).backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_case_A14_torch_func_with_a_checkpointed_solve() -> None:
    """Transforms run no hooks: the graph is kept whole, with the same numbers."""

    def end(y: torch.Tensor, gradient: str) -> torch.Tensor:
        return regnde.solve(exp_decay, y, [0, 1], Solver(gradient=gradient)).y1.sum()

    for transform in (torch.func.grad, torch.func.jacfwd):
        checkpoint, discrete = (transform(end)(f64([1.0, 2.0]), g) for g in ("checkpoint", "discrete"))
        torch.testing.assert_close(checkpoint, discrete, rtol=EXACT, atol=EXACT)


def test_what_torch_func_can_not_do_is_loud() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.func.vmap(lambda y: regnde.solve(exp_decay, y, [0.0, 1.0]).y1)(torch.ones(3, 2))
    assert "batch='per-sample'" in caught.value.__notes__[0]
    end = functools.partial(regnde.odeint, exp_decay, t=f64([0.0, 1.0]), method="implicit_euler")
    with pytest.raises(ValueError, match="forward mode do not see through it"):
        torch.func.jvp(end, (f64([1.0]),), (f64([1.0]),))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, from its functorch
@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacfwd])
def test_what_a_transform_does_not_differentiate_is_a_number(transform: Callable[..., object]) -> None:
    """Times, errors and places of a dense output that are made inside a transform belong to it, and are numbers."""
    t, places = f64([0.0, 0.3, 1.0]), f64([0.2, 0.9])
    solves = {
        "drop-in": lambda y: regnde.odeint(harmonic_rows, y, torch.tensor([0.0, 0.3, 1.0])),
        "adjoint": lambda y: regnde.odeint_adjoint(harmonic_rows, y, t.clone()),
        "dense": lambda y: regnde.solve(harmonic_rows, y, [0, 1], dense=True)(places.clone()),
        "per-sample": lambda y: regnde.solve(harmonic_rows, y, [0, 1], Solver(batch="per-sample")).y1,
    }
    y0 = f64([[1.0, 2.0], [0.5, -1.0]])
    for name, run in solves.items():
        got = transform(lambda y, run=run: run(y).sin().sum())(y0)
        y = y0.clone().requires_grad_()
        expected = torch.autograd.grad(run(y).sin().sum(), y)[0]
        torch.testing.assert_close(got, expected, rtol=CANCELLED, atol=ROUNDING, msg=lambda m, of=name: f"{of}: {m}")
        assert got.abs().max() > 0


def test_no_derivative_by_times_is_evaluated_for_in_a_transform() -> None:
    """The counts of a solve are those outside of it."""
    counts = []

    def end(y: torch.Tensor) -> torch.Tensor:
        sol = regnde.solve(exp_decay, y, [0.0, 1.0], stops=[0.5])
        counts.append(sol.stats)
        return sol.y1.sum()

    end(f64([1.0]))
    torch.func.grad(end)(f64([1.0]))
    assert counts[0] == counts[1]


def test_same_solve_twice_is_bit_equal() -> None:
    first, second = (regnde.solve(harmonic, f64([1.0, 0.0]), [0.0, 5.0], record="all") for _ in range(2))
    torch.testing.assert_close(first.ys, second.ys, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(first.steps.error, second.steps.error, rtol=EXACT, atol=EXACT)


# --- mixed precision -------------------------------------------------------------------------------


def turning(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.stack([y[:, 1], -y[:, 0]], 1)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("equation", [turning, SDE(turning, lambda t, y: 0.1 * y)], ids=["ode", "sde"])
@pytest.mark.parametrize("rows", [4, 4000])  # small, and large states
def test_autocast_does_not_reach_the_solver(equation: object, rows: int, grad: bool) -> None:
    y0 = torch.randn(rows, 2, generator=seeded(0)).requires_grad_(grad)
    noise = regnde.BrownianPath(0.0, 1.0, y0.shape, seed=1) if isinstance(equation, SDE) else None
    batches = ("joint", "per-sample") if noise is None and rows < 10 else ("joint",)
    for batch in batches:
        solver = Solver(rtol=1e-2, atol=1e-2, batch=batch, engine="torch")
        with torch.set_grad_enabled(grad):
            plain = regnde.solve(equation, y0, torch.linspace(0, 1, 5), solver, noise=noise)
            with torch.autocast("cpu", torch.bfloat16):
                mixed = regnde.solve(equation, y0, torch.linspace(0, 1, 5), solver, noise=noise)
        assert torch.equal(mixed.ys, plain.ys)
        assert mixed.stats == plain.stats


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_field_runs_under_the_callers_autocast(gradient: str) -> None:
    torch.manual_seed(0)
    seen = set()

    class Net(torch.nn.Linear):
        def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            out = super().forward(y)
            seen.add(out.dtype)
            return out.tanh()

    net = Net(3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        sol = regnde.solve(net, torch.ones(2, 3), [0.0, 1.0], Solver(method="rk4", dt0=0.1, gradient=gradient))
        assert torch.is_autocast_enabled("cpu")
    assert sol.ys.dtype == torch.float32
    sol.y1.sum().backward()  # outside, as torch asks for
    assert seen == {torch.bfloat16}
    with torch.no_grad():
        net.weight += 1e-2
        with torch.autocast("cpu", torch.bfloat16):
            moved = regnde.solve(net, torch.ones(2, 3), [0.0, 1.0], Solver(method="rk4", dt0=0.1))
    assert net.weight.grad is not None
    assert float((moved.y1 - sol.y1.detach()).sum()) == pytest.approx(1e-2 * float(net.weight.grad.sum()), rel=0.1)
