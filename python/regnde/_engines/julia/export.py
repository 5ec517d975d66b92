"""A PyTorch field as Julia source: its value and its vector-Jacobian product.

For `name="f"` the source defines, with `p` the tuple of the field's tensors as arrays,

    f(t, y, p) -> dy                             out of place, changes nothing
    f_vjp(t, y, ct, p) -> (ybar, pbar)           pbar: one array for every tensor that needs a gradient
    f_cache(y, p) -> cache                       every temporary of the next two
    f!(dy, t, y, p, cache)                       writes dy
    f_vjp!(ybar, pbar, ct, t, y, p, cache)       writes ybar, adds to the arrays of pbar

and, if there are products that the reverse can read instead of computing them again,

    f_kept(y, p) -> sizes                                 of the arrays of kept
    f_keep!(dy, t, y, p, cache, kept)                     writes dy and kept
    f_back!(ybar, pbar, ct, t, y, p, cache, kept)         f_vjp! at a state where f_keep! has been

Functions whose names end in `!` allocate nothing but headers of reshaped arrays. Outputs must not share memory with
inputs. Array dimensions are reversed: a torch tensor of shape (a, b, c) is a Julia array of size (c, b, a) over the
same memory.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from regnde._engines.julia.assemble import source_of
from regnde._engines.julia.capture import Field, capture
from regnde._engines.julia.operators import SCOPE
from regnde._engines.julia.trace import trace
from regnde._errors import UnsupportedField

__all__ = ["ExportedField", "export"]

_KEPT = 64
"""How many sources are kept."""


@dataclass(frozen=True, eq=False)
class ExportedField:
    """A field as Julia source.

    Attributes:
        name: of the function; the others' names begin with it.
        source: Julia code that defines the functions.
        tensors: what to pass as `p`, in order, as contiguous arrays with reversed dimensions.
        needs_gradient: for each tensor, whether it has an array in `pbar`.
        rank: of the state.
        dtype: of the state.
        names: names outside Base that the source uses, out of `operators.SCOPE`.
    """

    name: str
    source: str
    tensors: tuple[Tensor, ...]
    needs_gradient: tuple[bool, ...]
    rank: int
    dtype: torch.dtype
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Written:
    source: str
    constants: tuple[Tensor, ...]


_written: OrderedDict[Hashable, _Written] = OrderedDict()


def export(field: Field, y0: Tensor, *, name: str) -> ExportedField:
    """Writes a field as Julia source.

    The field is evaluated once on every call; the source is kept and found again by what that evaluation did, so
    that exporting the same field again (with other parameter values, or as a new closure) is cheap.

    Args:
        field: function of a 0-dim time and a state; a module, a closure, anything callable.
        y0: a state, any shape. The leading dimension of a state of rank 2 or more is free afterwards, unless the
            field itself depends on it.
        name: of the Julia function.

    Raises:
        UnsupportedField: the field can not be written in Julia; says why and where.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"name must be an identifier, got {name!r}.")
    if y0.dtype not in (torch.float32, torch.float64):
        raise UnsupportedField(f"the Julia engine takes states of float32 and float64, not {y0.dtype}.")
    for attribute in ("_orig_mod", "_torchdynamo_orig_callable"):  # what torch.compile wraps can be traced, it cannot
        field = getattr(field, attribute, field)
    t = torch.zeros((), dtype=y0.dtype, device=y0.device)
    seen = capture(field, t, y0)
    if seen.value.shape != y0.shape or seen.value.dtype != y0.dtype:
        raise UnsupportedField(
            f"the field returned {seen.value.dtype} of shape {tuple(seen.value.shape)} for a state of {y0.dtype} "
            f"and shape {tuple(y0.shape)}; in Julia both must be equal."
        )
    key = (name, seen.key)
    written = _written.get(key)
    if written is None:
        traced = trace(field, t, y0, seen)
        written = _Written(source_of(traced, name, y0, seen), traced.constants)
        if traced.lasting:
            _written[key] = written
            if len(_written) > _KEPT:
                _written.popitem(last=False)
    needs = (*(x.requires_grad for x in seen.tensors), *(False for _ in written.constants))
    names = tuple(x for x in SCOPE if re.search(rf"(?<![\w∇.]){re.escape(x)}(?![\w!])", written.source))
    return ExportedField(name, written.source, (*seen.tensors, *written.constants), needs, y0.dim(), y0.dtype, names)
