"""Diffusion on a graph: the block holds the solver as an attribute, and the field holds what the block gives it."""

import torch
from torch import nn
from torchdiffeq import odeint, odeint_adjoint


class ODEFunc(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.edge_weight, self.x0 = None, None
        self.w = nn.Linear(dim, dim)
        self.alpha_train, self.beta_train = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))

    def forward(self, t, x):
        ax = torch.sparse.mm(self.edge_weight, self.w(x))
        return torch.sigmoid(self.alpha_train) * (ax - x) + self.beta_train * self.x0


class ODEblock(nn.Module):
    def __init__(self, odefunc, opt):
        super().__init__()
        self.opt = opt
        self.odefunc = odefunc
        self.train_integrator = odeint_adjoint if opt["adjoint"] else odeint
        self.test_integrator = odeint
        self.t = torch.tensor([0, opt["time"]])

    def forward(self, x):
        integrator = self.train_integrator if self.training else self.test_integrator
        t = self.t.type_as(x)
        func = self.odefunc
        if self.opt["adjoint"] and self.training:
            z = integrator(
                func,
                x,
                t,
                method=self.opt["method"],
                adjoint_method=self.opt["adjoint_method"],
                atol=self.opt["atol"],
                rtol=self.opt["rtol"],
                adjoint_atol=self.opt["atol"],
                adjoint_rtol=self.opt["rtol"],
            )
        else:
            z = integrator(func, x, t, method=self.opt["method"], atol=self.opt["atol"], rtol=self.opt["rtol"])
        return z[1]


class GNN(nn.Module):
    def __init__(self, opt, features, classes):
        super().__init__()
        self.m1, self.m2 = nn.Linear(features, 4), nn.Linear(4, classes)
        self.odeblock = ODEblock(ODEFunc(4), opt)

    def forward(self, x):
        x = self.m1(x)
        self.odeblock.odefunc.x0 = x.clone().detach()
        return self.m2(torch.relu(self.odeblock(x)))


def make(rtol, atol, adjoint=True):
    opt = {"adjoint": adjoint, "method": "dopri5", "adjoint_method": "dopri5", "time": 3.0, "rtol": rtol, "atol": atol}
    model = GNN(opt, 5, 2).double()
    nodes = 12
    edges = torch.randint(nodes, (2, 40))
    weights = torch.ones(40, dtype=torch.float64) / 4
    model.odeblock.odefunc.edge_weight = torch.sparse_coo_tensor(
        edges, weights, (nodes, nodes), check_invariants=True
    ).coalesce()
    return model, (torch.randn(nodes, 5, dtype=torch.float64), torch.arange(nodes) % 2)


def loss(model, data):
    x, labels = data
    return nn.functional.cross_entropy(model(x), labels)
