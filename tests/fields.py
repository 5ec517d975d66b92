"""A zoo of fields, for everything that takes a field apart: each is a factory of a function and a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from problems import seeded

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Zoo:
    """A field by name. `batched` fields take any size of the state's leading dimension."""

    name: str
    make: Callable[[], tuple[Field, Tensor]]
    batched: bool = True

    def __str__(self) -> str:
        return self.name


def state(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=seeded(sum(shape) + 1))


class Net(nn.Module):
    """An MLP of two layers, with ways to bring the time in."""

    def __init__(self, dim: int = 2, width: int = 7, activation: nn.Module | None = None, time: str = "") -> None:
        super().__init__()
        self.first = nn.Linear(dim + (time == "concat"), width).double()
        self.second = nn.Linear(width, dim, bias=time != "no bias").double()
        self.activation = activation or nn.Tanh()
        self.time = time
        if time == "bias":
            self.slope = nn.Parameter(torch.linspace(-1, 1, width).double())

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        if self.time == "concat":
            y = torch.cat([y, t.expand(*y.shape[:-1], 1)], -1)
        hidden = self.first(y)
        if self.time == "bias":
            hidden = hidden + t * self.slope
        return self.second(self.activation(hidden))


def net(activation: nn.Module | None = None, time: str = "", dim: int = 2, batch: int = 3) -> Zoo:
    name = f"mlp {type(activation).__name__.lower() if activation else 'tanh'} {time}".strip()
    return Zoo(name, lambda: (Net(dim, activation=activation, time=time), state(batch, dim)))


class Convolutional(nn.Module):
    def __init__(self, dims: int = 2, groups: int = 1) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv1d
        self.down = conv(2, 4, 3, stride=2, padding=1, groups=groups).double()
        self.up = conv(4, 8, 3, padding=2, dilation=2, bias=False).double()
        self.norm = nn.GroupNorm(2, 4).double()
        self.dims = dims

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h = self.up(torch.tanh(self.norm(self.down(y))) * t)
        if self.dims == 2:
            return h.reshape(h.shape[0], 2, h.shape[2] * 2, h.shape[3] * 2)
        return h.reshape(h.shape[0], 2, h.shape[2] * 4)[..., ::2]


class Attention(nn.Module):
    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim).double() for _ in range(3))
        self.norm = nn.LayerNorm(dim).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h = self.norm(y)
        scores = torch.bmm(self.q(h), self.k(h).transpose(1, 2)) / 2.0
        return y + torch.softmax(scores, -1) @ self.v(h)


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(2).double()
        self.norm.running_mean.copy_(torch.tensor([0.3, -0.2]))
        self.eval()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.norm(y**3 @ self.matrix) * self.scale * torch.exp(-t)


def closure() -> tuple[Field, Tensor]:
    w = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False])
    base = state(2, 2).requires_grad_()
    product = base @ base  # no leaf: its own gradient is asked for
    return lambda t, y: torch.where(mask, w * y, y @ product.T) + torch.tensor([1.0, 2.0], dtype=y.dtype), state(3, 2)


def frozen() -> tuple[Field, Tensor]:
    module = Net()
    module.first.weight.requires_grad_(False)
    module.unused = nn.Parameter(torch.zeros(3, 5))
    ignored = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    return lambda t, y: module(t, y) + 0 * t + (ignored * 2).detach(), state(3, 2)


def hamiltonian() -> tuple[Field, Tensor]:
    module = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)).double()

    def field(t: Tensor, y: Tensor) -> Tensor:
        (g,) = torch.autograd.grad(module(y).sum() + (y**2).sum(), y, create_graph=True)
        return torch.cat([g[..., 2:], -g[..., :2]], -1)

    return field, state(3, 4)


def written_in_place(t: Tensor, y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    out[:, 0] = y[:, 1] * t
    out[:, 1] = torch.sin(y[:, 0])
    return out


def joined(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.split([1, 2, 1], -1)
    first, second = y[..., 1:3].unbind(-1)
    stacked = torch.stack([first * second, y[..., -1].exp()], -1)
    return torch.cat([b.flip(-1) if False else b * a, stacked], -1) + torch.cat([c, c, y[..., ::2]], -1)


def reduced(t: Tensor, y: Tensor) -> Tensor:
    centred = y - y.mean(-1, keepdim=True)
    return centred / (1 + y.std(0)) + y.sum((0, 1)) * y.mean() + y.amax(-1, keepdim=True) - y.var(1, keepdim=True)


ORDER = torch.tensor([2, 0, 0, -1])


def picked(t: Tensor, y: Tensor) -> Tensor:
    """Entries by lists of integers: twice, not at all, from the end."""
    return y[..., ORDER] * y.index_select(-1, ORDER.abs()) + t * y[:, [1, 2, 0]]


def functions(t: Tensor, y: Tensor) -> Tensor:
    z = y.abs() + 0.5
    a = z.sqrt() + z.log() + torch.log1p(z) + z.rsqrt() + z**1.5 + z**-2 + 2.0**y + torch.pow(z, y)
    b = y.sin() * y.cos() + torch.atan(y) + torch.atan2(y, z) + y.sinh() / y.cosh() + torch.erf(y)
    c = torch.clamp(y, -0.5, 0.5) + torch.maximum(y, 0.3 * z) + torch.minimum(y, t * z) + y.sign() * torch.expm1(y)
    d = torch.where((y > 0.1) & ~(y > 1.0), y.square(), -y) + torch.relu(y) * (y <= 0.7) + y.reciprocal() - 1e-5 * y
    return a + b + c + d


def shapes(t: Tensor, y: Tensor) -> Tensor:
    batch, n, m = y.shape
    z = y.transpose(1, 2).reshape(batch, n * m) * torch.arange(n * m, dtype=y.dtype)
    z = z.view(batch, m, n).permute(0, 2, 1).contiguous() + y.unsqueeze(1).expand(batch, 2, n, m).sum(1)
    return z - y.flatten(1).unsqueeze(-1).squeeze(-1).view_as(y) + y.permute(2, 0, 1).sum(0).unsqueeze(-1)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


def recurrent() -> tuple[Field, Tensor]:
    cell = nn.GRUCell(3, 3).double()
    return lambda t, y: cell(y.tanh(), y) - y, state(4, 3)


def heads() -> tuple[Field, Tensor]:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0).double()
    return lambda t, y: layer(y), state(2, 3, 4)


def normalised() -> tuple[Field, Tensor]:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3).double())
    return lambda t, y: layer(y) * (1 - y.norm(dim=-1, keepdim=True)) + F.normalize(y, dim=0), state(4, 3)


def mapped() -> tuple[Field, Tensor]:
    layer = nn.Linear(3, 3).double()
    return lambda t, y: torch.func.vmap(lambda x: torch.tanh(layer(x)))(y), state(4, 3)


def bodies(t: Tensor, y: Tensor) -> Tensor:
    apart = y[:, None] - y[:, :, None]
    return (apart / (apart.square().sum(-1, keepdim=True) + 0.1)).sum(2)


def heat(t: Tensor, y: Tensor) -> Tensor:
    padded = F.pad(y, (1, 1), value=0.5)
    return padded[:, 2:] - 2 * y + padded[:, :-2] + F.pad(y.flip(-1), (0, -1)).repeat(1, 2)[:, : y.shape[1]]


SPIRAL = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)

ZOO = (
    net(),
    net(nn.ReLU()),
    net(nn.Sigmoid(), "no bias"),
    net(nn.LeakyReLU(0.1)),
    net(nn.ELU()),
    net(nn.GELU()),
    net(nn.GELU(approximate="tanh")),
    net(nn.SiLU(), "concat"),
    net(nn.Softplus(), "bias"),
    net(nn.Mish()),
    net(nn.SELU()),
    net(nn.Hardtanh()),
    net(nn.LayerNorm(7).double()),
    Zoo("constant layer", lambda: (nn.Sequential(Net().first).append(nn.Linear(7, 2).double()), state(3, 2))),
    Zoo("deep residual", lambda: ((lambda a, b: lambda t, y: y + a(t, y + b(t, y)))(Net(), Net()), state(3, 2))),
    Zoo("convolution 2d", lambda: (Convolutional(), state(2, 2, 6, 8))),
    Zoo("convolution 1d", lambda: (Convolutional(1, groups=2), state(3, 2, 8))),
    Zoo("attention", lambda: (Attention(), state(2, 3, 4))),
    Zoo(
        "attention by the library",
        lambda: (lambda t, y: F.scaled_dot_product_attention(y, y.tanh(), y) * t, state(2, 3, 4)),
    ),
    Zoo("buffers", lambda: (Buffers(), state(4, 2))),
    Zoo("closure", closure),
    Zoo("frozen", frozen),
    Zoo("hamiltonian", hamiltonian),
    Zoo(
        "functional hamiltonian", lambda: (lambda t, y: torch.func.grad(lambda x: (x.sin() * x).sum())(y), state(3, 2))
    ),
    Zoo("recurrent", recurrent, batched=False),  # torch asks for the cell's sizes as plain integers
    Zoo("heads", heads),
    Zoo("normalised", normalised),
    Zoo("mapped", mapped),
    Zoo("bodies", lambda: (bodies, state(2, 3, 2))),
    Zoo("heat", lambda: (heat, state(2, 5))),
    Zoo("ring", lambda: (lambda t, y: y.roll(1, -1) - 2 * y + torch.roll(y, (-1, 2), (2, 1)), state(2, 3, 5))),
    Zoo("cross", lambda: ((lambda w: lambda t, y: torch.linalg.cross(y, w.expand_as(y)) * t)(state(3)), state(2, 3))),
    Zoo("picked", lambda: (picked, state(2, 3, 4))),
    Zoo("running sum", lambda: (lambda t, y: y.cumsum(1).sin() * y.cumsum(-1), state(2, 3, 4))),
    Zoo("running product", lambda: (lambda t, y: y.prod(-1, keepdim=True) * y.cumprod(1) * t, state(2, 3, 4))),
    Zoo("own derivative", lambda: (lambda t, y: Square.apply(y) * t, state(3, 2))),
    Zoo("spiral", lambda: (lambda t, y: y**3 @ SPIRAL, state(3, 2))),
    Zoo("written in place", lambda: (written_in_place, state(3, 2))),
    Zoo("joined", lambda: (joined, state(3, 4))),
    Zoo("reduced", lambda: (reduced, state(3, 4))),
    Zoo("functions", lambda: (functions, state(3, 4))),
    Zoo("shapes", lambda: (shapes, state(3, 2, 4))),
    Zoo("einsum", lambda: ((lambda w: lambda t, y: torch.einsum("bij,jk->bik", y, w))(state(4, 4)), state(2, 3, 4))),
    Zoo("three dimensions", lambda: (Net(4, time="concat"), state(2, 3, 4))),
    Zoo("constant", lambda: (lambda t, y: torch.ones_like(y) * t, state(3, 2))),
    Zoo("identity", lambda: (lambda t, y: y, state(3, 2))),
    Zoo("numpy constant", lambda: (lambda t, y: y * torch.as_tensor(np.array([1.0, 3.0])), state(3, 2))),
    Zoo("vector", lambda: (Net(3, time="concat"), state(3)), batched=False),
    Zoo("matrix times vector", lambda: (lambda t, y: SPIRAL @ y**3 + torch.dot(y, y), state(2)), batched=False),
    Zoo("van der pol", lambda: (lambda t, y: torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]]), state(2)), False),
    Zoo("number", lambda: ((lambda w: lambda t, y: w * y * torch.sin(t))(closure_weight()), state()), batched=False),
    Zoo("matrix state", lambda: (lambda t, y: SPIRAL @ y - y @ SPIRAL, state(2, 2)), batched=False),
    Zoo("batch in the number", lambda: (lambda t, y: y / y.shape[0], state(5, 2))),
)


def closure_weight() -> Tensor:
    return torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
