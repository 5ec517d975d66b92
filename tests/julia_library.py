"""What Julia's functions do, for `julia_evaluator`: on numpy arrays in Fortran order, of Julia's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def _of_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda x: function(torch.as_tensor(np.ascontiguousarray(x))).numpy().reshape(np.shape(x))


_ERF = np.vectorize(math.erf, otypes=[float])

ENTRYWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "asinh": np.arcsinh,
    "atan": np.arctan2,
    "ceil": np.ceil,
    "cosh": np.cosh,
    "digamma": _of_torch(torch.digamma),
    "erfc": _of_torch(torch.erfc),
    "erfinv": _of_torch(torch.erfinv),
    "log_gamma": _of_torch(torch.lgamma),
    "polygamma": lambda n, x: _of_torch(lambda a: torch.polygamma(n, a))(x),
    "round": np.round,
    "exp2": np.exp2,
    **{
        f"fast_{name}": getattr(np, name)
        for name in ("cos", "exp", "expm1", "log", "log1p", "log2", "sin", "tan", "tanh")
    },
    "fast_atan": np.arctan,
    "fast_erf": _ERF,
    "fast_sigmoid": lambda x: 1 / (1 + np.exp(-x)),
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
    "whole_Int64": lambda x: np.trunc(x).astype(np.int64),
    "whole_Int32": lambda x: np.trunc(x).astype(np.int32),
    "Float64": np.float64,
    "Float32": np.float32,
    "Int64": np.int64,
    "Int32": np.int32,
    "ComplexF64": lambda a, b=0.0: a + 1j * b,
    "ComplexF32": lambda a, b=0: (a + 1j * b).astype(np.complex64),
    "angle": np.angle,
    "complex": lambda a, b: a + 1j * b,
    **{name: getattr(np, name) for name in ("conj", "cos", "exp", "imag", "log", "real", "sin", "sqrt", "tan", "tanh")},
    **{f"NaNMath.{name}": getattr(np, name) for name in ("sqrt", "log10")},
    "NaNMath.asin": np.arcsin,
    "NaNMath.acos": np.arccos,
    "NaNMath.acosh": np.arccosh,
    "NaNMath.atanh": np.arctanh,
    "fast_pow": np.power,
}

REDUCTIONS = {"sum": np.sum, "largest": np.max, "minimum": np.min, "prod": np.prod, "any": np.any, "all": np.all}
TYPES = {"Bool": np.bool_, "Int64": np.int64, "Int32": np.int32, "Float32": np.float32, "Float64": np.float64}
TYPES |= {"ComplexF32": np.complex64, "ComplexF64": np.complex128}


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
    made[...] = np.nan if np.issubdtype(kind, np.inexact) else 1  # reading what nobody wrote is seen
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


def _torch_dim(x: np.ndarray, dim: int) -> int:
    return x.ndim - dim


def _selected(x: np.ndarray, index: np.ndarray, dim: int) -> np.ndarray:
    return _torch(x).index_select(_torch_dim(x, dim), _torch(index)).numpy().T


def _put(name: str) -> Callable[..., np.ndarray]:
    """An operator of torch that writes into its first argument at an index."""

    def run(out: np.ndarray, source: np.ndarray, index: np.ndarray, dim: int) -> np.ndarray:
        assert not any(np.shares_memory(out, x) for x in (source, index))
        operands = (_torch_dim(out, dim), _torch(index).to(torch.int64), _torch(source))
        out[...] = getattr(_torch(out), name)(*operands).numpy().T
        return out

    return run


def _gathered(x: np.ndarray, index: np.ndarray, dim: int) -> np.ndarray:
    return _torch(x).gather(_torch_dim(x, dim), _torch(index).to(torch.int64)).numpy().T


def _solved(a: np.ndarray, b: np.ndarray, left: bool, adjoint: bool) -> np.ndarray:
    matrix = _torch(a).mH if adjoint else _torch(a)
    return torch.linalg.solve(matrix, _torch(b), left=left).numpy().T


def _triangular(a: np.ndarray, b: np.ndarray, upper: bool, left: bool, unit: bool) -> np.ndarray:
    solved = torch.linalg.solve_triangular(_torch(a), _torch(b), upper=upper, left=left, unitriangular=unit)
    return solved.numpy().T


def _linalg(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    return _written(lambda a, *options: function(_torch(a), *options).numpy().T)


def _plan(kind: str) -> Callable[..., dict[str, Any]]:
    """What a transform of arrays like `x` is, without a factor."""

    def make(x: np.ndarray, *options: Any) -> dict[str, Any]:
        *first, dims = options
        return {"kind": kind, "sizes": x.shape, "type": x.dtype, "options": first, "dims": dims}

    return make


def _transformed(x: np.ndarray, plan: dict[str, Any]) -> np.ndarray:
    assert (x.shape, x.dtype) == (plan["sizes"], plan["type"])
    dims, data = [_torch_dim(x, d) for d in reversed(plan["dims"])], _torch(x)
    if plan["kind"] == "c2c":
        return torch.ops.aten._fft_c2c(data, dims, 0, plan["options"][0]).numpy().T
    if plan["kind"] == "r2c":
        return torch.ops.aten._fft_r2c(data, dims, 0, True).numpy().T
    return torch.ops.aten._fft_c2r(data, dims, 0, plan["options"][0]).numpy().T


def _batched_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("abn,bcn->acn", a, b)


CALLS: dict[str, Callable[..., Any]] = {
    **{f"{kind}_plan": _plan(kind) for kind in ("c2c", "r2c", "c2r")},
    "transform!": _written(_transformed),
    "PermutedDimsArray": lambda x, order: x.transpose([d - 1 for d in order]),
    "batched_mul!": _written(_batched_mul),
    "batched_transpose": lambda x: x.swapaxes(0, 1),
    "conv!": _written(_conv),
    "∇conv_data!": _written(_conv_data),
    "∇conv_filter!": _written(_conv_filter),
    "DenseConvDims": _geometry,
    "cholesky_factor!": _linalg(lambda a, upper: torch.linalg.cholesky(a, upper=upper)),
    "determinant!": _linalg(torch.linalg.det),
    "determinant_sign!": _linalg(lambda a: torch.linalg.slogdet(a)[0]),
    "log_determinant!": _linalg(lambda a: torch.linalg.slogdet(a)[1]),
    "symmetric_values!": _linalg(lambda a, lower: torch.linalg.eigh(a, UPLO="L" if lower else "U")[0]),
    "symmetric_vectors!": _linalg(lambda a, lower: torch.linalg.eigh(a, UPLO="L" if lower else "U")[1]),
    "inverse!": _linalg(torch.linalg.inv),
    "matrix_exp!": _linalg(torch.linalg.matrix_exp),
    "linear_solve!": _written(_solved),
    "triangular_solve!": _written(_triangular),
    "index_select!": _written(_selected),
    "gather!": _written(_gathered),
    **{f"{name}!": _put(name) for name in ("index_add", "index_copy", "scatter_add", "scatter")},
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
