"""Noise of a solve with fixed steps that nobody else sees: an independent increment for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regnde._engines.torch.step_normals import StepNormals
from regnde._noise import Increment, drawn_seed

__all__ = ["GridNoise"]


class GridNoise:
    """Increments over steps that do not overlap.

    They are a function of the seed and of the order in which the steps are first asked for. A step that is asked for
    again gets its increment again.

    Args:
        shape: of the path.
        like: the state; increments are on its device and of its dtype.
        steps: how many will be asked for, about.
        area: whether the space-time Levy area is asked for, or else zero.
    """

    def __init__(self, shape: Sequence[int], like: Tensor, steps: int, *, area: bool) -> None:
        self.normals = StepNormals(drawn_seed(), 0, shape, like, steps, area=area)
        self.no_area = torch.zeros((), dtype=self.normals.dtype, device=like.device).expand(self.normals.shape)
        self.numbers: dict[float, int] = {}  # of the steps, by their starts

    def increment(self, s: float, t: float) -> Increment:
        """W and H over [s, t], each of the path's shape."""
        w, h = self.normals.increment(self.numbers.setdefault(s, len(self.numbers)), t - s)
        return Increment(w, self.no_area if h is None else h)
