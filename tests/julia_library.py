"""What Julia's functions do, for `julia_evaluator`: on numpy arrays in Fortran order, of Julia's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_ERF = np.vectorize(math.erf, otypes=[float])

ENTRYWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "asinh": np.arcsinh,
    "atan": lambda x, y=None: np.arctan(x) if y is None else np.arctan2(x, y),
    "ceil": np.ceil,
    "cosh": np.cosh,
    "erf": _ERF,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "fast_exp": np.exp,
    "fast_sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "fast_tanh": np.tanh,
    "floor": np.floor,
    "hypot": np.hypot,
    "ifelse": np.where,
    "inv": lambda x: 1 / x,
    "isnan": np.isnan,
    "max": np.maximum,
    "min": np.minimum,
    "mod": np.mod,
    "rem": np.fmod,
    "sign": np.sign,
    "sinh": np.sinh,
    "trunc": np.trunc,
    "Float64": np.float64,
    "Float32": np.float32,
    **{f"NaNMath.{name}": getattr(np, name) for name in ("sqrt", "log", "log1p", "log2", "log10", "sin", "cos", "tan")},
    "NaNMath.asin": np.arcsin,
    "NaNMath.acos": np.arccos,
    "NaNMath.acosh": np.arccosh,
    "NaNMath.atanh": np.arctanh,
    "NaNMath.pow": np.power,
}

REDUCTIONS = {"sum": np.sum, "maximum": np.max, "minimum": np.min, "prod": np.prod, "any": np.any, "all": np.all}
TYPES = {"Bool": np.bool_, "Int64": np.int64, "Int32": np.int32, "Float32": np.float32, "Float64": np.float64}


def reduced(name: str, first: np.ndarray, second: np.ndarray, *, init: bool = True) -> np.ndarray:
    padded = first.shape + (1,) * (second.ndim - first.ndim)
    axes = tuple(i for i, size in enumerate(padded) if size == 1)
    assert all(size in (1, other) for size, other in zip(padded, second.shape, strict=True))
    assert not np.shares_memory(first, second)
    result = REDUCTIONS[name](second, axis=axes, keepdims=True).reshape(first.shape, order="F")
    first[...] = result if init else first + result
    return first


def _similar(y: np.ndarray, *sizes: Any) -> np.ndarray:
    kind = y.dtype
    if sizes and isinstance(sizes[0], type):
        kind, sizes = sizes[0], sizes[1:]
    shape = sizes[0] if sizes and isinstance(sizes[0], tuple) else sizes or y.shape
    made = np.empty(shape, dtype=kind, order="F")
    made[...] = np.nan if np.issubdtype(kind, np.floating) else 1  # reading what nobody wrote is seen
    return made


def _view(x: np.ndarray, *index: Any) -> np.ndarray:
    return x[(*(i - 1 if isinstance(i, int) else i for i in index), ...)]


def _reshape(x: np.ndarray, *sizes: Any) -> np.ndarray:
    made = x.reshape(sizes[0] if sizes and isinstance(sizes[0], tuple) else sizes, order="F")
    assert made.size == 0 or np.shares_memory(made, x), "reshape of an array that is not contiguous"
    return made


def _mul(out: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: bool = True, beta: bool = False) -> np.ndarray:
    assert out.shape == (a.shape[0], *b.shape[1:])
    assert not np.shares_memory(out, a)
    assert not np.shares_memory(out, b)
    out[...] = a @ b + out if beta else a @ b
    return out


def _fill_into(x: np.ndarray, number: Any) -> np.ndarray:
    x[...] = number
    return x


def _written(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def run(out: np.ndarray, *arguments: Any) -> np.ndarray:
        value = function(*arguments)
        assert out.shape == value.shape
        assert not any(isinstance(x, np.ndarray) and np.shares_memory(out, x) for x in arguments)
        out[...] = value
        return out

    return run


def _geometry(x: np.ndarray, w: np.ndarray, **options: Any) -> dict[str, Any]:
    assert options.pop("flipkernel") is True
    return {"x": x.shape[::-1], "w": w.shape[::-1], **options}


def _torch_options(g: dict[str, Any]) -> tuple[Any, ...]:
    rank = len(g["stride"])
    return (*(g[key][::-1] for key in ("stride", "padding", "dilation")), False, (0,) * rank, g["groups"])


def _torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.T))


def _conv(x: np.ndarray, w: np.ndarray, g: dict[str, Any]) -> np.ndarray:
    return torch.ops.aten.convolution(_torch(x), _torch(w), None, *_torch_options(g)).numpy().T


def _conv_data(grad: np.ndarray, w: np.ndarray, g: dict[str, Any]) -> np.ndarray:
    x, mask = torch.zeros(g["x"], dtype=torch.float64), [True, False, False]
    return torch.ops.aten.convolution_backward(_torch(grad), x, _torch(w), None, *_torch_options(g), mask)[0].numpy().T


def _conv_filter(x: np.ndarray, grad: np.ndarray, g: dict[str, Any]) -> np.ndarray:
    w, mask = torch.zeros(g["w"], dtype=torch.float64), [False, True, False]
    return torch.ops.aten.convolution_backward(_torch(grad), _torch(x), w, None, *_torch_options(g), mask)[1].numpy().T


def _batched_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("abn,bcn->acn", a, b)


CALLS: dict[str, Callable[..., Any]] = {
    "PermutedDimsArray": lambda x, order: x.transpose([d - 1 for d in order]),
    "batched_mul!": _written(_batched_mul),
    "batched_transpose": lambda x: x.swapaxes(0, 1),
    "conv!": _written(_conv),
    "∇conv_data!": _written(_conv_data),
    "∇conv_filter!": _written(_conv_filter),
    "DenseConvDims": _geometry,
    "div": lambda a, b: a // b,
    "fill!": _fill_into,
    "mul!": _mul,
    "permutedims!": _written(lambda x, order: x.transpose([d - 1 for d in order])),
    "reshape": _reshape,
    "similar": _similar,
    "size": lambda x, d: x.shape[d - 1],
    "transpose": lambda x: x.T,
    "view": _view,
}
