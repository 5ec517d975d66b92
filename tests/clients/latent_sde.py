"""A latent SDE on a few observations: Milstein, an adjoint, the divergence as a channel of the client's own."""

import torch
import torchsde
from torch import distributions, nn


class LatentSDE(torchsde.SDEIto):
    def __init__(self, theta=1.0, mu=0.0, sigma=0.5):
        super().__init__(noise_type="diagonal")
        self.register_buffer("theta", torch.tensor([[theta]]))
        self.register_buffer("mu", torch.tensor([[mu]]))
        self.register_buffer("sigma", torch.tensor([[sigma]]))
        self.net = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1))

    def f(self, t, y):
        if t.dim() == 0:
            t = torch.full_like(y, fill_value=t)
        return self.net(torch.cat((torch.sin(t), torch.cos(t), y), dim=-1))

    def g(self, t, y):
        return self.sigma.repeat(y.size(0), 1)

    def h(self, t, y):
        return self.theta * (self.mu - y)

    def f_aug(self, t, y):
        y = y[:, 0:1]
        f, g, h = self.f(t, y), self.g(t, y), self.h(t, y)
        u = (f - h) / g
        return torch.cat([f, 0.5 * (u**2).sum(dim=1, keepdim=True)], dim=1)

    def g_aug(self, t, y):
        g = self.g(t, y[:, 0:1])
        return torch.cat([g, torch.zeros_like(y[:, 1:2])], dim=1)

    def forward(self, ts, batch_size, sdeint, **options):
        y0 = torch.ones(batch_size, 1, dtype=torch.float64)
        aug_y0 = torch.cat([y0, torch.zeros(batch_size, 1).to(y0)], dim=1)
        aug_ys = sdeint(
            sde=self,
            y0=aug_y0,
            ts=ts,
            rtol=1e-3,
            atol=1e-3,
            names={"drift": "f_aug", "diffusion": "g_aug"},
            **options,
        )
        return aug_ys[:, :, 0:1], aug_ys[-1, :, 1].mean(dim=0)


def make():
    ts = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    return LatentSDE().double(), (ts, torch.sin(3 * ts).view(-1, 1, 1))


def loss(model, data, **options):
    ts, xs = data
    settings = {"method": "milstein", "adaptive": False, "dt": 0.05, **options}
    zs, divergence = model(ts, 6, torchsde.sdeint_adjoint, **settings)
    likelihood = distributions.Laplace(loc=zs, scale=0.1).log_prob(xs).sum(dim=(0, 2)).mean(dim=0)
    return -likelihood + 0.1 * divergence
