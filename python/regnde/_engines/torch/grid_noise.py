"""Noise of a solve with fixed steps that nobody else sees: an independent increment for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._noise import Increment, drawn_seed
from regnde._normals import Normals

__all__ = ["GridNoise"]

TOGETHER = 2**16  # pairs of normals that are made at once at most, where one step does not need more


class GridNoise:
    """Increments over steps that do not overlap, made for many steps at once.

    They are a function of the seed and of the order in which the steps are first asked for. A step that is asked for
    again gets its increment again.

    Args:
        shape: of the path.
        like: the state; increments are on its device and of its dtype.
        steps: how many will be asked for, about.
        area: whether the space-time Levy area is asked for, or else zero.
    """

    def __init__(self, shape: Sequence[int], like: Tensor, steps: int, *, area: bool) -> None:
        self.shape, self.device, self.dtype = torch.Size(shape), like.device, like.real.dtype
        entries = self.shape.numel()
        per_step = entries if area else (entries + 1) // 2  # the pair is (W, H), or the W of two entries
        self.area = area
        self.steps = max(1, min(steps, TOGETHER // max(per_step, 1)))  # of a block
        device = like.device if like.device.type == "cuda" else torch.device("cpu")
        made = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.normals = Normals(drawn_seed(), 0, self.steps * per_step, device, made)
        self.numbers: dict[float, int] = {}  # of the steps, by their starts
        self.block = -1
        self.w: Sequence[Tensor] = ()
        self.h: Sequence[Tensor] = ()

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t], each of the path's shape."""
        block, at = divmod(self.numbers.setdefault(s, len(self.numbers)), self.steps)
        if block != self.block:
            self._draw(block)
        root = math.sqrt(t - s)
        w = self.w[at] * root
        return Increment(w, self.h[at] * (root / math.sqrt(12)) if self.area else torch.zeros_like(w))

    def _draw(self, block: int) -> None:
        """Draws the standard normals of a block of steps."""
        entries = self.shape.numel()
        normals = self.normals
        pairs = torch.empty(1, 2, normals.entries, dtype=normals.dtype, device=normals.device)
        normals.fill(np.array([block]), pairs)
        pairs = pairs.to(self.device, self.dtype)
        if self.area:
            w, h = pairs[0].reshape(2, self.steps, *self.shape)
            self.h = h.unbind()
        else:
            w = pairs.reshape(self.steps, -(-entries // 2) * 2)[:, :entries].reshape(self.steps, *self.shape)
        self.block, self.w = block, w.unbind()
