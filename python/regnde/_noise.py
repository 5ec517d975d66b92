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
which no two lie strictly inside one leaf. The normals of a node come from a random stream of its
own, keyed by (seed, node): the order of the queries, rejected steps, outputs and gradients can not
change the path. A solver that rejects a step and asks for a shorter one gets the bridge of the
increment it had, which is what "rejection sampling with memory" (Rackauckas, Nie 2017) samples.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BrownianPath", "Increment"]

Array = NDArray[np.float64]

DEPTH = 24  # leaves of 6e-8 of the span, below any useful step
DEEPEST = 48  # a leaf still holds a few bits of the clock
BLOCK = 8192  # entries drawn at once, of one or several nodes: temporaries stay in the processor's cache
RECENT = 4  # points that are stored: a step starts where the one before ended, also after rejections


class Increment(NamedTuple):
    """The path over one interval, float64 on the CPU, each of the path's shape.

    Attributes:
        w: W(t) - W(s), variance t - s.
        h: space-time Levy area, variance (t - s)/12, independent of `w`.
    """

    w: Tensor
    h: Tensor


class BrownianPath:
    """Independent Wiener processes on [t0, t1], a function of (seed, shape, span, resolution) alone.

    Values are drawn in float64 on the CPU and cast by the solver, so that states of any dtype and
    device see one path. A new interval costs about log2(step / resolution) draws of two normals per
    entry; the nodes from the tree's root to the last point are stored, 48 (depth + 1) bytes per entry.
    Numbers repeat within one version of numpy.

    Args:
        t0: start of the span, in units of time.
        t1: its end, t0 < t1.
        shape: shape of the state: every entry has its own process.
        seed: 0 <= seed < 2**64; by default drawn from torch's generator, so that
            `torch.manual_seed` makes it repeatable.
        resolution: length of a leaf at most, in units of time (default: the span / 2**24). Of the
            points inside one leaf each has its right law, but not their differences.

    Raises:
        ValueError: for a span, seed or resolution that can not be used.

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
    ) -> None:
        self.t0, self.t1 = float(t0), float(t1)
        self.shape = torch.Size(shape)
        # On the CPU whatever torch's default device, as everything here.
        self.seed = int(torch.randint(2**62, (), device="cpu").item()) if seed is None else int(seed)
        span = self.t1 - self.t0
        if not (math.isfinite(span) and span > 0):
            raise ValueError(f"BrownianPath({t0}, {t1}): give finite times t0 < t1.")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"BrownianPath(seed={seed}): give a number from 0 up to 2**64 - 1.")
        if resolution is not None and not resolution > 0:
            raise ValueError(f"BrownianPath(resolution={resolution}): give a length of time above zero.")
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
        self._half = (math.frexp(span)[1] + 1) // 2  # half the exponent of the span: powers of a tiny one underflow
        self._branch = 0
        self._tree: _Tree | None = None  # made at the first query
        self._recent: dict[float, Array] = {}
        self._lock = threading.Lock()

    @property
    def resolution(self) -> float:
        """Length of a leaf, in units of time."""
        return math.ldexp(self.t1 - self.t0, -self.depth)

    def __call__(self, t: float) -> Tensor:
        """W(t), of the path's shape; W(t0) = 0."""
        with self._lock:
            return self._tensor(self._point(float(t))[0])

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t].

        Raises:
            ValueError: unless t0 <= s <= t <= t1.
        """
        if s > t:
            raise ValueError(f"the path's increment over [{s}, {t}]: give the earlier time first.")
        with self._lock:
            (ws, js), (wt, jt) = self._point(float(s)), self._point(float(t))
            w, length = wt - ws, self._scaled(t - s)  # of two equal or denormal times 0
            area = (jt - js) / length - ws - w / 2 if length else np.zeros_like(w)
        return Increment(self._tensor(w), self._tensor(area))

    def resolves(self, s: float, t: float) -> bool:
        """Whether the law over [s, t] is exact: the two times do not both lie strictly inside one leaf."""
        span = self.t1 - self.t0
        start, end = (math.ldexp((x - self.t0) / span, self.depth) for x in (s, t))
        leaf = math.floor(start)
        return leaf == start or end >= leaf + 1

    def independent(self, branch: int = 1) -> BrownianPath:
        """Another path with the same arguments, independent of this one and like it a function of the seed.

        Args:
            branch: number of the path, 1, 2, ...
        """
        return _rebuilt(self.t0, self.t1, self.shape, self.seed, self.depth, self._branch + branch)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles by the arguments: the numbers follow from them."""
        return _rebuilt, (self.t0, self.t1, tuple(self.shape), self.seed, self.depth, self._branch)

    def __repr__(self) -> str:
        return f"BrownianPath({self.t0}, {self.t1}, {tuple(self.shape)}, seed={self.seed})"

    def _scaled(self, duration: float) -> float:
        """A duration in units of 4^half, in which the span lies between 1/4 and 1."""
        return math.ldexp(duration, -2 * self._half)

    def _tensor(self, values: Array) -> Tensor:
        """Values of W or H from their scaled ones: times a power of two, which does not round."""
        return torch.from_numpy(np.ldexp(values, self._half)).reshape(self.shape)

    def _point(self, t: float) -> Array:
        """W(t) and J(t) = int_t0^t W du as the rows of an array, in scaled time; not to be written to."""
        known = self._recent.get(t)
        if known is not None:
            return known
        if not self.t0 <= t <= self.t1:
            raise ValueError(f"t={t} lies outside the Brownian path's span [{self.t0}, {self.t1}].")
        span = self.t1 - self.t0
        # The tree outlives the modes and the transforms of its caller.
        with torch._C._DisableFuncTorch(), torch.inference_mode(False), torch.no_grad():
            if self._tree is None:
                self._tree = _Tree(self._scaled(span), self.depth, self.shape.numel(), self.seed, self._branch)
            point = self._tree.point((t - self.t0) / span)
        if len(self._recent) == RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[t] = point
        return point


def _rebuilt(t0: float, t1: float, shape: Sequence[int], seed: int, depth: int, branch: int) -> BrownianPath:
    path = BrownianPath(t0, t1, shape, seed=seed)
    path.depth, path._branch = depth, branch
    return path


class _Tree:
    """The tree of midpoints. It stores the nodes from the root to the last leaf.

    The state of a node is (W, J) at its left end and (W, H) over it, four rows; two more rows hold
    the node's normals (Y, Z). A child's state is a constant 4 x 6 matrix times its parent's six rows.
    """

    def __init__(self, span: float, depth: int, entries: int, seed: int, branch: int) -> None:
        self.span = span
        self.depth = depth
        self.normals = _Normals(seed, branch, entries)
        self.halves = [_halves(span / 2**level) for level in range(depth)]
        self.nodes = np.empty((depth + 1, 6, entries))
        self.rows = torch.from_numpy(self.nodes)  # torch multiplies: numpy's BLAS would start threads of its own
        self.leaf = -1  # index of the leaf at which the stored nodes end
        self.normals.fill([0], self.nodes[:1, 2:4])  # (W, H) over the whole span
        self.nodes[0, :2] = 0.0
        self.nodes[0, 2] *= math.sqrt(span)
        self.nodes[0, 3] *= math.sqrt(span / 12)
        self.normals.fill([1], self.nodes[:1, 4:])

    def point(self, fraction: float) -> Array:
        """(W, J) at this fraction of the span."""
        place = fraction * 2**self.depth
        leaf = min(int(place), 2**self.depth - 1)
        self._descend(leaf)
        inside = torch.from_numpy(_inside(self.span / 2**self.depth, place - leaf))
        point: Array = torch.mm(inside, self.rows[self.depth]).numpy()
        return point

    def _descend(self, leaf: int) -> None:
        """Extends the stored nodes to `leaf`, from the last one that is above both leaves."""
        shared = self.depth - (leaf ^ self.leaf).bit_length() if self.leaf >= 0 else 0
        levels = range(shared + 1, self.depth + 1)
        paths = [leaf >> (self.depth - level) for level in levels]
        self.normals.fill(
            [1 << level | path for level, path in zip(levels, paths, strict=True)], self.nodes[levels.start :, 4:]
        )
        for level, path in zip(levels, paths, strict=True):
            torch.mm(self.halves[level - 1][path & 1], self.rows[level - 1], out=self.rows[level, :4])
        self.leaf = leaf


class _Normals:
    """Standard normals (Y, Z) of any node, from a stream of random bits of its own.

    G. E. P. Box, M. E. Muller, Ann. Math. Stat. 29 (1958) 610-611: the two normals of an entry are a
    radius and an angle, from the two halves of one 64-bit number. In float32, whose rounding is far
    below what a statistic of the path could show, that is several times as fast as numpy's normals.

    Args:
        seed, branch: identify the path.
        entries: entries of the state.
    """

    def __init__(self, seed: int, branch: int, entries: int) -> None:
        self.key = seed.to_bytes(8, "little") + branch.to_bytes(8, "little")
        self.bits = np.random.PCG64DXSM(0)
        self.state = self.bits.state
        self.entries = entries
        self.block = max(1, BLOCK // max(entries, 1))

    def fill(self, nodes: Sequence[int], out: Array) -> None:
        """Writes the normals of some nodes to `out`, shape (len(nodes), 2, entries).

        The root's (W, H) are node 0; then the tree's nodes follow in heap order from 1.
        """
        for start in range(0, len(nodes), self.block):
            some = nodes[start : start + self.block]
            raw = np.empty((len(some), self.entries), dtype=np.uint64)
            for row, node in zip(raw, some, strict=True):
                digest = hashlib.blake2b(node.to_bytes(8, "little"), key=self.key, digest_size=16).digest()
                self.state["state"]["state"] = int.from_bytes(digest, "little")
                self.bits.state = self.state
                row[:] = self.bits.random_raw(self.entries)
            radius = (raw >> np.uint64(32)).astype(np.float32)
            radius += np.float32(0.5)
            radius *= np.float32(2**-32)  # uniform on (0, 1]
            np.log(radius, out=radius)
            radius *= np.float32(-2)
            np.sqrt(radius, out=radius)
            angle = raw.astype(np.uint32).astype(np.float32)
            angle *= np.float32(2 * math.pi / 2**32)
            np.multiply(radius, np.cos(angle), out=out[start : start + len(some), 0])
            np.multiply(radius, np.sin(angle), out=out[start : start + len(some), 1])


def _halves(h: float) -> tuple[Tensor, Tensor]:
    """The matrices from a node of length h to its left and right half; columns W, J, w, H, Y, Z."""
    y, z = math.sqrt(h) / 4, math.sqrt(h / 48)
    left = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0.5, 1.5, y, 0], [0, 0, 0, 0.25, -y / 2, z]]
    right = [
        [1, 0, 0.5, 1.5, y, 0],
        [h / 2, 1, h / 8, h / 2, 0, h / 2 * z],  # + h/2 (W + w_1/2 + H_1)
        [0, 0, 0.5, -1.5, -y, 0],
        [0, 0, 0, 0.25, -y / 2, -z],
    ]
    return torch.tensor(left, dtype=torch.float64, device="cpu"), torch.tensor(right, dtype=torch.float64, device="cpu")


def _inside(h: float, x: float) -> Array:
    """The matrix from a leaf of length h to (W, J) at its fraction x; columns W, J, w, H, Y, Z."""
    r = 1 - x
    v = 1 - 3 * x * r
    bridge = np.array([0, 0, 0, 6 * x * r, math.sqrt(h * max(x * r * v, 0.0)), 0])  # X
    w = np.array([0, 0, x, 0, 0, 0]) + bridge
    area = x * x / v * (np.array([0, 0, 0, 1, 0, 0]) - bridge / 2)
    area[5] = math.sqrt(h * max(x * r**3, 0.0) / (12 * v))
    start = np.array([1, 0, 0, 0, 0, 0])
    return np.stack([start + w, np.array([0, 1, 0, 0, 0, 0]) + h * x * (start + w / 2 + area)])
