"""`gradient="checkpoint"`: the same derivatives as the whole graph's, whatever the field uses, and loud where not."""

from __future__ import annotations

import functools
import weakref

import pytest
import torch
from torch import Tensor, nn

import regnde
from problems import seeded
from regnde import ErrorPenalty, Local, Solver, StiffnessPenalty
from tolerances import CANCELLED, ROUNDING

GRADIENTS = ("discrete", "checkpoint")
MANY_STEPS = dict(rtol=1e-6, atol=1e-6)


def f64(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def close(a: Tensor | None, b: Tensor | None, tolerance: float = ROUNDING) -> None:
    assert a is not None
    assert b is not None
    torch.testing.assert_close(a, b, rtol=tolerance, atol=1e-14)


class Net(nn.Module):
    """A field of time and state, with a layer that is used late only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early, self.late = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope = self.scale * torch.tanh(self.early(y))
        return slope if t < 0.5 else slope + (t - 0.5) ** 4 * torch.tanh(self.late(y))


@pytest.mark.parametrize("method", ["tsit5", "vern7", "bs3"])
@pytest.mark.parametrize("record", ["all", Local(seed=1, detach_state=False), Local(sampling="step", seed=2)])
def test_many_steps_with_everything(record: object, method: str) -> None:
    """Save points between and at steps, records, a parameter of no use at the start, and dozens of steps."""
    y0, outcomes = f64(4, 3), []
    for gradient in GRADIENTS:
        net, start = Net(), y0.clone().requires_grad_()
        ts = torch.linspace(0, 6, 40, dtype=torch.float64)
        sol = regnde.solve(net, start, ts, Solver(method=method, gradient=gradient, **MANY_STEPS), record=record)
        assert len(sol.ts) == 40
        assert sol.stats.accepted > 10
        loss = (sol.ys * f64(*sol.ys.shape, seed=5)).sum() + ErrorPenalty()(sol)
        loss = loss if method == "bs3" else loss + StiffnessPenalty()(sol)
        loss.backward()
        outcomes.append([loss.detach(), start.grad, *[p.grad for p in net.parameters() if p.requires_grad]])
    assert all(bool(x.any()) for x in outcomes[0])
    for a, b in zip(*outcomes, strict=True):
        close(a, b, CANCELLED)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_save_points_inside_steps_keep_no_stage(batch: str) -> None:
    """vern7 evaluates six further stages for them; none is held until the backward pass."""
    w, y0, ts = f64(3, 3).requires_grad_(), f64(4, 3, seed=1), torch.linspace(0, 6, 50, dtype=torch.float64)
    outcomes = []
    for gradient in GRADIENTS:
        slopes: list[weakref.ref[Tensor]] = []

        def field(t: Tensor, y: Tensor, slopes: list = slopes) -> Tensor:
            slope = torch.tanh(y @ w) * torch.cos(t)
            slopes.append(weakref.ref(slope))
            return slope

        solver = Solver(method="vern7", gradient=gradient, batch=batch, rtol=1e-6, atol=1e-6, engine="torch")
        sol = regnde.solve(field, y0, ts, solver)
        assert sum(slope() is not None for slope in slopes) < 5
        assert sol.stats.nfe > 10 * sol.stats.accepted // len(y0)
        outcomes.append(torch.autograd.grad((sol.ys * f64(*sol.ys.shape, seed=5)).sum(), w)[0])
    close(*outcomes, CANCELLED)


@pytest.mark.parametrize("method", ["tsit5", "bs3"])
def test_only_some_outputs_matter(method: str) -> None:
    """The sweep starts at the last output that something depends on."""
    for of in (lambda sol: sol.ys[0], lambda sol: sol.ys[2], lambda sol: sol.steps.error[:1]):
        outcomes = []
        for gradient in GRADIENTS:
            net, start = Net(), f64(4, 3).requires_grad_()
            solver = Solver(method=method, gradient=gradient, **MANY_STEPS)
            sol = regnde.solve(net, start, [0.0, 0.0, 0.2, 6.0], solver, record="all")
            inputs = [start, *net.early.parameters()]
            outcomes.append(torch.autograd.grad(of(sol).sum(), inputs, materialize_grads=True, allow_unused=True))
        for a, b in zip(*outcomes, strict=True):
            close(a, b, CANCELLED)


def test_second_derivatives() -> None:
    outcomes = []
    for gradient in GRADIENTS:
        w, y0 = f64(3, 3).requires_grad_(), f64(2, 3, seed=1).requires_grad_()
        solver = Solver(gradient=gradient, rtol=1e-5, atol=1e-5)
        sol = regnde.solve(lambda t, y, w=w: torch.tanh(y @ w), y0, [0.0, 0.3, 1.0], solver, record="all")
        loss = sol.ys.square().sum() + ErrorPenalty()(sol)
        first = torch.autograd.grad(loss, [w, y0], create_graph=True)
        outcomes.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), [w, y0])])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=CANCELLED, atol=1e-12)


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_tensors_of_another_computation(method: str) -> None:
    """A field whose weights are themselves computed, as a hypernetwork's."""
    outcomes = []
    for gradient in GRADIENTS:
        z = f64(2).requires_grad_()
        weights = torch.outer(z, z.exp())
        dt0 = 0.1 if method == "rk4" else None
        solver = Solver(method=method, gradient=gradient, dt0=dt0)
        sol = regnde.solve(lambda t, y, w=weights: torch.tanh(y @ w), f64(3, 2, seed=1), [0.0, 1.0], solver)
        outcomes.append(torch.autograd.grad(sol.y1.sum(), z)[0])
    close(*outcomes)


def test_noise_inside_a_field() -> None:
    """Dropout in a method of fixed step: the backward pass sees the forward pass's draws."""
    outcomes = []
    for gradient in GRADIENTS:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
        torch.manual_seed(4)
        solver = Solver(method="rk4", dt0=0.1, gradient=gradient)
        sol = regnde.solve(lambda t, y, net=net: net(y), f64(2, 3), [0.0, 1.0], solver)
        sol.y1.sum().backward()
        outcomes.append(net[0].weight.grad)
    close(*outcomes)


def test_a_field_of_nothing_that_learns() -> None:
    sol = regnde.solve(lambda t, y: -y, f64(3), [0.0, 1.0], Solver(gradient="checkpoint"))
    assert not sol.ys.requires_grad


LATE = f64(2, 2, seed=1).requires_grad_()


class Late:
    """Holds a tensor where nobody looks."""

    tensor = LATE


def switched(t: Tensor, y: Tensor) -> Tensor:
    """A field that names a global later only."""
    return -y if t < 0.5 else y @ LATE


def test_tensors_that_are_used_later_only() -> None:
    """Captured ones, global ones, and those of a module behind a wrapper are foreseen."""
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data.copy_(LATE.detach().T)
    late = LATE.detach().clone().requires_grad_()
    fields = {
        LATE: switched,
        late: lambda t, y: -y if t < 0.5 else y @ late,
        layer.weight: functools.partial(lambda late, t, y: -y if t < 0.5 else late(y), layer),
    }
    gradients = []
    for gradient in GRADIENTS:
        for leaf, field in fields.items():
            sol = regnde.solve(field, f64(2, 2), [0.0, 1.0], Solver(gradient=gradient, rtol=1e-3, atol=1e-3))
            (found,) = torch.autograd.grad(sol.y1.sum(), leaf)
            gradients.append(found if leaf is not layer.weight else found.T)
    assert bool(gradients[0].any())
    for found in gradients[1:]:
        close(found, gradients[0], CANCELLED)


def test_a_tensor_that_is_used_late_gets_its_gradient() -> None:
    hidden = Late()

    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y if t < 0.5 else y @ hidden.tensor

    y0 = f64(2, 2)
    gradients = [
        torch.autograd.grad(regnde.solve(field, y0, [0.0, 1.0], Solver(gradient=g)).y1.sum(), hidden.tensor)[0]
        for g in ("checkpoint", "discrete")
    ]
    close(*gradients, ROUNDING)


def test_a_changed_parameter_is_loud() -> None:
    w = f64(2, 2).requires_grad_()
    sol = regnde.solve(lambda t, y: y @ w, f64(2, 2), [0.0, 1.0], Solver(gradient="checkpoint"))
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match=r"does not end where it ended in the solve.*Changed since the solve: w\."):
        sol.y1.sum().backward()


def test_a_second_backward_pass() -> None:
    w = f64(2, 2).requires_grad_()
    sol = regnde.solve(lambda t, y: y @ w, f64(2, 2), [0.0, 1.0], Solver(gradient="checkpoint"))
    (first,) = torch.autograd.grad(sol.y1.sum(), w, retain_graph=True)
    (second,) = torch.autograd.grad(sol.y1.sum(), w)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="second time"):
        sol.y1.sum().backward()


@pytest.mark.filterwarnings("ignore:Sparse")  # torch: their invariants are not checked, CSR is in beta
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("nodes", [6, 40])  # a matrix of few entries is copied, of a larger one the sum is
def test_a_field_with_a_sparse_matrix(nodes: int, layout: torch.layout) -> None:
    outcomes = []
    for gradient in GRADIENTS:
        entries = f64(nodes, nodes, seed=3)
        matrix = torch.where(entries > 0.5, 0.1 * entries, 0.0).to_sparse(layout=layout)
        w = f64(3, 3, seed=4).requires_grad_()
        solver = Solver(gradient=gradient, **MANY_STEPS)
        solution = regnde.solve(
            lambda t, y, m=matrix, w=w: torch.sparse.mm(m, y @ w), f64(nodes, 3), [0.0, 2.0], solver
        )
        outcomes.append(torch.autograd.grad(solution.y1.sum(), w, retain_graph=True)[0])
    close(*outcomes)
    matrix.values().mul_(2)
    with pytest.raises(RuntimeError, match="so that its gradient would be wrong"):
        torch.autograd.grad(solution.y1.sum(), w)
