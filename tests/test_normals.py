"""The generator of normals: its integers by known answers, and that a number depends on its place alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from regnde import _normals
from regnde._normals import Normals, mix, mixed, write_pairs
from tolerances import EXACT, MANY_STANDARD_ERRORS, NEAR_ONE, ROUNDING, SINGLE

CPU = torch.device("cpu")
WORD = 2**64


def splitmix64(x: int) -> int:
    """The hash in Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def drawn(normals: Normals, *rows: int) -> torch.Tensor:
    out = torch.empty(len(rows), 2, normals.entries, dtype=torch.float64, device="cpu")
    normals.fill(np.array(rows), out)
    return out


def test_the_hash_has_its_known_answers() -> None:
    """The first outputs of SplitMix64 from the seed 1234567, as in S. Vigna's reference code."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * n) % WORD for n in range(1, 6)]
    signed = torch.tensor([s - WORD if s >= WORD // 2 else s for s in states], device="cpu")
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [x % WORD for x in mixed(signed).tolist()] == known == [splitmix64(s) for s in states]
    unsigned = np.array(states, dtype=np.uint64)
    mix(unsigned, np.empty_like(unsigned))
    assert unsigned.tolist() == known


@pytest.mark.parametrize("row", [0, 1, 2**49])
def test_a_pair_is_the_formula_of_its_place(row: int) -> None:
    normals = Normals(2**64 - 1, 3, 5, CPU)
    got = drawn(normals, row)[0]
    for place in range(5):
        bits = splitmix64((normals.start + normals.step * (5 * row + place)) % WORD)
        # The upper half is read as a signed number, to which 2^31 is added.
        radius = math.sqrt(-2 * math.log(((bits >> 32 ^ 2**31) + 0.5) / 2**32))
        angle = 2 * math.pi * (bits % 2**32) / 2**32
        assert got[0, place].item() == pytest.approx(radius * math.cos(angle), rel=ROUNDING, abs=ROUNDING)
        assert got[1, place].item() == pytest.approx(radius * math.sin(angle), rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("entries", [0, 1, 7, 64, 100])
def test_rows_do_not_depend_on_what_is_drawn_with_them(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, for any order, blocks of rows and of columns."""
    together = drawn(Normals(1, 0, entries, CPU), *range(9))
    for block in (3, 64, 10**6):
        monkeypatch.setattr(_normals, "IN_CACHE", block)
        for rows in ([4], [8, 0, 3]):
            torch.testing.assert_close(
                drawn(Normals(1, 0, entries, CPU), *rows), together[rows], rtol=EXACT, atol=EXACT
            )


def test_seeds_and_branches_have_normals_of_their_own() -> None:
    """All independent standard normals: first four moments, and products of any two rows."""
    count = 50_000
    keys = ((0, 0), (0, 1), (1, 0), (2**63, 2**40))
    rows = torch.cat([drawn(Normals(*key, count, CPU), 0, 1, 2**40).reshape(6, count) for key in keys])
    for power, (mean, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        error = math.sqrt(variance / count)
        assert ((rows**power).mean(1) - mean).abs().max() < MANY_STANDARD_ERRORS * error
    products = rows @ rows.T / count - torch.eye(len(rows), device="cpu")
    assert products.abs().max() < MANY_STANDARD_ERRORS * math.sqrt(2 / count)
    shifted = (rows[:, 1:] * rows[:, :-1]).mean(1)
    assert shifted.abs().max() < MANY_STANDARD_ERRORS / math.sqrt(count)


def test_single_precision_is_the_rounded_double() -> None:
    double, single = (torch.empty(1, 2, 10**6, dtype=t, device="cpu") for t in (torch.float64, torch.float32))
    for out in (double, single):
        Normals(3, 0, 10**6, CPU, out.dtype).fill(np.array([0]), out)
    torch.testing.assert_close(single.double(), double, rtol=SINGLE, atol=NEAR_ONE)
    near = (single.double() - double).abs() < SINGLE
    assert (~near).sum() < 10, "the radius is coarse only near 0"


def test_the_largest_and_the_smallest_radius() -> None:
    """A radius of 32 bits is at most sqrt(66 log 2); no infinity where the uniform number is rounded to 0 or to 1."""
    upper = torch.tensor([[-(2**31), -(2**31) + 1, 0, 2**31 - 1]], device="cpu")  # k = 0, 1, 2^31, 2^32 - 1
    for dtype in (torch.float32, torch.float64):
        out = torch.empty(1, 2, 4, dtype=dtype, device="cpu")
        write_pairs(upper << 32, out, dtype)  # the angle is 0
        assert not out[0, 1].any()
        known = [math.sqrt(-2 * math.log((k + 0.5) / 2**32)) for k in (0, 1, 2**31, 2**32 - 1)]
        assert out[0, 0].tolist() == pytest.approx(known, rel=SINGLE, abs=NEAR_ONE)
        assert known[0] == pytest.approx(math.sqrt(66 * math.log(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_extreme_of_the_bits_makes_a_number(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both codes: numpy's, of which the hash is left out here, and torch's."""
    halves = (0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
    bits = np.array([high << 32 | low for high in halves for low in halves], dtype=np.uint64)
    monkeypatch.setattr(_normals, "mix", lambda x, shifted: None)
    made = np.empty((1, 2, len(bits)), dtype=_normals.FLOATS[dtype])
    _normals._Workspace(len(bits), dtype).write_pairs(np.zeros((1, 1), np.uint64), bits, made)
    other = torch.empty(1, 2, len(bits), dtype=dtype, device="cpu")
    write_pairs(torch.from_numpy(bits.view(np.int64)).reshape(1, -1), other, dtype)
    torch.testing.assert_close(torch.from_numpy(made), other, rtol=SINGLE, atol=SINGLE)
    assert np.isfinite(made).all()
    assert np.abs(made).max() == pytest.approx(math.sqrt(66 * math.log(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_numpy_and_torch_make_the_same_pairs(dtype: torch.dtype) -> None:
    """What a GPU runs is another code than what the CPU runs: here both run on the CPU."""
    count = 1000
    normals = Normals(11, 2, count, CPU, dtype)
    out, other = (torch.empty(3, 2, count, dtype=dtype, device="cpu") for _ in range(2))
    normals.fill(np.array([4, 5, 6]), out)
    places = [normals.start + normals.step * i for i in range(4 * count, 7 * count)]
    signed = torch.tensor([(x + WORD // 2) % WORD - WORD // 2 for x in places], device="cpu").reshape(3, count)
    write_pairs(mixed(signed), other, dtype)
    few = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, other, rtol=few, atol=few)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tails(dtype: torch.dtype) -> None:
    """As many numbers beyond 2 to 5 standard deviations, on either side, as a standard normal has there."""
    count = 2 * 10**6
    out = torch.empty(4, 2, count, dtype=dtype, device="cpu")
    Normals(5, 0, count, CPU, dtype).fill(np.arange(4), out)
    for bound in (0.5, 1, 2, 3, 4, 4.5, 5):
        expected = 8 * count * math.erfc(bound / math.sqrt(2)) / 2
        for beyond in ((out > bound).sum().item(), (out < -bound).sum().item()):
            assert abs(beyond - expected) < MANY_STANDARD_ERRORS * math.sqrt(expected), bound
    assert out.abs().max() > 5.2  # by chance one in 25 seeds would have none


def test_weak_steps_are_mended() -> None:
    """Every step is odd, and has enough changes between neighbouring bits, as SplitMix asks for."""
    for seed in range(300):
        step = Normals(seed, 0, 1, CPU).step % WORD
        assert step % 2 == 1
        assert (step ^ step >> 1).bit_count() >= _normals.FLIPS
