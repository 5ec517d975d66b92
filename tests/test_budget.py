"""The weight that sets itself: the ratio that it promises, its invariance, and that it works without tuning."""

from __future__ import annotations

import contextlib
import itertools
import math
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import regnde
import two_processes
from problems import seeded
from regnde import Balance, ErrorPenalty, LossBudget, Solver, fit
from regnde.nn import MLP
from tolerances import FLOAT16


def exclusive_or(
    penalty: regnde.Penalty | None, weight: float | Balance, iterations: int = 60
) -> list[regnde.Progress]:
    """A short training of the classifier that docs/quickstart.md begins with."""
    torch.manual_seed(0)
    x = torch.randn(64, 2, dtype=torch.float64)
    label = (x[:, 0] * x[:, 1] > 0).long()
    field, readout = MLP([8, 32, 8]).double(), torch.nn.Linear(8, 2).double()
    record = "none" if penalty is None else "all"

    def compute(start: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(field, start, [0.0, 1.0], Solver(rtol=1e-6, atol=1e-6), record=record)
        return functional.cross_entropy(readout(solution.y1), label), solution

    adam = torch.optim.Adam([*field.parameters(), *readout.parameters()], 3e-2)
    batches = itertools.repeat(functional.pad(x, (0, 6)), iterations)
    return list(fit(compute, batches, adam, penalty=penalty, weight=weight))


def test_ratio_of_the_gradients_over_what_both_reach() -> None:
    shared = torch.tensor([3.0, -1.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor(100.0, dtype=torch.float64, requires_grad=True)
    task = 4 * shared.sum() + 7 * other  # the readout's gradient is not what a penalty competes with
    penalty = 0.5 * shared.sum()
    balance = Balance(0.25, every=1, smoothing=0.0)
    assert balance.value == 0.0
    assert balance.update(task, penalty, [shared, other]) == pytest.approx(0.25 * 4 / 0.5)
    (task + penalty).backward()  # the graph is still there
    assert other.grad is not None


def test_measures_now_and_then_and_smooths() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(1.0, every=3, smoothing=0.5)
    sizes = [2.0, 4.0, 7.0, 99.0, 99.0, 99.0, 53.0]
    weights = [balance.update(size * p, 2 * p, [p]) for size in sizes]
    assert weights == pytest.approx([1.0, 1.5, 2.5, 26.0, 26.0, 26.0, 26.25])  # means 2, 3, 5, 52, 52.5 over 2
    again = Balance(1.0, every=3, smoothing=0.5)
    again.load_state_dict(balance.state_dict())
    assert [again.update(10 * p, 2 * p, [p]) for _ in range(5)] == [
        balance.update(10 * p, 2 * p, [p]) for _ in range(5)
    ]


def test_measures_most_often_at_first() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(1.0, every=10, smoothing=0.0)
    weights = [balance.update((i + 1) * p, p, [p]) for i in range(31)]
    assert [i for i, weight in enumerate(weights) if weight == i + 1] == [0, 1, 2, 4, 8, 10, 20, 30]


def test_a_penalty_that_has_worked_does_not_raise_its_weight() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(1.0, every=1, smoothing=0.0)
    weights = [balance.update(8 * p, size * p, [p]) for size in (2.0, 2.0, 1e-6, 4.0)]
    assert weights[:2] == pytest.approx([4.0, 4.0])
    assert 4.0 < weights[2] < 4.2
    assert weights[3] == pytest.approx(2.0)


def test_noise_of_the_batches_is_no_gradient_of_the_task() -> None:
    """Gradients that point to and fro give a small weight, though each of them is large."""
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(1.0, every=1, smoothing=0.9)
    weights = [balance.update((8 if i % 2 else -8) * p, 2 * p, [p]) for i in range(100)]
    assert weights[0] == pytest.approx(4.0)
    assert weights[-1] < 0.3


def test_no_gradient_is_no_weight() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(every=1)
    assert balance.update(p * 2, 0 * p, [p]) == 0.0
    assert balance.update(p * 2, torch.zeros(()), [p]) == 0.0
    assert balance.update(p * 2, p * float("inf"), [p]) == 0.0
    assert balance.update(p * 2, 3 * p, [p]) > 0.0


def test_the_penaltys_scale_does_not_matter() -> None:
    plain = exclusive_or(ErrorPenalty("mean"), Balance(), 20)
    scaled = exclusive_or(1e4 * ErrorPenalty("mean"), Balance(), 20)
    assert [p.task for p in scaled] == pytest.approx([p.task for p in plain], rel=1e-6)
    assert scaled[-1].weight == pytest.approx(1e-4 * plain[-1].weight)
    assert [p.nfe for p in scaled] == [p.nfe for p in plain]


def test_lowers_the_evaluations_without_tuning() -> None:
    plain, balanced = exclusive_or(None, 0.0), exclusive_or(ErrorPenalty("mean"), Balance(1.0))
    assert balanced[-1].nfe <= 0.7 * plain[-1].nfe
    assert balanced[-1].task < 0.06


@pytest.mark.parametrize("scale", [65536.0, 2.0**40])
def test_float16_is_measured_at_the_scale_of_a_scaler(scale: float) -> None:
    """Gradients below 6e-8 are 0 in float16 without the scale, and at 2^40 they overflow: a smaller one is found."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(8, 8), torch.randn(16, 8)
    weights = {}
    for mixed in (True, False):
        with torch.autocast("cpu", torch.float16, enabled=mixed):
            y = linear(x)
        task, penalty = 1e-6 * y.float().square().mean(), y.float().abs().mean()
        parameters = list(linear.parameters())
        weights[mixed] = Balance(1.0).update(task, penalty, parameters, scale=scale if mixed else 1.0)
    assert weights[True] == pytest.approx(weights[False], rel=FLOAT16)


def test_fit_gives_its_scalers_scale_to_a_weight() -> None:
    class Scales(list[float]):
        def update(self, task: object, penalty: object, parameters: object, *, scale: float = 1.0) -> float:
            self.append(scale)
            return 0.0

    field, scales = MLP([2, 8, 2]), Scales()

    def compute(y0: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(field, y0, [0.0, 1.0], record="all")
        return solution.y1.square().mean(), solution

    sgd = torch.optim.SGD(field.parameters(), 0.0)
    for scaler in (torch.amp.GradScaler("cpu", init_scale=512.0), None):
        list(fit(compute, [torch.ones(3, 2)], sgd, penalty=ErrorPenalty(), weight=scales, scaler=scaler))
    assert scales == [512.0, 1.0]


@pytest.mark.parametrize("wrong", [{"fraction": 0.0}, {"every": 0}, {"smoothing": 1.0}])
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Balance(**wrong)


# --- cases A10, A14, D3 ----------------------------------------------------------------------------------


def test_case_A10_complex_parameters() -> None:
    """A complex parameter counts as its two real ones: the same weight."""
    z = torch.tensor([1.0 + 2.0j, -3.0 + 0.5j], dtype=torch.complex128, requires_grad=True)
    parts = torch.view_as_real(z.detach()).clone().requires_grad_()
    complex_balance, real_balance = Balance(every=1), Balance(every=1)
    for i in range(3):
        moduli, squares = z.abs().square(), parts.square().sum(-1)
        weight = complex_balance.update((i + 1) * moduli.sum(), moduli.square().sum(), [z])
        assert weight == pytest.approx(real_balance.update((i + 1) * squares.sum(), squares.square().sum(), [parts]))
        assert weight > 0


@pytest.mark.parametrize("sides", ["both", "task", "penalty", "now and then"])
def test_case_A14_sparse_gradients(sides: str) -> None:
    """An embedding with sparse gradients gives the weight that a dense one does."""
    weights = []
    for is_sparse in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(5, 2, sparse=is_sparse, dtype=torch.float64)
        balance = Balance(every=1, smoothing=0.5)
        row = []
        for i in range(4):
            looked_up = table(torch.tensor([i % 3, 1, 1]))
            direct = table.weight.square().sum()
            task = direct if sides == "penalty" or (sides == "now and then" and i % 2) else (i + 1) * looked_up.sum()
            penalty = direct if sides in ("task", "now and then") else looked_up.square().sum()
            row.append(balance.update(task, penalty, [table.weight]))
        weights.append(row)
    assert weights[1] == pytest.approx(weights[0])
    assert weights[0][0] > 0


def test_case_D3_warns_once_of_an_optimiser_that_lacks_the_field() -> None:
    field, readout = MLP([2, 4, 2]), torch.nn.Linear(2, 1)

    def compute(y0: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(field, y0, [0.0, 1.0], record="all")
        return readout(solution.y1).square().mean(), solution

    for frozen in (False, True):
        field.requires_grad_(not frozen)
        sgd = torch.optim.SGD(readout.parameters(), 1e-2)
        run = fit(compute, [torch.ones(3, 2)] * 3, sgd, penalty=ErrorPenalty(), weight=Balance(every=1))
        with pytest.warns(UserWarning, match="parameters of the field") as caught:
            history = list(run)
        assert len(caught) == 1
        assert [p.weight for p in history] == [0.0] * 3


def test_a_penalty_of_zero_is_no_reason_to_warn() -> None:
    p = torch.ones((), requires_grad=True)
    assert Balance(every=1).update(p * 2, torch.zeros(()), [p]) == 0.0


# --- LossBudget -------------------------------------------------------------------------------------------


def follow(budget: LossBudget, losses: list[float], slope: float = 1.0) -> list[float]:
    """Shares of a budget that is shown these losses; the gradients stay what they are."""
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    shares = []
    for loss in losses:
        budget.update(loss + slope * (p - 1), 2 * p, [p])
        shares.append(budget.share)
    return shares


def test_budget_rises_within_falls_faster_above_and_stays_bounded() -> None:
    budget = LossBudget(1.0)
    up = follow(budget, [0.5] * 80)
    assert up[0] == 0.1
    assert up == sorted(up)
    assert up[-1] == 1.0
    assert budget.within
    down = follow(budget, [1.5] * 200)
    assert not budget.within
    assert down[-1] == 0.0
    falls = [math.log(b / a) for a, b in itertools.pairwise(down) if b > 0]
    assert min(falls) < -math.log(up[20] / up[19]) < 0


def test_budget_is_the_ratio_of_gradients_times_its_share() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    for scale in (1.0, 1e6):  # units of the penalty do not matter
        budget = LossBudget(1.0)
        weight = budget.update(8 * p, scale * 2 * p, [p])
        assert weight * scale == pytest.approx(0.1 * 8 / 2)
        assert budget.value == weight


def test_budget_does_not_rise_while_a_model_still_learns_above_it() -> None:
    falling = [10 * 0.99**i for i in range(200)]
    shares = follow(LossBudget(0.5), falling)
    assert max(shares) == 0.1
    assert shares[-1] == 0.1  # and a loss that falls by itself does not lower it


def test_budget_lets_go_where_learning_stalls_above_it() -> None:
    shares = follow(LossBudget(0.5), [1.0] * 200)
    assert shares[-1] == 0.0


@pytest.mark.parametrize("level", [-40.0, -1.0, 0.0, 1e-9, 1e9])
def test_budget_knows_losses_of_any_size_and_sign(level: float) -> None:
    unit = max(0.02 * abs(level), 1e-12)
    assert follow(LossBudget(level), [level - 2 * unit] * 80)[-1] == 1.0
    assert follow(LossBudget(level), [level + 2 * unit] * 300)[-1] == 0.0


def test_budget_holds_the_mean_of_a_noisy_loss() -> None:
    """A loss that grows with the share, with noise of a third of its size: its mean ends at the budget."""
    generator = seeded(0)
    budget, p, seen = LossBudget(1.3), torch.ones((), dtype=torch.float64, requires_grad=True), []
    for _ in range(1500):
        mean = 1.0 + 0.5 * budget.share
        loss = mean + 0.4 * float(torch.randn((), generator=generator))
        budget.update(loss + (p - 1), 2 * p, [p])
        seen.append(mean)
    assert sum(seen[500:]) / 1000 == pytest.approx(1.3, abs=0.1)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_case_C2_a_gradient_that_falls_a_hundred_times_takes_the_weight_along(noise: float) -> None:
    """A mean that remembers the first gradients takes the task's for larger than it is: the penalty is then the
    larger part of the loss, where a tenth was asked for."""
    generator = seeded(0)
    p = torch.ones(50, dtype=torch.float64, requires_grad=True)
    balance = Balance(0.1)
    for i in range(200):
        direction = 1 + noise * torch.randn(50, generator=generator, dtype=torch.float64)
        slope = max(100 * 0.6**i, 1.0) * direction
        weight = balance.update((slope * p).sum(), 2 * p.sum(), [p])
        if i in (0, 1, 2, 4, 8) or i % 10 == 0:  # where it is measured
            assert weight * 2 * math.sqrt(50) <= 0.1 * float(slope.norm()) * (1 + 1e-9)
    assert weight * 2 == pytest.approx(0.1, rel=0.1)  # of the mean, without the noise


def two_scales(weight: LossBudget | float, iterations: int) -> float:
    """The task loss after gradient descent on a steep and a flat direction; the penalty pulls back along the flat one.

    The gradient falls a hundred times in the first iterations. The flat direction is what is left to learn.
    """
    steep, flat = (torch.nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        return 50 * (steep - 1) ** 2 + (flat - 1) ** 2, flat**2

    sgd = torch.optim.SGD([steep, flat], 0.008)
    for _ in range(iterations):
        task, penalty = losses()
        factor = weight if isinstance(weight, float) else weight.update(task, penalty, [steep, flat])
        sgd.zero_grad()
        (task + factor * penalty).backward()
        sgd.step()
    return float(losses()[0].detach())


def test_case_C2_a_budget_is_met_and_then_spent() -> None:
    plain = two_scales(0.0, 300)
    budget = LossBudget(1.02 * plain)
    assert two_scales(budget, 450) <= budget.allowed
    assert budget.met
    assert budget.share > 0.1  # it has been spent


@pytest.mark.parametrize("start", [0.1, 1.0])
def test_case_C2_a_bound_that_can_not_be_met_ends_in_no_penalty(start: float) -> None:
    budget = LossBudget(-1.0, start=start)
    assert two_scales(budget, 1500) <= 1.02 * two_scales(0.0, 1150)
    assert budget.share == budget.value == 0.0
    assert not budget.met
    assert "never met" in repr(budget)


def test_case_C2_a_huge_first_loss_is_forgotten() -> None:
    """It must not look like learning, nor like noise, for the rest of the training."""
    shares = follow(LossBudget(1.0), [1e9, 1e6, 1e3] + [2.0] * 150)
    assert shares[-1] == 0.0
    budget = LossBudget(1.0)
    assert follow(budget, [1e9] + [0.5] * 100)[-1] == 1.0
    assert budget.noise < 1e-9


def test_budget_tells_the_noise_of_its_loss() -> None:
    generator = seeded(0)
    budget, p, levels = LossBudget(1.0), torch.ones((), dtype=torch.float64, requires_grad=True), []
    for _ in range(2000):
        budget.update(1.0 + 0.4 * float(torch.randn((), generator=generator)) + (p - 1), 2 * p, [p])
        levels.append((budget.loss, budget.noise))
    loss, noise = torch.tensor(levels[100:], dtype=torch.float64).T
    assert float(noise.mean()) == pytest.approx(float(loss.std()), rel=0.2)
    assert math.isnan(LossBudget(1.0).noise)


def test_budget_without_a_known_loss_waits_until_learning_stalls() -> None:
    budget = LossBudget(None)
    learning = follow(budget, [10 * 0.98**i for i in range(150)])
    assert max(learning) == 0.1
    assert follow(budget, [0.5] * 200)[-1] == 1.0
    assert budget.limit < 0.6
    assert follow(budget, [0.7] * 60)[-1] < 1.0


def test_budget_goes_on_from_its_state() -> None:
    losses = [1.0 / (1 + 0.1 * i) + 0.05 * (-1) ** i for i in range(60)]
    whole = LossBudget(0.4)
    expected = follow(whole, losses)
    first = LossBudget(0.4)
    follow(first, losses[:33])
    second = LossBudget(0.4)
    second.load_state_dict(first.state_dict())
    assert follow(second, losses[33:]) == expected[33:]


def test_budget_takes_a_loss_of_a_graph_as_its_bound() -> None:
    p = torch.full((), 2.0, dtype=torch.float64, requires_grad=True)
    budget = LossBudget(1.02 * p)
    follow(budget, [1.0] * 10)
    assert budget.allowed == 2.04
    assert isinstance(budget.allowed, float)  # which keeps no graph alive
    assert budget.within is True


def test_balance_goes_on_in_another_dtype() -> None:
    """A checkpoint is loaded on the CPU, or in float64, and the model is elsewhere."""
    old, new = (torch.ones(2, dtype=dtype, requires_grad=True) for dtype in (torch.float64, torch.float32))
    balance = Balance(1.0, every=1)
    balance.update(8 * old.sum(), 2 * old.sum(), [old])
    again = Balance(1.0, every=1)
    again.load_state_dict(balance.state_dict())
    assert again.update(8 * new.sum(), 2 * new.sum(), [new]) == pytest.approx(4.0)


def test_budget_takes_a_penalty_without_gradient_and_a_loss_that_is_not_finite() -> None:
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    budget = LossBudget(1.0)
    assert budget.update(8 * p, torch.zeros(()), [p]) == 0.0
    budget.update(p * float("nan"), 2 * p, [p])
    assert math.isfinite(budget.update(8 * p, 2 * p, [p]))
    assert budget.loss == pytest.approx(8.0)


@pytest.mark.parametrize(
    "wrong", [{"allowed": math.nan}, {"allowed": 1.0, "start": 0.0}, {"allowed": 1.0, "largest": 0.05}]
)
def test_budget_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="allowed must be a finite loss or"):
        LossBudget(**wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.8])
def test_balance_measures_anew_where_the_penalty_has_grown(smoothing: float) -> None:
    """A field that starts at zero has almost no penalty: its first ratio must not stand for ten iterations."""
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    balance = Balance(1.0, every=10, smoothing=smoothing)
    assert balance.update(8 * p, 1e-9 * p, [p]) > 1e9
    assert balance.update(8 * p, 2 * p, [p]) == pytest.approx(4.0)


@pytest.mark.parametrize("weight", [Balance(0.5, every=1), LossBudget(1.0)], ids=["Balance", "LossBudget"])
def test_parameters_may_be_any_iterable_and_frozen_ones_do_not_count(weight: Balance | LossBudget) -> None:
    p, frozen = (torch.ones((), dtype=torch.float64, requires_grad=trained) for trained in (True, False))
    with pytest.raises(TypeError, match="tensors with their graphs"):
        weight.update(8.0, 2.0, [p])
    assert weight.update(8 * p + frozen, 2 * p, iter([frozen, p])) > 0


def test_a_field_of_zeros_learns_under_a_balance() -> None:
    """The last layer is 0, so that the penalty grows a thousand times in the first iterations."""
    losses = {}
    for weight in (0.0, Balance(1.0), LossBudget(1e-3)):
        torch.manual_seed(0)
        x, field = torch.randn(8, 2, dtype=torch.float64), MLP([2, 16, 2]).double()
        with torch.no_grad():
            field.weights[-1].zero_()
            field.biases[-1].zero_()
            field.slopes[-1].zero_()

        def compute(y0: torch.Tensor, field: MLP = field) -> tuple[torch.Tensor, regnde.Solution]:
            solution = regnde.solve(field, y0, [0.0, 1.0], Solver(rtol=1e-6, atol=1e-6), record="all")
            return (solution.y1 - 2 * y0).square().mean(), solution

        adam = torch.optim.Adam(field.parameters(), 1e-2)
        penalty = ErrorPenalty("mean")
        losses[type(weight)] = list(fit(compute, [x] * 60, adam, penalty=penalty, weight=weight))[-1].task
    assert losses[Balance] < 2 * losses[float]
    assert losses[LossBudget] < 2 * losses[float]


def test_a_budget_sees_all_batches_that_are_accumulated() -> None:
    """One batch of four has a loss of 0.1, the others 10: the budget must not take the first for all."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    budget = LossBudget(5.0)

    def compute(loss: float) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(lambda t, y: -p * y, torch.ones(1, dtype=torch.float64), [0.0, 1.0], record="all")
        return loss + 0 * solution.y1.sum(), solution

    sgd = torch.optim.SGD([p], 1e-9)
    run = fit(compute, [0.1, 10.0, 10.0, 10.0] * 40, sgd, penalty=ErrorPenalty(), weight=budget, accumulate=4)
    assert [progress.task for progress in run] == pytest.approx([7.525] * 40)
    assert budget.loss == pytest.approx(7.525, rel=0.2)
    assert not budget.within


def test_balance_begins_anew_where_other_parameters_are_trained() -> None:
    """A layer is frozen: means of its gradient must not be taken for those of the layer that follows it."""
    first, second = (torch.ones((2, 2)[:n], dtype=torch.float64, requires_grad=True) for n in (2, 1))
    balance = Balance(1.0, every=1, smoothing=0.9)
    balance.update(100 * first.sum() + second.sum(), first.sum() + second.sum(), [first, second])
    assert balance.update(3 * second.sum(), second.sum(), [second]) < 3.1


def _in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    p = torch.ones((), dtype=torch.float64, requires_grad=True)
    budget = LossBudget(1.0, distributed=True)
    for i in range(4):  # one loss of one process is not finite: nothing is averaged with what it does not belong to
        loss = math.nan if (i, rank) == (1, 1) else 2.0 + 2 * rank
        weight = budget.update(loss + (p - 1) * (1 + rank), 2 * p, [p])
    assert budget.loss == pytest.approx(3.0)
    assert weight == budget.value == pytest.approx(0.1 * 1.5 / 2)
    balance = Balance(1.0, distributed=True)
    assert balance.update((8 + 8 * rank) * p, 2 * p, [p]) == balance.value == pytest.approx((4 + 8) / 2)
    again = Balance(1.0, distributed=True)
    again.load_state_dict(balance.state_dict())
    assert again.value == balance.value

    trained = Trained()
    torch.manual_seed(rank)
    data = [torch.randn(16, 3, dtype=torch.float64) for _ in range(2)]
    alone = regnde.cheapen(trained.compute, data, trained.adam).before
    run = regnde.cheapen(trained.compute, data, trained.adam, distributed=True)
    both: list[object] = [None, None]
    torch.distributed.all_gather_object(both, (alone, run.before))
    (a, together), (b, also) = both  # type: ignore[misc]
    assert together == also
    assert a.loss != b.loss
    assert together.loss == pytest.approx((a.loss + b.loss) / 2)
    two_processes.leave(rank, folder)


def test_two_processes_follow_one_loss(tmp_path: Path) -> None:
    two_processes.run(_in_a_process, tmp_path)


# --- cheapen ----------------------------------------------------------------------------------------------


class Trained:
    """A small regression, trained without a penalty."""

    def __init__(self, passes: int = 25) -> None:
        torch.manual_seed(0)
        self.field = MLP([3, 16, 3]).double()
        self.readout = torch.nn.Linear(3, 1).double()
        self.data = [torch.randn(32, 3, dtype=torch.float64) for _ in range(4)]
        self.adam = torch.optim.Adam([*self.field.parameters(), *self.readout.parameters()], 3e-2)
        list(fit(self.compute, self.data * passes, self.adam))
        self.adam.param_groups[0]["lr"] = 1e-2

    def compute(self, x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(self.field, x, [0.0, 1.0], Solver(rtol=1e-6, atol=1e-6), record="all")
        target = torch.sin(2 * x[:, :1]) * x[:, 1:2]
        return (self.readout(solution.y1) - target).square().mean(), solution

    def measured(self) -> tuple[float, float]:
        with torch.no_grad():
            found = [self.compute(x) for x in self.data]
        return sum(float(loss) for loss, _ in found) / 4, sum(sol.stats.nfe for _, sol in found) / 4


def test_cheapen_lowers_the_evaluations_and_keeps_the_budget() -> None:
    trained = Trained()
    loss, nfe = trained.measured()
    run = regnde.cheapen(trained.compute, trained.data, trained.adam, iterations=200)
    assert (run.before.loss, run.before.nfe) == pytest.approx((loss, nfe))
    assert run.allowed == pytest.approx(1.02 * loss)
    progress = list(run)
    after = trained.measured()
    assert after == pytest.approx((run.best.loss, run.best.nfe))
    assert after[0] <= run.allowed
    assert after[1] <= 0.9 * nfe
    assert [p.iteration for p in progress] == list(range(len(progress)))
    assert trained.adam.param_groups[0]["lr"] == 1e-2
    assert "->" in repr(run)


def test_cheapen_leaves_the_best_state_where_it_is_left_early_or_finds_none() -> None:
    trained = Trained()
    before = [p.detach().clone() for p in trained.field.parameters()]
    run = regnde.cheapen(trained.compute, trained.data, trained.adam, budget=0.0)
    for progress in run:
        if progress.iteration == 5:
            break
    assert run.best == run.before
    assert all(torch.equal(p, old) for p, old in zip(trained.field.parameters(), before, strict=True))


@pytest.mark.parametrize("where", ["loop", "compute"])
def test_cheapen_leaves_the_best_state_after_an_exception(where: str) -> None:
    trained, calls = Trained(), itertools.count()
    before = [p.detach().clone() for p in trained.field.parameters()]

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        if where == "compute" and next(calls) == 10:  # four measured, six trained
            raise KeyError(where)
        return trained.compute(x)

    run = regnde.cheapen(compute, trained.data, trained.adam)
    with contextlib.suppress(KeyError):
        for progress in run:
            if where == "loop" and progress.iteration == 5:
                raise KeyError(where)
    assert progress.iteration == 5
    assert all(torch.equal(p, old) for p, old in zip(trained.field.parameters(), before, strict=True))
    assert trained.adam.param_groups[0]["lr"] == 1e-2


def test_cheapen_that_saves_nothing_leaves_the_buffers_of_the_model() -> None:
    """Measuring in training mode must not count as training for batch norm."""
    trained = Trained()
    model = torch.nn.ModuleList([trained.field, torch.nn.BatchNorm1d(3).double()])

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        loss, solution = trained.compute(x)
        return loss + model[1](solution.y1).mean(), solution

    before = {name: x.clone() for name, x in model.state_dict().items()}
    assert len(list(regnde.cheapen(compute, trained.data, trained.adam, budget=0, model=model, iterations=2))) == 2
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_cheapen_leaves_the_buffers_of_modules_that_compute_refers_to() -> None:
    """Without a model: batch norm must not be left with the statistics of states that were not kept."""
    trained = Trained()
    norm = torch.nn.BatchNorm1d(3).double()

    def compute(x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        loss, solution = trained.compute(x)
        return loss + norm(solution.y1).mean(), solution

    before = {name: x.clone() for name, x in norm.state_dict().items()}
    list(regnde.cheapen(compute, trained.data, trained.adam, budget=0, iterations=2))
    assert all(torch.equal(x, before[name]) for name, x in norm.state_dict().items())


def test_cheapen_takes_a_field_that_differentiates() -> None:
    """The gradient of a learnt energy: it can not be evaluated under `no_grad`."""
    torch.manual_seed(0)
    energy = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(energy(y).sum(), y, create_graph=True)[0]

    def compute(y0: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(field, y0, [0.0, 1.0], record="all")
        return solution.y1.square().mean(), solution

    adam = torch.optim.Adam(energy.parameters(), 1e-3)
    assert len(list(regnde.cheapen(compute, [torch.ones(3, 2)], adam, iterations=2))) == 2


def test_cheapen_draws_noise_alike_in_all_measurements_and_leaves_the_generator() -> None:
    trained = Trained()

    def noisy(x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        loss, solution = trained.compute(x)
        return loss + torch.randn((), dtype=torch.float64) ** 2, solution

    torch.manual_seed(5)
    state = torch.get_rng_state()
    runs = [regnde.cheapen(noisy, trained.data, trained.adam) for _ in range(2)]
    assert runs[0].before == runs[1].before
    assert torch.equal(torch.get_rng_state(), state)


def test_cheapen_warns_where_a_solve_has_next_to_nothing_to_save() -> None:
    trained = Trained()

    def two_steps(x: torch.Tensor) -> tuple[torch.Tensor, regnde.Solution]:
        solution = regnde.solve(trained.field, x, [0.0, 0.1], Solver(rtol=0.1, atol=0.1, dt0=0.05), record="all")
        return solution.y1.square().mean(), solution

    with pytest.warns(UserWarning, match="the solves make 2 steps"):
        regnde.cheapen(two_steps, trained.data, trained.adam)


def test_cheapen_refuses() -> None:
    trained = Trained()
    with pytest.raises(ValueError, match="at least 0"):
        regnde.cheapen(trained.compute, trained.data, trained.adam, budget=-1.0)
    with pytest.raises(ValueError, match="no batches"):
        regnde.cheapen(trained.compute, [], trained.adam)
    with pytest.raises(ValueError, match="made no solve that was seen"):
        regnde.cheapen(lambda x: x.mean(), trained.data, trained.adam)
    with pytest.raises(ValueError, match="used up"):
        list(regnde.cheapen(trained.compute, iter(trained.data), trained.adam, measure=trained.data, every=2))


def test_cheapen_prefers_a_state_within_a_given_bound_to_a_cheaper_one_above_it() -> None:
    trained = Trained()
    loss, _ = trained.measured()
    run = regnde.cheapen(trained.compute, trained.data, trained.adam, allowed=0.9 * loss, iterations=100)
    assert run.allowed == 0.9 * loss
    list(run)
    assert run.best.loss <= 0.9 * loss
    assert trained.measured() == pytest.approx((run.best.loss, run.best.nfe))
    with pytest.raises(ValueError, match="allowed is nan"):
        regnde.cheapen(trained.compute, trained.data, trained.adam, allowed=math.nan)


def test_cheapen_compares_the_training_with_a_bound_on_other_batches() -> None:
    """A loss of validation that is that of the training plus a number: the number must not matter."""
    runs = []
    for number in (0.0, 5.0):
        trained = Trained(passes=2)

        def compute(
            batch: tuple[torch.Tensor, float], trained: Trained = trained
        ) -> tuple[torch.Tensor, regnde.Solution]:
            loss, solution = trained.compute(batch[0])
            return loss + batch[1], solution

        data, other = ([(x, added) for x in trained.data] for added in (0.0, number))
        allowed = number + 1.02 * trained.measured()[0]
        run = regnde.cheapen(compute, data, trained.adam, measure=other, allowed=allowed, iterations=25, every=10)
        runs.append([progress.weight for progress in run])
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert len(set(runs[0])) > 5  # it moves


def test_cheapen_takes_a_scaler() -> None:
    trained, scaler = Trained(passes=1), torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    list(regnde.cheapen(trained.compute, trained.data, trained.adam, scaler=scaler, iterations=2))
    assert scaler.get_scale() == 32.0  # two steps were made at its scale


def test_budget_without_a_known_loss_takes_a_noisy_one() -> None:
    for seed in range(4):
        generator = seeded(seed)
        losses = [1.0 + 0.2 * float(torch.randn((), generator=generator)) for _ in range(600)]
        assert max(follow(LossBudget(None), losses)) > 0.5
