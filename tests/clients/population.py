"""Flows between populations: a model that is told its method, and times that are steps of the data."""

import itertools

import torch
from torch import nn
from torchdiffeq import odeint


class ToyODE(nn.Module):
    def __init__(self, feature_dims, layers):
        super().__init__()
        sizes = [feature_dims + 1, *layers]
        steps = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.CELU())]
        self.seq = nn.Sequential(*steps, nn.Linear(layers[-1], feature_dims))

    def forward(self, t, x):
        time = torch.ones(x.shape[0], 1, dtype=x.dtype) * t
        return self.seq(torch.cat((x, time), dim=1))


class ToyModel(nn.Module):
    def __init__(self, func, method="dopri5", rtol=1e-7, atol=1e-9):
        super().__init__()
        self.func, self.method, self.rtol, self.atol = func, method, rtol, atol

    def forward(self, x, t, return_whole_sequence=False):
        x = odeint(self.func, x, t, method=self.method, rtol=self.rtol, atol=self.atol)
        return x if return_whole_sequence else x[-1]


def make(rtol, atol):
    groups = torch.randn(3, 8, 2, dtype=torch.float64) + torch.arange(3).view(3, 1, 1)
    return ToyModel(ToyODE(2, [10, 10]), "dopri5", rtol, atol).double(), groups


def loss(model, groups):
    total = 0.0
    for i in range(1, len(groups)):
        moved = model(groups[i - 1], torch.tensor([i - 1.0, float(i)], dtype=groups.dtype))
        distance = (moved[:, None] - groups[i][None]).square().sum(-1)
        total = total + (distance.min(0).values.mean() + distance.min(1).values.mean()) / 2
    return total
