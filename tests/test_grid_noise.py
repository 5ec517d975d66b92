"""The noise of solves with fixed steps: its law, and that a step asked for again gets its increment again."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import regnde
from regnde import SDE, Solver
from regnde._engines.torch import step_normals
from regnde._engines.torch.grid_noise import GridNoise
from tolerances import MANY_STANDARD_ERRORS

ENDS = (0.0, 0.3, 0.35, 1.0, 2.0)


@pytest.mark.parametrize("together", [1, 2**16], ids=lambda n: f"blocks of {n}")
@pytest.mark.parametrize("area", [False, True], ids=lambda yes: f"area={yes}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_law(dtype: torch.dtype, area: bool, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """W ~ N(0, h) and H ~ N(0, h/12), independent of each other and of other steps'."""
    monkeypatch.setattr(step_normals, "TOGETHER", together)
    torch.manual_seed(0)
    count = 50_001
    noise = GridNoise((count,), torch.zeros(2, dtype=dtype), len(ENDS) - 1, area=area)
    rows = []
    for s, t in itertools.pairwise(ENDS):
        w, h = noise.increment(s, t)
        rows.append(w / math.sqrt(t - s))
        if area:
            rows.append(h / math.sqrt((t - s) / 12))
        else:
            assert not h.any()
    z = torch.stack(rows).double()
    assert z.isfinite().all()
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert ((z**power).mean(1) - mean).abs().max() < MANY_STANDARD_ERRORS * math.sqrt(variance / count)
    products = z @ z.T / count - torch.eye(len(z), device=z.device)
    assert products.abs().max() < MANY_STANDARD_ERRORS * math.sqrt(2 / count)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_are_found_again(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_normals, "TOGETHER", 7)  # so that steps are in several blocks
    noise = GridNoise(shape, torch.zeros(1, dtype=dtype), 100, area=True)
    steps = list(itertools.pairwise(ENDS))
    first = [noise.increment(*step) for step in steps]
    for step, known in (*zip(steps, first, strict=True), *zip(steps[::-1], first[::-1], strict=True)):
        for a, b in zip(noise.increment(*step), known, strict=True):
            assert torch.equal(a, b)
            assert (a.shape, a.dtype) == (shape, dtype)


@pytest.mark.parametrize("method", ["em", "milstein"])
def test_a_solve_is_repeated_by_torchs_seed(method: str) -> None:
    sde = SDE(lambda t, y: -y, lambda t, y: 0.5 + 0.1 * y)
    solver = Solver(method=method, dt0=0.05, engine="torch")
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ends.append(regnde.solve(sde, torch.ones(4), [0.0, 1.0], solver).y1)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_stops_and_more_steps_than_planned() -> None:
    """A stop that cuts the steps in two does not change their law: the variance of W is the span."""
    torch.manual_seed(0)
    sde = SDE(lambda t, y: 0 * y, lambda t, y: torch.ones_like(y))
    solver = Solver(method="em", dt0=0.3, engine="torch")
    y0 = torch.zeros(20_000, dtype=torch.float64)
    ys = regnde.solve(sde, y0, [0.0, 0.5, 1.0], solver, stops=[0.1, 0.5, 0.55]).ys
    for left, right, h in ((ys[0], ys[1], 0.5), (ys[1], ys[2], 0.5)):
        spread = (right - left).square().mean().item()
        assert abs(spread - h) < MANY_STANDARD_ERRORS * h * math.sqrt(2 / len(y0))
    assert abs(((ys[1] - ys[0]) * (ys[2] - ys[1])).mean().item()) < MANY_STANDARD_ERRORS * 0.5 / math.sqrt(len(y0))
