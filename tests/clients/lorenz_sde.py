"""A latent SDE whose posterior reads a context that an encoder left on the module; `logqp=True`."""

import torch
import torchsde
from torch import nn
from torch.distributions import Normal


class LatentSDE(nn.Module):
    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, data_size, latent_size, context_size, hidden_size):
        super().__init__()
        self.gru = nn.GRU(input_size=data_size, hidden_size=hidden_size)
        self.lin = nn.Linear(hidden_size, context_size)
        self.qz0_net = nn.Linear(context_size, 2 * latent_size)
        self.f_net = nn.Sequential(
            nn.Linear(latent_size + context_size, hidden_size), nn.Softplus(), nn.Linear(hidden_size, latent_size)
        )
        self.h_net = nn.Sequential(
            nn.Linear(latent_size, hidden_size), nn.Softplus(), nn.Linear(hidden_size, latent_size)
        )
        self.g_nets = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(1, hidden_size), nn.Softplus(), nn.Linear(hidden_size, 1), nn.Sigmoid())
                for _ in range(latent_size)
            ]
        )
        self.projector = nn.Linear(latent_size, data_size)
        self._ctx = None

    def f(self, t, y):
        ts, ctx = self._ctx
        i = min(torch.searchsorted(ts, t, right=True), len(ts) - 1)
        return self.f_net(torch.cat((y, ctx[i]), dim=1))

    def h(self, t, y):
        return self.h_net(y)

    def g(self, t, y):
        y = torch.split(y, split_size_or_sections=1, dim=1)
        return torch.cat([g_net_i(y_i) for (g_net_i, y_i) in zip(self.g_nets, y, strict=True)], dim=1)

    def forward(self, xs, ts, noise_std, adjoint=False, method="euler", **options):
        ctx, _ = self.gru(torch.flip(xs, dims=(0,)))
        ctx = torch.flip(self.lin(ctx), dims=(0,))
        self._ctx = (ts, ctx)
        qz0_mean, qz0_logstd = self.qz0_net(ctx[0]).chunk(chunks=2, dim=1)
        z0 = qz0_mean + qz0_logstd.exp() * 0.3
        if adjoint:
            nets = (self.f_net, self.g_nets, self.h_net)
            params = (ctx, *(p for net in nets for p in net.parameters()))
            zs, log_ratio = torchsde.sdeint_adjoint(
                self, z0, ts, adjoint_params=params, dt=1e-1, logqp=True, method=method, **options
            )
        else:
            zs, log_ratio = torchsde.sdeint(self, z0, ts, dt=1e-1, logqp=True, method=method, **options)
        log_pxs = Normal(loc=self.projector(zs), scale=noise_std).log_prob(xs).sum(dim=(0, 2)).mean(dim=0)
        return log_pxs, log_ratio.sum(dim=0).mean(dim=0)


def make():
    ts = torch.linspace(0, 1, 6, dtype=torch.float64)
    xs = torch.sin(ts.view(-1, 1, 1) * torch.arange(1, 4) + torch.rand(1, 5, 3, dtype=torch.float64))
    return LatentSDE(3, 4, 8, 10).double(), (ts, xs)


def loss(model, data, **options):
    ts, xs = data
    log_pxs, log_ratio = model(xs, ts, 0.3, **options)
    return -log_pxs + 0.1 * log_ratio
