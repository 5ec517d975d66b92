"""Layers, the training loop, schedules; and that a penalty lowers the evaluations, not just its own value."""

from __future__ import annotations

import itertools

import pytest
import torch

import regnde
from problems import spiral
from regnde import ErrorPenalty, Local, Solver, anneal, fit
from regnde.nn import MLP, NeuralODE


@pytest.mark.parametrize("time", [False, True])
def test_mlp_is_a_network_with_time_appended_to_every_input(time: bool) -> None:
    net, t, y = MLP([3, 5, 4, 3], time=time, output=torch.sin).double(), torch.tensor(0.7, dtype=torch.float64), None
    y = torch.randn(2, 6, 3, dtype=torch.float64)
    x = y
    for i, weight in enumerate(net.weights):
        if time:
            x = torch.cat([x, t.expand(*x.shape[:-1], 1)], -1)
            weight = torch.cat([weight, net.slopes[i][:, None]], 1)
        x = x @ weight.T + net.biases[i]
        x = torch.tanh(x) if i < 2 else torch.sin(x)
    torch.testing.assert_close(net(t, y), x)
    assert len(list(net.parameters())) == (9 if time else 6)
    with pytest.raises(ValueError, match="at least the input's and the output's width"):
        MLP([3])


def test_layer_records_in_training_only_and_takes_times() -> None:
    layer = NeuralODE(MLP([2, 8, 2]), ts=(0.0, 0.5, 1.0), solver=Solver(rtol=1e-4, atol=1e-4), record="all")
    y0 = torch.randn(5, 2)
    assert layer(y0).ys.shape == (3, 5, 2)
    assert layer(y0).steps is not None
    assert layer(y0, [0.0, 2.0]).ys.shape == (2, 5, 2)
    assert layer.eval()(y0).steps is None
    assert "record='all'" in repr(layer)
    assert layer(y0).solver.rtol == 1e-4


def test_anneal() -> None:
    weight = anneal(100.0, 10.0, 75)
    assert weight(0) == 100.0
    assert weight(75) == pytest.approx(10.0)
    assert weight(1000) == pytest.approx(10.0)
    ratios = [weight(i + 1) / weight(i) for i in range(74)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert anneal(3.0, 3.0, 10)(5) == 3.0
    with pytest.raises(ValueError, match="above zero"):
        anneal(0.0, 1.0, 10)


def spiral_task() -> tuple[NeuralODE, torch.Tensor, torch.Tensor, list[float]]:
    """The papers' cubic spiral (methods.md 3.5): thirty points on [0, 1.5] of a deterministic spiral."""
    ts = torch.linspace(0, 1.5, 30).tolist()
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    truth = regnde.solve(spiral, y0, ts).ys
    torch.manual_seed(0)
    net = MLP([2, 50, 2], time=False).double()
    layer = NeuralODE(lambda t, y: net(t, y**3), ts, Solver(rtol=1e-5, atol=1e-5), record="all")
    layer.net = net
    return layer, y0, truth, ts


def train(
    record: regnde.Local | str, penalty: regnde.Penalty | None, weight: float
) -> tuple[list[regnde.Progress], int]:
    layer, y0, truth, _ = spiral_task()
    layer.record = record

    def compute(batch: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = layer(batch)
        return (solution.ys - truth).square().mean(), solution

    adam = torch.optim.Adam(layer.parameters(), 0.02)
    history = list(fit(compute, itertools.repeat(y0, 60), adam, penalty=penalty, weight=weight))
    return history, layer.eval()(y0).stats.nfe


def test_penalties_lower_the_evaluations() -> None:
    plain, plain_nfe = train("none", None, 0.0)
    assert plain[-1].task < 0.2 * plain[0].task
    for record, penalty in (("all", ErrorPenalty("mean")), (Local(), ErrorPenalty())):
        history, nfe = train(record, penalty, 20.0)
        assert nfe < 0.9 * plain_nfe
        assert history[-1].task < 0.5 * plain[0].task
        assert history[0].loss == pytest.approx(history[0].task + 20.0 * history[0].penalty)


def test_fit_schedules_and_reports() -> None:
    layer, y0, truth, _ = spiral_task()

    def compute(batch: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = layer(batch)
        return (solution.ys - truth).square().mean(), solution

    sgd = torch.optim.SGD(layer.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    weight = anneal(4.0, 1.0, 2)
    run = fit(compute, [y0] * 3, sgd, penalty=ErrorPenalty(), weight=weight, scheduler=scheduler)
    before = [p.detach().clone() for p in layer.parameters()]
    first = next(run)
    assert any(not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
    rest = list(run)
    assert [p.iteration for p in (first, *rest)] == [0, 1, 2]
    assert [p.weight for p in (first, *rest)] == [4.0, 2.0, 1.0]
    assert scheduler.get_last_lr() == [1e-3 / 8]
    assert all(p.nfe > 0 and p.seconds > 0 for p in rest)


def test_fit_stops_at_a_loss_that_is_not_finite() -> None:
    net = MLP([1, 4, 1])
    adam = torch.optim.Adam(net.parameters())
    before = [p.detach().clone() for p in net.parameters()]

    def compute(y0: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(net, y0, [0.0, 1.0])
        return solution.y1.sum() / 0.0, solution

    with pytest.raises(FloatingPointError, match="iteration 0"):
        next(fit(compute, [torch.ones(1, 1)], adam))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
