"""An SDE and a Brownian motion as torchsde's users give them, for the drop-ins of its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regnde._equation import SDE
from regnde._noise import BrownianPath, Increment
from regnde._path_divergence import Joint

__all__ = ["Names", "equation_of", "path_of"]

ROLES = {
    "drift": "f",
    "diffusion": "g",
    "prior_drift": "h",
    "diffusion_prod": "g_prod",
    "drift_and_diffusion": "f_and_g",
    "drift_and_diffusion_prod": "f_and_g_prod",
}
Names = Mapping[str, str]
Function = Callable[..., Any]


@dataclass(frozen=True)
class _Methods:
    """The functions that torchsde's object has, under its names for them; None for those it lacks."""

    f: Function | None
    g: Function | None
    h: Function | None
    g_prod: Function | None
    f_and_g: Function | None
    f_and_g_prod: Function | None


def equation_of(sde: Any, names: Names, columns: int | None, *, with_prior: bool) -> tuple[SDE, Function | None]:
    """The equation that torchsde's object describes, and its prior drift.

    Args:
        sde: the object.
        names: other names of its methods, by their roles.
        columns: of the Brownian motion, if one is given.
        with_prior: whether the prior drift is asked for.

    Raises:
        ValueError: for a type of SDE or noise that torchsde does not have, or where a function is missing.
    """
    if unknown := set(names) - set(ROLES):
        raise ValueError(f"sdeint: names for {', '.join(sorted(unknown))}: the roles are {', '.join(ROLES)}.")
    if isinstance(sde, SDE):
        raise TypeError("sdeint: a regnde.SDE is solved by regnde.solve(sde, y0, ts); sdeint takes torchsde's objects.")
    for attribute, known in (
        ("sde_type", ("ito", "stratonovich")),
        ("noise_type", ("diagonal", "scalar", "additive", "general")),
    ):
        if getattr(sde, attribute, None) not in known:
            raise ValueError(
                f"sdeint: {attribute}={getattr(sde, attribute, None)!r} of the sde: it must be one of "
                f"{', '.join(map(repr, known))}."
            )
    has = _Methods(**{name: getattr(sde, names.get(role, name), None) for role, name in ROLES.items()})
    if with_prior and has.h is None:
        raise AttributeError("sdeint: logqp=True needs a prior drift, the sde's method h(t, y).")
    drift, diffusion = _functions(has, sde.noise_type, columns)
    return SDE(drift, diffusion, sde.noise_type, sde.sde_type), has.h


def _functions(has: _Methods, noise_type: str, columns: int | None) -> tuple[Function, Function]:
    """The drift and the diffusion, in the shapes that `SDE` wants."""
    shaped = _without_column if noise_type == "scalar" else _as_it_is
    if has.f_and_g is not None:
        f_and_g = has.f_and_g
        joint = Joint(lambda t, y: _shaped(f_and_g, shaped, t, y))
        return joint.drift, joint.diffusion
    if has.f is not None and has.g is not None:
        return has.f, has.g if shaped is _as_it_is else lambda t, y, g=has.g: shaped(g(t, y))
    product = has.g_prod if has.f is not None else None
    drift = has.f
    if product is None and (both := has.f_and_g_prod) is not None:
        drift = drift or (lambda t, y: both(t, y, y.new_zeros(_vectors(y, noise_type, columns)))[0])
        product = lambda t, y, v: both(t, y, v)[1]  # noqa: E731 - one line reads best
    if drift is None or product is None:
        raise ValueError(
            "sdeint: the sde must have f(t, y) and g(t, y), or f_and_g(t, y), or products with a vector: "
            "f(t, y) and g_prod(t, y, v), or f_and_g_prod(t, y, v)."
        )
    return drift, lambda t, y: _by_products(product, t, y, noise_type, columns)


def _vectors(y: Tensor, noise_type: str, columns: int | None) -> tuple[int, ...]:
    """Shape of the vectors that a diffusion multiplies."""
    if noise_type == "diagonal":
        return tuple(y.shape)
    if noise_type != "scalar" and columns is None:
        raise ValueError("sdeint: an sde with products alone does not tell how many processes it has: give bm=.")
    return (len(y), 1 if noise_type == "scalar" or columns is None else columns)


def _by_products(product: Function, t: Tensor, y: Tensor, noise_type: str, columns: int | None) -> Tensor:
    """The diffusion from its products with unit vectors, one for each column."""
    shape = _vectors(y, noise_type, columns)
    if noise_type in ("diagonal", "scalar"):
        return product(t, y, y.new_ones(shape))  # type: ignore[no-any-return]  # a tensor
    units = torch.eye(shape[1], dtype=y.dtype, device=y.device)
    return torch.stack([product(t, y, unit.expand(shape)) for unit in units], -1)


def _as_it_is(g: Tensor) -> Tensor:
    return g


def _shaped(both: Function, shaped: Callable[[Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    f, g = both(t, y)
    return f, shaped(g)


def _without_column(g: Tensor) -> Tensor:
    """A matrix of one column, (batch, d, 1), as a state."""
    if g.ndim != 3 or g.shape[-1] != 1:
        raise ValueError(
            f"sdeint: scalar noise has one process, but g has shape {tuple(g.shape)}, not (batch, channels, 1)."
        )
    return g.squeeze(-1)


# --- Brownian motions -----------------------------------------------------------------------------


def path_of(motion: Any, t0: float, t1: float, sde: SDE, y0: Tensor, *, area: bool) -> BrownianPath:
    """The given Brownian path, or one around torchsde's.

    Args:
        motion: a `BrownianPath`, or a Brownian motion of torchsde's.
        t0: start of the solve.
        t1: its end.
        sde: the equation.
        y0: its initial state.
        area: whether the method needs the space-time Levy area.
    """
    if len(motion.shape) != 2 or motion.shape[0] != len(y0):
        raise ValueError(f"sdeint: bm must be of shape (batch, processes), got {tuple(motion.shape)}.")
    wanted = sde.path_shape(y0.shape, motion.shape[1])
    if tuple(motion.shape) != wanted:
        raise ValueError(
            f"sdeint: bm has shape {tuple(motion.shape)}, but {sde.noise} noise of a state of shape "
            f"{tuple(y0.shape)} needs {wanted}."
        )
    return motion if isinstance(motion, BrownianPath) else _ForeignPath(motion, t0, t1, wanted, area=area)


class _ForeignPath(BrownianPath):
    """A Brownian motion of torchsde's: a callable of two times that returns W and, if asked, its integral U."""

    def __init__(self, motion: Any, t0: float, t1: float, shape: Sequence[int], *, area: bool) -> None:
        super().__init__(t0, t1, shape, seed=0)  # nothing is drawn from it
        self._motion = motion
        self._area = area
        if area and getattr(motion, "levy_area_approximation", None) == "none":
            raise ValueError("sdeint: method 'srk' needs a bm with levy_area_approximation='space-time'.")

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t]: U = int (W_u - W_s) du = (t - s) (W/2 + H)."""
        if s == t:
            return Increment(torch.zeros(self.shape), torch.zeros(self.shape))
        if not self._area:
            w = self._motion(s, t).detach()
            return Increment(w, torch.zeros_like(w))
        w, u = (value.detach() for value in self._motion(s, t, return_U=True))
        return Increment(w, u / (t - s) - w / 2)

    def to(self, device: torch.device | str) -> BrownianPath:
        """Itself: its increments are where torchsde makes them."""
        return self

    def resolves(self, s: float, t: float) -> bool:
        """Whatever it resolves, it is not this class that knows."""
        return True

    def independent(self, branch: int = 1) -> BrownianPath:
        """A path of our own: torchsde's motions have no second one."""
        return BrownianPath(self.t0, self.t1, self.shape)
