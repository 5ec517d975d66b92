"""A Brownian path that is a function of its seed: the noise of an SDE, whatever steps a solver takes.

Beside the increment W over an interval of length h, a method of strong order 1.5 needs the area
between the path and its chord, H = (1/h) int (W_u - W_s - (u - s)/h W) du ~ N(0, h/12), independent
of W ("space-time Levy area"); then I_(1,0) = int (W_u - W_s) du = h (W/2 + H).

Law of one interval, given (W, H) and a point at the fraction x, r = 1 - x (Foster, Lyons, Oberhauser,
SIAM J. Numer. Anal. 58 (2020) 1500-1533; for any x: Foster, Jelincic, arXiv 2405.06464). Write
W_x = x W + X. Since H = X/2 + x H_1 + r H_2, where X ~ N(0, x r h), H_1 ~ N(0, x h/12) and
H_2 ~ N(0, r h/12) are independent of each other and of W, Gaussian conditioning gives, with
v = 1 - 3 x r and independent standard normals Y and Z,

    X   = 6 x r H + sqrt(h x r v) Y
    H_1 = (x^2/v) (H - X/2) + sqrt(h x r^3 / (12 v)) Z,     H_2 from the relation above,

and at the midpoint W_1 = W/2 + 3/2 H + sqrt(h)/4 Y, H_{1,2} = H/4 - sqrt(h)/8 Y +- sqrt(h/48) Z.

The path is the binary tree of midpoints, down to leaves of span / 2^depth; inside a leaf the general
formula is used with the leaf's own (Y, Z). So the law of (W, H) is exact for any set of times of
which no two lie strictly inside one leaf. The normals of a node are a function of (seed, node): the
order of the queries, rejected steps, outputs and gradients can not change the path. A solver that
rejects a step and asks for a shorter one gets the bridge of the increment it had, which is what
"rejection sampling with memory" (Rackauckas, Nie 2017) samples.

A value of the path is linear in the normals of the nodes above it. For a point at the fraction x of a
node of length h put v = 2 x - 1 and u = 1 - |v|. From the formulas above, the node's Y and Z add

    sqrt(h)/4 (3 u^2 - 2 u) Y   -  6 sqrt(h/48) v u Z                 to W,
    h sqrt(h)/8 v u^2 Y         +  h/2 sqrt(h/48) (3 u^2 - 2 u^3) Z   to J = int W dt,

so that a value is one product of a row of such factors with the stored normals.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regnde._normals import Normals

__all__ = ["BrownianPath", "Increment", "drawn_path", "drawn_seed"]

Array = NDArray[np.float64]

DEPTH = 24  # leaves of 6e-8 of the span, below any useful step
DEEPEST = 48  # a leaf still holds a few bits of the clock
UNSCALED = 64  # a span between two to the power of this and its inverse has powers that are numbers
SAME = 2.0**-20  # of a leaf: closer to one of its ends a time is taken for it, as times are rounded
ROUNDED = 32  # a step's end may be rounded to multiples of this part of it
RECENT = 4  # points that are stored: a step starts where the one before ended, also after rejections


class Increment(NamedTuple):
    """The path over one interval, on the path's device and of its dtype, each of the path's shape.

    Attributes:
        w: W(t) - W(s), variance t - s.
        h: space-time Levy area, variance (t - s)/12, independent of `w`.
    """

    w: Tensor
    h: Tensor


class BrownianPath:
    """Independent Wiener processes on [t0, t1], a function of (seed, shape, span, resolution) alone.

    Values are made on `device` and cast by the solver, so that states of any dtype and device see one
    path; between devices and dtypes it differs by rounding. A new interval costs about
    log2(step / resolution) draws of two normals per entry; the normals from the tree's root to the last
    point are stored, 16 (depth + 2) bytes per entry. Numbers repeat within one version of torch and numpy.

    Args:
        t0: start of the span, in units of time.
        t1: its end, t0 < t1.
        shape: shape of the state: every entry has its own process.
        seed: 0 <= seed < 2**64; by default drawn from torch's generator, so that
            `torch.manual_seed` makes it repeatable.
        resolution: length of a leaf at most, in units of time (default: the span / 2**24). Of the
            points inside one leaf each has its right law, but not their differences.
        device: where the values are made; it must have float64. A solve makes them on a GPU if the state is there.
        dtype: of the increments, and the precision of the normals: float64, or float32 for less time.

    Raises:
        ValueError: for a span, seed, resolution or dtype that can not be used.

    Examples:
        >>> path = BrownianPath(0.0, 1.0, (3,), seed=0)
        >>> w, h = path.increment(0.2, 0.7)
        >>> bool(torch.equal(path(0.7) - path(0.2), w)), h.shape
        (True, torch.Size([3]))
    """

    def __init__(
        self,
        t0: float,
        t1: float,
        shape: Sequence[int],
        *,
        seed: int | None = None,
        resolution: float | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.t0, self.t1 = float(t0), float(t1)
        if not isinstance(shape, Sequence) or not all(isinstance(n, Integral) for n in shape):
            raise TypeError(f"BrownianPath(shape={shape!r}): give the shape as a tuple, such as (3,) or y0.shape.")
        if not isinstance(seed, Integral | None):
            raise TypeError(f"BrownianPath(seed={seed!r}): give a whole number, or None.")
        self.shape = torch.Size(shape)
        self.device, self.dtype = torch.device(device), dtype
        self.seed = drawn_seed() if seed is None else int(seed)
        span = self.t1 - self.t0
        if not (math.isfinite(span) and span > 0):
            raise ValueError(f"BrownianPath({t0}, {t1}): give finite times t0 < t1.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"BrownianPath(seed={seed}): give a number from 0 up to 2**64 - 1.")
        if resolution is not None and not resolution > 0:
            raise ValueError(f"BrownianPath(resolution={resolution}): give a length of time above zero.")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"BrownianPath(dtype={dtype}): give torch.float32 or torch.float64.")
        depth = DEPTH
        if resolution is not None:
            ratio = span / resolution
            depth = 0 if ratio <= 1 else math.ceil(math.log2(ratio)) if math.isfinite(ratio) else DEEPEST + 1
        if depth > DEEPEST:
            raise ValueError(
                f"BrownianPath(resolution={resolution}): the clock resolves no leaf below the span / 2**{DEEPEST}, "
                f"here {span / 2**DEEPEST:.3g}."
            )
        self.depth = depth
        exponent = math.frexp(span)[1]  # powers of a tiny span underflow
        self._half = (exponent + 1) // 2 if abs(exponent) > UNSCALED else 0
        self._branch = 0
        self._tree: _Tree | None = None  # made at the first query
        self._recent: dict[float, Tensor] = {}
        self._lock = threading.Lock()

    @property
    def resolution(self) -> float:
        """Length of a leaf, in units of time."""
        return math.ldexp(self.t1 - self.t0, -self.depth)

    def __call__(self, t: float) -> Tensor:
        """W(t), of the path's shape; W(t0) = 0."""
        if getattr(t, "ndim", 0):
            raise ValueError(
                f"a Brownian path is called with one time, got shape {tuple(np.shape(t))}: call it for each."
            )
        # The path outlives the modes and the transforms of its caller.
        with self._lock, torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad():
            return self._shaped(self._point(float(t))[:1].clone())[0]

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t].

        Raises:
            ValueError: unless t0 <= s <= t <= t1.
        """
        if s > t:
            raise ValueError(f"the path's increment over [{s}, {t}]: give the earlier time first.")
        # The path outlives the modes and the transforms of its caller.
        with self._lock, torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad():
            start, end = self._point(float(s)), self._point(float(t))
            found = end - start
            length = self._scaled(t - s)
            if length:
                found[1].div_(length).sub_(torch.add(start[0], end[0]), alpha=0.5)
            else:  # of two equal or denormal times
                found[1].zero_()
            return Increment(*self._shaped(found).unbind())

    def resolves(self, s: float, t: float) -> bool:
        """Whether the law over [s, t] is exact: the two times do not both lie strictly inside one leaf."""
        span = self.t1 - self.t0
        start, end = (math.ldexp((x - self.t0) / span, self.depth) for x in (s, t))
        leaf = math.floor(start)
        return leaf == start or end >= leaf + 1

    def cheaper(self, s: float, t: float) -> float:
        """A time within (t - s)/64 of t for which fewer normals are drawn: an end of a node of that size or more."""
        span, length = self.t1 - self.t0, t - s
        if length <= ROUNDED * self.resolution:
            return t
        level = math.ceil(math.log2(ROUNDED * (span / length)))
        return self.t0 + span * math.ldexp(round(math.ldexp((t - self.t0) / span, level)), -level)

    def independent(self, branch: int = 1) -> BrownianPath:
        """Another path with the same arguments, independent of this one and like it a function of the seed.

        Args:
            branch: number of the path, 1, 2, ...
        """
        return _rebuilt(*self._arguments(), self._branch + branch)

    def to(self, device: torch.device | str) -> BrownianPath:
        """The same path with its values made on a device; this one if it is there."""
        if torch.device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def __copy__(self) -> BrownianPath:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _tree=None, _recent={}, _lock=threading.Lock())
        return made

    def __reduce__(self) -> tuple[object, ...]:
        """Deep copies and pickles by the arguments: the numbers follow from them."""
        return _rebuilt, (*self._arguments(), self._branch)

    def _arguments(self) -> tuple[float, float, tuple[int, ...], int, torch.device, torch.dtype, int]:
        """What makes this path, but for the branch."""
        return self.t0, self.t1, tuple(self.shape), self.seed, self.device, self.dtype, self.depth

    def __repr__(self) -> str:
        return f"BrownianPath({self.t0}, {self.t1}, {tuple(self.shape)}, seed={self.seed})"

    def _scaled(self, duration: float) -> float:
        """A duration in units of 4^half, in which the span's powers are neither 0 nor infinite."""
        return math.ldexp(duration, -2 * self._half)

    def _shaped(self, values: Tensor) -> Tensor:
        """Rows of values from their scaled ones, which are overwritten; a power of two does not round."""
        if self._half:
            values.mul_(math.ldexp(1.0, self._half))
        return values.to(self.dtype).reshape(len(values), *self.shape)

    def _point(self, t: float) -> Tensor:
        """W(t) and J(t) = int_t0^t W du as the rows of a tensor, in scaled time; not to be written to."""
        known = self._recent.get(t)
        if known is not None:
            return known
        if not self.t0 <= t <= self.t1:
            raise ValueError(f"t={t} lies outside the Brownian path's span [{self.t0}, {self.t1}].")
        span = self.t1 - self.t0
        if self._tree is None:
            normals = Normals(self.seed, self._branch, self.shape.numel(), self.device, self.dtype)
            self._tree = _Tree(self._scaled(span), self.depth, normals)
        point = self._tree.point((t - self.t0) / span)
        if len(self._recent) == RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[t] = point
        return point


def drawn_path(
    t0: float, t1: float, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> BrownianPath:
    """The noise of a solve over [t0, t1] that was given none, by torch's seed.

    Args:
        t0: start of the solve.
        t1: its end; the path of a solve of no steps may be any.
        shape: of the path.
        dtype: of the state: normals for float64 are made in float64, others in float32.
        device: where it is made.
    """
    made = torch.float64 if dtype == torch.float64 else torch.float32
    return BrownianPath(t0, t1 if t1 > t0 else t0 + 1.0, shape, device=device, dtype=made)


def drawn_seed() -> int:
    """A seed from torch's generator, on the CPU whatever torch's default device."""
    return int(torch.randint(2**62, (), device="cpu").item())


def _rebuilt(
    t0: float,
    t1: float,
    shape: Sequence[int],
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    depth: int,
    branch: int,
) -> BrownianPath:
    path = BrownianPath(t0, t1, shape, seed=seed, device=device, dtype=dtype)
    path.depth, path._branch = depth, branch
    return path


class _Tree:
    """The tree of midpoints. It stores the normals (Y, Z) of the nodes from the root to a leaf.

    Level 0 is the whole span, level `depth` a leaf. The first pair of rows are the span's own (W, H).

    Args:
        span: its length (scaled).
        depth: level of the leaves.
        normals: row 0 is the pair for (W, H), then the nodes' rows follow in heap order from 1.
    """

    def __init__(self, span: float, depth: int, normals: Normals) -> None:
        self.span, self.depth, self.normals = span, depth, normals
        self.rows = torch.empty(depth + 2, 2, normals.entries, dtype=torch.float64, device=normals.device)
        self.leaf = 0  # the way goes towards it
        self.known = -1  # levels of the way that are stored; -1 before the first query
        levels = np.arange(depth)
        h = span * 0.5**levels
        root, third = np.sqrt(h), np.sqrt(h / 48)
        self.factors = root / 4, -6 * third, h * root / 8, h * third / 2
        self.masks, self.scale = (1 << depth - levels) - 1, 2.0 ** (levels + 1 - depth)

    def point(self, fraction: float) -> Tensor:
        """(W, J) at this fraction of the span, shape (2, entries)."""
        place = fraction * 2**self.depth
        place = round(place) if abs(place - round(place)) < SAME else place
        leaf = min(int(place), 2**self.depth - 1)
        # A point that is an end of a node needs nothing of that node and of those below it.
        level = _level(int(place), self.depth) if place == int(place) else self.depth + 1
        self._store(leaf, level)
        weights = torch.from_numpy(self._weights(leaf, place - leaf, level)).to(self.rows.device)
        return torch.mm(weights, self.rows[: level + 1].reshape(2 * level + 2, -1))

    def _store(self, leaf: int, level: int) -> None:
        """Stores the normals of the nodes above a leaf, those of the levels below the given one."""
        shared = self.depth + 1 - (leaf ^ self.leaf).bit_length()
        known = min(self.known, shared)
        if known >= level:
            return
        # The levels from `known` on; before the first query also the row of the span's own (W, H).
        nodes = (1 << self.depth | leaf) >> (self.depth - np.arange(known, level))
        self.normals.fill(nodes, self.rows[known + 1 : level + 1])
        self.leaf, self.known = leaf, level

    def _weights(self, leaf: int, rest: float, level: int) -> Array:
        """The factors of the normals in (W, J) at the fraction `rest` of a leaf, shape (2, 2 (level + 1))."""
        weights = np.empty((2, level + 1, 2))
        x = math.ldexp(leaf + rest, -self.depth)
        root = math.sqrt(self.span)
        weights[0, 0] = x * root, x * (1 - x) * root * math.sqrt(3)
        weights[1, 0] = self.span * root * x * x / 2, self.span * root * x * x * (3 - 2 * x) / math.sqrt(12)
        n = min(level, self.depth)
        v = ((leaf & self.masks[:n]) + rest) * self.scale[:n] - 1  # -1 to 1 over a node
        u = 1 - np.abs(v)
        vu, triple = v * u, 3 * u * u
        of_w, of_j = weights[:, 1 : n + 1]
        of_wy, of_wz, of_jy, of_jz = (factor[:n] for factor in self.factors)
        np.multiply(of_wy, triple - 2 * u, out=of_w[:, 0])
        np.multiply(of_wz, vu, out=of_w[:, 1])
        np.multiply(of_jy, vu * u, out=of_j[:, 0])
        np.multiply(of_jz, triple - 2 * u * u * u, out=of_j[:, 1])
        if level > self.depth:
            weights[:, -1] = _inside(self.span / 2**self.depth, rest)
        return weights.reshape(2, -1)


def _level(place: int, depth: int) -> int:
    """The level of the largest nodes of which a leaf's end is an end."""
    place %= 1 << depth
    return depth + 1 - (place & -place).bit_length() if place else 0


def _inside(h: float, x: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The factors of the normals (Y, Z) of a leaf of length h in W and J at its fraction x."""
    r = 1 - x
    v = 1 - 3 * x * r
    bridge = math.sqrt(h * max(x * r * v, 0.0))
    area = math.sqrt(h * max(x * r**3, 0.0) / (12 * v))
    return (bridge, 0.0), (h * x * bridge * (1 - x * x / v) / 2, h * x * area)
