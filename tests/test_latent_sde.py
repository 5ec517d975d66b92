"""The latent SDE: shapes, divergences with known values, gradients, learning."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import regnde
from problems import seeded
from regnde import BrownianPath, ErrorPenalty, Solver
from regnde.nn import ContextGRU, LatentSDE
from tolerances import CANCELLED

TS = torch.linspace(0, 1, 6, dtype=torch.float64)


class Posterior(nn.Module):
    def __init__(self, latent: int, context: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent + context, 16), nn.Tanh(), nn.Linear(16, latent))

    def forward(self, t: torch.Tensor, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.net(torch.cat([z, context], 1))


class Prior(nn.Module):
    def __init__(self, latent: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(latent, 16), nn.Tanh(), nn.Linear(16, latent))

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.net(z)


def model(solver: Solver | None = None, **options: object) -> LatentSDE:
    torch.manual_seed(0)
    chosen = Solver(rtol=0.1, atol=0.1, engine="torch") if solver is None else solver
    return LatentSDE(
        ContextGRU(3, hidden=16, context=8, latent=4),
        Posterior(4, 8),
        Prior(4),
        lambda t, z: 0.4 + 0.1 * torch.sin(z),
        nn.Linear(4, 3),
        latent=4,
        solver=chosen,
        **options,
    ).double()


class Far(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.cos(50 * t) * torch.ones_like(z)


def series(batch: int = 5) -> torch.Tensor:
    phase = torch.linspace(0, 2, batch, dtype=torch.float64).view(-1, 1, 1)
    return torch.sin(4 * TS.view(1, -1, 1) + phase + torch.arange(3))


def test_shapes_records_and_gradients() -> None:
    made = model(record="all")
    values, mask = series(), torch.ones(5, 6, 3, dtype=torch.float64)
    out = made(values, mask, TS)
    assert out.values.shape == (5, 6, 3)
    assert out.latent.shape == (6, 5, 4)
    assert out.kl().shape == (5,)
    assert bool((out.path_kl > 0).all())
    torch.autograd.backward((out.values - values).square().mean() + out.kl().mean() + ErrorPenalty()(out.solution))
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in made.parameters())
    assert made.eval()(values, mask, TS).solution.steps is None
    assert made.sample(7, [0.0, 0.3, 1.0]).shape == (7, 3, 3)
    assert torch.equal(copy.deepcopy(out).values, out.values)
    assert not pickle.loads(pickle.dumps(out)).values.requires_grad


def test_what_the_mask_hides_does_not_matter() -> None:
    made, values = model(), series()
    mask = (torch.rand(values.shape, generator=seeded(1)) > 0.4).double()
    outcomes = []
    for hidden in (0.0, math.nan):
        torch.manual_seed(2)
        outcomes.append(made(torch.where(mask.bool(), values, hidden), mask, TS).values)
    assert torch.equal(*outcomes)


def test_divergence_of_constant_drifts() -> None:
    """Half the square of the drifts' difference over the diffusion, times the span; none if the drifts are one."""
    values, mask = series(), torch.ones(5, 6, 3, dtype=torch.float64)
    for shift in (0.0, 0.6):
        made = LatentSDE(
            ContextGRU(3, latent=4),
            lambda t, z, context, shift=shift: -z + shift,
            lambda t, z: -z,
            lambda t, z: 0.5 + 0 * z,
            nn.Linear(4, 3),
            latent=4,
            solver=Solver(rtol=0.1, atol=0.1, engine="torch"),
        ).double()
        path_kl = made(values, mask, TS).path_kl
        torch.testing.assert_close(path_kl, torch.full_like(path_kl, 4 * 0.5 * (shift / 0.5) ** 2))


def test_the_divergence_does_not_set_the_steps() -> None:
    """A prior that is far away changes nothing but the divergence."""
    values, mask = series(), torch.ones(5, 6, 3, dtype=torch.float64)
    path = BrownianPath(0.0, 1.0, (5, 5), seed=1)
    outcomes = []
    for scale in (0.1, 1e4):
        made = model()
        made.prior = Far(scale)
        torch.manual_seed(1)
        outcomes.append(made(values, mask, TS, noise=path))
    assert outcomes[0].solution.stats == outcomes[1].solution.stats
    assert torch.equal(outcomes[0].values, outcomes[1].values)
    near, far = (out.path_kl.detach() for out in outcomes)
    assert float(far.min()) > 1e3 * float(near.max())


def test_the_context_of_an_interval_is_that_of_its_end() -> None:
    """The drift jumps at the times of the series and nowhere else, with fixed and adaptive steps."""
    seen: list[tuple[float, float]] = []

    class Ramp(nn.Module):
        def forward(self, values, mask, ts):
            context = torch.arange(6.0, dtype=torch.float64).view(6, 1, 1).expand(6, 5, 1)
            return values.new_zeros(5, 4), values.new_zeros(5, 4), context

    def posterior(t: torch.Tensor, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        seen.append((float(t), float(context[0, 0])))
        return -z

    solvers = (
        Solver(method="em", dt0=0.07, engine="torch"),
        Solver(rtol=0.3, atol=0.3, method="sriw1", engine="torch"),
    )
    for solver in solvers:
        made = LatentSDE(
            Ramp(), posterior, lambda t, z: -z, lambda t, z: 1 + 0 * z, nn.Linear(4, 3), latent=4, solver=solver
        )
        made = made.double()
        made(series(), torch.ones(5, 6, 3, dtype=torch.float64), TS)
        assert len(seen) > 5
        for t, context in seen:
            assert context - 1 - 1e-9 <= 5 * t <= context + 1e-9, solver
        seen.clear()


def test_both_engines_give_the_same_along_a_path(engine: str) -> None:
    """With steps that end at no time of the series: there rounding decides which context a step sees."""
    values, mask = series(), torch.ones(5, 6, 3, dtype=torch.float64)
    found = []
    for chosen in (engine, "torch"):
        made = model(Solver(method="em", dt0=0.07, engine=chosen))
        torch.manual_seed(3)
        out = made(values, mask, TS, noise=BrownianPath(0.0, 1.0, (5, 5), seed=1))
        assert out.solution.engine == chosen
        torch.autograd.backward(out.kl().mean() + (out.values - values).square().mean())
        found.append([out.latent.detach(), *(p.grad for p in made.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=CANCELLED, atol=CANCELLED)


def test_torchsdes_way_gives_the_same() -> None:
    """Euler-Maruyama by the layer, and by sdeint with logqp on an object in torchsde's style, along one path."""
    made = model(Solver(method="em", dt0=0.05, engine="torch"))
    values, mask = series(), torch.ones(5, 6, 3, dtype=torch.float64)
    path = BrownianPath(0.0, 1.0, (5, 5), seed=1)
    torch.manual_seed(3)
    wanted = made(values, mask, TS, noise=path)
    _, _, context = made.encoder(values, mask, TS)

    class Theirs:
        sde_type, noise_type = "ito", "diagonal"
        g, h = staticmethod(made.diffusion), staticmethod(made.prior)

        def f(self, t, y):
            return made.posterior(t, y, context[min(int(torch.searchsorted(TS, t, right=True)), 5)])

    y0 = wanted.latent[0]
    ys, ratio = regnde.sdeint(Theirs(), y0, TS, path, "euler", dt=0.05, logqp=True)
    # Steps that are added up meet the times of the series to rounding only: a step may see the other context.
    torch.testing.assert_close(ys, wanted.latent, rtol=0, atol=0.02)
    torch.testing.assert_close(ratio.sum(0), wanted.path_kl, rtol=0.02, atol=0.02)


def test_it_learns() -> None:
    torch.manual_seed(0)
    made, values = model(Solver(method="em", dt0=0.1, engine="torch")), series(8)
    mask = torch.ones_like(values)
    optimizer, losses = torch.optim.Adam(made.parameters(), 1e-2), []
    for _ in range(80):
        optimizer.zero_grad()
        out = made(values, mask, TS)
        loss = (out.values - values).square().sum((1, 2)).mean() / 0.02 + out.kl().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_refuses() -> None:
    made = model(Solver(rtol=torch.tensor([0.1, 0.1, 0.1, 0.1]), engine="torch"))
    with pytest.raises(ValueError, match="one number as rtol"):
        made(series(), torch.ones(5, 6, 3), TS)
