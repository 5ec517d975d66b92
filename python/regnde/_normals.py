"""Standard normals as a function of a key and of a place: a counter-based generator.

A number is a hash of its place (J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, SC 2011), so that any numbers are
drawn at any time, on any device, in one call for all. The hash is SplitMix64's, of G. L. Steele, D. Lea, C. H. Flood,
OOPSLA 2014, 453-472: of a start plus the place times an odd step. As in their `split`, the key decides start and step.
That takes 12 operations on 64-bit integers for the 64 bits of a pair of normals, in wrapping arithmetic that CPUs and
GPUs share; Philox4x32 would take 60.

G. E. P. Box, M. E. Muller, Ann. Math. Stat. 29 (1958) 610-611: the two normals of a pair are a radius and an angle,
from the two halves of the 64 bits. Devices differ by the rounding of log, cos and sin.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Normals"]

WORD = 2**64
SHIFTS = (30, 27, 31)
FACTORS = (0xBF58476D1CE4E5B9 - WORD, 0x94D049BB133111EB - WORD, 1)  # as signed integers
FLIPS = 24  # a step with fewer changes between neighbouring bits is a weak one
ALTERNATING = 0xAAAAAAAAAAAAAAAA
HALF = 2**32 - 1

IN_CACHE = 2**14  # pairs drawn at once: temporaries of 128 KiB stay in the processor's cache
ON_GPU = 2**23  # temporaries of 64 MiB


class Normals:
    """Pairs of standard normals (Y, Z), in rows of a given length that are numbered 0, 1, ...

    Args:
        seed, branch: the key, each below 2**64.
        entries: pairs of a row.
        device: where they are made.
        dtype: float64, or float32 where that is enough: it takes two thirds of the time.
    """

    def __init__(
        self, seed: int, branch: int, entries: int, device: torch.device, dtype: torch.dtype = torch.float64
    ) -> None:
        self.entries, self.device, self.dtype = entries, device, dtype
        # Tensors of one element, whose dtype decides that of the results.
        self.least = torch.tensor(2.0**-33, dtype=dtype, device="cpu")
        self.angle = torch.tensor(2 * math.pi / 2**32, dtype=dtype, device="cpu")
        self.block = ON_GPU if device.type == "cuda" else IN_CACHE
        digest = hashlib.blake2b(branch.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=16).digest()
        start, step = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
        if (step ^ step >> 1).bit_count() < FLIPS:
            step ^= ALTERNATING
        self.start, self.step, self.row = _signed(start), _signed(step), _signed(step * entries)
        self.columns = self._columns(0) if entries <= self.block else None

    def _columns(self, start: int) -> Tensor:
        """The step times the places of a block of columns."""
        places = torch.arange(start, min(start + self.block, self.entries), dtype=torch.int64, device=self.device)
        return places.mul_(self.step)

    def fill(self, rows: NDArray[np.int64], out: Tensor) -> None:
        """Writes some rows of normals to `out`, shape (len(rows), 2, entries)."""
        begins = torch.from_numpy(rows * self.row + self.start).to(self.device).unsqueeze(1)
        together = max(1, self.block // max(self.entries, 1))
        for a in range(0, self.entries, self.block):
            columns = self._columns(a) if self.columns is None else self.columns
            for i in range(0, len(rows), together):
                self._pairs(mixed(begins[i : i + together] + columns), out[i : i + together, :, a : a + self.block])

    def _pairs(self, bits: Tensor, out: Tensor) -> None:
        """Normals from random bits of shape (n, m), which are overwritten, to `out` of shape (n, 2, m)."""
        high = torch.bitwise_right_shift(bits, 32).add_(2**31)
        radius = torch.add(self.least, high, alpha=2.0**-32)  # uniform on (0, 1]
        radius.log_().mul_(-2).sqrt_()
        angle = torch.mul(bits.bitwise_and_(HALF), self.angle)
        torch.mul(radius, torch.cos(angle), out=out[:, 0])
        torch.mul(radius, angle.sin_(), out=out[:, 1])


def mixed(x: Tensor) -> Tensor:
    """SplitMix64's hash of 64-bit integers, in place."""
    shifted = torch.empty_like(x)
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        torch.bitwise_right_shift(x, shift, out=shifted)  # repeats the sign, which the mask removes
        x.bitwise_xor_(shifted.bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            x.mul_(factor)
    return x


def _signed(x: int) -> int:
    """The signed 64-bit integer with the bits of an integer's last 64."""
    return (x + WORD // 2) % WORD - WORD // 2
