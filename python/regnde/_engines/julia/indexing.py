"""Operators that pick entries by lists of integers, and put entries back, as five that Julia has code for.

`index_select`, `index_add` and `index_copy` work along one dimension with one list, `gather`, `scatter_add` and
`scatter` with an index of every entry's own. Everything else here is written with these: indexing by several lists,
embeddings, orders, positions of extremes, diagonals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["INDEXING", "IRREDUCIBLE"]

aten = torch.ops.aten


def _wrapped(index: Tensor, size: Any) -> Tensor:
    """Torch counts negative indices from the end."""
    return torch.where(index < 0, index + size, index)


# -- lists of integers ------------------------------------------------------------------------------


class _Lists:
    """`x[indices]`: which dimensions the lists are for, as one list along one dimension of a reshaped `x`."""

    def __init__(self, x: Tensor, indices: Sequence[Tensor | None]) -> None:
        self.dims = [d for d, index in enumerate(indices) if index is not None]
        lists = [index for index in indices if index is not None]
        if any(index.dtype not in (torch.int64, torch.int32) for index in lists):
            raise NotImplementedError(
                "a mask as an index, whose result has a size that depends on the data: use torch.where, or a mask that "
                "is made outside of the field"
            )
        self.lists = torch.broadcast_tensors(*lists)  # type: ignore[no-untyped-call]  # torch does not type it
        adjacent = self.dims == list(range(self.dims[0], self.dims[-1] + 1))
        self.at = self.dims[0] if adjacent else 0
        others = [d for d in range(x.dim()) if d not in self.dims]
        self.order = [*others[: self.at], *self.dims, *others[self.at :]]
        self.sizes = [x.shape[d] for d in self.dims]
        self.before = [x.shape[d] for d in others[: self.at]]
        self.after = [x.shape[d] for d in others[self.at :]]

    @property
    def flat(self) -> Tensor:
        """Positions along the one dimension."""
        position: Any = 0
        for index, size in zip(self.lists, self.sizes, strict=True):
            position = position * size + _wrapped(index, size)
        flat: Tensor = position.reshape(-1)
        return flat

    def merged(self, x: Tensor) -> Tensor:
        """`x` with the indexed dimensions as one."""
        size: Any = 1
        for s in self.sizes:
            size = size * s
        return x.permute(self.order).reshape([*self.before, size, *self.after])

    def parted(self, x: Tensor) -> Tensor:
        """The inverse of `merged`."""
        back = [self.order.index(d) for d in range(len(self.order))]
        return x.reshape([*self.before, *self.sizes, *self.after]).permute(back)

    def rows(self, values: Tensor) -> Tensor:
        """Values of the shape of `x[indices]` along the one dimension."""
        shape = [*self.before, *self.lists[0].shape, *self.after]
        return values.expand(shape).reshape([*self.before, self.lists[0].numel(), *self.after])


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    lists = _Lists(x, indices)
    picked = lists.merged(x).index_select(lists.at, lists.flat)
    return picked.reshape([*lists.before, *lists.lists[0].shape, *lists.after])


def _index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False, *_: Any
) -> Tensor:
    given = [index for index in indices if index is not None]
    if len(given) == 1 and given[0].dtype == torch.bool and values.numel() == 1 and not accumulate:
        (dim,) = (d for d, index in enumerate(indices) if index is not None)
        mask = given[0].reshape([*given[0].shape, *(1 for _ in range(x.dim() - dim - given[0].dim()))])
        return torch.where(mask, values.reshape(()), x)
    lists = _Lists(x, indices)
    merged, rows = lists.merged(x), lists.rows(values)
    put = merged.index_add(lists.at, lists.flat, rows) if accumulate else merged.index_copy(lists.at, lists.flat, rows)
    return lists.parted(put)


def _embedding(weight: Tensor, index: Tensor, *_: Any, **__: Any) -> Tensor:
    return weight.index_select(0, index.reshape(-1)).reshape([*index.shape, weight.shape[1]])


def _embedding_backward(
    grad: Tensor, index: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    if scale_grad_by_freq:
        raise NotImplementedError("an embedding with scale_grad_by_freq")
    if padding_idx >= 0:
        grad = torch.where((index == padding_idx)[..., None], 0, grad)
    zero = grad.new_zeros(num_weights, grad.shape[-1])
    return zero.index_add(0, index.reshape(-1), grad.reshape(-1, grad.shape[-1]))


def _scatter_value(x: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    return x.scatter(dim, index, torch.full_like(index, value, dtype=x.dtype))


def _searchsorted(
    boundaries: Tensor,
    x: Tensor | float,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    **_: Any,
) -> Tensor:
    x = x if isinstance(x, Tensor) else boundaries.new_tensor(x)
    x = x[..., None] if boundaries.dim() == 1 else x[..., :, None]
    rows = boundaries if boundaries.dim() == 1 else boundaries[..., None, :]
    below = rows <= x if right or side == "right" else rows < x
    return below.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _bucketize(x: Tensor | float, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    return _searchsorted(boundaries, x, out_int32=out_int32, right=right)


def _put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    flat, places = x.reshape(-1), _wrapped(index, x.numel()).reshape(-1)
    put = flat.index_add if accumulate else flat.index_copy
    return put(0, places, source.reshape(-1)).reshape(x.shape)


def _size_of_data(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("the result has a size that depends on the data: use torch.where")


# -- windows along a dimension ----------------------------------------------------------------------


def _window_places(size: int, width: int, step: int, device: torch.device) -> Tensor:
    return torch.tensor([i + j for i in range(0, size - width + 1, step) for j in range(width)], device=device)


def _unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    if x.dim() == 0:
        return x.reshape(1)
    dim %= x.dim()
    picked = x.index_select(dim, _window_places(x.shape[dim], size, step, x.device))
    windows = picked.reshape([*picked.shape[:dim], picked.shape[dim] // size, size, *picked.shape[dim + 1 :]])
    return windows.movedim(dim + 1, -1)


def _unfold_backward(grad: Tensor, sizes: Sequence[Any], dim: int, size: int, step: int) -> Tensor:
    if not sizes:
        return grad.reshape(())
    dim %= len(sizes)
    places = _window_places(sizes[dim], size, step, grad.device)
    return grad.new_zeros(sizes).index_add(dim, places, grad.movedim(-1, dim + 1).flatten(dim, dim + 1))


# -- positions of extremes --------------------------------------------------------------------------


def _position(x: Tensor, extreme: Tensor, dim: int) -> Tensor:
    """Where along `dim` the first entry is that equals `extreme`, which has size 1 there."""
    size = x.shape[dim]
    shape = [size if d == dim % x.dim() else 1 for d in range(x.dim())]
    places = torch.arange(size, device=x.device).reshape(shape)
    return torch.where(x == extreme, places, size - 1).amin(dim, keepdim=True)  # a NaN is nowhere: the last entry


def _extreme(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def write(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
        value = getattr(x, name)(dim, keepdim=True)
        place = _position(x, value, dim)
        return (value, place) if keepdim else (value.squeeze(dim), place.squeeze(dim))

    return write


def _arg_extreme(name: str) -> Callable[..., Tensor]:
    def write(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if dim is None:
            return _extreme(name)(x.reshape(-1), 0)[1]
        return _extreme(name)(x, dim, keepdim)[1]

    return write


def _extreme_of_all(name: str) -> Callable[[Tensor], Tensor]:
    def write(x: Tensor) -> Tensor:
        found: Tensor = getattr(x, name)(list(range(x.dim())))
        return found

    return write


# -- order ------------------------------------------------------------------------------------------

MAX_SORTED = 512
"""Every entry is compared with every other one."""


def _sort(x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> tuple[Tensor, Tensor]:
    size = x.shape[dim]
    if not isinstance(size, int) or size > MAX_SORTED:
        raise NotImplementedError(f"to sort more than {MAX_SORTED} entries, or the batch")
    x = x.movedim(dim, -1)
    a, b = x[..., :, None], x[..., None, :]
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).tril(-1)
    before = ((b > a) if descending else (b < a)) | ((a == b) & later)
    rank = before.sum(-1)
    order = torch.zeros_like(rank).scatter(-1, rank, torch.arange(size, device=x.device).expand(rank.shape))
    return x.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)


def _sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return _sort(x, dim, descending)


def _topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    values, order = _sort(x, dim, largest)
    return values.narrow(dim, 0, k), order.narrow(dim, 0, k)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    found = [y.narrow(dim, (x.shape[dim] - 1) // 2, 1) for y in _sort(x, dim)]
    values, order = found if keepdim else [y.squeeze(dim) for y in found]
    return values, order


def _median_of_all(x: Tensor) -> Tensor:
    return _median(x.reshape(-1), 0)[0]


def _kth_value(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, order = (y.narrow(dim, k - 1, 1) for y in _sort(x, dim))
    return (values, order) if keepdim else (values.squeeze(dim), order.squeeze(dim))


# -- diagonals --------------------------------------------------------------------------------------


def _diagonal_places(rows: int, columns: int, offset: int, device: torch.device) -> Tensor:
    places = [i * columns + i + offset for i in range(rows) if 0 <= i + offset < columns]
    return torch.tensor(places, dtype=torch.int64, device=device)


def _diagonal_backward(grad: Tensor, sizes: Sequence[Any], offset: int, dim1: int, dim2: int) -> Tensor:
    rows, columns = sizes[dim1], sizes[dim2]
    lead = list(grad.shape[:-1])
    places = _diagonal_places(rows, columns, offset, grad.device)
    flat = grad.new_zeros([*lead, rows * columns]).index_add(-1, places, grad)
    return flat.reshape([*lead, rows, columns]).movedim((-2, -1), (dim1, dim2))


def _diagonal_scatter(x: Tensor, source: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    order = [*(d for d in range(x.dim()) if d not in (dim1 % x.dim(), dim2 % x.dim())), dim1 % x.dim(), dim2 % x.dim()]
    *lead, rows, columns = (x.shape[d] for d in order)
    places = _diagonal_places(rows, columns, offset, x.device)
    put = x.permute(order).reshape([*lead, rows * columns]).index_copy(-1, places, source)
    return put.reshape([*lead, rows, columns]).permute([order.index(d) for d in range(x.dim())])


INDEXING: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: _index,
    aten._unsafe_index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten._unsafe_index_put.default: _index_put,
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.scatter.value: _scatter_value,
    aten.searchsorted.Tensor: _searchsorted,
    aten.searchsorted.Scalar: _searchsorted,
    aten.bucketize.Tensor: _bucketize,
    aten.bucketize.Scalar: _bucketize,
    aten.put.default: _put,
    aten.masked_select.default: _size_of_data,
    aten.nonzero.default: _size_of_data,
    aten.unfold.default: _unfold,
    aten.unfold_backward.default: _unfold_backward,
    aten.max.default: _extreme_of_all("amax"),
    aten.min.default: _extreme_of_all("amin"),
    aten.max.dim: _extreme("amax"),
    aten.min.dim: _extreme("amin"),
    aten.argmax.default: _arg_extreme("amax"),
    aten.argmin.default: _arg_extreme("amin"),
    aten.sort.default: _sort,
    aten.sort.stable: _sort_stable,
    aten.topk.default: _topk,
    aten.median.dim: _median,
    aten.median.default: _median_of_all,
    aten.kthvalue.default: _kth_value,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.diagonal_backward.default: _diagonal_backward,
}
"""Decompositions by operator."""

IRREDUCIBLE = "gather index_add index_copy index_select scatter scatter_add"
"""Operators that are not taken apart further, though torch would."""
