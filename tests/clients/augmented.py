"""An augmented neural ODE: extra channels that start at 0, a solver module with its own tolerance, relu."""

import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint

MAX_NUM_STEPS = 1000


class ODEFunc(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.nfe = 0
        self.fc1, self.fc2 = nn.Linear(dim + 1, hidden), nn.Linear(hidden, dim)
        self.non_linearity = nn.ReLU()

    def forward(self, t, x):
        self.nfe += 1
        t_vec = torch.ones(x.shape[0], 1, dtype=x.dtype) * t
        return self.fc2(self.non_linearity(self.fc1(torch.cat([t_vec, x], 1))))


class ODEBlock(nn.Module):
    def __init__(self, odefunc: ODEFunc, augment: int, rtol: float, atol: float, adjoint: bool) -> None:
        super().__init__()
        self.adjoint, self.augment, self.rtol, self.atol = adjoint, augment, rtol, atol
        self.odefunc = odefunc

    def forward(self, x):
        self.odefunc.nfe = 0
        integration_time = torch.tensor([0, 1]).float().type_as(x)
        x_aug = torch.cat([x, torch.zeros(x.shape[0], self.augment, dtype=x.dtype)], 1)
        solve = odeint_adjoint if self.adjoint else odeint
        out = solve(
            self.odefunc,
            x_aug,
            integration_time,
            rtol=self.rtol,
            atol=self.atol,
            method="dopri5",
            options={"max_num_steps": MAX_NUM_STEPS},
        )
        return out[1]


def make(rtol, atol, adjoint=True):
    block = ODEBlock(ODEFunc(3, 5), 1, rtol, atol, adjoint)
    model = nn.Sequential(block, nn.Linear(3, 1)).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    return model, (x, x.norm(dim=1, keepdim=True))


def loss(model, data):
    x, y = data
    return nn.functional.smooth_l1_loss(model(x), y)
