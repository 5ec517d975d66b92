"""A flow-matching model: its training solves nothing, its sampler steps on a fixed grid."""

import torch
import torchdiffeq
from torch import nn


class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 10), nn.SiLU(), nn.Linear(10, 2))

    def forward(self, t, x):
        return self.net(torch.cat([x, t.expand(len(x), 1).to(x)], 1))


class ODESolver:
    """A wrapper that hands its options on."""

    def __init__(self, velocity_model):
        self.velocity_model = velocity_model

    def sample(self, x_init, step_size, method="euler", atol=1e-5, rtol=1e-5, time_grid=(0.0, 1.0), grad=False):
        options = {"step_size": step_size} if step_size is not None else {}
        with torch.set_grad_enabled(grad):
            return torchdiffeq.odeint(
                self.velocity_model,
                x_init,
                torch.tensor(time_grid, dtype=x_init.dtype),
                method=method,
                options=options,
                atol=atol,
                rtol=rtol,
            )[-1]


def make():
    return Velocity().double(), torch.randn(6, 2, dtype=torch.float64)


def loss(model, x1):
    noise = torch.Generator().manual_seed(1)
    x0 = torch.randn(x1.shape, generator=noise, dtype=x1.dtype)
    t = torch.rand(len(x1), 1, generator=noise, dtype=x1.dtype)
    return (model.net(torch.cat([x0 + t * (x1 - x0), t], 1)) - (x1 - x0)).square().mean()
