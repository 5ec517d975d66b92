"""Pooling, resampling and padding of the last dimensions, as lists of integers and matrices along them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["RESAMPLING"]

aten = torch.ops.aten


# -- windows: pooling -------------------------------------------------------------------------------


def _listed(numbers: Any, rank: int, default: Sequence[int]) -> list[int]:
    found = [numbers] if isinstance(numbers, int) else list(numbers)
    return list(default) if not found else found * rank if len(found) == 1 else found


class _Windows:
    """The windows of a pooling over the last `rank` dimensions, as positions in the planes."""

    def __init__(
        self, x: Tensor, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        self.sizes = list(x.shape[-rank:])
        kernel = _listed(kernel, rank, ())
        stride, padding, dilation = (_listed(n, rank, kernel) for n in (stride, padding, dilation))
        places, self.outs, self.counts = [], [], []
        for size, k, s, p, d in zip(self.sizes, kernel, stride, padding, dilation, strict=True):
            free = size + 2 * p - d * (k - 1) - 1
            out = (-(-free // s) if ceil_mode else free // s) + 1
            if ceil_mode and (out - 1) * s >= size + p:
                out -= 1
            starts = [i * s - p for i in range(out)]
            places.append([[start + d * j for j in range(k)] for start in starts])
            self.outs.append(out)
            self.counts.append([min(start + k, size + p) - start for start in starts])
        flat, inside = [], []
        for window in itertools.product(*places):
            for place in itertools.product(*window):
                position = 0
                for at, size in zip(place, self.sizes, strict=True):
                    position = position * size + min(max(at, 0), size - 1)
                flat.append(position)
                inside.append(all(0 <= at < size for at, size in zip(place, self.sizes, strict=True)))
        entries = math.prod(kernel)
        self.flat = torch.tensor(flat, device=x.device)
        self.inside = torch.tensor(inside, device=x.device).reshape(-1, entries)
        self.full = all(inside)
        self.members = [sum(inside[i : i + entries]) for i in range(0, len(inside), entries)]
        self.lead = list(x.shape[:-rank])

    def of(self, x: Tensor, outside: float) -> Tensor:
        """The entries of every window, along a last dimension; `outside` where it reaches into the padding."""
        planes = x.reshape([*self.lead, math.prod(self.sizes)]).index_select(-1, self.flat)
        entries = planes.reshape([*self.lead, *self.inside.shape])
        return entries if self.full else torch.where(self.inside, entries, outside)

    def added(self, entries: Tensor) -> Tensor:
        """The sum of what every window says about each entry of the planes."""
        if not self.full:
            entries = torch.where(self.inside, entries, 0)
        zero = entries.new_zeros([*self.lead, math.prod(self.sizes)])
        planes = zero.index_add(-1, self.flat, entries.reshape([*self.lead, self.flat.numel()]))
        return planes.reshape([*self.lead, *self.sizes])

    def outputs(self, values: Tensor) -> Tensor:
        """One value of every window, in the windows' places."""
        return values.reshape([*self.lead, *self.outs])

    def divisors(self, like: Tensor, count_include_pad: bool, override: int | None) -> Tensor:
        """By what an average over each window divides."""
        if override:
            counts = [override] * len(self.inside)
        elif count_include_pad:
            counts = [math.prod(c) for c in itertools.product(*self.counts)]
        else:
            counts = self.members
        return torch.tensor(counts, dtype=like.dtype, device=like.device)


def _max_pool(rank: int) -> Callable[..., tuple[Tensor, Tensor]]:
    def write(
        x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> tuple[Tensor, Tensor]:
        windows = _Windows(x, rank, kernel, stride, padding, dilation, ceil_mode)
        entries = windows.of(x, -math.inf)
        value = entries.amax(-1, keepdim=True)
        places = windows.flat.reshape(windows.inside.shape)
        chosen = torch.where((entries == value) & windows.inside, places, math.prod(windows.sizes) - 1).amin(-1)
        return windows.outputs(value.squeeze(-1)), windows.outputs(chosen)

    return write


def _max_pool_backward(rank: int) -> Callable[..., Tensor]:
    def write(grad: Tensor, x: Tensor, *options: Any) -> Tensor:
        *_, places = options
        lead = list(x.shape[:-rank])
        zero = grad.new_zeros([*lead, math.prod(x.shape[-rank:])])
        flat = [*lead, math.prod(grad.shape[-rank:])]
        return zero.scatter_add(-1, places.reshape(flat), grad.reshape(flat)).reshape(x.shape)

    return write


def _avg_pool(rank: int) -> Callable[..., Tensor]:
    def write(
        x: Tensor,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:
        windows = _Windows(x, rank, kernel, stride, padding, 1, ceil_mode)
        total = windows.of(x, 0.0).sum(-1)
        return windows.outputs(total / windows.divisors(x, count_include_pad, divisor_override))

    return write


def _avg_pool_backward(rank: int) -> Callable[..., Tensor]:
    def write(
        grad: Tensor,
        x: Tensor,
        kernel: Any,
        stride: Any,
        padding: Any,
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:
        windows = _Windows(x, rank, kernel, stride, padding, 1, ceil_mode)
        each = grad.reshape([*windows.lead, math.prod(windows.outs)])
        each = each / windows.divisors(x, count_include_pad, divisor_override)
        return windows.added(each[..., None].expand([*each.shape, windows.inside.shape[1]]))

    return write


# -- resampling and padding: one linear map for each of the last dimensions ---------------------------


def _along(x: Tensor, dim: int, places: Tensor) -> Tensor:
    return x.index_select(dim, places)


def _back_along(x: Tensor, dim: int, places: Tensor, size: Any) -> Tensor:
    shape = [size if d == dim % x.dim() else s for d, s in enumerate(x.shape)]
    return x.new_zeros(shape).index_add(dim, places, x)


def _nearest_places(size: int, out: int, scale: float | None, exact: bool, device: torch.device) -> Tensor:
    step = size / out if not scale else 1 / scale
    places = [min(int(((i + 0.5) if exact else i) * step), size - 1) for i in range(out)]
    return torch.tensor(places, device=device)


def _nearest(rank: int, exact: bool, back: bool) -> Callable[..., Tensor]:
    def write(x: Tensor, output_size: Any, *rest: Any) -> Tensor:
        sizes = list(rest[0])[-rank:] if back else list(x.shape[-rank:])
        scales = list(rest[1:] if back else rest) or [None] * rank
        for i, (size, out, scale) in enumerate(zip(sizes, output_size, scales, strict=True)):
            dim, places = i - rank, _nearest_places(size, out, scale, exact, x.device)
            x = _back_along(x, dim, places, size) if back else _along(x, dim, places)
        return x

    return write


def _mapped(x: Tensor, dim: int, matrix: Tensor) -> Tensor:
    """A matrix applied along one dimension."""
    return (x.movedim(dim, -1) @ matrix.t()).movedim(-1, dim)


def _linear(size: int, like: Tensor, operator: Callable[[Tensor], Tensor]) -> Tensor:
    """The matrix of a linear operator on the last dimension of a (batch, channel, length) tensor."""
    with _disable_current_modes(), torch.no_grad():
        columns = operator(torch.eye(size, dtype=torch.float64)[:, None, :])[:, 0, :]
        return columns.t().contiguous().to(like.dtype)


def _resize(out: int, align: bool, scale: float | None) -> Callable[[Tensor], Tensor]:
    def operator(lines: Tensor) -> Tensor:
        resized: Tensor = aten.upsample_linear1d.default(lines, [out], align, scale)
        return resized

    return operator


def _multilinear(rank: int, back: bool) -> Callable[..., Tensor]:
    def write(x: Tensor, output_size: Any, *rest: Any) -> Tensor:
        sizes = list(rest[0])[-rank:] if back else list(x.shape[-rank:])
        align, *scales = rest[1:] if back else rest
        for i, (size, out) in enumerate(zip(sizes, output_size, strict=True)):
            scale = scales[i] if i < len(scales) else None
            matrix = _linear(size, x, _resize(out, align, scale))
            x = _mapped(x, i - rank, matrix.t() if back else matrix)
        return x

    return write


def _adaptive(x: Tensor, output_size: Sequence[int]) -> Tensor:
    for i, out in enumerate(output_size):
        dim = i - len(output_size)
        x = _mapped(x, dim, _adaptive_matrix(x.shape[dim], out, x))
    return x


def _adaptive_backward(grad: Tensor, x: Tensor) -> Tensor:
    for dim in (-2, -1):
        grad = _mapped(grad, dim, _adaptive_matrix(x.shape[dim], grad.shape[dim], grad).t())
    return grad


def _adaptive_matrix(size: int, out: int, like: Tensor) -> Tensor:
    return _linear(size, like, lambda e: torch.nn.functional.adaptive_avg_pool1d(e, out))


def _pad_places(size: int, before: int, after: int, mode: str, device: torch.device) -> Tensor:
    places = []
    for i in range(-before, size + after):
        inside = min(max(i, 0), size - 1)
        places.append(inside if mode == "replicate" else 2 * inside - i)
    return torch.tensor(places, device=device)


def _padded(mode: str, rank: int, back: bool) -> Callable[..., Tensor]:
    def write(x: Tensor, *rest: Any) -> Tensor:
        like, pads = rest if back else (x, rest[0])
        for i in range(rank):
            dim, size = -1 - i, like.shape[-1 - i]
            places = _pad_places(size, pads[2 * i], pads[2 * i + 1], mode, x.device)
            x = _back_along(x, dim, places, size) if back else _along(x, dim, places)
        return x

    return write


_MULTILINEAR = {1: aten.upsample_linear1d, 2: aten.upsample_bilinear2d, 3: aten.upsample_trilinear3d}
_MULTILINEAR_BACKWARD = {
    1: aten.upsample_linear1d_backward,
    2: aten.upsample_bilinear2d_backward,
    3: aten.upsample_trilinear3d_backward,
}

RESAMPLING: dict[Any, Callable[..., Any]] = {
    aten.max_pool2d_with_indices.default: _max_pool(2),
    aten.max_pool3d_with_indices.default: _max_pool(3),
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward(2),
    aten.max_pool3d_with_indices_backward.default: _max_pool_backward(3),
    aten.avg_pool1d.default: _avg_pool(1),
    aten.avg_pool2d.default: _avg_pool(2),
    aten.avg_pool3d.default: _avg_pool(3),
    aten.avg_pool2d_backward.default: _avg_pool_backward(2),
    aten.avg_pool3d_backward.default: _avg_pool_backward(3),
    aten._adaptive_avg_pool2d.default: _adaptive,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_backward,
    **{getattr(aten, f"upsample_nearest{r}d").default: _nearest(r, False, False) for r in (1, 2, 3)},
    **{getattr(aten, f"upsample_nearest{r}d_backward").default: _nearest(r, False, True) for r in (1, 2, 3)},
    **{getattr(aten, f"_upsample_nearest_exact{r}d").default: _nearest(r, True, False) for r in (1, 2, 3)},
    **{getattr(aten, f"_upsample_nearest_exact{r}d_backward").default: _nearest(r, True, True) for r in (1, 2, 3)},
    **{op.default: _multilinear(rank, False) for rank, op in _MULTILINEAR.items()},
    **{op.default: _multilinear(rank, True) for rank, op in _MULTILINEAR_BACKWARD.items()},
    **{getattr(aten, f"replication_pad{r}d").default: _padded("replicate", r, False) for r in (1, 2, 3)},
    **{getattr(aten, f"replication_pad{r}d_backward").default: _padded("replicate", r, True) for r in (1, 2, 3)},
    **{getattr(aten, f"reflection_pad{r}d").default: _padded("reflect", r, False) for r in (1, 2, 3)},
    **{getattr(aten, f"reflection_pad{r}d_backward").default: _padded("reflect", r, True) for r in (1, 2, 3)},
}
"""Decompositions by operator."""
