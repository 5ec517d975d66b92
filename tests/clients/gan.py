"""The generator of an SDE-GAN: one function for drift and diffusion, Stratonovich, reversible Heun with its adjoint."""

import torch
import torchsde
from torch import nn


class LipSwish(nn.Module):
    def forward(self, x):
        return 0.909 * torch.nn.functional.silu(x)


class GeneratorFunc(nn.Module):
    sde_type = "stratonovich"
    noise_type = "general"

    def __init__(self, noise_size, hidden_size, mlp_size):
        super().__init__()
        self._noise_size, self._hidden_size = noise_size, hidden_size
        sizes = hidden_size, hidden_size * noise_size
        self._drift, self._diffusion = (
            nn.Sequential(nn.Linear(1 + hidden_size, mlp_size), LipSwish(), nn.Linear(mlp_size, size), nn.Tanh())
            for size in sizes
        )

    def f_and_g(self, t, x):
        t = t.expand(x.size(0), 1)
        tx = torch.cat([t, x], dim=1)
        return self._drift(tx), self._diffusion(tx).view(x.size(0), self._hidden_size, self._noise_size)


class Generator(nn.Module):
    def __init__(self, noise_size=3, hidden_size=4, mlp_size=8):
        super().__init__()
        self._initial = nn.Linear(5, hidden_size)
        self._func = GeneratorFunc(noise_size, hidden_size, mlp_size)
        self._readout = nn.Linear(hidden_size, 1)

    def forward(self, ts, init_noise, **options):
        x0 = self._initial(init_noise)
        xs = torchsde.sdeint_adjoint(
            self._func,
            x0,
            ts,
            method="reversible_heun",
            dt=0.125,
            adjoint_method="adjoint_reversible_heun",
            **options,
        )
        return self._readout(xs.transpose(0, 1))


def make():
    ts = torch.arange(9, dtype=torch.float64) / 8
    return Generator().double(), (ts, torch.randn(7, 5, dtype=torch.float64))


def loss(model, data, **options):
    return model(*data, **options).square().mean()
