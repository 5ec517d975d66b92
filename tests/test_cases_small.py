"""Cases A13 and A14: smaller faults of the engine, and a solve inside a compiled model."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import Tensor, nn

import regnde
from problems import SMALL_P, SMALL_Y0, exp_decay, small_net
from regnde import ErrorPenalty, Solver, StiffnessPenalty
from tolerances import CANCELLED, ROUNDING

GRADIENTS = ("discrete", "checkpoint")


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on the path"
)
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_case_A13_a_compiled_model_with_a_solve_inside_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), regnde.nn.NeuralODE(regnde.nn.MLP([4, 8, 4])), First(), nn.Linear(4, 1))
    x = torch.randn(5, 2)
    gradients = []
    for chosen in (model, torch.compile(model)):
        model.zero_grad()
        chosen(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class First(nn.Module):
    """The final state of a solution."""

    def forward(self, solution: regnde.Solution) -> Tensor:
        return solution.y1


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_A14_a_cell_that_is_not_filled_yet(gradient: str) -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return -y if t < 2 else y * later

    y0 = f64([1.0]).requires_grad_()
    sol = regnde.solve(field, y0, [0.0, 1.0], Solver(gradient=gradient))
    later = 1.0
    assert torch.autograd.grad(sol.y1.sum(), y0)[0].item() == pytest.approx(0.367879, rel=1e-5)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_A14_a_field_that_caches_a_differentiable_value(gradient: str) -> None:
    w, cache = f64([[0.3, -1.0], [0.5, -0.2]]).requires_grad_(), {}

    def field(t: Tensor, y: Tensor) -> Tensor:
        if "e" not in cache:
            cache["e"] = torch.matrix_exp(w)
        return y @ cache["e"] - y

    def plain(t: Tensor, y: Tensor) -> Tensor:
        return y @ torch.matrix_exp(w) - y

    found, wanted = (
        torch.autograd.grad(regnde.solve(f, f64([[1.0, 2.0]]), [0.0, 1.0], Solver(gradient=g)).y1.sum(), w)[0]
        for f, g in ((field, gradient), (plain, "discrete"))
    )
    torch.testing.assert_close(found, wanted, rtol=CANCELLED, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_case_A14_a_parameter_frozen_after_the_solve(gradient: str) -> None:
    net = nn.Linear(1, 1).double()
    nn.init.constant_(net.weight, -1.0)
    sol = regnde.solve(lambda t, y: net(y) - net.bias, f64([[1.0]]), [0.0, 1.0], Solver(gradient=gradient))
    net.bias.requires_grad_(False)
    (slope,) = torch.autograd.grad(sol.y1.sum(), net.weight)
    assert slope.item() == pytest.approx(0.367879, rel=1e-5)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("record", ["none", "all"])
def test_case_A14_vectorised_jacobian(record: str, batch: str) -> None:
    def run(p: Tensor) -> Tensor:
        solver = Solver(rtol=1e-4, atol=1e-4, batch=batch)
        field = small_net(p) if batch == "joint" else lambda t, y: small_net(p)(t.squeeze(-1), y)
        sol = regnde.solve(field, SMALL_Y0, [0.0, 1.5], solver, record=record)
        parts = [sol.y1.flatten()]
        if record == "all":
            parts += [ErrorPenalty()(sol)[None], StiffnessPenalty()(sol)[None]]
        return torch.cat(parts)

    plain, fast = (torch.autograd.functional.jacobian(run, SMALL_P, vectorize=v) for v in (False, True))
    torch.testing.assert_close(fast, plain, rtol=CANCELLED, atol=1e-12)


@pytest.mark.parametrize("method", ["tsit5", "rk4"])
def test_case_A14_batch_norm_counts_each_batch_once(method: str) -> None:
    counts, means = [], []
    for gradient in GRADIENTS:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
        solver = Solver(method=method, gradient=gradient, dt0=0.1 if method == "rk4" else None, rtol=1e-3, atol=1e-3)
        sol = regnde.solve(lambda t, y, net=net: net(y), torch.randn(5, 3, dtype=torch.float64), [0.0, 1.0], solver)
        sol.y1.square().sum().backward()
        counts.append(int(net[1].num_batches_tracked))
        means.append(net[1].running_mean)
        assert counts[-1] == sol.stats.nfe
    assert counts[0] == counts[1]
    torch.testing.assert_close(*means, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("penalty", [StiffnessPenalty(), ErrorPenalty()], ids=repr)
@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_case_A14_second_derivatives_at_rest(batch: str, penalty: regnde.Penalty, gradient: str) -> None:
    w = f64(0.0).requires_grad_()
    solver = Solver(gradient=gradient, batch=batch)
    sol = regnde.solve(lambda t, y: w * y, f64([[1.0, 2.0]]), [0.0, 1.0], solver, record="all")
    (first,) = torch.autograd.grad(penalty(sol), w, create_graph=True)
    (second,) = torch.autograd.grad(first, w, allow_unused=True, materialize_grads=True)
    assert first.item() == second.item() == 0.0


class OfSamples(nn.Module):
    """y' = -rate y with a rate of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, t: Tensor, y: Tensor, samples: Tensor) -> Tensor:
        return -self.rates[samples, None] * y


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compile"])
def test_case_A14_a_wrapped_field_of_samples(wrap: object) -> None:
    solver = Solver(batch="per-sample", engine="torch")
    field = wrap(OfSamples())  # type: ignore[operator]
    sol = regnde.solve(field, torch.ones(3, 1), [0.0, 1.0], solver)
    assert sol.y1.flatten().tolist() == pytest.approx([0.367879, 0.135335, 0.049787], rel=1e-3)


def test_case_A14_clocks_of_fixed_steps_do_not_drift() -> None:
    with torch.no_grad():
        sol = regnde.solve(exp_decay, f64([1.0]), [0.0, 1.0], Solver(method="euler", dt0=2e-5), record="all")
    assert sol.stats.accepted == 50_000
    torch.testing.assert_close(sol.steps.t, torch.arange(1, 50_001, dtype=torch.float64) / 50_000, rtol=1e-15, atol=0)
