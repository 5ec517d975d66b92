"""Fields by the functions of torch that they use: pooling, linear algebra, lists of integers, derivatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fields import Field, Net, Zoo, state

__all__ = ["OPERATORS"]


def up_and_down(rank: int) -> tuple[Field, Tensor]:
    down = (nn.Conv1d, nn.Conv2d)[rank - 1](2, 4, 3, stride=2, padding=1).double()
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank - 1](4, 2, 3, stride=2, padding=1, output_padding=1, groups=2)
    up = up.double()
    return lambda t, y: up(down(y).tanh()), state(2, 2, *(6, 8)[:rank])


def averages(t: Tensor, y: Tensor) -> Tensor:
    overlapping = F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False)
    return overlapping + F.interpolate(F.avg_pool2d(y, 2), scale_factor=2) - F.adaptive_avg_pool2d(y, (1, 1))


def resampled(t: Tensor, y: Tensor) -> Tensor:
    coarse = F.adaptive_avg_pool2d(y, (3, 4))
    return F.interpolate(coarse, size=(6, 8), mode="bilinear") + F.interpolate(
        coarse, size=(6, 8), mode="nearest-exact"
    )


def largest(t: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(F.max_pool2d(y, 2), scale_factor=2) - F.max_pool2d(y, 3, stride=1, padding=1)


def padded(t: Tensor, y: Tensor) -> Tensor:
    around = F.pad(y, (1, 1, 1, 1), mode="reflect") + F.pad(y, (1, 1, 1, 1), mode="replicate")
    return around[..., 2:, 1:-1] - around[..., :-2, 1:-1] + around[..., 1:-1, 2:]


def unfolded(t: Tensor, y: Tensor) -> Tensor:
    return 0.1 * F.fold(F.unfold(y, 3, padding=1).tanh(), (6, 8), 3, padding=1)


def embedded() -> tuple[Field, Tensor]:
    table = nn.Embedding(5, 4, padding_idx=0).double()
    kinds = torch.tensor([0, 3, 1, 3])
    return lambda t, y: torch.tanh(y * table(kinds).mean(0) + table.weight[2]), state(3, 4)


def bilinear() -> tuple[Field, Tensor]:
    layer = nn.Bilinear(4, 4, 4).double()
    return lambda t, y: layer(y, y), state(3, 4)


def interpolated(function: str) -> tuple[Field, Tensor]:
    """Data given at times, as a neural CDE reads them."""
    times, data = torch.linspace(0, 1, 6, dtype=torch.float64), state(6, 4)

    def field(t: Tensor, y: Tensor) -> Tensor:
        found = torch.searchsorted(times, t) if function == "searchsorted" else torch.bucketize(t, times)
        after = found.clamp(1, 5)
        weight = (t - times[after - 1]) / (times[after] - times[after - 1])
        return torch.tanh(y) * torch.lerp(data[after - 1], data[after, :], weight)

    return field, state(3, 4)


SOURCES, TARGETS = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 2, 3, 0, 2])


def gathered(t: Tensor, y: Tensor) -> Tensor:
    index = torch.tensor([0, 2, 1, 3]).expand(y.shape[0], 4)
    return torch.gather(y, 1, index).tanh() + y.scatter(1, index[:, :2], y[:, 2:].sin())


def messages(t: Tensor, y: Tensor) -> Tensor:
    """A graph of four nodes, whose edges send messages."""
    sent = y[SOURCES].sin()
    total = torch.zeros_like(y).scatter_add(0, TARGETS[:, None].expand(5, 3), sent)
    return total + torch.zeros_like(y).index_add(0, TARGETS, sent, alpha=0.5)


def overwritten(t: Tensor, y: Tensor) -> Tensor:
    z = y.clone()
    z[:, [0, 2]] = y[:, [1, 3]].sin()
    z[z > 1.5] = 0.25
    return z


def several_lists(t: Tensor, y: Tensor) -> Tensor:
    rows, columns = torch.tensor([0, 1, -1]), torch.tensor([1, 2, 0])
    picked = y[:, rows, columns].sum(-1)[:, None, None] * y[:, rows[:, None], columns].mean()
    return y * picked + y[:, [0], :, None][..., 0] * y[:, None, [1, 0], 2].sum(-1, keepdim=True)


def ordered(t: Tensor, y: Tensor) -> Tensor:
    values, order = torch.sort(y, 1, descending=True)
    largest = torch.topk(y, 2, 1).values.sum(1, keepdim=True)
    return values * largest + torch.take_along_dim(y, order, 1) - y.median(1, keepdim=True).values


def extremes(t: Tensor, y: Tensor) -> Tensor:
    top, place = y.max(1, keepdim=True)
    return y - top + place * y.argmin(1, keepdim=True) + y.min(0).values


ODD, CORNERS = torch.tensor([False, True, False, True]), torch.tensor([[1, 0, 0, 1], [0] * 4, [1, 0, 0, 1]]).bool()


def masked(t: Tensor, y: Tensor) -> Tensor:
    """Masks that the field is given, as indices."""
    z = y.clone()
    z[:, ODD] *= 0.5
    z[CORNERS] = y[CORNERS].sin() * t
    z[0, ODD] += y[0, ODD].cos()
    return z * y[..., ODD].sum(1, keepdim=True)


def held(t: Tensor, y: Tensor) -> Tensor:
    """Inputs that are held between their times, and an integer part of the state."""
    inputs = torch.linspace(-1, 1, 6, dtype=y.dtype)
    return y * inputs[(t * 4.5).long()] + (3 * y).long() * y + (3 * y).int() // 2


def windows(t: Tensor, y: Tensor) -> Tensor:
    return y * y.unfold(1, 3, 1).prod(-1).sum(1, keepdim=True) + y.unfold(-1, 2, 2).sin().sum((1, 2))[:, None]


def extremes_of_all(t: Tensor, y: Tensor) -> Tensor:
    tied = torch.cat([y, y.flip(1)], 1)
    taken = torch.take(y, torch.tensor([[0, -1], [3, 0]])).sin().sum()
    return y * tied.max() + y * y.median() - tied.min() * taken + y.kthvalue(2, 1, keepdim=True).values


def lines(t: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation along one dimension and three."""
    line = F.interpolate(y[None], size=7, mode="linear")[0].sin().sum(1, keepdim=True)
    aligned = F.interpolate(y[None], scale_factor=2, mode="linear", align_corners=True)[0, :, ::2].tanh()
    return line * y + aligned + F.interpolate(y[None, None, None], size=(2, 4, 3), mode="trilinear").sin().sum()


def products_added(t: Tensor, y: Tensor) -> Tensor:
    both = torch.stack([y, y.sin()])
    return torch.addbmm(y, both, both.mT @ both, beta=0.5, alpha=2) + torch.isinf(y)


def diagonals(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.trace(y) + torch.diag(torch.diagonal(y)) + torch.diag_embed(y[0])


def sparse(layout: str) -> tuple[Field, Tensor]:
    matrix = torch.tensor([[0, 1.0, 0, 0], [1, 0, 2, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=torch.float64)
    adjacent = matrix.to_sparse() if layout == "coo" else matrix.to_sparse_csr()
    return lambda t, y: adjacent @ y.tanh() + torch.mv(adjacent, y[:, 0])[:, None], state(4, 3)


def regular() -> Tensor:
    return (state(4, 4) + 4 * torch.eye(4, dtype=torch.float64)).requires_grad_()


def solved() -> tuple[Field, Tensor]:
    a = regular()

    def field(t: Tensor, y: Tensor) -> Tensor:
        each = torch.linalg.solve(a + y[:, :, None] * y[:, None, :], y)
        return each + torch.linalg.solve(a, y.T).T + torch.linalg.solve(a, y, left=False)

    return field, state(3, 4)


def factored() -> tuple[Field, Tensor]:
    a = regular()

    def field(t: Tensor, y: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(a @ a.T + torch.eye(4, dtype=y.dtype))
        upper = torch.linalg.cholesky(a @ a.T + torch.eye(4, dtype=y.dtype), upper=True)
        triangular = torch.linalg.solve_triangular(lower, y.T, upper=False).T
        return triangular + y @ upper + torch.linalg.solve_triangular(upper, y, upper=True, left=False)

    return field, state(3, 4)


def inverted() -> tuple[Field, Tensor]:
    a = regular()
    return (
        lambda t, y: y @ torch.linalg.inv(a) * torch.linalg.det(a) + torch.linalg.slogdet(a + y.mT @ y).logabsdet,
        state(3, 4),
    )


def spectral() -> tuple[Field, Tensor]:
    a = regular()

    def field(t: Tensor, y: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(a + a.T)
        return y @ (vectors * values.tanh()) @ vectors.T

    return field, state(3, 4)


def orthogonal(map_: str) -> tuple[Field, Tensor]:
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4).double(), orthogonal_map=map_)
    return lambda t, y: layer(y).tanh(), state(3, 4)


def norms(t: Tensor, y: Tensor) -> Tensor:
    orders = (1, 2, 3, float("inf"))
    return y / sum(torch.linalg.vector_norm(y, order, dim=1, keepdim=True) for order in orders)


def functions_of_statistics(t: Tensor, y: Tensor) -> Tensor:
    positive = y.abs() + 0.5
    return torch.lgamma(positive) + torch.digamma(positive) + torch.erfc(y) + torch.erfinv(0.9 * y.tanh()) + y.round()


def energy() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def energies() -> tuple[Field, Tensor]:
    module = energy()

    def field(t: Tensor, y: Tensor) -> Tensor:
        slope = torch.func.vmap(torch.func.grad(lambda x: module(x).squeeze()))(y)
        return torch.cat([slope[:, 2:], -slope[:, :2]], 1)

    return field, state(3, 4)


def pushed(function: str) -> tuple[Field, Tensor]:
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).double()

    def jvp(t: Tensor, y: Tensor) -> Tensor:
        value, tangent = torch.func.jvp(module, (y,), (torch.ones_like(y),))
        return value + tangent

    def vjp(t: Tensor, y: Tensor) -> Tensor:
        value, pull = torch.func.vjp(module, y)
        return pull(value)[0]

    def jacobian(t: Tensor, y: Tensor) -> Tensor:
        backward, forward = (torch.func.vmap(f(module))(y) for f in (torch.func.jacrev, torch.func.jacfwd))
        return backward.diagonal(dim1=1, dim2=2) + forward.sum(1)

    return {"jvp": jvp, "vjp": vjp, "jacobian": jacobian}[function], state(3, 4)


def saving_memory() -> tuple[Field, Tensor]:
    module = Net(time="concat")
    return lambda t, y: checkpoint(module, t, y, use_reentrant=False), state(3, 2)


def distances(t: Tensor, y: Tensor) -> Tensor:
    apart = y[:, :, None] - y[:, None]
    return (apart / (torch.cdist(y, y)[..., None] ** 2 + 0.1)).sum(2)


def folded(t: Tensor, y: Tensor) -> Tensor:
    """Its second derivative is a zero that torch does not compute."""
    return -(2 * y).abs()


def lifted(t: Tensor, y: Tensor) -> Tensor:
    """Sums with more dimensions in front than what is summed."""
    return y.sin() * y.sum(0)[None, None, None][0, 0] + (y * y.cos().sum(1, keepdim=True)[None, None]).sum((0, 1))


# not batched: torch asks for plain integers as sizes there, so that the batch size is part of the source
OPERATORS = (
    Zoo("up and down 1d", lambda: up_and_down(1)),
    Zoo("up and down 2d", lambda: up_and_down(2)),
    Zoo("averages", lambda: (averages, state(2, 2, 6, 8)), batched=False),
    Zoo("resampled", lambda: (resampled, state(2, 2, 6, 8)), batched=False),
    Zoo("largest", lambda: (largest, state(2, 2, 6, 8)), batched=False),
    Zoo("padded", lambda: (padded, state(2, 2, 6, 8))),
    Zoo("unfolded", lambda: (unfolded, state(2, 2, 6, 8))),
    Zoo("embedded", embedded),
    Zoo("bilinear", bilinear),
    Zoo("searchsorted", lambda: interpolated("searchsorted")),
    Zoo("bucketize", lambda: interpolated("bucketize")),
    Zoo("gathered", lambda: (gathered, state(3, 4))),
    Zoo("messages", lambda: (messages, state(4, 3)), batched=False),
    Zoo("overwritten", lambda: (overwritten, state(3, 4))),
    Zoo("several lists", lambda: (several_lists, state(2, 3, 3))),
    Zoo("ordered", lambda: (ordered, state(3, 4)), batched=False),
    Zoo("extremes", lambda: (extremes, state(3, 4)), batched=False),
    Zoo("masked", lambda: (masked, state(3, 4)), batched=False),
    Zoo("held", lambda: (held, state(3, 4))),
    Zoo("windows", lambda: (windows, state(3, 4))),
    Zoo("extremes of all", lambda: (extremes_of_all, state(3, 4)), batched=False),
    Zoo("lines", lambda: (lines, state(3, 4)), batched=False),
    Zoo("lifted", lambda: (lifted, state(3, 4))),
    Zoo("folded", lambda: (folded, state(3, 4))),
    Zoo("products added", lambda: (products_added, state(3, 4))),
    Zoo("diagonals", lambda: (diagonals, state(4, 4)), batched=False),
    Zoo("sparse coo", lambda: sparse("coo"), batched=False),
    Zoo("sparse csr", lambda: sparse("csr"), batched=False),
    Zoo("solved", solved),
    Zoo("factored", factored, batched=False),
    Zoo("inverted", inverted),
    Zoo("spectral", spectral),
    Zoo("matrix exponential", lambda: orthogonal("matrix_exp")),
    Zoo("cayley", lambda: orthogonal("cayley")),
    Zoo("norms", lambda: (norms, state(3, 4))),
    Zoo("functions of statistics", lambda: (functions_of_statistics, state(3, 4))),
    Zoo("energies", energies),
    Zoo("jvp", lambda: pushed("jvp"), batched=False),
    Zoo("vjp", lambda: pushed("vjp")),
    Zoo("jacobian", lambda: pushed("jacobian"), batched=False),
    Zoo("saving memory", saving_memory),
    Zoo("distances", lambda: (distances, state(2, 3, 2))),
)
