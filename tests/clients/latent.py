"""A latent ODE with a recognition network that solves from each observation to the one before."""

import torch
from torch import nn
from torchdiffeq import odeint as odeint


class DiffeqSolver(nn.Module):
    def __init__(self, ode_func, method, odeint_rtol=1e-4, odeint_atol=1e-5):
        super().__init__()
        self.ode_method, self.ode_func = method, ode_func
        self.odeint_rtol, self.odeint_atol = odeint_rtol, odeint_atol

    def forward(self, first_point, time_steps_to_predict):
        pred_y = odeint(
            self.ode_func,
            first_point,
            time_steps_to_predict,
            rtol=self.odeint_rtol,
            atol=self.odeint_atol,
            method=self.ode_method,
        )
        return pred_y.permute(1, 0, 2)


class Func(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 10), nn.Tanh(), nn.Linear(10, dim))

    def forward(self, t_local, y):
        return self.net(y)


class LatentODE(nn.Module):
    def __init__(self, rtol, atol, latent=3, features=2):
        super().__init__()
        self.encoder = DiffeqSolver(Func(latent), "dopri5", rtol, atol)
        self.generator = DiffeqSolver(Func(latent), "dopri5", rtol, atol)
        self.cell, self.decoder = nn.GRUCell(features, latent), nn.Linear(latent, features)

    def forward(self, data, ts):
        z = torch.zeros(data.shape[0], self.cell.hidden_size, dtype=data.dtype)
        previous = ts[-1] + 0.1
        for i in reversed(range(len(ts))):
            z = self.encoder(z, torch.stack([previous, ts[i]]))[:, -1]
            z = self.cell(data[:, i], z)
            previous = ts[i]
        return self.decoder(self.generator(z, ts))


def make(rtol, atol):
    return LatentODE(rtol, atol).double(), (
        torch.randn(4, 6, 2, dtype=torch.float64),
        torch.linspace(0, 1, 6, dtype=torch.float64),
    )


def loss(model, data):
    values, ts = data
    return (model(values, ts) - values).square().mean()
