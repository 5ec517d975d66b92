"""Batches whose samples step apart: each as if it were solved alone."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import regnde
from problems import SMALL_P, SMALL_Y0, exp_decay, small_net
from regnde import ErrorPenalty, Local, Solver, SquaredErrorPenalty, StiffnessPenalty
from tolerances import CANCELLED, EXACT, GOLDEN_DT, GOLDEN_ERROR, ROUNDING

APART = Solver(batch="per-sample", rtol=1e-5, atol=1e-5, engine="torch")
JOINT = Solver(rtol=1e-5, atol=1e-5, engine="torch")


def each(engine: str, **options: object) -> Solver:
    return dataclasses.replace(APART, engine=engine, **options)  # type: ignore[arg-type]


def van_der_pol(mu: torch.Tensor):
    """Its own stiffness for each sample: the field looks its samples up."""

    def field(t: torch.Tensor, y: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        return torch.stack([y[:, 1], mu[samples] * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1)

    return field


def start(batch: int) -> torch.Tensor:
    return torch.tensor([[2.0, 0.0]], dtype=torch.float64).repeat(batch, 1)


def test_case_16a_one_stiff_sample_among_64(engine: str) -> None:
    mild = torch.ones(64, dtype=torch.float64)
    reference = regnde.solve(van_der_pol(mild), start(64), [0.0, 2.5, 5.0], each(engine), record="all")
    alone = {
        m: regnde.solve(
            van_der_pol(torch.tensor([m], dtype=torch.float64)), start(1), [0.0, 5.0], each(engine)
        ).stats.nfe
        for m in (1.0, 50.0)
    }
    apart = 63 * alone[1.0] + alone[50.0]
    for where in (0, 17, 63):
        mu = mild.clone()
        mu[where] = 50.0
        sol = regnde.solve(van_der_pol(mu), start(64), [0.0, 2.5, 5.0], each(engine), record="all")
        others = [i for i in range(64) if i != where]
        torch.testing.assert_close(sol.ys[:, others], reference.ys[:, others], rtol=ROUNDING, atol=0)
        counts = [sol.stats.samples[i] for i in others]
        assert counts == [reference.stats.samples[i] for i in others]
        n = counts[0].accepted
        for name in ("dt", "error", "stiffness"):
            mixed, expected = getattr(sol.steps, name), getattr(reference.steps, name)
            torch.testing.assert_close(mixed[:n, others], expected[:n, others], rtol=ROUNDING, atol=0)
        assert not sol.steps.mask[n:, others].any()
        assert sol.stats.samples[where].accepted > 5 * n
        assert sum(sample.nfe for sample in sol.stats.samples) <= 1.2 * apart


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", ["tsit5", "dp5", "bs3", "vern7"])
def test_every_sample_as_if_alone(method: str, grad: bool, engine: str) -> None:
    """Against joint solves of one sample each: steps, records, outputs and counts.

    The sums run in another order, and an error estimate is a difference that cancels: the next step's
    size differs by that rounding, as between this engine and Julia.
    """
    y0 = torch.tensor([[1.0, -0.5], [0.3, 0.8], [3.0, 2.0]], dtype=torch.float64)
    for ts in ([0.0, 0.3, 0.3, 1.1, 1.5], [1.5, 1.0, 0.0]):
        apart = Solver(method=method, engine=engine, batch="per-sample", rtol=1e-5, atol=1e-5)
        joint = Solver(method=method, engine=engine, rtol=1e-5, atol=1e-5)
        p = SMALL_P.clone().requires_grad_(grad)
        sol = regnde.solve(timed(p), y0, ts, apart, record="all")
        for i in range(3):
            alone = regnde.solve(small_net(p), y0[i : i + 1], ts, joint, record="all")
            n = alone.stats.accepted
            torch.testing.assert_close(sol.ys[:, i], alone.ys[:, 0], rtol=0, atol=1e-6)
            assert sol.stats.samples[i].accepted == n
            assert sol.stats.samples[i].rejected == alone.stats.rejected
            assert sol.stats.samples[i].nfe == alone.stats.nfe
            torch.testing.assert_close(sol.steps.dt[:n, i], alone.steps.dt, rtol=GOLDEN_DT, atol=0)
            torch.testing.assert_close(sol.steps.t[:n, i], alone.steps.t, rtol=GOLDEN_DT, atol=0)
            torch.testing.assert_close(sol.steps.error[:n, i], alone.steps.error, rtol=GOLDEN_ERROR, atol=0)
            assert sol.steps.mask[:, i].tolist() == [j < n for j in range(len(sol.steps))]


def timed(p: torch.Tensor):
    """`small_net` for times that are a column, one for each sample."""
    net = small_net(p)
    return lambda t, y: net(t.squeeze(-1), y)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize(
    "penalty", [ErrorPenalty(), ErrorPenalty("mean"), SquaredErrorPenalty("max"), StiffnessPenalty("mean")], ids=repr
)
def test_penalties_and_their_gradients(penalty: regnde.Penalty, gradient: str, engine: str) -> None:
    """Sums and means over all steps of all samples, as computed from the samples solved alone."""
    outcomes = []
    for together in (True, False):
        p = SMALL_P.clone().requires_grad_()
        solver = Solver(
            engine=engine, rtol=1e-4, atol=1e-4, gradient=gradient, batch="per-sample" if together else "joint"
        )
        if together:
            sol = regnde.solve(timed(p), SMALL_Y0, [0.0, 1.5], solver, record="all")
            value = penalty(sol) + sol.y1.square().sum()
        else:
            sols = [regnde.solve(small_net(p), y[None], [0.0, 1.5], solver, record="all") for y in SMALL_Y0]
            kind = {"sum": torch.sum, "mean": torch.mean, "max": torch.max}[penalty.reduction]
            value = kind(torch.cat([penalty.term(s.steps) for s in sols])) + sum(s.y1.square().sum() for s in sols)
        outcomes.append((value.detach(), *torch.autograd.grad(value, p)))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-6, atol=1e-12)


def test_shapes_and_empty_batches(engine: str) -> None:
    for shape in ((1,), (4,), (3, 2, 2), (0, 3), (2, 0)):
        if engine == "julia" and 0 in shape:
            continue  # it takes states of one or more entries
        sol = regnde.solve(
            exp_decay, torch.ones(shape, dtype=torch.float64), [0.0, 0.5, 1.0], each(engine), record="all"
        )
        assert sol.ys.shape == (3, *shape)
        assert sol.steps.error.shape[1] == shape[0]
        torch.testing.assert_close(sol.y1, torch.full(shape, math.exp(-1), dtype=torch.float64), rtol=1e-4, atol=0)
    still = regnde.solve(exp_decay, torch.ones(3, 2, requires_grad=True), [1.0, 1.0], each(engine), record="all")
    assert still.ys.tolist() == [[[1.0, 1.0]] * 3] * 2
    assert ErrorPenalty("mean")(still).item() == 0.0
    assert still.stats.nfe == 0


def test_time_enters_as_a_column(engine: str) -> None:
    net = regnde.nn.MLP([2, 8, 2]).double()
    y0 = torch.randn(5, 2, dtype=torch.float64)
    joint = regnde.solve(net, y0, [0.0, 1.0], Solver(engine=engine, rtol=1e-8, atol=1e-8)).y1
    apart = regnde.solve(net, y0, [0.0, 1.0], Solver(engine=engine, rtol=1e-8, atol=1e-8, batch="per-sample")).y1
    torch.testing.assert_close(joint, apart, rtol=0, atol=1e-6)


def test_failures_name_the_sample(engine: str) -> None:
    rates = torch.tensor([1.0, 1.0, math.nan, 1.0], dtype=torch.float64)
    field = lambda t, y, samples: -rates[samples, None] * y  # noqa: E731 - one line reads best
    with pytest.raises(regnde.NonFiniteDynamics, match="sample 2 of 4") as caught:
        regnde.solve(field, torch.ones(4, 1, dtype=torch.float64), [0.0, 1.0], each(engine))
    assert caught.value.solution.ys.shape == (1, 4, 1)
    blow = lambda t, y: y * y  # noqa: E731
    y0 = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    with pytest.raises(regnde.StepSizeUnderflow, match="sample 1 of 2"):
        regnde.solve(blow, y0, [0.0, 2.0], each(engine))
    sol = regnde.solve(blow, y0, [0.0, 0.5, 2.0], Solver(engine=engine, batch="per-sample", max_steps=4), throw=False)
    assert sol.status == "max steps reached"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(y0=torch.tensor(1.0)), "leading dimension"),
        (dict(solver=Solver(method="rk4", dt0=0.1, batch="per-sample")), "adaptive method"),
        (dict(record=Local()), "records 'none' or 'all'"),
        (dict(ts=torch.tensor([0.0, 1.0], requires_grad=True)), "detach ts"),
    ],
)
def test_what_is_refused(arguments: dict, message: str, engine: str) -> None:
    given = {"y0": torch.ones(2, 1), "ts": [0.0, 1.0], "solver": each(engine), **arguments}
    with pytest.raises(ValueError, match=message):
        regnde.solve(exp_decay, given["y0"], given["ts"], given["solver"], record=given.get("record", "none"))
    with pytest.raises(ValueError, match="'joint' or 'per-sample'"):
        Solver(batch="each")


def test_joint_solves_are_untouched() -> None:
    sol = regnde.solve(exp_decay, torch.ones(3, 1), [0.0, 1.0], JOINT, record="all")
    assert sol.steps.mask is None
    assert sol.stats.samples == ()
    torch.testing.assert_close(sol.steps.error.shape, (sol.stats.accepted,), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_penalty_of_a_batch_is_the_sum_over_its_samples_alone(gradient: str, engine: str) -> None:
    torch.manual_seed(0)
    net = regnde.nn.MLP([64, 8, 64]).double()
    y0 = torch.randn(6, 64, dtype=torch.float64) * torch.linspace(0.1, 3, 6, dtype=torch.float64)[:, None]

    def gradients(starts: list[torch.Tensor], batch: str) -> list[torch.Tensor]:
        net.zero_grad()
        for start in starts:
            solver = Solver(batch=batch, rtol=1e-5, atol=1e-5, gradient=gradient, engine=engine)
            sol = regnde.solve(net, start, [0.0, 1.0], solver, record="all")
            (sol.y1.square().sum() + ErrorPenalty()(sol)).backward()
        return [p.grad.clone() for p in net.parameters()]

    together, alone = gradients([y0], "per-sample"), gradients([y[None] for y in y0], "joint")
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_what_samples_look_up(dtype: torch.dtype, gradient: str, engine: str) -> None:
    """As those of the samples solved alone: parameters, states, and a table of which each sample reads its entry."""
    tolerance = 1e-4 if dtype == torch.float64 else 1e-2
    solver = Solver(rtol=tolerance, atol=tolerance, dt0=0.05, gradient=gradient, engine=engine)
    mu, y0 = torch.tensor([1.0, 3.0, 8.0], dtype=dtype), torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.5, -1.0]]).to(dtype)
    inputs = (mu.requires_grad_(), y0.requires_grad_())
    together = dataclasses.replace(solver, batch="per-sample")
    sol = regnde.solve(van_der_pol(mu), y0, [0.0, 0.3, 1.0], together, record="all", stops=[0.5])
    alone = [
        regnde.solve(
            lambda t, y, i=i: van_der_pol(mu)(t, y, torch.tensor([i])), y0[i : i + 1], [0.0, 0.3, 1.0], solver,
            record="all", stops=[0.5],
        )
        for i in range(3)
    ]  # fmt: skip
    assert [sample.accepted for sample in sol.stats.samples] == [s.stats.accepted for s in alone]

    def loss(s: regnde.Solution) -> torch.Tensor:
        value = s.ys.square().sum()  # in float32 the estimates are mostly rounding
        return value if dtype == torch.float32 else value + ErrorPenalty()(s) + StiffnessPenalty()(s)

    found, expected = torch.autograd.grad(loss(sol), inputs), torch.autograd.grad(sum(map(loss, alone)), inputs)
    rounding = 5e-3 if dtype == torch.float32 else CANCELLED  # of steps whose sizes follow from rounded errors
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding * float(b.abs().max()))


def test_samples_have_tolerances_of_their_own(engine: str) -> None:
    """Entrywise, and a sample without control takes one step; backward in time."""
    atol = torch.tensor([[1e-8], [1e-3], [math.inf]], dtype=torch.float64)
    solver = each(engine, atol=atol, rtol=0.0, dt0=0.7, controller=regnde.I(), dt_max=0.7)
    sol = regnde.solve(lambda t, y: y * torch.cos(t), torch.ones(3, 1, dtype=torch.float64), [0.7, 0.0], solver)
    counts = [sample.accepted for sample in sol.stats.samples]
    assert counts[0] > counts[1] >= counts[2] == 1
    exact = math.exp(-math.sin(0.7))
    assert abs(float(sol.y1[0]) - exact) < 1e-6
    assert abs(float(sol.y1[1]) - exact) < 1e-2
