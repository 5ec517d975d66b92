"""FFJORD: Hutchinson's trace with noise that the field draws at its first call, and derivatives inside the field."""

import torch
import torchdiffeq
from torch import nn


def divergence_approx(f, y, e):
    e_dzdx = torch.autograd.grad(f, y, e, create_graph=True)[0]
    return (e_dzdx * e).view(y.shape[0], -1).sum(dim=1)


class ODEfunc(nn.Module):
    def __init__(self, diffeq):
        super().__init__()
        self.diffeq = diffeq
        self.register_buffer("_num_evals", torch.tensor(0.0))
        self._e = None

    def before_odeint(self, e=None):
        self._e = e
        self._num_evals.fill_(0)

    def forward(self, t, states):
        y = states[0]
        self._num_evals += 1
        t = torch.tensor(t).type_as(y) if not isinstance(t, torch.Tensor) else t
        if self._e is None:
            self._e = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
        with torch.set_grad_enabled(True):
            y.requires_grad_(True)
            t.requires_grad_(True)
            dy = self.diffeq(torch.cat([y, t * torch.ones_like(y[:, :1])], 1))
            divergence = divergence_approx(dy, y, e=self._e).view(y.shape[0], 1)
        return (dy, -divergence)


class CNF(nn.Module):
    def __init__(self, odefunc, rtol, atol, T=1.0):
        super().__init__()
        self.register_parameter("sqrt_end_time", nn.Parameter(torch.sqrt(torch.tensor(T))))
        self.odefunc, self.rtol, self.atol = odefunc, rtol, atol

    def forward(self, z, logpz):
        self.odefunc.before_odeint()
        integration_times = torch.stack([torch.tensor(0.0).to(z), self.sqrt_end_time * self.sqrt_end_time])
        state_t = torchdiffeq.odeint_adjoint(
            self.odefunc, (z, logpz), integration_times, atol=self.atol, rtol=self.rtol, method="dopri5"
        )
        z_t, logpz_t = (s[1] for s in state_t)
        return z_t, logpz_t


def make(rtol, atol):
    diffeq = nn.Sequential(nn.Linear(3, 10), nn.Softplus(), nn.Linear(10, 2))
    return CNF(ODEfunc(diffeq), rtol, atol).double(), torch.randn(8, 2, dtype=torch.float64)


def loss(model, x):
    z, change = model(x, torch.zeros(len(x), 1, dtype=x.dtype))
    return (0.5 * z.square().sum(1, keepdim=True) + change).mean()
