"""What to solve, where it is more than a function `f(t, y)`: an SDE, or a field written in Julia."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "CALCULI",
    "NOISES",
    "ODE",
    "SDE",
    "UNDEFINED",
    "Calculus",
    "Equation",
    "Field",
    "JuliaField",
    "Noise",
    "takes_samples",
]

Field = Callable[[Tensor, Tensor], Tensor]
Noise = Literal["diagonal", "scalar", "additive", "general"]
Calculus = Literal["ito", "stratonovich"]
NOISES: tuple[str, ...] = Noise.__args__  # type: ignore[attr-defined]  # typing has no public way
CALCULI: tuple[str, ...] = Calculus.__args__  # type: ignore[attr-defined]
UNDEFINED = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
"""What a field may raise where it is not defined. The handler of a signal that comes meanwhile may raise others."""


@dataclass(frozen=True)
class SDE:
    """A stochastic differential equation dy = drift(t, y) dt + diffusion(t, y) dW.

    Args:
        drift: function of a 0-dim time and a state, returning its shape and structure.
        diffusion: function of the same. Its shape for a state (..., d) depends on `noise`.
        noise: `"diagonal"`: diffusion (..., d), each entry multiplies a Wiener process of its own, and depends on no
            other entry of the state where a method takes its derivative. `"scalar"`: diffusion (..., d), all d entries
            multiply the one process of their sample. `"general"`: a matrix (..., d, m) that multiplies the m processes
            of its sample. `"additive"`: such a matrix that does not depend on the state.
        calculus: `"ito"` or `"stratonovich"`, the sense of the integral by dW. For a diffusion that does not depend
            on the state they are the same.

    Raises:
        TypeError: if one of the functions can not be called.
        ValueError: for another kind of noise or calculus.

    The method "sosri" has stages at -0.04 h and 3.75 h, so it calls the drift up to 2.75 steps beyond the end: for a
    drift that exists in the span alone, use another. All others call both functions inside the span only.

    Examples:
        >>> import torch
        >>> from regnde import Solver, solve
        >>> mix = torch.tensor([[0.3, 0.1, 0.0], [0.0, 0.2, 0.4]])
        >>> sde = SDE(lambda t, y: -y, lambda t, y: y.unsqueeze(-1) * mix, noise="general", calculus="stratonovich")
        >>> solve(sde, torch.ones(5, 2), [0.0, 1.0], Solver(method="heun", dt0=0.1)).y1.shape
        torch.Size([5, 2])
    """

    drift: Callable[[Tensor, Any], Any]
    diffusion: Callable[[Tensor, Any], Any]
    noise: Noise = "diagonal"
    calculus: Calculus = "ito"

    def __post_init__(self) -> None:
        for name in ("drift", "diffusion"):
            if not callable(getattr(self, name)):
                raise TypeError(f"SDE: {name} must be callable as {name}(t, y), got {getattr(self, name)!r}.")
        for name, known in (("noise", NOISES), ("calculus", CALCULI)):
            if getattr(self, name) not in known:
                raise ValueError(f"SDE({name}={getattr(self, name)!r}): choose one of {', '.join(map(repr, known))}.")

    @property
    def has_matrix(self) -> bool:
        """Whether the diffusion is a matrix."""
        return self.noise in ("additive", "general")

    def path_shape(self, state: Sequence[int], columns: int = 1) -> tuple[int, ...]:
        """Shape of the Brownian path.

        Args:
            state: shape of the state.
            columns: m, the number of columns of the diffusion, if that is a matrix.
        """
        if self.noise == "diagonal" or not state:
            return tuple(state)
        return (*state[:-1], columns if self.has_matrix else 1)


@dataclass(frozen=True, eq=False)
class ODE:
    """An ordinary differential equation with a constant mass matrix, M y' = field(t, y).

    A singular M makes rows algebraic: a differential-algebraic equation, which must have index 1, and y0 must satisfy
    the algebraic rows. It is solved by `"rodas5p"` or `"rodas4"`.

    Args:
        field: function of a 0-dim time and a state, as for `solve`.
        mass: M, shape (n, n), for the n entries of the state, or of one sample with `batch="per-sample"`.

    Raises:
        TypeError: for a field that can not be called.
        ValueError: for a matrix that is not square.

    Examples:
        Robertson's kinetics with the third equation replaced by the conservation of mass:

        >>> import torch
        >>> from regnde import Solver, solve
        >>> def kinetics(t, y):
        ...     a, b, c = y
        ...     r = 0.04 * a - 1e4 * b * c
        ...     return torch.stack([-r, r - 3e7 * b * b, a + b + c - 1])
        >>> dae = ODE(kinetics, torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)))
        >>> y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        >>> sol = solve(dae, y0, [0.0, 40.0], Solver(method="rodas5p", rtol=1e-6, atol=1e-9))
        >>> [round(x, 4) for x in sol.y1.tolist()]
        [0.7158, 0.0, 0.2842]
    """

    field: Callable[[Tensor, Any], Any]
    mass: Tensor

    def __post_init__(self) -> None:
        if not callable(self.field):
            raise TypeError(f"ODE: field must be callable as field(t, y), got {self.field!r}.")
        if not isinstance(self.mass, Tensor) or self.mass.ndim != 2 or self.mass.shape[0] != self.mass.shape[1]:
            shown = tuple(self.mass.shape) if isinstance(self.mass, Tensor) else repr(self.mass)
            raise ValueError(f"ODE(mass={shown}): give a square matrix as a tensor.")


@dataclass(frozen=True)
class JuliaField:
    """A field written in Julia, for the Julia engine alone.

    The source is executed by Julia as it stands: never pass text from someone you do not trust.

    Args:
        source: Julia source of a function `(t, y, p...) -> dy`, or `(dy, t, y, p...)` that writes `dy`. Arrays
            arrive with their dimensions reversed: a torch state of shape (batch, dim) is a Julia matrix of size
            (dim, batch). It may be several lines, with functions and `using` of its own; the last value counts.
        parameters: tensors passed as `p...`, each by itself, differentiated like a module's parameters by Zygote
            (`python -m regnde julia --adjoints` installs it). In the form that writes `dy`, Zygote follows
            assignments to entries and broadcasts (`dy[1] = ...`, `dy .= ...`).

    Examples:
        >>> import torch
        >>> from regnde import Solver, solve
        >>> weight = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], requires_grad=True)
        >>> field = JuliaField("(t, y, w) -> transpose(w) * y .^ 3", [weight])  # in torch: y**3 @ w
        >>> solution = solve(field, torch.ones(5, 2), [0.0, 1.0], Solver(engine="julia"))  # doctest: +SKIP
        >>> solution.y1.sum().backward()  # doctest: +SKIP
    """

    source: str
    parameters: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source.strip():
            raise TypeError(f"JuliaField(source={self.source!r}): give Julia source as text, such as '(t, y) -> -y'.")


Equation = Field | SDE | JuliaField


def takes_samples(function: Callable[..., Tensor]) -> bool:
    """Whether a field is f(t, y, samples) and wants to know which samples it is evaluated at."""
    function = inspect.unwrap(function)
    while isinstance(function, torch.nn.Module) and isinstance(
        inner := getattr(function, "_orig_mod", None) or getattr(function, "module", None), torch.nn.Module
    ):  # torch.compile, DataParallel
        function = inner
    target = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 3
