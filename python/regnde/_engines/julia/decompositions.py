"""Which ATen operators are taken apart before they are written in Julia."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

__all__ = ["decompositions"]

aten = torch.ops.aten

_FURTHER = (
    "_log_softmax _softmax _native_batch_norm_legit_no_training celu elu gelu glu hardsigmoid hardswish hardtanh "
    "leaky_relu log_sigmoid_forward logsumexp mish native_batch_norm native_group_norm native_layer_norm selu silu "
    "softplus softshrink threshold"
)
"""Operators that are core ATen for torch, yet are written from simpler ones here."""

_KEPT = "addmv dot mv select_backward slice_backward vdot"
"""Operators that torch would decompose, yet Julia has a better way to write."""


def _var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Variance and mean from sums: torch's own decomposition leaves ATen."""
    dims = [d % x.dim() for d in dim] if dim else list(range(x.dim()))
    mean = x.mean(dims, keepdim=True)
    count = math.prod(x.shape[d] for d in dims)
    var = ((x - mean) ** 2).sum(dims, keepdim=keepdim) / (count - (1 if correction is None else correction))
    return var, mean if keepdim else x.mean(dims)


def _var(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var_mean(x, dim, correction=correction, keepdim=keepdim)[0]


def _std(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


_OWN = {aten.var_mean.correction: _var_mean, aten.var.correction: _var, aten.std.correction: _std}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Decompositions by operator: torch's for core ATen, further ones, less those that Julia has better code for."""
    table = {
        **core_aten_decompositions(),
        **get_decompositions([getattr(aten, name) for name in _FURTHER.split()]),
        **_OWN,
    }
    for name in _KEPT.split():
        for overload in getattr(aten, name).overloads():
            table.pop(getattr(getattr(aten, name), overload), None)
    return table
