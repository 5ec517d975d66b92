"""Case A8: layers and comparators under autocast, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import regnde
from regnde import ErrorPenalty, Solver
from regnde.comparators import RNODE, Hutchinson, TayNODE, solve_with_integral, total_derivative
from regnde.nn import MLP, BackwardGRU, LatentODE, NeuralODE, NeuralSDE
from tolerances import BFLOAT16

LOOSE = Solver(rtol=1e-2, atol=1e-2)


def mixed(enabled: bool = True) -> torch.autocast:
    return torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=enabled)


def gradient(loss: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """All gradients in one vector."""
    parts = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    return torch.cat([part.flatten() for part in parts if part is not None])


def assert_like(low: torch.Tensor, full: torch.Tensor) -> None:
    """Equal within the resolution of bfloat16, in norm."""
    assert low.dtype == full.dtype
    assert float((low - full).norm()) < BFLOAT16 * float(full.norm())


def series() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(4, 6, 3), (torch.rand(4, 6, 3) < 0.7).float(), torch.linspace(0, 1, 6)


def test_case_A8_encoder() -> None:
    encoder, data = BackwardGRU(3, hidden=5, units=7, latent=2), series()
    outcomes = []
    for enabled in (False, True):
        with mixed(enabled):
            mean, log_variance = encoder(*data)
            loss = mean.square().sum() + log_variance.square().sum()
        outcomes.append((torch.cat((mean, log_variance)).detach(), gradient(loss, encoder)))
    for low, full in zip(*reversed(outcomes), strict=True):
        assert_like(low, full)


@pytest.mark.parametrize("way", ["discrete", "checkpoint"])
def test_case_A8_latent_ode(way: str) -> None:
    torch.manual_seed(1)
    encoder = BackwardGRU(3, hidden=5, units=7, latent=2)
    solver = Solver(rtol=1e-2, atol=1e-2, gradient=way)
    model = LatentODE(encoder, MLP([2, 6, 2]), nn.Linear(2, 3), solver=solver, record="all")
    values, mask, ts = series()
    outcomes = []
    for enabled in (False, True):
        with mixed(enabled):
            made = model(values, mask, ts, sample=False)
            loss = (made.values.float() - values).square().mean() + made.kl().mean()
        assert made.solution.ys.dtype == torch.float32
        assert ErrorPenalty()(made.solution).dtype == torch.float32
        outcomes.append((made.solution.ys.detach(), gradient(loss, model)))
    for low, full in zip(*reversed(outcomes), strict=True):
        assert_like(low, full)


def test_case_A8_latent_ode_with_an_encoder_that_returns_half_precision() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, values: torch.Tensor, mask: torch.Tensor, ts: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.linear((values * mask).mean(1)).chunk(2, 1)

    model = LatentODE(Encoder(), MLP([2, 6, 2]), nn.Linear(2, 3), solver=LOOSE)
    with mixed():
        made = model(*series())
    made.values.float().square().mean().backward()
    assert made.mean.dtype == made.solution.ys.dtype == torch.float32
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@pytest.mark.parametrize("integrand", [RNODE(), TayNODE(order=1), TayNODE(order=2), TayNODE(order=3)], ids=str)
def test_case_A8_comparators(integrand: regnde.comparators.Integrand) -> None:
    torch.manual_seed(0)
    net, y0 = MLP([3, 5, 3]), torch.randn(8, 3)
    if isinstance(integrand, RNODE):
        integrand = integrand.drawn(y0)
    outcomes = []
    for enabled in (False, True):
        with mixed(enabled):
            solution, integral = solve_with_integral(net, y0, [0.0, 1.0], integrand, LOOSE)
            loss = solution.y1.square().mean() + integral
        outcomes.append((integral.detach(), gradient(loss, net)))
    for low, full in zip(*reversed(outcomes), strict=True):
        assert_like(low, full)


def test_case_A8_total_derivatives_keep_the_states_precision() -> None:
    net, t, y = MLP([3, 5, 3]), torch.tensor(0.3), torch.randn(8, 3)
    for order in (1, 2, 3):
        with mixed():
            low = total_derivative(net, t, y, order)
        assert_like(low.detach(), total_derivative(net, t, y, order).detach())


def test_case_A8_flows() -> None:
    torch.manual_seed(0)
    flow, y = Hutchinson(MLP([3, 5, 3])), torch.randn(8, 3)
    flow.draw(y)
    outcomes = []
    for enabled in (False, True):
        with mixed(enabled):
            start = torch.cat((y, torch.zeros(8, 1)), 1)
            solution, integral = solve_with_integral(
                flow, start, [0.0, 1.0], RNODE(probe=flow.probe), LOOSE, of=lambda z: z[..., :-1], inner=flow.field
            )
            loss = solution.y1.square().mean() + integral
        outcomes.append((solution.y1.detach(), gradient(loss, flow)))
    for low, full in zip(*reversed(outcomes), strict=True):
        assert_like(low, full)


def test_case_A8_layers_after_a_layer_in_half_precision() -> None:
    """What comes before a solve under autocast hands out bfloat16: the state is float32 again."""
    before, after, data = nn.Linear(2, 2), nn.Linear(2, 1), torch.randn(4, 2)
    for layer in (NeuralODE(MLP([2, 4, 2]), solver=LOOSE), NeuralSDE(MLP([2, 4, 2]), MLP([2, 2]))):
        with mixed():
            hidden = before(data)
            solution = layer(hidden)
            loss = after(solution.y1).square().mean()
        assert hidden.dtype == torch.bfloat16
        assert solution.ys.dtype == torch.float32
        loss.backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters())
        with pytest.raises(TypeError, match="too coarse"):
            layer(hidden.detach())
