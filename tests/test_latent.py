"""The latent ODE: the encoder's blend, masks and direction; shapes, sampling, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import regnde
from problems import seeded
from regnde import ErrorPenalty, Solver
from regnde.nn import MLP, BackwardGRU, LatentODE
from tolerances import ROUNDING

B, T, F = 4, 6, 3


@pytest.fixture
def series() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = seeded(3)
    values = torch.randn(B, T, F, dtype=torch.float64, generator=generator)
    mask = (torch.rand(B, T, F, generator=generator) < 0.5).double()
    return values, mask, torch.linspace(0, 1, T, dtype=torch.float64) ** 2


def encoder() -> BackwardGRU:
    return BackwardGRU(F, hidden=5, units=7, latent=2).double()


def test_the_step_is_a_gru_on_mean_and_deviation(series: tuple[torch.Tensor, ...]) -> None:
    """Written out gate by gate: both halves of the state blend with their own half of the candidate."""
    gru = encoder()
    mean, deviation = torch.randn(B, 5, dtype=torch.float64), torch.rand(B, 5, dtype=torch.float64)
    x = torch.randn(B, 2 * F + 1, dtype=torch.float64)
    state = torch.cat((mean, deviation, x), 1)
    w, b = gru.gates_in.weight, gru.gates_in.bias
    u = torch.sigmoid(gru.update_out(torch.tanh(state @ w[:7].T + b[:7])))
    r = torch.sigmoid(gru.reset_out(torch.tanh(state @ w[7:].T + b[7:])))
    candidate = gru.candidate(torch.cat((mean * r, deviation * r, x), 1))
    wanted = u * mean + (1 - u) * candidate[:, :5], u * deviation + (1 - u) * candidate[:, 5:].abs()
    got = gru.step(mean, deviation, x, torch.ones(B, 1, dtype=torch.bool))
    torch.testing.assert_close(got, wanted, rtol=ROUNDING, atol=ROUNDING)
    kept = gru.step(mean, deviation, x, torch.tensor([[True], [False], [True], [False]]))
    for new, old in zip(kept, (mean, deviation), strict=True):
        assert torch.equal(new[[1, 3]], old[[1, 3]])
        assert not torch.equal(new[[0, 2]], old[[0, 2]])


def test_it_runs_backwards_in_time(series: tuple[torch.Tensor, ...]) -> None:
    gru, (values, mask, ts) = encoder(), series
    order: list[float] = []
    step = gru.step

    def watched(mean: torch.Tensor, deviation: torch.Tensor, x: torch.Tensor, seen: torch.Tensor):
        order.append(float(x[0, -1].detach()))
        return step(mean, deviation, x, seen)

    gru.step = watched  # type: ignore[method-assign]
    gru(values, mask, ts)
    gaps = [0.0, *(ts[1:] - ts[:-1]).flip(0).tolist()]
    assert order == pytest.approx(gaps)
    # the state left by the first time outweighs what the last one left: data at t0 are read last
    values.requires_grad_()
    gru(values, torch.ones_like(mask), ts)[0].sum().backward()
    assert float(values.grad[:, 0].norm()) > float(values.grad[:, -1].norm())


def test_masks(series: tuple[torch.Tensor, ...]) -> None:
    gru, (values, mask, ts) = encoder(), series
    hidden = torch.where(mask.bool(), values, torch.full_like(values, torch.nan))
    assert torch.equal(gru(values * mask, mask, ts)[0], gru(hidden, mask, ts)[0])  # what is hidden is not read
    mask[1] = 0.0  # a sample without any data
    mean, log_variance = gru(values, mask, ts)
    start = torch.cat((torch.zeros(1, 5), torch.ones(1, 5)), 1).double()
    torch.testing.assert_close(torch.cat((mean, log_variance), 1)[1:2], gru.head(start), rtol=ROUNDING, atol=ROUNDING)
    mask[:, 2] = 0.0  # a time without any data changes nothing, but for the gap before it, which stays
    values[:, 2] = torch.nan_to_num(values[:, 2]) + 5.0
    assert bool(torch.isfinite(gru(values, mask, ts)[0]).all())


def test_latent_ode(series: tuple[torch.Tensor, ...], engine: str) -> None:
    values, mask, ts = series
    field = MLP([2, 6, 2], time=False).double()
    solver = Solver(rtol=1e-8, atol=1e-8, engine=engine)
    model = LatentODE(encoder(), field, nn.Linear(2, F).double(), solver=solver, record="all")
    made = model(values, mask, ts)
    assert made.values.shape == (B, T, F)
    assert made.solution.steps is not None
    loss = ((made.values - values) * mask).square().sum() + made.kl().sum() + ErrorPenalty()(made.solution)
    loss.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    model.eval()
    first, second = (model(values, mask, ts, sample=False) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert first.solution.steps is None
    torch.testing.assert_close(first.values[:, 0], model.decoder(first.mean), rtol=ROUNDING, atol=ROUNDING)
    by_hand = model.decoder(regnde.solve(field, first.mean, ts, solver).y1)
    torch.testing.assert_close(first.values[:, -1], by_hand, rtol=ROUNDING, atol=ROUNDING)


def test_sampling_and_kl(series: tuple[torch.Tensor, ...]) -> None:
    values, mask, ts = series
    model = LatentODE(encoder(), lambda t, z: 0 * z, nn.Identity(), solver=Solver(engine="torch"))
    with torch.no_grad():
        made = [model(values, mask, ts) for _ in range(500)]
    draws = torch.stack([m.values[:, 0] for m in made])
    deviation = (made[0].log_variance / 2).exp()
    torch.testing.assert_close(draws.mean(0), made[0].mean, rtol=0, atol=4 * float(deviation.max()) / 500**0.5)
    torch.testing.assert_close(draws.std(0), deviation, rtol=0.2, atol=0)
    p = torch.distributions.Normal(made[0].mean, deviation)
    wanted = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).mean(1)
    torch.testing.assert_close(made[0].kl(), wanted, rtol=ROUNDING, atol=ROUNDING)
    assert math.isclose(float(made[0].kl().min()), float(wanted.min()))
