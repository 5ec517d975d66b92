"""The noise of adaptive solves without `noise=`: a Brownian path at all times that are asked for, in their order."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import regnde
from regnde import SDE, Solver
from regnde._engines.torch.sequential_noise import SequentialNoise
from tolerances import EXACT, MANY_STANDARD_ERRORS, ROUNDING

COUNT = 50_000


def made(shape: tuple[int, ...], *, area: bool = True, dtype: torch.dtype = torch.float64) -> SequentialNoise:
    return SequentialNoise(0.0, shape, torch.zeros(1, dtype=dtype), area=area, seed=3)


def assert_standard_normals(z: torch.Tensor) -> None:
    """Rows of independent standard normals: four moments, and products of any two rows."""
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert ((z**power).mean(1) - mean).abs().max() < MANY_STANDARD_ERRORS * math.sqrt(variance / COUNT)
    products = z @ z.T / COUNT - torch.eye(len(z), dtype=z.dtype)
    assert products.abs().max() < MANY_STANDARD_ERRORS * math.sqrt(2 / COUNT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("area", [False, True], ids=lambda yes: f"area={yes}")
def test_law_after_rejections(area: bool, dtype: torch.dtype) -> None:
    """W ~ N(0, h) and H ~ N(0, h/12), independent, of steps that follow rejected ones of any length."""
    noise = made((COUNT,), area=area, dtype=dtype)
    rejected = [(0.0, 1.0), (0.0, 0.4), (0.1, 0.35), (0.1, 0.2), (0.3, 2.0), (0.3, 0.9)]
    accepted = [(0.0, 0.1), (0.1, 0.11), (0.11, 0.3), (0.3, 0.5), (0.5, 1.3), (1.3, 2.5)]
    rows = []
    for s, t in accepted:
        for attempt in rejected:
            if attempt[0] == s:
                noise.increment(*attempt)
        w, h = noise.increment(s, t)
        rows.append(w / math.sqrt(t - s))
        if area:
            rows.append(h / math.sqrt((t - s) / 12))
        else:
            assert not h.any()
        noise.forget(t)
    assert_standard_normals(torch.stack(rows).double())


def test_law_of_attempts_and_of_the_rest() -> None:
    """The parts that a rejected step leaves are independent of the one that was taken, at any fraction."""
    for x in (1e-3, 0.3, 0.5, 0.999):
        noise = made((COUNT,))
        noise.increment(0.0, 2.0)
        rows = []
        for s, t in ((0.0, 2 * x), (2 * x, 2.0)):
            w, h = noise.increment(s, t)
            rows += [w / math.sqrt(t - s), h / math.sqrt((t - s) / 12)]
        assert_standard_normals(torch.stack(rows))


@pytest.mark.parametrize("area", [False, True], ids=lambda yes: f"area={yes}")
def test_increments_add_up_and_are_found_again(area: bool) -> None:
    """W and J = int W dt over an interval are those over its parts, whatever was asked first."""
    noise = made((3, 2), area=area)
    whole = noise.increment(0.0, 2.0)
    times = (0.0, 0.7, 1.1, 1.9, 2.0)
    noise.increment(0.7, 1.9)
    w, j = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for s, t in itertools.pairwise(times):
        part = noise.increment(s, t)
        j += (t - s) * (w + part.w / 2 + part.h)
        w += part.w
        again = noise.increment(s, t)
        torch.testing.assert_close(again, part, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(w, whole.w, rtol=ROUNDING, atol=ROUNDING)
    if area:
        torch.testing.assert_close(j, 2 * (whole.w / 2 + whole.h), rtol=ROUNDING, atol=ROUNDING)
    merged = noise.increment(0.0, 2.0)
    torch.testing.assert_close(merged.w, whole.w, rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(merged.h, whole.h, rtol=ROUNDING, atol=ROUNDING)


def test_the_past_is_forgotten() -> None:
    noise = made((2,))
    noise.increment(0.0, 1.0)
    noise.forget(0.5)
    noise.increment(0.5, 1.0)
    with pytest.raises(ValueError, match="forgotten"):
        noise.increment(0.25, 1.0)


def test_the_path_of_a_local_step_is_another_one() -> None:
    noise = made((COUNT,))
    rows = torch.stack([*noise.increment(0.0, 1.0), *noise.independent(0.0).increment(0.0, 1.0)])
    rows[1::2] *= math.sqrt(12)
    assert_standard_normals(rows)


@pytest.mark.parametrize("method", ["sosri", "lambaem"])
def test_a_solve_with_rejections_has_the_law_of_its_equation(method: str) -> None:
    """The logarithm of geometric Brownian motion at t = 1: mean -1/2, variance 1, though steps depend on the noise."""
    torch.manual_seed(1)
    sde = SDE(lambda t, y: 0 * y, lambda t, y: y)
    solver = Solver(method=method, rtol=1e-3, atol=1e-3, engine="torch")
    ends, rejected = [], 0
    for _ in range(40):  # solves of few entries: their steps depend on the noise of each
        sol = regnde.solve(sde, torch.ones(25, dtype=torch.float64), [0.0, 1.0], solver)
        ends.append(sol.y1.log())
        rejected += sol.stats.rejected
    z = torch.cat(ends) + 0.5
    assert rejected > 40
    error = 0.05  # of the method, in the logarithm
    assert abs(z.mean()) < MANY_STANDARD_ERRORS / math.sqrt(1000) + error
    assert abs(z.square().mean() - 1) < MANY_STANDARD_ERRORS * math.sqrt(2 / 1000) + error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_solve_is_repeated_by_torchs_seed(dtype: torch.dtype) -> None:
    sde = SDE(lambda t, y: -y, lambda t, y: 0.5 + 0.1 * y)
    solver = Solver(rtol=1e-2, atol=1e-2, engine="torch")
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ends.append(regnde.solve(sde, torch.ones(4, dtype=dtype), [0.0, 1.0], solver).y1)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert ends[0].dtype == dtype
