"""Standard normals as a function of a key and of a place: a counter-based generator.

A number is a hash of its place (J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, SC 2011), so that any numbers are
drawn at any time, on any device, in one call for all. The hash is SplitMix64's, of G. L. Steele, D. Lea, C. H. Flood,
OOPSLA 2014, 453-472: of a start plus the place times an odd step. As in their `split`, the key decides start and step.
That takes 9 operations on 64-bit integers for the 64 bits of a pair of normals, in wrapping arithmetic that CPUs and
GPUs share; Philox4x32 would take 60.

G. E. P. Box, M. E. Muller, Ann. Math. Stat. 29 (1958) 610-611: the two normals of a pair are a radius and an angle,
from the two halves of the 64 bits. The radius is sqrt(-2 log u) with u = (k + 1/2) / 2^32, k = 0, ..., 2^32 - 1. So the
largest is sqrt(66 log 2) = 6.76, which a standard normal exceeds once in 7e10 draws.

Devices and precisions have the same integers. Devices differ by the rounding of log, cos and sin. Precisions differ by
that of u, too: near 1 it has 24 bits in float32, so that a radius near 0 is a multiple of 3.5e-4 or so there.

On the CPU numpy does the arithmetic, which has unsigned shifts and half of torch's overhead for each call, but for cos
and sin in float64, where torch takes a third of the time.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Normals"]

WORD = 2**64
SHIFTS = (30, 27, 31)
FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 1)
UNSIGNED = [(np.uint64(shift), np.uint64(factor)) for shift, factor in zip(SHIFTS, FACTORS, strict=True)]
FLIPS = 24  # a step with fewer changes between neighbouring bits is a weak one
ALTERNATING = 0xAAAAAAAAAAAAAAAA

FLOATS: dict[torch.dtype, Callable[[float], Any]] = {torch.float32: np.float32, torch.float64: np.float64}
LEAST, UNIT = 2.0**-33, 2.0**-32  # u = LEAST + k UNIT
ANGLE = 2 * math.pi / 2**32  # an angle's lower half is a signed number: -pi to pi
TOP = np.uint32(2**31)  # the upper half is a signed number, to which this is added
HIGH, LOW = (1, 0) if sys.byteorder == "little" else (0, 1)

IN_CACHE = 2**14  # pairs drawn at once: temporaries of 128 KiB stay in the processor's cache
ON_GPU = 2**23  # temporaries of 64 MiB


class Normals:
    """Pairs of standard normals (Y, Z), in rows of a given length that are numbered 0, 1, ...

    Args:
        seed, branch: the key, each below 2**64.
        entries: pairs of a row.
        device: where they are made.
        dtype: of cos, sin and products: float64, or float32 where that is enough.
    """

    def __init__(
        self, seed: int, branch: int, entries: int, device: torch.device, dtype: torch.dtype = torch.float64
    ) -> None:
        self.entries, self.device, self.dtype = entries, device, dtype
        digest = hashlib.blake2b(branch.to_bytes(8, "little"), key=seed.to_bytes(8, "little"), digest_size=16).digest()
        self.start, step = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
        if (step ^ step >> 1).bit_count() < FLIPS:
            step ^= ALTERNATING
        self.step = step
        self.block = IN_CACHE if device.type == "cpu" else ON_GPU
        self.columns = np.arange(min(self.block, entries), dtype=np.uint64) * np.uint64(step)
        self.there = None if device.type == "cpu" else torch.from_numpy(self.columns.view(np.int64)).to(device)
        self.work: _Workspace | None = None  # made at the first use

    def fill(self, rows: NDArray[np.int64], out: Tensor) -> None:
        """Writes some rows of normals to `out`, shape (len(rows), 2, entries)."""
        begins = (rows.astype(np.uint64) * np.uint64(self.step * self.entries % WORD) + np.uint64(self.start))[:, None]
        together = max(1, self.block // max(self.entries, 1))
        host = out.numpy() if self.there is None else None
        for a in range(0, self.entries, self.block):
            m = min(self.block, self.entries - a)
            for i in range(0, len(rows), together):
                n = min(together, len(rows) - i)
                block = begins[i : i + n] + np.uint64(self.step * a % WORD) if a else begins[i : i + n]
                if self.there is not None:
                    signed = torch.from_numpy(block.view(np.int64)).to(self.device)
                    write_pairs(mixed(signed + self.there[:m]), out[i : i + n, :, a : a + m], self.dtype)
                elif host is not None:
                    self._workspace(n * m).write_pairs(block, self.columns[:m], host[i : i + n, :, a : a + m])

    def _workspace(self, size: int) -> _Workspace:
        """The arrays for a block of this many pairs, or for more."""
        if self.work is None or self.work.size < size:
            self.work = _Workspace(size if self.work is None else self.block, self.dtype)
        return self.work


class _Workspace:
    """Arrays in which a block of pairs is made on the CPU, so that none is allocated for each of the operations."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size = size
        kind = FLOATS[dtype]
        self.integers = [np.empty(size, np.uint64) for _ in range(2)]
        self.floats = [np.empty(size, kind) for _ in range(3)]
        self.unit, self.least, self.scale, self.minus_two = map(kind, (UNIT, LEAST, ANGLE, -2))
        self.parts: dict[tuple[int, int], _Part] = {}

    def write_pairs(self, begins: NDArray[np.uint64], columns: NDArray[np.uint64], out: NDArray[Any]) -> None:
        """Writes the normals of the places begins + columns to `out`, shape (n, 2, m)."""
        shape = len(begins), len(columns)
        if shape not in self.parts:
            self.parts[shape] = _Part(*shape, self.integers, self.floats)
        part = self.parts[shape]
        np.add(begins, columns, part.places)
        mix(part.bits, part.shifted)
        np.bitwise_xor(part.upper, TOP, part.high)
        radius, angle = part.radius, part.angle
        np.copyto(radius, part.high, casting="unsafe")
        np.multiply(radius, self.unit, radius)
        np.add(radius, self.least, radius)
        np.log(radius, radius)
        np.multiply(radius, self.minus_two, radius)
        np.sqrt(radius, radius)
        np.copyto(angle, part.lower, casting="unsafe")
        np.multiply(angle, self.scale, angle)
        if part.in_torch is None:
            np.cos(angle, part.cosine)
            np.sin(angle, angle)
        else:
            sine, cosine = part.in_torch
            torch.cos(sine, out=cosine)
            sine.sin_()
        for i, factor in enumerate(part.factors):
            np.multiply(part.rows, factor, out[:, i])


class _Part:
    """Views of the arrays for n rows of m pairs."""

    def __init__(self, n: int, m: int, integers: Sequence[NDArray[np.uint64]], floats: Sequence[NDArray[Any]]) -> None:
        self.bits, self.shifted = (x[: n * m] for x in integers)
        self.places = self.bits.reshape(n, m)
        self.upper, self.lower = self.bits.view(np.uint32)[HIGH::2], self.bits.view(np.int32)[LOW::2]
        self.high = self.shifted.view(np.uint32)[: n * m]
        self.radius, self.angle, self.cosine = (x[: n * m] for x in floats)
        double = self.angle.dtype == np.float64
        self.in_torch = (torch.from_numpy(self.angle), torch.from_numpy(self.cosine)) if double else None
        self.rows = self.radius.reshape(n, m)
        self.factors = [x.reshape(n, m) for x in (self.cosine, self.angle)]


def mix(x: NDArray[np.uint64], shifted: NDArray[np.uint64]) -> None:
    """SplitMix64's hash of 64-bit integers, in place; `shifted` is overwritten."""
    for shift, factor in UNSIGNED:
        np.right_shift(x, shift, shifted)
        np.bitwise_xor(x, shifted, x)
        if factor != 1:
            np.multiply(x, factor, x)


def mixed(x: Tensor) -> Tensor:
    """The same hash on any device, of integers that torch takes for signed ones."""
    for shift, factor in zip(SHIFTS, FACTORS, strict=True):
        # A right shift repeats the sign, which the mask removes.
        x.bitwise_xor_(torch.bitwise_right_shift(x, shift).bitwise_and_(2 ** (64 - shift) - 1))
        if factor != 1:
            x.mul_(_signed(factor))
    return x


def write_pairs(bits: Tensor, out: Tensor, dtype: torch.dtype) -> None:
    """The normals of random bits of shape (n, m), to `out` of shape (n, 2, m), on any device."""
    high = torch.bitwise_right_shift(bits, 32).add_(int(TOP))
    radius = high.to(dtype).mul_(UNIT).add_(LEAST).log_().mul_(-2).sqrt_()
    angle = bits.to(torch.int32).to(dtype).mul_(ANGLE)
    torch.mul(radius, torch.cos(angle), out=out[:, 0])
    torch.mul(radius, angle.sin_(), out=out[:, 1])


def _signed(x: int) -> int:
    """The signed 64-bit integer with the bits of an integer's last 64."""
    return (x + WORD // 2) % WORD - WORD // 2
