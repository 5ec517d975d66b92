"""A Hamiltonian network with control: the field takes derivatives of a leaf that it multiplies into its state."""

import torch
from torch import nn
from torchdiffeq import odeint_adjoint as odeint


class SymODEN(nn.Module):
    def __init__(self):
        super().__init__()
        self.M_net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.V_net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.g_net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.nfe = 0

    def forward(self, t, x):
        with torch.enable_grad():
            self.nfe += 1
            one = torch.tensor(1, dtype=x.dtype, requires_grad=True)
            x = one * x
            q, p, u = torch.chunk(x, 3, dim=1)
            mass = 0.5 + self.M_net(q).square()
            H = p * p * mass / 2.0 + self.V_net(q)
            dH = torch.autograd.grad(H.sum(), x, create_graph=True)[0]
            dHdq, dHdp, _ = torch.chunk(dH, 3, dim=1)
            force = self.g_net(q) * u
            return torch.cat((dHdp, -dHdq + force, torch.zeros_like(u)), dim=1)


class Model(nn.Module):
    def __init__(self, rtol, atol, solver):
        super().__init__()
        self.field, self.rtol, self.atol, self.solver = SymODEN(), rtol, atol, solver


def make(rtol, atol, solver="dopri5"):
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    return Model(rtol, atol, solver).double(), (x, torch.linspace(0, 0.5, 3, dtype=torch.float64))


def loss(model, data):
    x, t_eval = data
    x_hat = odeint(model.field, x[0], t_eval, method=model.solver, rtol=model.rtol, atol=model.atol)
    return (x - x_hat).square().mean()
