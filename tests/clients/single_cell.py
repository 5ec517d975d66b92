"""A variational autoencoder of cells whose latent state is solved to all times at once."""

import torch
from torch import nn
from torchdiffeq import odeint


class ODE(nn.Module):
    def __init__(self, input_dim, drift_net, ode_method="dopri5", **tolerance):
        super().__init__()
        self.latent_dim, self.net, self.ode_method, self.tolerance = input_dim, drift_net, ode_method, tolerance

    def forward(self, t, x):
        return self.net(x)

    def encode(self, z0, tps):
        return odeint(self.forward, z0, tps, method=self.ode_method, **self.tolerance).moveaxis([0, 1, 2], [1, 0, 2])


class scNODE(nn.Module):
    def __init__(self, rtol, atol, genes=5, latent=2):
        super().__init__()
        self.latent_encoder = nn.Linear(genes, 2 * latent)
        drift = nn.Sequential(nn.Linear(latent, 8), nn.Tanh(), nn.Linear(8, latent))
        self.diffeq_decoder = ODE(latent, drift, rtol=rtol, atol=atol)
        self.obs_decoder = nn.Linear(latent, genes)

    def forward(self, data, tps):
        mean, log_std = self.latent_encoder(data).chunk(2, -1)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2), dtype=mean.dtype)
        latent = self.diffeq_decoder.encode(mean + log_std.exp() * noise, tps)
        return self.obs_decoder(latent), mean, log_std


def make(rtol, atol):
    ts = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    return scNODE(rtol, atol).double(), (torch.randn(6, 4, 5, dtype=torch.float64), ts)


def loss(model, data):
    cells, ts = data
    got, mean, log_std = model(cells[:, 0], ts)
    kl = (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).mean() / 2
    return (got - cells).square().mean() + 0.1 * kl
