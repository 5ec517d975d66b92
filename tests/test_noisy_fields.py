"""Case A17: fields that draw noise at every call end soon, with an error that names the noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import regnde
from regnde import SDE, Solver

pytestmark = pytest.mark.filterwarnings("ignore:two calls of")

TIGHT = dict(rtol=1e-6, atol=1e-6, engine="torch")


def dropout(begins: float) -> Callable[[Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 8))
    return lambda t, y: net(y) if float(t.min()) >= begins else -y


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("begins", [0.0, 0.5])
@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_case_A17_noise_is_named(batch: str, begins: float, gradient: str) -> None:
    solver = Solver(batch=batch, gradient=gradient, **TIGHT)
    with pytest.raises(regnde.MaxStepsReached, match="draws noise or dropout") as caught:
        regnde.solve(dropout(begins), torch.ones(16, 8), [0.0, 1.0], solver, record="all")
    assert caught.value.nfe < 40_000  # of 600,000 that the limit of steps allows
    assert caught.value.t >= begins * 0.99


@pytest.mark.parametrize("where", ["drift", "diffusion"])
def test_case_A17_noise_of_an_sde_is_named(where: str) -> None:
    noisy, quiet = (lambda t, y: -y * torch.rand_like(y)), (lambda t, y: 0.1 * y)
    sde = SDE(noisy, quiet) if where == "drift" else SDE(lambda t, y: -y, noisy)
    with pytest.raises(regnde.MaxStepsReached, match="draws noise or dropout") as caught:
        regnde.solve(sde, torch.ones(16, 8), [0.0, 1.0], Solver(**TIGHT))
    assert caught.value.nfe < 40_000


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_case_A17_a_field_without_noise_may_take_many_steps(batch: str) -> None:
    solver = Solver(batch=batch, **TIGHT)
    with torch.no_grad():
        sol = regnde.solve(lambda t, y: torch.cos(4000 * t) * y, torch.ones(2, 1), [0.0, 1.0], solver)
    assert sol.stats.accepted > 1000


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_case_A17_noise_is_named_at_the_least_step(batch: str) -> None:
    """A step of the size `dt_min` that is rejected says so of a field without noise, and names the noise of another."""
    solver = Solver(batch=batch, dt_min=1e-3, **TIGHT)
    with pytest.raises(regnde.MaxStepsReached, match="draws noise or dropout"):
        regnde.solve(dropout(0.0), torch.ones(16, 8), [0.0, 1.0], solver)
    with pytest.raises(regnde.StepSizeUnderflow, match="dt_min"):
        regnde.solve(lambda t, y: torch.cos(1e5 * t) * 1e3 * y, torch.ones(2, 1), [0.0, 1.0], solver)
