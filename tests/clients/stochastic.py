"""An SDE in torchsde's style, solved adaptively."""

import torch
import torchsde
from torch import nn


class SDE(torchsde.SDEIto):
    def __init__(self):
        super().__init__(noise_type="diagonal")
        self.drift = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        self.log_sigma = nn.Parameter(torch.tensor([-2.0, -2.0]))

    def f(self, t, y):
        return self.drift(y)

    def g(self, t, y):
        return self.log_sigma.exp().expand_as(y)


def make():
    return SDE().double(), torch.randn(6, 2, dtype=torch.float64)


def loss(model, y0, **options):
    ts = torch.linspace(0, 1, 3, dtype=torch.float64)
    ys = torchsde.sdeint(model, y0, ts, dt=0.05, rtol=1e-2, atol=1e-2, **options)
    return (ys[-1] - 2 * y0).square().mean()
