"""Standard normals for the steps of one solve, made for many steps at once, and the increments that they are of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regnde._normals import Normals

__all__ = ["StepNormals"]

TOGETHER = 2**14  # pairs of normals that are made at once at most, where one step does not need more


class StepNormals:
    """One normal of each entry for W, and another for the space-time Levy area H, as functions of a step's number.

    Args:
        seed: below 2**64.
        branch: number of a set of normals with this seed.
        shape: of the path.
        like: the state; normals are on its device and of its dtype.
        steps: for how many they are asked, about.
        area: whether those for H are needed.
    """

    def __init__(self, seed: int, branch: int, shape: Sequence[int], like: Tensor, steps: int, *, area: bool) -> None:
        self.shape, self.device, self.dtype, self.area = torch.Size(shape), like.device, like.real.dtype, area
        entries = self.shape.numel()
        per_step = entries if area else (entries + 1) // 2  # the pair is (W, H), or the W of two entries
        self.steps = max(1, min(steps, TOGETHER // max(per_step, 1)))  # of a block
        device = like.device if like.device.type == "cuda" else torch.device("cpu")
        made = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.normals = Normals(seed, branch, self.steps * per_step, device, made)
        self.block = -1
        self.w: Sequence[Tensor] = ()
        self.h: Sequence[Tensor] = ()

    def of_step(self, number: int) -> tuple[Tensor, Tensor | None]:
        """The normals for W and H of a step, each of the path's shape; None in place of those that are not needed."""
        block, at = divmod(number, self.steps)
        if block != self.block:
            self._draw(block)
        return self.w[at], self.h[at] if self.area else None

    def increment(self, number: int, length: float) -> tuple[Tensor, Tensor | None]:
        """W and H of a step of that length with these normals, independent of those of other steps."""
        y, z = self.of_step(number)
        root = math.sqrt(length)
        return y * root, None if z is None else z * (root / math.sqrt(12))

    def _draw(self, block: int) -> None:
        """Draws the normals of a block of steps."""
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
