"""Calls of torch functions that can not be traced, as calls of the same value that can.

An index that is a 0-dim integer tensor is read as a number by torch (`x[i]` of a `searchsorted`), a mask as an index
gives a size that is known for a given mask alone, and tensors of sparse layouts have no memory that could be passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from regnde._errors import UnsupportedField

__all__ = ["equivalent"]

_SPARSE = (torch.sparse_coo, torch.sparse_csr)
_PRODUCTS = (
    torch.mm,
    torch.mv,
    torch.matmul,
    torch.sparse.mm,
    torch.spmm,
    torch.smm,
    Tensor.mm,
    Tensor.mv,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
)
_ASKS = ("__get__", "size", "dim", "shape", "is_sparse")
"""Ends of names of functions that compute nothing."""

_parts: Any = WeakIdKeyDictionary()
"""Row, column and value of every entry of the sparse tensors seen, and the version that they are of."""


_places: Any = WeakIdKeyDictionary()
"""The masks seen: a copy, and the places where they hold."""


def equivalent(
    func: Callable[..., Any], args: tuple[Any, ...], given: Callable[[Tensor], bool]
) -> Callable[[], Any] | None:
    """The same value by functions that can be traced, or None if `func` can be.

    Args:
        func: a function of torch.
        args: its positional arguments.
        given: whether the field did not make a tensor itself.

    Raises:
        UnsupportedField: a function of a sparse tensor that is no product with a dense one.
    """
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if any(_is_mask(part) and given(part) for part in index):
            listed = tuple(x for part in index for x in (_places_of(part) if _is_mask(part) else (part,)))
            return lambda: func(args[0], listed, *args[2:])
    if func is Tensor.__getitem__:
        return _item(*args)
    flat = [x for x in args if isinstance(x, Tensor)]
    if not any(x.layout in _SPARSE for x in flat):
        return None
    if func in _PRODUCTS and len(flat) == 2 and sum(x.layout in _SPARSE for x in flat) == 1:
        a, b = flat if func is not Tensor.__rmatmul__ else reversed(flat)
        return lambda: _product(a, b)
    name = getattr(func, "__name__", str(func))
    if name.endswith(_ASKS):
        return None
    raise UnsupportedField(
        f"the field can not be written in Julia: {name} of a sparse tensor; its product with a dense one can be, "
        "or use .to_dense()."
    )


def _item(x: Tensor, index: Any) -> Callable[[], Tensor] | None:
    parts = index if isinstance(index, tuple) else (index,)
    if not any(_is_number(part) for part in parts):
        return None
    if any(isinstance(part, (list, Tensor)) and not _is_number(part) for part in parts):
        return None

    def picked() -> Tensor:
        kept: Tensor = x[tuple(slice(None) if _is_number(part) else part for part in parts)]
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        dim, places = 0, []
        for part in parts:
            if part is Ellipsis:
                dim += x.dim() - taken
            elif _is_number(part):
                places.append((dim, part))
                dim += 1
            elif not isinstance(part, int):
                dim += 1
        for dim, place in reversed(places):
            place = torch.where(place < 0, place + kept.shape[dim], place)
            kept = kept.index_select(dim, place.reshape(1)).squeeze(dim)
        return kept

    return picked


def _is_number(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dim() == 0 and part.dtype in (torch.int64, torch.int32)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool and part.dim() > 0


def _places_of(mask: Tensor) -> tuple[Tensor, ...]:
    """One list of integers for each dimension of a mask; the same objects as long as its entries are the same."""
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        plain = mask.detach()
        known = _places.get(mask)
        if known is None or not torch.equal(known[0], plain):
            known = _places[mask] = plain.clone(), plain.nonzero(as_tuple=True)
    places: tuple[Tensor, ...] = known[1]
    return places


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.layout in _SPARSE:
        rows, columns, values = _entries(a)
        dense = b[:, None] if b.dim() == 1 else b
        zero = dense.new_zeros(a.shape[0], dense.shape[1])
        product = zero.index_add(0, rows, dense.index_select(0, columns) * values[:, None])
        return product[:, 0] if b.dim() == 1 else product
    rows, columns, values = _entries(b)
    dense = a[None] if a.dim() == 1 else a
    product = dense.new_zeros(dense.shape[0], b.shape[1]).index_add(1, columns, dense.index_select(1, rows) * values)
    return product[0] if a.dim() == 1 else product


def _entries(sparse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = _parts.get(sparse)
    if found is not None and found[0] == sparse._version:
        entries: tuple[Tensor, Tensor, Tensor] = found[1]
        return entries
    with torch._C.DisableTorchFunction(), _disable_current_modes():
        plain = sparse.detach()
        whole = (plain if plain.layout is torch.sparse_coo else plain.to_sparse(layout=torch.sparse_coo)).coalesce()
        indices = whole.indices()
        made = indices[0].contiguous(), indices[1].contiguous(), whole.values()
    _parts[sparse] = sparse._version, made
    return made
