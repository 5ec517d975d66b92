"""Drop-in for torchsde: `sdeint` over `solve`.

The arguments and their meaning are that package's; what is not covered raises an error that names it.
`docs/dropin.md` has the differences, and what became of torchsde's own test suite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regnde._equation import SDE, Field
from regnde._noise import BrownianPath, Increment
from regnde._recording import unrecordable
from regnde._solve import solve, solve_by_rules
from regnde._solver import Solver

__all__ = ["sdeint"]

ACCEPTS_ANYTHING = 1e30
NOISE_TYPES = ("diagonal", "scalar", "additive")


def sdeint(
    sde: Any,
    y0: Tensor,
    ts: Tensor | Sequence[float],
    bm: Any = None,
    method: str | None = None,
    dt: float = 1e-3,
    adaptive: bool = False,
    rtol: float = 1e-5,
    atol: float = 1e-4,
    dt_min: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    logqp: bool = False,
    extra: bool = False,
    extra_solver_state: object = None,
) -> Tensor:
    """Solves an Ito SDE with diagonal noise as `torchsde.sdeint` does, differentiably along the path.

    Covered are the noise types "diagonal", "scalar" for states with one channel, and "additive" with a
    diagonal matrix: in all three every channel of the state has a Wiener process of its own.

    Args:
        sde: object with `f(t, y)`, `g(t, y)`, `sde_type` ("ito") and `noise_type`; g returns (batch, d)
            for diagonal noise, (batch, 1, 1) for scalar and (batch, d, d) for additive noise.
        y0: initial state, shape (batch, d).
        ts: times, increasing, shape (T,).
        bm: a `BrownianPath` of y0's shape; or a Brownian motion of torchsde's of that size, which
            must know its space-time Levy area unless `method` is "euler"; by default a new path,
            drawn from torch's seed.
        method: `"srk"` (default): SRIW1, or SOSRA for additive noise, where torchsde takes the same or
            other tableaux of order 1.5; or `"euler"`.
        dt: step size, or the first one if `adaptive`.
        adaptive: control the error of the steps with `rtol` and `atol` (not with "euler").
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the state.
        dt_min: ignored: a step is not forced beyond its error.
        options: not covered.
        names: other names for `f` and `g`, under the keys "drift" and "diffusion".
        logqp: not covered.
        extra: not covered.
        extra_solver_state: not covered.

    Returns:
        The states at `ts`, shape (T, batch, d).

    Raises:
        ValueError: for a type of SDE, a method or an argument that is not covered.
        SolveError: as `solve` does.

    Examples:
        >>> class Decay:
        ...     sde_type, noise_type = "ito", "diagonal"
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return 0.1 * y
        >>> sdeint(Decay(), torch.ones(4, 3), [0.0, 1.0], dt=0.1).shape
        torch.Size([2, 4, 3])
    """
    wanted = {"options": options, "logqp": logqp, "extra": extra, "extra_solver_state": extra_solver_state}
    for name, value in wanted.items():
        if value:
            raise ValueError(f"sdeint: {name}={value!r} is not covered.")
    name = "srk" if method is None else method
    if name not in ("srk", "euler"):
        raise ValueError(f"sdeint: method={name!r} is not covered; choose 'srk' or 'euler'.")
    if name == "euler" and adaptive:
        raise ValueError("sdeint: adaptive=True with method='euler' is not covered: it estimates no error; use 'srk'.")
    equation = _equation(sde, names or {}, y0)
    times = ts if isinstance(ts, Tensor) else torch.tensor(ts, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] > times[:-1]).all()):
        raise ValueError(f"sdeint: ts must be two or more strictly increasing times, got {times.detach()}.")
    if not dt > 0:
        raise ValueError(f"sdeint: dt={dt} must be above zero.")
    if times.requires_grad:
        raise ValueError("sdeint: a gradient with respect to ts is not covered: detach ts.")
    t0, t1 = times[0].item(), times[-1].item()
    path = _path(bm, t0, t1, y0, area=name != "euler")
    if name == "euler":
        solver = Solver(method="em", engine="torch")
        return solve_by_rules(equation, y0, times, solver, noise=path, grid=_grid(t0, t1, dt)).ys
    stepper = "sosra" if sde.noise_type == "additive" else "sriw1"
    if adaptive:
        solver = Solver(method=stepper, rtol=rtol, atol=atol, dt0=dt, engine="torch")
        return solve(equation, y0, times, solver, noise=path).ys
    with unrecordable("sdeint without adaptive=True takes steps of dt and has no tolerance that errors are scaled by."):
        return _fixed(equation, y0, times.tolist(), stepper, dt, path)


def _grid(t0: float, t1: float, dt: float) -> list[float]:
    """Step ends as torchsde adds them up: a Brownian path tells times apart that differ by rounding."""
    grid = [t0]
    while grid[-1] < t1:
        grid.append(min(grid[-1] + dt, t1))
    return grid


def _equation(sde: Any, names: Mapping[str, str], y0: Tensor) -> SDE:
    """The SDE with diagonal noise that torchsde's object describes."""
    sde_type, noise_type = getattr(sde, "sde_type", None), getattr(sde, "noise_type", None)
    if sde_type != "ito":
        raise ValueError(f"sdeint: sde_type={sde_type!r} is not covered; only 'ito' is.")
    if noise_type not in NOISE_TYPES:
        raise ValueError(f"sdeint: noise_type={noise_type!r} is not covered; only {', '.join(NOISE_TYPES)} are.")
    if unknown := set(names) - {"drift", "diffusion"}:
        raise ValueError(f"sdeint: names for {', '.join(sorted(unknown))} are not covered.")
    drift = getattr(sde, names.get("drift", "f"), None)
    diffusion = getattr(sde, names.get("diffusion", "g"), None)
    if drift is None or diffusion is None:
        raise ValueError("sdeint: an sde without both f(t, y) and g(t, y) is not covered.")
    if noise_type == "diagonal":
        return SDE(drift, diffusion)
    if y0.ndim != 2:
        raise ValueError(f"sdeint: y0 must have shape (batch, channels), got {tuple(y0.shape)}.")
    return SDE(drift, _diagonal(diffusion, noise_type, y0.shape[1]))


def _diagonal(diffusion: Callable[[Tensor, Tensor], Tensor], noise_type: str, channels: int) -> Field:
    """A diffusion matrix, shape (batch, d, m), as the diagonal that it must be."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        g = diffusion(t, y)
        if g.ndim != 3 or g.shape[1:] != (channels, channels):
            raise ValueError(
                f"sdeint: {noise_type} noise with g of shape {tuple(g.shape)} is not covered: each of the "
                f"{channels} channels must have one Wiener process of its own."
            )
        entries = torch.diagonal(g, dim1=-2, dim2=-1)
        if channels > 1 and bool((g.detach() - torch.diag_embed(entries.detach())).any()):
            raise ValueError(
                f"sdeint: {noise_type} noise with a matrix g that is not diagonal is not covered: each channel "
                "must have one Wiener process of its own."
            )
        return entries

    return field


def _path(bm: Any, t0: float, t1: float, y0: Tensor, *, area: bool) -> BrownianPath:
    """The Brownian path: the given one, one around torchsde's, or a new one."""
    if bm is None:
        return BrownianPath(t0, t1, y0.shape)
    return bm if isinstance(bm, BrownianPath) else _ForeignPath(bm, t0, t1, y0.shape, area=area)


class _ForeignPath(BrownianPath):
    """A Brownian motion of torchsde's: a callable of two times that returns W and, if asked, its integral U."""

    def __init__(self, motion: Any, t0: float, t1: float, shape: Sequence[int], *, area: bool) -> None:
        super().__init__(t0, t1, shape, seed=0)  # nothing is drawn from it
        self._motion = motion
        self._area = area
        if tuple(motion.shape) != tuple(shape):
            raise ValueError(f"sdeint: bm of size {tuple(motion.shape)} is not covered for a state {tuple(shape)}.")
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

    def resolves(self, s: float, t: float) -> bool:
        """Whatever it resolves, it is not this class that knows."""
        return True


def _fixed(sde: SDE, y: Tensor, saves: list[float], method: str, dt: float, path: BrownianPath) -> Tensor:
    """One step of `dt` after the other, states between them by chords, as torchsde has it.

    The methods of order 1.5 choose their steps; each of these solves is one step that is as long as
    its span, at a tolerance that accepts it.
    """
    count = max(1, math.ceil((saves[-1] - saves[0]) / dt - 1e-9))
    grid = [*(saves[0] + k * dt for k in range(count)), saves[-1]]
    rows, saved = [y], 1
    for begin, end in itertools.pairwise(grid):
        solver = Solver(
            method=method, rtol=ACCEPTS_ANYTHING, atol=ACCEPTS_ANYTHING, dt0=end - begin, engine="torch", max_steps=1
        )
        y1 = solve(sde, y, [begin, end], solver, noise=path).y1
        while saved < len(saves) and saves[saved] <= end:
            rows.append(y1 if saves[saved] == end else torch.lerp(y, y1, (saves[saved] - begin) / (end - begin)))
            saved += 1
        y = y1
    return torch.stack(rows)
