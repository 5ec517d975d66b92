"""The weight that sets itself: the ratio that it promises, its invariance, and that it works without tuning."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional

import regnde
from regnde import Balance, ErrorPenalty, Solver, fit
from regnde.nn import MLP


def exclusive_or(
    penalty: regnde.Penalty | None, weight: float | Balance, iterations: int = 60
) -> list[regnde.Progress]:
    """A short training of the classifier that docs/training.md begins with."""
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
    balance = Balance(1.0, every=2, smoothing=0.5)
    sizes = [8.0, 99.0, 4.0, 99.0, 2.0]
    weights = [balance.update(size * p, 2 * p, [p]) for size in sizes]
    assert weights == pytest.approx([4.0, 4.0, 3.0, 3.0, 2.0])  # means 8, 6, 4 over 2
    again = Balance(1.0, every=2, smoothing=0.5)
    again.load_state_dict(balance.state_dict())
    assert [again.update(10 * p, 2 * p, [p]) for _ in range(2)] == [
        balance.update(10 * p, 2 * p, [p]) for _ in range(2)
    ]


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
    assert balanced[-1].task < 0.05


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
