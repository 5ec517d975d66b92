"""The Brownian path: its law, and that it is a function of its arguments alone."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import random
import threading

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regnde import BrownianPath
from tolerances import MANY_STANDARD_ERRORS, NEAR_ONE, ROUNDING, SINGLE, STANDARD_ERRORS

N = 100_000  # independent entries: the samples of every statistic
TIMES = (0.0, 0.37, 0.4, 0.7071, 1.3, 2.0)


def samples(*intervals: tuple[float, float], resolution: float = 0.01, seed: int = 1) -> list[torch.Tensor]:
    """W and H over each interval, scaled to variance 1, as a flat list of tensors of shape (N,)."""
    path = BrownianPath(0.0, 2.0, (N,), seed=seed, resolution=resolution)
    out = []
    for s, t in intervals:
        w, h = path.increment(s, t)
        out += [w / math.sqrt(t - s), h / math.sqrt((t - s) / 12)]
    return out


def assert_close_to(values: torch.Tensor, expected: float) -> None:
    """The mean of independent values within the standard errors that tolerances.py allows."""
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < MANY_STANDARD_ERRORS * error


def assert_standard_normals(variables: list[torch.Tensor]) -> None:
    """Means, covariances and fourth moments of independent standard normals."""
    for i, x in enumerate(variables):
        assert_close_to(x, 0.0)
        assert_close_to(x**4, 3.0)
        for y in variables[: i + 1]:
            assert_close_to(x * y, float(x is y))
        for y in variables[:i]:
            assert_close_to(x**2 * y**2, 1.0)


@pytest.mark.parametrize("interval", [(0.0, 2.0), (0.0, 1.0), (0.3, 1.7), (0.123, 0.2), (1.99, 2.0)])
def test_law_of_one_interval(interval: tuple[float, float]) -> None:
    """W ~ N(0, h) and H ~ N(0, h/12), independent."""
    assert_standard_normals(samples(interval))


def test_law_of_neighbours() -> None:
    """W and H of five adjacent intervals, none of them dyadic: all independent."""
    assert_standard_normals(samples(*itertools.pairwise(TIMES)))


@pytest.mark.parametrize("resolution", [2.0, 1.0, 0.1, 1e-6])
def test_law_does_not_depend_on_the_resolution(resolution: float) -> None:
    """One time inside a leaf is exact, however long the leaf: here up to the whole span."""
    inner = 0.77
    assert_standard_normals(samples((0.0, inner), (inner, 2.0), resolution=resolution))


def test_law_of_adjacent_leaves() -> None:
    """Two times inside neighbouring leaves."""
    assert_standard_normals(samples((0.0, 0.9), (0.9, 1.1), (1.1, 2.0), resolution=1.0))


def test_covariance_of_the_path() -> None:
    """Cov(W_s, W_t) = min(s, t)."""
    path = BrownianPath(0.0, 2.0, (N,), seed=2, resolution=0.01)
    for s in TIMES[1:]:
        for t in TIMES[1:]:
            assert_close_to(path(s) * path(t), min(s, t))


def test_bridges_are_independent() -> None:
    """What the path does inside an interval, beside its chord, has nothing to do with any other interval."""
    path = BrownianPath(0.0, 2.0, (N,), seed=3, resolution=0.01)
    bridges = []
    for s, t in ((0.1, 0.5), (0.5, 1.3), (1.3, 1.9)):
        for x in (0.2, 0.7):
            inner = s + x * (t - s)
            bridges.append((s, t, x, path(inner) - path(s) - x * (path(t) - path(s))))
    for s, t, x, bridge in bridges:
        assert_close_to(bridge**2, x * (1 - x) * (t - s))
        for u, v in ((0.1, 0.5), (0.5, 1.3), (1.3, 1.9)):
            assert_close_to(bridge * path.increment(u, v).w, 0.0)
        for u, _, _, other in bridges:
            if u != s:
                assert_close_to(bridge * other, 0.0)


def test_midpoint_given_the_interval() -> None:
    """W at the midpoint given (W, H): mean W/2 + 3/2 H, variance h/16 (Foster, Lyons, Oberhauser 2020)."""
    path = BrownianPath(0.0, 2.0, (N,), seed=4, resolution=0.01)
    s, t = 0.31, 1.77
    w, area = path.increment(s, t)
    rest = path((s + t) / 2) - path(s) - w / 2 - 1.5 * area
    assert_close_to(rest, 0.0)
    assert_close_to(rest**2, (t - s) / 16)
    assert_close_to(rest * w, 0.0)
    assert_close_to(rest * area, 0.0)


def test_area_is_the_integral_of_the_path() -> None:
    """H = (1/h) int (W_u - W_s - chord) du, by the trapezoidal rule on ever finer points."""
    path = BrownianPath(0.0, 1.0, (500,), seed=5, resolution=1e-5)
    s, t = 0.2, 0.9
    w, area = path.increment(s, t)
    errors = []
    for count in (16, 64, 256):
        inner = [s + (t - s) * i / count for i in range(count + 1)]
        above = torch.stack([path(u) - path(s) - (u - s) / (t - s) * w for u in inner])
        errors.append(float((above[1:].mean(0) - area).square().mean().sqrt()))
    for count, error in zip((16, 64, 256), errors, strict=True):  # each piece adds its own H, of variance h/12
        expected = math.sqrt((t - s) / 12) / count
        assert error == pytest.approx(expected, rel=STANDARD_ERRORS / math.sqrt(2 * 500))


times = st.floats(0.0, 2.0)


@settings(max_examples=60, deadline=None)
@example([0.0, 1.0, 5e-324])
@example([0.0, 2.2e-308, 1.0])
@given(st.lists(times, min_size=3, max_size=3, unique=True))
def test_increments_add_up(three: list[float]) -> None:
    """W and the integral of the path are additive to rounding, for any times whatever."""
    s, u, t = sorted(three)
    path = BrownianPath(0.0, 2.0, (4,), seed=6)
    first, second, whole = path.increment(s, u), path.increment(u, t), path.increment(s, t)
    torch.testing.assert_close(first.w + second.w, whole.w, rtol=0, atol=ROUNDING)
    integral = (u - s) * (first.w / 2 + first.h) + (t - u) * (first.w + second.w / 2 + second.h)
    torch.testing.assert_close(integral, (t - s) * (whole.w / 2 + whole.h), rtol=0, atol=ROUNDING)


@settings(max_examples=30, deadline=None)
@given(st.lists(times, min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_case_20b_queries_in_any_order_see_one_path(asked: list[float], order: random.Random) -> None:
    """Bit for bit, whatever was asked before."""
    path = BrownianPath(0.0, 2.0, (3,), seed=7)
    seen = {t: path(t) for t in asked}
    shuffled = sorted(asked, key=lambda _: order.random())
    again = BrownianPath(0.0, 2.0, (3,), seed=7)
    for t in shuffled + shuffled[::-1]:
        assert torch.equal(again(t), seen[t])
        assert torch.equal(again(t), BrownianPath(0.0, 2.0, (3,), seed=7)(t))


def test_one_path_under_grad_dtype_threads_and_copies() -> None:
    make = lambda: BrownianPath(0.0, 1.0, (2, 3), seed=8)  # noqa: E731 - one line reads best
    w, h = make().increment(0.25, 0.6)
    outcomes = [make().increment(0.25, 0.6), copy.deepcopy(make()).increment(0.25, 0.6)]
    warm = make()
    warm(0.9)
    outcomes.append(pickle.loads(pickle.dumps(warm)).increment(0.25, 0.6))
    with torch.inference_mode():
        outcomes.append(make().increment(0.25, 0.6))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    outcomes.append(make().increment(0.25, 0.6))
    torch.set_default_dtype(default)
    shared, found = make(), []
    ask = lambda: found.extend(shared.increment(0.25, 0.25 + 0.35 * i / 20) for i in range(1, 21))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(20):
        outcomes_i = [pair for k, pair in enumerate(sorted(found, key=lambda p: float(p.w.sum()))) if k // 4 == i]
        assert all(torch.equal(a.w, b.w) and torch.equal(a.h, b.h) for a in outcomes_i for b in outcomes_i)
    for other in outcomes:
        assert torch.equal(other.w, w)
        assert torch.equal(other.h, h)
    assert w.dtype == h.dtype == torch.float64
    assert w.shape == h.shape == (2, 3)


# --- normals in single precision ------------------------------------------------------------------------


def test_law_in_single_precision() -> None:
    """Moments and products of W and H of neighbours, and the distribution of W by Kolmogorov and Smirnov's test."""
    path = BrownianPath(0.0, 2.0, (N,), seed=14, dtype=torch.float32)
    rows = []
    for s, t in (*itertools.pairwise(TIMES), (0.5, 0.5001)):
        w, h = path.increment(s, t)
        assert w.dtype == h.dtype == torch.float32
        rows += [w.double() / math.sqrt(t - s), h.double() / math.sqrt((t - s) / 12)]
    assert_standard_normals(rows[:-2])
    for x in rows:
        normal = 0.5 * (1 + torch.special.erf(x.sort().values / math.sqrt(2)))
        ranks = torch.arange(1, N + 1, dtype=torch.float64) / N
        distance = torch.maximum((ranks - normal).abs(), (ranks - 1 / N - normal).abs()).max()
        assert distance < 2.3 / math.sqrt(N)  # exceeded with probability 2 exp(-2 * 2.3^2) = 5e-5


def test_single_precision_is_the_same_path_but_for_rounding() -> None:
    """Also over short steps: no digits are lost in differences of large values."""
    single, double = (BrownianPath(0.0, 2.0, (N,), seed=15, dtype=d) for d in (torch.float32, torch.float64))
    for s, t in ((0.0, 2.0), (0.3, 0.4), (1.7, 1.7001), (1.99, 1.99 + 1e-6)):
        for a, b in zip(single.increment(s, t), double.increment(s, t), strict=True):
            difference = (a.double() - b).abs() / math.sqrt(t - s)
            assert difference.max() < NEAR_ONE
            assert difference.square().mean().sqrt() < SINGLE
    assert torch.equal(single(0.7), BrownianPath(0.0, 2.0, (N,), seed=15, dtype=torch.float32)(0.7))
    for other in (single.independent(), copy.copy(single), copy.deepcopy(single), single.to("cpu")):
        assert other(1.0).dtype == other.dtype == torch.float32
    assert single(2.0).isfinite().all()


def test_results_are_the_callers_own() -> None:
    """Writing to a result does not touch the path."""
    path = BrownianPath(0.0, 1.0, (2,), seed=9)
    before = path(0.5).clone()
    path(0.5).zero_()
    path.increment(0.0, 0.5).w.zero_()
    assert torch.equal(path(0.5), before)


def test_seeds_and_branches_are_different_paths() -> None:
    path = BrownianPath(0.0, 1.0, (N,), seed=12, resolution=0.1)
    for other in (path.independent(), path.independent(2), BrownianPath(0.0, 1.0, (N,), seed=13, resolution=0.1)):
        for interval in ((0.0, 1.0), (0.3, 0.8)):
            mine, theirs = path.increment(*interval), other.increment(*interval)
            for a in mine:
                for b in theirs:
                    assert_close_to(a * b, 0.0)


def test_default_seed_comes_from_torch() -> None:
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(BrownianPath(0.0, 1.0, (2,))(1.0))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (5, 2), (3, 1, 2)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    path = BrownianPath(-1.0, 3.0, shape, seed=0)
    assert path(0.3).shape == path.increment(-1.0, 3.0).h.shape == shape
    assert not path(-1.0).any()
    assert not path.increment(0.5, 0.5).h.any()


def test_cost_of_a_query_does_not_grow_with_their_number() -> None:
    """Bounded memory: what is kept is the way to the last point, whatever has been asked."""
    path = BrownianPath(0.0, 1.0, (10,), seed=0)
    path(0.5)
    kept = path._tree.rows.nbytes
    for i in range(2000):
        path(i / 2000)
    assert path._tree.rows.nbytes == kept == 16 * (path.depth + 2) * 10
    assert len(path._recent) <= 4


@settings(max_examples=200, deadline=None)
@given(st.floats(0.0, 0.999), st.floats(1e-9, 1.0))
def test_a_cheaper_time_is_near_and_costs_less(start: float, length: float) -> None:
    path = BrownianPath(-0.1, 0.6, (2,), seed=1)
    s = path.t0 + 0.7 * start
    t = min(s + 0.7 * length, path.t1)
    near = path.cheaper(s, t)
    assert path.t0 <= near <= path.t1
    assert abs(near - t) <= (t - s) / 64 * (1 + 1e-6)
    if t - s > 64 * path.resolution:
        path(near)
        drawn = path._tree.known
        assert drawn <= math.log2(0.7 / (t - s)) + 7
    else:
        assert near == t or t - s > 32 * path.resolution


def test_resolves_says_which_intervals_have_their_exact_law() -> None:
    path = BrownianPath(0.0, 1.0, (2,), resolution=0.25)
    assert path.resolution == 0.25
    assert not path.resolves(0.3, 0.4)
    assert path.resolves(0.25, 0.3)
    assert path.resolves(0.3, 0.5)
    assert path.resolves(0.4, 0.6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1.0, 1.0, ()), {}, "t0 < t1"),
        ((1.0, 0.0, ()), {}, "t0 < t1"),
        ((0.0, math.inf, ()), {}, "finite"),
        ((0.0, 1.0, ()), {"seed": -1}, "seed=-1"),
        ((0.0, 1.0, ()), {"seed": 2**64}, "seed="),
        ((0.0, 1.0, ()), {"resolution": 0.0}, "above zero"),
        ((0.0, 1.0, ()), {"resolution": 1e-30}, "clock"),
        ((0.0, 1.0, ()), {"dtype": torch.float16}, "float32 or torch.float64"),
    ],
)
def test_refuses(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrownianPath(*arguments, **options)


def test_refuses_times_outside_and_out_of_order() -> None:
    path = BrownianPath(0.0, 1.0, (2,))
    for t in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="outside"):
            path(t)
    with pytest.raises(ValueError, match="earlier time first"):
        path.increment(0.6, 0.5)


# --- case A14: spans and settings of any kind ------------------------------------------------------------


@pytest.mark.parametrize("span", [1e-300, 1e-310, 1e-321, 1e-250, 1e250])
def test_case_A14_spans_of_any_length(span: float) -> None:
    """In units of its span a path is the one over a span of 1, where the factor is a power of 4."""
    path = BrownianPath(0.0, span, (N,), seed=4)
    w, h = path.increment(0.0, span)
    assert_close_to((w / math.sqrt(span)) ** 2, 1.0)
    assert_close_to((h / math.sqrt(span)) ** 2 * 12, 1.0)
    assert path.resolves(0.0, span)
    assert not path.resolves(span * 0.3, span * 0.3)
    left, right = path.increment(0.0, span / 2).w, path.increment(span / 2, span).w
    torch.testing.assert_close(left + right, w, rtol=ROUNDING, atol=ROUNDING * math.sqrt(span))
    assert not torch.equal(path.independent().increment(0.0, span).w, w)


def test_case_A14_the_scale_of_time_is_exact() -> None:
    short, unit = BrownianPath(0.0, 4.0**-530, (5,), seed=4), BrownianPath(0.0, 1.0, (5,), seed=4)
    for s, t in ((0.0, 1.0), (0.25, 0.8125), (0.5, 0.5)):
        scaled = short.increment(math.ldexp(s, -1060), math.ldexp(t, -1060))
        for a, b in zip(scaled, unit.increment(s, t), strict=True):
            assert torch.equal(a * 2.0**530, b)


def test_case_A14_resolutions_of_any_length() -> None:
    assert BrownianPath(0.0, 1.0, (1,), resolution=math.inf).depth == 0
    assert BrownianPath(0.0, 1e-320, (1,), resolution=1e-321).depth == 4
    with pytest.raises(ValueError, match="resolves no leaf below"):
        BrownianPath(0.0, 1.0, (1,), resolution=1e-320)
    path = BrownianPath(0.0, 0.3, (2,), seed=1, resolution=0.0375)
    assert pickle.loads(pickle.dumps(path)).depth == path.independent().depth == path.depth


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_case_A14_defaults_of_torch_do_not_reach_the_path(device: str, dtype: torch.dtype) -> None:
    wanted = BrownianPath(0.0, 1.0, (3,), seed=6).increment(0.2, 0.9)
    torch.manual_seed(11)
    drawn = BrownianPath(0.0, 1.0, (3,)).seed
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(11)
        assert BrownianPath(0.0, 1.0, (3,)).seed == drawn
        with torch.autocast("cpu", torch.bfloat16):
            got = BrownianPath(0.0, 1.0, (3,), seed=6).increment(0.2, 0.9)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, wanted, strict=True):
        assert (a.device.type, a.dtype) == ("cpu", torch.float64)
        assert torch.equal(a, b)


def test_case_A14_a_path_begun_in_inference_mode_goes_on() -> None:
    path, wanted = BrownianPath(0.0, 1.0, (3,), seed=6), BrownianPath(0.0, 1.0, (3,), seed=6)
    with torch.inference_mode():
        path(0.3)
    assert torch.equal(path(0.9), wanted(0.9))
