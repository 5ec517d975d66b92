"""A flow for events in space and time: one solve per gap between events, on a clock that each sample has of its own."""

import torch
from torch import nn
from torchdiffeq import odeint_adjoint


class TimeVariableODE(nn.Module):
    """Solves all samples from 0 to 1 where each has its own interval."""

    start_time, end_time = 0.0, 1.0

    def __init__(self, func, rtol, atol):
        super().__init__()
        self.func, self.rtol, self.atol = func, rtol, atol
        self.nfe = 0

    def integrate(self, t0, t1, x0):
        solution = odeint_adjoint(
            self,
            (t0, t1, *x0),
            torch.linspace(self.start_time, self.end_time, 2).to(t0),
            rtol=self.rtol,
            atol=self.atol,
            method="dopri5",
        )
        return tuple(s[-1] for s in solution[2:])

    def forward(self, s, state):
        self.nfe += 1
        t0, t1, *x = state
        ratio = (t1 - t0) / (self.end_time - self.start_time)
        t = (s - self.start_time) * ratio + t0
        with torch.enable_grad():
            dx = self.func(t, x)
        return (torch.zeros_like(t0), torch.zeros_like(t1), *(dxi * ratio.reshape(-1, 1) for dxi in dx))


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 10), nn.Softplus(), nn.Linear(10, 2))

    def forward(self, t, state):
        x = state[0].requires_grad_(True)
        dx = self.net(torch.cat([t.reshape(-1, 1), x], 1))
        trace = sum(torch.autograd.grad(dx[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        return dx, -trace.reshape(-1, 1)


def make(rtol, atol):
    times = torch.rand(6, 4, dtype=torch.float64).cumsum(1)
    return TimeVariableODE(Flow(), rtol, atol).double(), (times, torch.randn(6, 4, 2, dtype=torch.float64))


def loss(model, data):
    times, places = data
    total = 0.0
    for i in range(1, times.shape[1]):
        x, change = model.integrate(times[:, i], times[:, i - 1], (places[:, i], torch.zeros_like(places[:, i, :1])))
        total = total + (0.5 * x.square().sum(1) + change.squeeze(1)).mean()
    return total / (times.shape[1] - 1)
