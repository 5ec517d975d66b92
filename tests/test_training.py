"""Layers, the training loop, schedules; and that a penalty lowers the evaluations, not just its own value."""

from __future__ import annotations

import itertools

import pytest
import torch

import regnde
from problems import spiral
from regnde import ErrorPenalty, Local, LossBudget, Solver, anneal, fit
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


# --- case A11: what users of torch expect of a loop ------------------------------------------------------

DOUBLE = torch.float64
Computed = tuple[torch.Tensor, regnde.Solution]


class Line(torch.nn.Module):
    """y' = w, so that y(1) = y0 + w: a task whose loss and gradient are known."""

    def __init__(self, w: float = 0.0) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([w], dtype=DOUBLE))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.w + 0 * y

    def compute(self, target: float) -> Computed:
        solution = regnde.solve(self, torch.zeros(1, dtype=DOUBLE), [0.0, 1.0], record="all")
        return (solution.y1 - target).square().sum() / 2, solution


@pytest.mark.parametrize("which", ["task", "penalty", "weight"])
def test_case_A11_a_loss_that_is_not_finite_blames_its_part(which: str) -> None:
    line = Line()

    class Broken(regnde.StepPenalty):
        def term(self, steps: regnde.Steps) -> torch.Tensor:
            return steps.dt * (torch.nan if which == "penalty" else 1.0)

    target, weight = (torch.nan if which == "task" else 1.0), (torch.inf if which == "weight" else 1.0)
    message = {
        "task": r"^the task's loss is nan in iteration 7 .*data",
        "penalty": r"^the penalty is nan in iteration 7 .*penalty's weight",
        "weight": r"^the loss is not finite in iteration 7 .*weight inf",
    }[which]
    sgd = torch.optim.SGD(line.parameters(), 0.1)
    with pytest.raises(FloatingPointError, match=message):
        next(fit(line.compute, [target], sgd, penalty=Broken(), weight=weight, start=7))
    assert line.w.item() == 0.0


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_case_A11_a_gradient_that_is_not_finite_is_not_stepped_on(optimiser: type[torch.optim.Optimizer]) -> None:
    line, other = Line(), torch.nn.Parameter(torch.ones(2, 3))

    def compute(target: float) -> Computed:
        task, solution = line.compute(target)
        return task + (0 * line.w).sqrt().sum() + other.sum() * 0, solution  # the root's slope at 0 is infinite

    with pytest.raises(FloatingPointError, match=r"gradient is not finite in iteration 0.*number 1 .*shape \(1,\)"):
        next(fit(compute, [1.0], optimiser([other, *line.parameters()], 0.1)))
    assert line.w.item() == 0.0
    assert other.eq(1).all()


def test_case_A11_large_and_sparse_and_missing_gradients_are_finite() -> None:
    """A norm of them would overflow, or is not there."""
    line, table = Line(), torch.nn.Embedding(4, 1, sparse=True)
    unused = torch.nn.Parameter(torch.ones(3))

    def compute(target: float) -> Computed:
        task, solution = line.compute(target)
        return task + 1e30 * table(torch.tensor([1])).sum() * torch.ones(()), solution

    sgd = torch.optim.SGD([unused, table.weight, line.w], 1e-30)
    next(fit(compute, [1.0], sgd))
    assert unused.eq(1).all()
    with torch.no_grad():
        table.weight.zero_()

    def root(target: float) -> Computed:
        task, solution = line.compute(target)
        return task + table(torch.tensor([1])).sqrt().sum(), solution

    with pytest.raises(FloatingPointError, match=r"number 1 .*shape \(4, 1\)"):
        next(fit(root, [1.0], sgd))
    assert table.weight.eq(0).all()


def test_case_A11_lbfgs_gets_its_closure() -> None:
    line = Line()
    lbfgs = torch.optim.LBFGS(line.parameters(), line_search_fn="strong_wolfe")
    weights = []

    def weight(iteration: int) -> float:
        weights.append(iteration)
        return 0.25

    history = list(fit(line.compute, [3.0, 3.0], lbfgs, penalty=ErrorPenalty(), weight=weight))
    assert line.w.item() == pytest.approx(3.0, abs=1e-6)
    assert history[0].task == pytest.approx(4.5)  # before the update
    assert history[1].task < 1e-9
    assert weights == [0, 1]  # the weight is constant while the optimiser searches


def test_case_A11_a_failure_in_a_closure_leaves_the_parameters() -> None:
    line = Line(1.0)

    def compute(target: float) -> Computed:
        if float(line.w.detach()) != 1.0:  # the search has moved
            raise RuntimeError("no further")
        return line.compute(target)

    with pytest.raises(RuntimeError, match="no further"):
        next(fit(compute, [3.0], torch.optim.LBFGS(line.parameters())))
    assert line.w.item() == 1.0


def test_case_A11_plateaus_see_the_loss() -> None:
    line = Line()
    sgd = torch.optim.SGD(line.parameters(), 1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, factor=0.1, patience=0)
    run = fit(line.compute, [2.0, 9.0, 2.0], sgd, scheduler=plateau)  # losses 2, 24.5, 24.5
    rates = [plateau.get_last_lr()[0] for _ in run]
    assert rates == pytest.approx([1.0, 0.1, 0.01])


def test_case_A11_start_goes_on_counting() -> None:
    weight = anneal(16.0, 1.0, 4)

    def train(starts: list[tuple[int, int]]) -> list[tuple[int, float]]:
        line = Line()
        sgd = torch.optim.SGD(line.parameters(), 0.1)
        return [
            (p.iteration, p.weight)
            for start, count in starts
            for p in fit(line.compute, [1.0] * count, sgd, penalty=ErrorPenalty(), weight=weight, start=start)
        ]

    assert train([(0, 2), (2, 3)]) == train([(0, 5)]) == [(i, weight(i)) for i in range(5)]


def test_case_A11_accumulation_averages_the_gradients() -> None:
    line = Line()
    sgd = torch.optim.SGD(line.parameters(), 1.0)
    seen: list[float] = []

    def compute(target: float) -> Computed:
        seen.append(line.w.item())
        return line.compute(target)

    history = list(fit(compute, iter([1.0, 3.0, 4.0, 6.0, 8.0]), sgd, accumulate=2))
    assert seen == pytest.approx([0.0, 0.0, 2.0, 2.0, 5.0])  # each step of size 1 goes to the mean target
    assert line.w.item() == pytest.approx(8.0)  # the last iteration has one batch
    assert [p.iteration for p in history] == [0, 1, 2]
    assert [p.task for p in history] == pytest.approx([(0.5 + 4.5) / 2, (2.0 + 8.0) / 2, 4.5])
    assert history[0].nfe == Line().compute(1.0)[1].stats.nfe


def test_case_A11_clips_the_whole_gradient() -> None:
    line, other = Line(), torch.nn.Parameter(torch.zeros(1, dtype=DOUBLE))

    def compute(target: float) -> Computed:
        task, solution = line.compute(target)
        return task + 4.0 * other.sum(), solution

    sgd = torch.optim.SGD([line.w, other], 1.0)
    next(fit(compute, [3.0], sgd, clip=0.5))  # the gradient is (-3, 4)
    assert [line.w.item(), other.item()] == pytest.approx([0.3, -0.4], rel=1e-5)
    next(fit(compute, [0.3 + 1e-3], torch.optim.SGD([line.w], 1.0), clip=0.5))
    assert line.w.item() == pytest.approx(0.301)  # a short one stays


@pytest.mark.parametrize("clip", [None, 0.5])
def test_case_A11_a_scaler_scales_and_leaves_steps_out(clip: float | None) -> None:
    line = Line()
    sgd = torch.optim.SGD(line.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    seen: list[float] = []

    def compute(target: float) -> Computed:
        task, solution = line.compute(target)
        if target > 100:
            task = task + (0 * line.w).sqrt().sum()  # as an overflow does
        task.register_hook(lambda g: seen.append(float(g)))
        return task, solution

    run = fit(compute, [3.0, 101.0, 3.0], sgd, scaler=scaler, scheduler=scheduler, clip=clip)
    next(run)
    assert line.w.item() == pytest.approx(3.0 if clip is None else 0.5)
    before = line.w.item()
    assert next(run).iteration == 1
    assert line.w.item() == before
    assert scaler.get_scale() == 4.0
    assert scheduler.get_last_lr() == [0.5]  # not stepped where the optimiser was not
    next(run)
    assert seen == [8.0, 8.0, 4.0]
    scaler.update(1.0)
    with pytest.raises(FloatingPointError, match="gradient is not finite"):  # a scale of 1 overflows nothing
        next(fit(compute, [101.0], sgd, scaler=scaler))
    with pytest.raises(ValueError, match="closure"):
        next(fit(line.compute, [1.0], torch.optim.LBFGS(line.parameters()), scaler=scaler))
    off = torch.amp.GradScaler("cpu", enabled=False)
    next(fit(line.compute, [1.0], torch.optim.LBFGS(line.parameters()), scaler=off))


def test_case_A11_what_compute_may_return() -> None:
    line = Line()
    sgd = torch.optim.SGD(line.parameters(), 1.0)

    def step(compute: object, penalty: regnde.Penalty | None = None, **options: object) -> regnde.Progress:
        return next(fit(compute, [3.0], sgd, penalty=penalty, **options))

    evaluations = line.compute(3.0)[1].stats.nfe
    assert step(lambda target: line.compute(target)[0]).nfe == evaluations
    assert line.w.item() == pytest.approx(3.0)
    assert step(lambda target: (line.compute(target)[0].reshape(1), None)).task == pytest.approx(0.0, abs=1e-20)
    assert step(lambda target: line.w.square()).nfe == 0
    with pytest.raises(ValueError, match="there is no solve to sum the penalty over"):
        step(lambda target: line.w.square(), ErrorPenalty())
    for wrong in (1.0, None, (1.0, None), torch.ones((), dtype=torch.complex64), [torch.ones(())]):
        with pytest.raises(TypeError, match="compute must return a loss"):
            step(lambda target, wrong=wrong: wrong)
    with pytest.raises(ValueError, match=r"shape \(3,\): reduce it to one number"):
        step(lambda target: line.w.expand(3))
    with pytest.raises(TypeError, match=r"\(loss, solution\), but the second is a Parameter"):
        step(lambda target: (line.w.square(), line.w))
    for options in ({"accumulate": 0}, {"clip": 0.0}, {"clip": -1.0}):
        with pytest.raises(ValueError, match="at least one batch and a norm above zero"):
            step(line.compute, **options)


def test_a_loss_without_a_gradient_is_refused() -> None:
    """It would train nothing, and say nothing."""
    line, other = Line(), torch.nn.Parameter(torch.zeros(2))
    penalty = ErrorPenalty()
    with pytest.raises(ValueError, match="loss in iteration 0 has no gradient by the 1 tensors"):
        next(fit(line.compute, [1.0], torch.optim.SGD([other], 1.0)))

    def detached(target: float) -> tuple[torch.Tensor, regnde.Solution]:
        loss, solution = line.compute(target)
        return loss.detach(), solution

    with pytest.raises(ValueError, match=r"\.detach\(\)"):
        next(fit(detached, [1.0], torch.optim.SGD(line.parameters(), 1.0), penalty=penalty))


@pytest.mark.parametrize("wrong", ["auto", None, LossBudget, [1.0]])
def test_what_is_no_weight_is_refused(wrong: object) -> None:
    line = Line()
    sgd = torch.optim.SGD(line.parameters(), 1.0)
    with pytest.raises(TypeError, match="weight must be a number, a function of the iteration, a LossBudget"):
        next(fit(line.compute, [1.0], sgd, penalty=ErrorPenalty(), weight=wrong))
