"""A PyTorch field as Julia source: its value and its vector-Jacobian product.

For `name="f"` the source defines, with `p` the tuple of the field's tensors as arrays,

    f!(dy, t, y, p, cache)                               writes dy
    f_vjp!(ybar, pbar, ct, t, y, p, cache)               writes ybar, adds to the arrays of pbar

and, if there are residuals (results that the reverse can read instead of computing them again),

    f_keep!(dy, t, y, p, cache, residuals)               writes dy and the residuals
    f_back!(ybar, pbar, ct, t, y, p, cache, residuals)   f_vjp! at a state where f_keep! has been

and, for implicit methods, the derivative of the value along a change `tdot` of the time and `ydot` of the state

    f_jvp!(dy, tdot, ydot, t, y, p, cache)               writes dy = df/dt tdot + df/dy ydot
    f_jvp_vjp!(ybar, pbar, ct, tdot, ydot, t, y, p, cache)   its reverse, like f_vjp!

`pbar` has one array for every tensor that needs a gradient. The source's value is a named tuple: `buffers(y, B)`
makes the cache for a state like `y` of batch size `B`, and `residuals(B)` tells the sizes of the residuals' arrays.
The functions allocate nothing but headers of reshaped arrays. Outputs must not share memory with inputs. Array
dimensions are reversed: a torch tensor of shape (a, b, c) is a Julia array of size (c, b, a) over the same memory.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress

import torch
from torch import Tensor

from regnde._engines.julia.assemble import source_of
from regnde._engines.julia.capture import Captured, Field, capture
from regnde._engines.julia.code import Code
from regnde._engines.julia.support import STATES
from regnde._engines.julia.trace import Traced, trace
from regnde._errors import UnsupportedField

__all__ = ["export"]

MAX_SOURCES = 64

_sources: OrderedDict[Hashable, tuple[str, tuple[Tensor, ...]]] = OrderedDict()
"""Sources, and the constants that they read beside the captured tensors, by what the field did."""


def export(
    field: Field, y0: Tensor, *, name: str, any_batch: bool = True, matrix: bool = False, tangents: bool = False
) -> Code:
    """Writes a field as Julia source.

    The field is evaluated once on every call; the source is found again by what that evaluation did, so that
    exporting the same field again (with other parameter values, or as a new closure) is cheap.

    Args:
        field: function of a 0-dim time and a state; a module, a closure, anything callable.
        y0: a state, any shape. The leading dimension of a state of rank 2 or more is free afterwards, unless the
            field itself depends on it.
        name: of the Julia function.
        matrix: whether the value is a diffusion matrix, of shape (..., d, m) for a state (..., d).
        any_batch: whether to try to leave that dimension free.
        tangents: whether to write the Jacobian-vector product, too.

    Raises:
        UnsupportedField: the field can not be written in Julia; says why and where.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise ValueError(f"name must be an identifier, got {name!r}.")
    if y0.dtype not in STATES:
        raise UnsupportedField(
            f"the Julia engine takes states of float32, float64, complex64 and complex128, not {y0.dtype}."
        )
    t = torch.zeros((), dtype=y0.dtype.to_real(), device=y0.device)
    seen = capture(field, t, y0)
    what, shape = ("diffusion", seen.value.shape[:-1]) if matrix else ("field", seen.value.shape)
    if shape != y0.shape or seen.value.dtype != y0.dtype or (matrix and not seen.value.shape[-1]):
        raise UnsupportedField(
            f"the {what} returned {seen.value.dtype} of shape {tuple(seen.value.shape)} for a state of {y0.dtype} "
            f"and shape {tuple(y0.shape)}; in Julia both must be equal"
            + (", but for one or more columns of a matrix." if matrix else ".")
        )
    key = (name, any_batch, tangents, seen.key)
    if key in _sources:
        source, constants = _sources[key]
    else:
        traced, source = _written(field, t, y0, seen, name, any_batch, tangents)
        constants = traced.constants
        if traced.cacheable:
            _sources[key] = source, constants
            if len(_sources) > MAX_SOURCES:
                _sources.popitem(last=False)
    needs_gradient = (*(x.requires_grad for x in seen.tensors), *(False for _ in constants))
    columns = seen.value.shape[-1] if matrix else 0
    return Code(source, name, (*seen.tensors, *constants), needs_gradient, columns)


def _written(
    field: Field, t: Tensor, y0: Tensor, seen: Captured, name: str, any_batch: bool, tangents: bool
) -> tuple[Traced, str]:
    """The trace and the source, for any batch size if that is asked for and the field allows it."""

    def written(any_batch: bool) -> tuple[Traced, str]:
        traced = trace(field, t, y0, seen, any_batch=any_batch, tangents=tangents)
        return traced, source_of(traced, name, y0, seen)

    if any_batch and y0.dim() >= 2:
        with suppress(UnsupportedField):
            return written(any_batch=True)
    return written(any_batch=False)
