"""A continuous normalising flow with the exact trace: a tuple as the state, derivatives inside the field."""

import torch
from torch import nn
from torchdiffeq import odeint_adjoint as odeint


def trace_df_dz(f, z):
    sum_diag = 0.0
    for i in range(z.shape[1]):
        sum_diag += torch.autograd.grad(f[:, i].sum(), z, create_graph=True)[0].contiguous()[:, i].contiguous()
    return sum_diag.contiguous()


class CNF(nn.Module):
    def __init__(self, rtol, atol, dim=2):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim + 1, 12), nn.Tanh(), nn.Linear(12, dim))
        self.rtol, self.atol = rtol, atol

    def forward(self, t, states):
        z = states[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            dz_dt = self.net(torch.cat([z, t.expand(len(z), 1).to(z)], 1))
            dlogp_z_dt = -trace_df_dz(dz_dt, z).view(len(z), 1)
        return (dz_dt, dlogp_z_dt)


def make(rtol, atol):
    return CNF(rtol, atol).double(), torch.randn(8, 2, dtype=torch.float64)


def loss(model, x):
    z_t, logp_diff_t = odeint(
        model,
        (x, torch.zeros(len(x), 1).type_as(x)),
        torch.tensor([1.0, 0.0], dtype=x.dtype),
        atol=model.atol,
        rtol=model.rtol,
        method="dopri5",
    )
    z_t0, logp_diff_t0 = z_t[-1], logp_diff_t[-1]
    logp_x = -0.5 * z_t0.square().sum(1) - logp_diff_t0.view(-1)
    return -logp_x.mean()
