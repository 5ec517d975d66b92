"""Implicit methods warn of a field whose derivatives, as PyTorch forms them, miss a part of it, and of no other one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regnde
from problems import STIFF, robertson
from regnde._derivative_check import check_field

Field = Callable[[Tensor, Tensor], Tensor]


def first_steps(field: Field, y0: Tensor, number: int = 17, **options: object) -> None:
    chosen = regnde.Solver(method="rosenbrock23", engine="torch", max_steps=number, **options)
    with torch.no_grad():
        regnde.solve(field, y0, [0.0, 1.0], chosen, throw=False)


@torch.no_grad()
def untracked(y: Tensor) -> Tensor:
    return torch.flip(y, (-1,)).sin()


LEAVING: dict[str, Field] = {
    "a part of the state": lambda t, y: torch.cat([-y[..., :2] * y[..., 2:].detach(), -y[..., 2:]], -1),
    "a number": lambda t, y: -y * float(y.detach().flatten()[0]),
    "numpy": lambda t, y: torch.cat([-y[..., :2], torch.from_numpy(np.tanh(y[..., 2:].detach().numpy()))], -1),
    "no_grad": lambda t, y: -y + untracked(y),
    "a norm": lambda t, y: -y / (1 + y.norm().detach()),
    "a small part": lambda t, y: -y + 0.05 * torch.sin(y.detach()),
    "the time": lambda t, y: -y + math.sin(float(t.detach())),
    "interpolated data": lambda t, y: -y + float(np.interp(float(t.detach()), [0.0, 1.0, 2.0], [0.0, 3.0, 1.0])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("what", LEAVING)
def test_a_field_that_leaves_torch_in_a_part(what: str, dtype: torch.dtype) -> None:
    by = "by the time" if what in ("the time", "interpolated data") else "by the state"
    for y0 in (torch.tensor([0.7, 0.3, 1.1, 0.5], dtype=dtype), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)):
        with pytest.warns(UserWarning, match=f"the derivative of the field {by}.* seems to leave torch"):
            first_steps(LEAVING[what], y0, 1)


def test_a_field_of_samples_that_leaves_torch_in_a_part() -> None:
    y0 = torch.linspace(0.2, 1.1, 12, dtype=torch.float64).reshape(3, 4)
    with pytest.warns(UserWarning, match=r"by the state \(6 of 12 entries\).*batch='joint'"):
        first_steps(LEAVING["a part of the state"], y0, 1, batch="per-sample")


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_a_part_that_has_no_derivative_at_the_start(batch: str, gradient: str) -> None:
    """One warning, although later steps show the fault again, and a checkpoint takes them again."""
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for what, field, y0 in (
        ("by the time", lambda t, y: -p * y * math.cos(float(t.detach().max())), [[1.0, 2.0]]),
        (
            "by the state",
            lambda t, y: torch.stack([1 - y[..., 0], y[..., 0].detach() ** 2 - p * y[..., 1]], -1),
            [[0.0, 1.0]],
        ),
    ):
        chosen = regnde.Solver(method="rodas4", engine="torch", batch=batch, gradient=gradient)
        with pytest.warns(UserWarning, match=f"{what}.* seems to leave torch") as seen:
            regnde.solve(field, torch.tensor(y0, dtype=torch.float64), [0.0, 1.0], chosen).y1.sum().backward()
        assert len([one for one in seen if "leave torch" in str(one.message)]) == 1


STARTS: dict[str, Tensor] = {
    "zeros": torch.zeros(6),
    "ones": torch.ones(6),
    "tiny": torch.linspace(-1e-6, 2e-6, 6),
    "mixed": torch.logspace(-8, 3, 6) * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("kind", [nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.Tanh, nn.GELU], ids=lambda kind: kind.__name__)
def test_no_warning_of_a_network(kind: type[nn.Module], start: str, dtype: torch.dtype) -> None:
    """Kinks, also at the start, and rounding are no fault."""
    net = nn.Sequential(nn.Linear(6, 32), kind(), nn.Linear(32, 32), kind(), nn.Linear(32, 6)).to(dtype)
    for scale in (1.0, 1000.0):
        first_steps(lambda t, y, scale=scale: scale * net(y), STARTS[start].to(dtype))
        first_steps(lambda t, y, scale=scale: scale * net(y) * torch.sin(5 * t), STARTS[start].to(dtype))


@pytest.mark.parametrize(("state", "field"), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)], ids=str)
def test_no_warning_of_a_field_of_lower_precision(state: torch.dtype, field: torch.dtype) -> None:
    """Of 10 networks with 100 entries; quotients of a few rounding errors agree with each other by chance."""
    for seed in range(10):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 10)).to(field)
        first_steps(lambda t, y, net=net: net(y.to(field)).to(state), torch.randn(10, 10, dtype=state), 1)


HARMLESS: dict[str, Field] = {
    "a sign": lambda t, y: -torch.sign(y),
    "one that saturates": lambda t, y: -torch.tanh(y / 1e-12),
    "abs": lambda t, y: -y.abs(),
    "square root": lambda t, y: -y.clamp(min=0).sqrt(),
    "round": lambda t, y: -torch.round(10 * y) / 10,
    "a branch by the time": lambda t, y: -y + (1.0 if t >= 0.2 else 0.0),
    "a kink in the time": lambda t, y: -y + torch.relu(t),
    "largest entry": lambda t, y: -y * y.max(),
    "a logarithm": lambda t, y: -torch.log(y),
    "one that refuses negative states": lambda t, y: -torch.distributions.Poisson(y).mean,
}


@pytest.mark.parametrize("field", HARMLESS)
def test_no_warning_of_an_odd_field(field: str) -> None:
    for y0 in (torch.zeros(4, dtype=torch.float64), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)):
        first_steps(HARMLESS[field], y0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", STIFF)
def test_no_warning_of_a_stiff_problem(name: str, dtype: torch.dtype) -> None:
    first_steps(STIFF[name], torch.tensor({3: [1.0, 0.0, 0.0], 2: [2.0, 0.0], 1: [1.0]}[entries(name)], dtype=dtype))
    first_steps(robertson(), torch.tensor([[1.0, 0, 0], [0.3, 1e-5, 0.7]], dtype=dtype), batch="per-sample")


def entries(name: str) -> int:
    return {"robertson": 3, "prothero_robinson": 1}.get(name, 2)


@pytest.mark.parametrize("what", LEAVING)
def test_the_check_of_a_field_alone(what: str) -> None:
    """As the Julia engine asks for it."""
    t, y, end = (torch.tensor(x, dtype=torch.float64) for x in (0.0, [0.7, 0.3, 1.1, 0.5], 1e-3))
    with pytest.warns(UserWarning, match="seems to leave torch"):
        check_field(LEAVING[what], t, y, end)
    check_field(lambda t, y: -y * torch.sin(t) * y.sum(), t, y, end)
    check_field(lambda t, y: torch.ones_like(y), t, y, end)


def test_the_check_costs_few_evaluations_that_do_not_count() -> None:
    calls = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return -y

    with torch.no_grad():
        sol = regnde.solve(field, torch.ones(2), [0.0, 1.0], regnde.Solver(method="rodas5p", engine="torch"))
    checks = sum(sol.stats.accepted + sol.stats.rejected >= attempt for attempt in (1, 4, 16, 64))
    assert len(calls) <= sol.stats.nfe + 3 * checks
