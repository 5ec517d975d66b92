"""A neural controlled differential equation: a library function picks the solver of the package by attribute."""

import torch
import torchdiffeq
from torch import nn


class CubicPath:
    """A control path between 0 and 1: a sum of powers of the time, one row of coefficients a series."""

    def __init__(self, coefficients):
        self.coefficients = coefficients  # (batch, channels, powers)

    def derivative(self, t):
        powers = torch.arange(self.coefficients.shape[-1], dtype=self.coefficients.dtype)
        return (self.coefficients * powers * t ** (powers - 1).clamp(min=0)).sum(-1)


class _VectorField(nn.Module):
    def __init__(self, X, func):
        super().__init__()
        self.X, self.func = X, func

    def forward(self, t, z):
        return (self.func(t, z) @ self.X.derivative(t).unsqueeze(-1)).squeeze(-1)


def cdeint(X, func, z0, t, adjoint=True, **kwargs):
    vector_field = _VectorField(X=X, func=func)
    if adjoint and "adjoint_params" not in kwargs:
        kwargs["adjoint_params"] = tuple(func.parameters())
    odeint = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    out = odeint(func=vector_field, y0=z0, t=t, **kwargs)
    return out.permute(1, 0, 2)


class CDEFunc(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.channels, self.hidden = channels, hidden
        self.linear1, self.linear2 = nn.Linear(hidden, 12), nn.Linear(12, channels * hidden)

    def forward(self, t, z):
        return self.linear2(self.linear1(z).tanh()).tanh().view(-1, self.hidden, self.channels)


class NeuralCDE(nn.Module):
    def __init__(self, rtol, atol, channels=2, hidden=3):
        super().__init__()
        self.func, self.readout = CDEFunc(channels, hidden), nn.Linear(hidden, 1)
        self.initial = nn.Linear(channels, hidden)
        self.rtol, self.atol = rtol, atol

    def forward(self, coefficients):
        X = CubicPath(coefficients)
        t = torch.tensor([0.0, 1.0], dtype=coefficients.dtype)
        z0 = self.initial(coefficients[..., 0])
        z = cdeint(X, self.func, z0, t, method="dopri5", rtol=self.rtol, atol=self.atol)
        return self.readout(z[:, -1]).squeeze(-1)


def make(rtol, atol):
    coefficients = torch.randn(6, 2, 4, dtype=torch.float64)
    return NeuralCDE(rtol, atol).double(), (coefficients, (coefficients.sum((1, 2)) > 0).double())


def loss(model, data):
    coefficients, labels = data
    return nn.functional.binary_cross_entropy_with_logits(model(coefficients), labels)
