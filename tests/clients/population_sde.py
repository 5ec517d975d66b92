"""Flows between populations with noise, by Euler-Maruyama through an adjoint."""

import torch
import torchsde
from torch import nn


class ToySDE(nn.Module):
    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, feature_dims, hidden, scale=0.1):
        super().__init__()
        self.mu = nn.Sequential(nn.Linear(feature_dims + 1, hidden), nn.CELU(), nn.Linear(hidden, feature_dims))
        self.sigma = nn.Parameter(scale * torch.ones(feature_dims))

    def f(self, t, y):
        time = torch.ones(y.shape[0], 1, dtype=y.dtype) * t
        return self.mu(torch.cat((y, time), dim=1))

    def g(self, t, y):
        return self.sigma.expand(y.shape)


class ToyModel(nn.Module):
    def __init__(self, func, method="euler", dt=0.1):
        super().__init__()
        self.func, self.method, self.dt = func, method, dt

    def forward(self, x, t, **options):
        settings = {"method": self.method, "dt": self.dt, **options}
        return torchsde.sdeint_adjoint(self.func, x, t, **settings)[-1]


def make():
    groups = torch.randn(2, 8, 2, dtype=torch.float64) + torch.arange(2).view(2, 1, 1)
    return ToyModel(ToySDE(2, 10).double()), groups


def loss(model, groups, **options):
    moved = model(groups[0], torch.tensor([0.0, 1.0], dtype=groups.dtype), **options)
    distance = (moved[:, None] - groups[1][None]).square().sum(-1)
    return (distance.min(0).values.mean() + distance.min(1).values.mean()) / 2
