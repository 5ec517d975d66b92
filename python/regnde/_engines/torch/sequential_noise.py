"""Noise of a solve with adaptive steps that nobody else sees: increments in the order of time.

The increments over the first attempt of a step are drawn. If the step is rejected, the shorter one gets a part of
them, and the rest is stored for the next step: rejection sampling with memory (C. Rackauckas, Q. Nie, DCDS-B 22 (2017)
2731-2761). So the law is that of a Brownian path at the ends of all attempts, whatever the step sizes depend on.

An interval of length h with (W, H) is divided at its fraction x, r = 1 - x, as in `_noise.py`: with v = 1 - 3 x r,
X = 6 x r H + sqrt(h x r v) Y and H' = H - X/2,

    W_1 = x W + X,   H_1 = (x^2/v) H' + sqrt(h x r^3 / (12 v)) Z,
    W_2 = r W - X,   H_2 = (r^2/v) H' - sqrt(h x^3 r / (12 v)) Z,

where H_2 = (H' - x H_1) / r, written with v = x^3 + r^3. Two neighbours make W = W_1 + W_2 and
H = x H_1 + r H_2 + (r W_1 - x W_2)/2. A method without H divides by the bridge of W alone, W_1 = x W + sqrt(h x r) Y.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regnde._engines.torch.step_normals import StepNormals
from regnde._noise import Increment, drawn_seed

__all__ = ["SequentialNoise"]

TOGETHER = 2**13  # pairs of normals that are made at once, about: a solve of few steps uses few


class Part(NamedTuple):
    """The path over an interval from where the one before it ends; H is None if it is not needed."""

    end: float
    w: Tensor
    h: Tensor | None


class SequentialNoise:
    """Increments of a path whose past is forgotten.

    They are a function of the seed and of the intervals that were asked for before.

    Args:
        t0: start of the path.
        shape: of the path.
        like: the state; increments are on its device and of its dtype.
        area: whether the space-time Levy area is asked for, or else zero.
        seed: by default drawn from torch's generator.
        branch: number of the path with this seed.
    """

    def __init__(
        self,
        t0: float,
        shape: Sequence[int],
        like: Tensor,
        *,
        area: bool,
        seed: int | None = None,
        branch: int = 0,
    ) -> None:
        self.start = t0
        self.parts: list[Part] = []
        self.shape, self.like, self.area = torch.Size(shape), like.detach(), area
        self.seed, self.branch = drawn_seed() if seed is None else seed, branch
        steps = TOGETHER // max(self.shape.numel(), 1)
        self.normals = StepNormals(self.seed, branch, shape, like, steps, area=area)
        self.zero = torch.zeros((), dtype=self.normals.dtype, device=like.device).expand(self.shape)
        self.drawn = 0

    def independent(self, t0: float) -> SequentialNoise:
        """Another path from t0 on, independent of this one and like it a function of the seed."""
        return SequentialNoise(t0, self.shape, self.like, area=self.area, seed=self.seed, branch=self.branch + 1)

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t], each of the path's shape.

        Raises:
            ValueError: for a part of the path that was forgotten.
        """
        if s < self.start:
            raise ValueError(f"the path's increment over [{s}, {t}]: what was before {self.start} is forgotten.")
        first, last = self._cut(s), self._cut(t)
        if first == last:
            return Increment(self.zero, self.zero)
        begin, (end, w, h) = s, self.parts[first]
        for part in self.parts[first + 1 : last]:
            x = (end - begin) / (part.end - begin)
            if h is not None and part.h is not None:
                h = x * h + (1 - x) * part.h + (0.5 * (1 - x)) * w - (0.5 * x) * part.w
            end, w = part.end, w + part.w
        return Increment(w, self.zero if h is None else h)

    def forget(self, t: float) -> None:
        """Drops the path before t: no increment is asked for there any more."""
        passed = self._cut(t)
        del self.parts[:passed]
        self.start = t

    def _cut(self, t: float) -> int:
        """The number of parts up to t, after one of them is made to end there."""
        at = bisect.bisect_left(self.parts, t, key=lambda part: part.end)
        begin = self.parts[at - 1].end if at else self.start
        if t == begin:
            return at
        if at == len(self.parts):
            self.parts.append(self._new(begin, t))
        elif self.parts[at].end != t:
            self.parts[at : at + 1] = self._divided(begin, t, self.parts[at])
        return at + 1

    def _number(self) -> int:
        """The number of the next normals: each is used once."""
        self.drawn += 1
        return self.drawn - 1

    def _new(self, s: float, t: float) -> Part:
        """The path over an interval of which nothing is known."""
        return Part(t, *self.normals.increment(self._number(), t - s))

    def _divided(self, s: float, t: float, part: Part) -> tuple[Part, Part]:
        """The two parts of a path over an interval from s on, divided at t."""
        length = part.end - s
        x, r = (t - s) / length, (part.end - t) / length
        y, z = self.normals.of_step(self._number())
        if part.h is None or z is None:
            w = x * part.w + math.sqrt(length * x * r) * y
            return Part(t, w, None), Part(part.end, part.w - w, None)
        v = 1 - 3 * x * r
        moved = (6 * x * r) * part.h + math.sqrt(length * x * r * v) * y
        rest = part.h - 0.5 * moved
        area = math.sqrt(length * x * r / (12 * v)) * z
        return (
            Part(t, x * part.w + moved, (x * x / v) * rest + r * area),
            Part(part.end, r * part.w - moved, (r * r / v) * rest - x * area),
        )
