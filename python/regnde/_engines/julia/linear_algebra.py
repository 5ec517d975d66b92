"""Writers of the operators of `torch.linalg` that Julia's LinearAlgebra stands for.

A torch matrix is a Julia matrix transposed, and a batch of them the same in further dimensions: what that means for
each operator is said where Julia's functions are, in julia/src/linear_algebra.jl.
"""

from __future__ import annotations

from typing import Any

from regnde._engines.julia.lower import Pending, Result, Value
from regnde._engines.julia.operators import Writer

__all__ = ["LINEAR_ALGEBRA"]


def _called(out: Result, function: str, *operands: Value | str) -> Value:
    texts = [x if isinstance(x, str) else out.program.array(x, dense=True).expr.text for x in operands]
    arguments = ", ".join(texts)
    return out.pending(Pending(lambda target, _: (f"{function}!({target}, {arguments})",), accumulates=False))


def _bool(value: Any) -> str:
    return "true" if value else "false"


def _solve(outs: list[Result], a: Value, b: Value, *, left: bool = True, **_: Any) -> list[Value | None]:
    """Solution, factors, pivots, info. The matrix stands for its factors: `_lu_solve` alone reads them."""
    return [_solution(outs[0], a, b, left, False), a, None, None]


def _lu_solve(out: Result, a: Value, _: Any, b: Value, *, left: bool = True, adjoint: bool = False) -> Value:
    return _solution(out, a, b, left, adjoint)


def _solution(out: Result, a: Value, b: Value, left: bool, adjoint: bool) -> Value:
    """`b` is one vector for each matrix where it has one dimension less."""
    if len(b.shape) < len(a.shape):
        column = out.of((*b.shape, 1))
        b = column.program.reshaped(column.program.array(b, dense=True).expr.text, column.shape, out.dtype)
        x = out.program.store(_solution(column, a, b, left, adjoint))
        return out.program.reshaped(x.expr.text, out.shape, out.dtype)
    if a.shape[:-2] != b.shape[:-2]:
        raise NotImplementedError("matrices and right-hand sides of different batches: expand them")
    return _called(out, "linear_solve", a, b, _bool(left), _bool(adjoint))


def _triangular(
    out: Result, a: Value, b: Value, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Value:
    if a.shape[:-2] != b.shape[:-2]:
        raise NotImplementedError("matrices and right-hand sides of different batches: expand them")
    return _called(out, "triangular_solve", a, b, _bool(upper), _bool(left), _bool(unitriangular))


def _determinant(outs: list[Result], a: Value) -> list[Value | None]:
    """Determinant, factors (see `_solve`), pivots."""
    return [_called(outs[0], "determinant", a), a, None]


def _log_determinant(outs: list[Result], a: Value) -> list[Value | None]:
    """Sign, logarithm of the absolute value, factors (see `_solve`), pivots."""
    return [_called(outs[0], "determinant_sign", a), _called(outs[1], "log_determinant", a), a, None]


def _inverse(outs: list[Result], a: Value, **_: Any) -> list[Value | None]:
    return [_called(outs[0], "inverse", a), None]


def _cholesky(outs: list[Result], a: Value, *, upper: bool = False, **_: Any) -> list[Value | None]:
    return [_called(outs[0], "cholesky_factor", a, _bool(upper)), None]


def _eigh(outs: list[Result], a: Value, uplo: str = "L", compute_v: bool = True) -> list[Value | None]:
    lower = _bool(uplo == "L")
    return [
        _called(outs[0], "symmetric_values", a, lower),
        _called(outs[1], "symmetric_vectors", a, lower) if compute_v else None,
    ]


LINEAR_ALGEBRA: dict[str, Writer] = {
    "_linalg_solve_ex": _solve,
    "linalg_lu_solve": _lu_solve,
    "linalg_solve_triangular": _triangular,
    "_linalg_det": _determinant,
    "_linalg_slogdet": _log_determinant,
    "linalg_inv_ex": _inverse,
    "linalg_cholesky_ex": _cholesky,
    "_linalg_eigh": _eigh,
    "linalg_matrix_exp": lambda out, a: _called(out, "matrix_exp", a),
}
"""Writers by ATen name: `(out, *arguments) -> Value`, or a list of them for a list of results."""
