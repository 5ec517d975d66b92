"""The continuous normalising flow: exact densities of linear fields, quadrature, gradients, samples."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

import regnde
from frozen import central_differences, relative
from problems import SMALL_P, seeded, small_net
from regnde import ErrorPenalty, Solver
from regnde.nn import CNF, MLP, Density
from tolerances import EXACT, GRADIENT, ROUNDING, SOLVER, STANDARD_ERRORS

TIGHT = 1e-10
MATRIX = torch.tensor([[-0.4, 1.1, 0.0], [-0.9, 0.3, 0.2], [0.1, 0.0, 0.5]], dtype=torch.float64)
DIAGONAL = torch.tensor([0.5, -1.0, 0.8], dtype=torch.float64)
TRACES = ("exact", "hutchinson")


def linear(t: Tensor, y: Tensor) -> Tensor:
    return y @ MATRIX.T


def diagonal(t: Tensor, y: Tensor) -> Tensor:
    return (1 + t) * DIAGONAL * y


def tight(engine: str = "torch", **other: str) -> Solver:
    return Solver(rtol=TIGHT, atol=TIGHT, engine=engine, **other)


def points(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(1))


@pytest.mark.parametrize("ts", [(0.0, 1.5), (1.0, -0.5), (0.0, 0.2, 1.5)], ids=str)
def test_density_of_a_linear_field(engine: str, ts: tuple[float, ...]) -> None:
    """The field dy/dt = A y carries x to exp(A T) x: x is normal with covariance exp(-A T) exp(-A T)^T."""
    span = ts[-1] - ts[0]
    flow = CNF(linear, 3, ts, tight(engine))
    x = points(4, 5, 3)
    density = flow(x)
    back = torch.matrix_exp(-MATRIX * span)
    known = MultivariateNormal(torch.zeros(3, dtype=torch.float64), back @ back.T)
    torch.testing.assert_close(density.log_prob, known.log_prob(x), rtol=0, atol=SOLVER * TIGHT)
    torch.testing.assert_close(density.z, x @ torch.matrix_exp(MATRIX * span).T, rtol=0, atol=SOLVER * TIGHT)
    assert torch.equal(flow.log_prob(x), density.log_prob)
    assert density.solution.engine == engine


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
@pytest.mark.parametrize("trace", TRACES)
def test_density_of_a_field_that_depends_on_time(trace: str, batch: str) -> None:
    """Of a diagonal Jacobian the estimate is exact: e_i^2 = 1."""
    flow = CNF(diagonal, 3, (0.0, 1.0), tight(batch=batch), trace=trace)
    x = points(6, 3)
    growth = 1.5 * DIAGONAL  # integral of (1 + t)
    known = Normal(0.0, 1.0).log_prob(x * growth.exp()).sum(1) + growth.sum()
    torch.testing.assert_close(flow.log_prob(x), known, rtol=0, atol=SOLVER * TIGHT)


def test_base_of_another_distribution() -> None:
    base = Independent(Normal(torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([0.5, 1.0, 2.0]).double()), 1)
    flow = CNF(diagonal, 3, solver=tight(), base=base)
    x, growth = points(6, 3), 1.5 * DIAGONAL
    known = base.log_prob(x * growth.exp()) + growth.sum()
    torch.testing.assert_close(flow.log_prob(x), known, rtol=0, atol=SOLVER * TIGHT)
    drawn = flow.sample(4000) * growth.exp()
    assert (drawn.mean(0) - base.mean).abs().le(STANDARD_ERRORS * base.stddev / 4000**0.5).all()


def test_estimated_trace_is_unbiased() -> None:
    """Its mean over the vectors is the exact log density; one value is not."""
    flow = CNF(linear, 3, solver=Solver(rtol=1e-6, atol=1e-6), trace="hutchinson")
    exact = CNF(linear, 3, solver=Solver(rtol=1e-6, atol=1e-6))
    x = points(1, 3)
    drawn = flow.log_prob(x.expand(4000, 3), generator=seeded(0))
    error = drawn.mean() - exact.log_prob(x)[0]
    assert float(drawn.std()) > 0.01
    assert abs(float(error)) < STANDARD_ERRORS * float(drawn.std()) / 4000**0.5


def test_random_vectors_are_drawn_for_each_solve() -> None:
    flow = CNF(linear, 3, trace="hutchinson")
    x = points(8, 3)
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))
    same = [flow.log_prob(x, generator=seeded(4)) for _ in range(2)]
    torch.testing.assert_close(*same, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_density_of_numbers(trace: str) -> None:
    """A sample without dimensions, as distributions of torch have it: exp(0.3) x is standard normal."""
    flow = CNF(lambda t, y: 0.3 * y, (), solver=tight(), trace=trace)
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), math.exp(-0.3))
    torch.testing.assert_close(flow.log_prob(x), normal.log_prob(x), rtol=SOLVER * TIGHT, atol=SOLVER * TIGHT)
    assert flow.double().sample(4).shape == (4,)


@pytest.mark.parametrize("event", [(2,), (1, 2, 1)], ids=str)
def test_density_integrates_to_one(event: tuple[int, ...]) -> None:
    """Of a field that is not linear: a wrong trace shows in the sum over a grid."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        assert y.shape[1:] == event
        return small_net(SMALL_P)(t, y.flatten(1)).reshape(y.shape)

    side = torch.linspace(-9, 9, 73, dtype=torch.float64)
    flow = CNF(field, event, (0.0, 1.5), Solver(rtol=1e-7, atol=1e-7))
    with torch.no_grad():
        logs = flow.log_prob(torch.cartesian_prod(side, side).reshape(-1, *event))
    assert float(logs.exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("event", [(3,), (1, 3)], ids=str)
def test_samples_go_back_the_way_of_the_data(event: tuple[int, ...]) -> None:
    net = MLP([3, 8, 3]).double()
    flow = CNF(net, event, (0.0, 1.0), tight())
    drawn = flow.sample(16, generator=seeded(2))
    assert drawn.shape == (16, *event)
    assert not drawn.requires_grad
    z = torch.randn(16, *event, dtype=torch.float64, generator=seeded(2))
    torch.testing.assert_close(flow(drawn).z.detach(), z, rtol=0, atol=SOLVER * TIGHT)


def test_samples_take_dtype_and_device_of_the_layer() -> None:
    assert CNF(MLP([2, 4, 2]).double(), 2).sample(3).dtype == torch.float64
    assert CNF(lambda t, y: -y, 2).double().sample(3).dtype == torch.float64
    assert CNF(lambda t, y: -y, 2).sample(3).dtype == torch.float32
    assert "like" not in CNF(lambda t, y: -y, 2).state_dict()


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("trace", TRACES)
def test_gradients_of_the_log_density(trace: str, gradient: str) -> None:
    """By the field's parameters and the data, with steps of one size."""
    solver = Solver(method="rk4", dt0=0.25, gradient=gradient, engine="torch")
    data = points(3, 2)

    def value(p: Tensor, x: Tensor) -> Tensor:
        flow = CNF(small_net(p), 2, (0.0, 1.5), solver, trace=trace)
        return flow.log_prob(x, generator=seeded(0)).square().sum()

    p, x = SMALL_P.clone().requires_grad_(), data.clone().requires_grad_()
    of_p, of_x = torch.autograd.grad(value(p, x), [p, x])
    assert relative(of_p, central_differences(lambda q: value(q, data), SMALL_P)) < GRADIENT
    assert relative(of_x, central_differences(lambda z: value(SMALL_P, z), data)) < GRADIENT


@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
@pytest.mark.parametrize("trace", TRACES)
def test_two_densities_in_one_loss(trace: str, gradient: str) -> None:
    """The second solve draws its own vectors and leaves those of the first as they are."""
    net = MLP([2, 6, 2]).double()
    flow = CNF(net, 2, solver=Solver(gradient=gradient), trace=trace)
    x = points(4, 2)
    torch.manual_seed(3)
    together = torch.autograd.grad(flow.log_prob(x).sum() + flow.log_prob(2 * x).sum(), list(net.parameters()))
    torch.manual_seed(3)
    apart = [torch.autograd.grad(flow.log_prob(k * x).sum(), list(net.parameters())) for k in (1, 2)]
    for whole, first, second in zip(together, *apart, strict=True):
        torch.testing.assert_close(whole, first + second, rtol=ROUNDING, atol=ROUNDING)


def test_records_are_penalised_in_training_alone() -> None:
    net = MLP([2, 6, 2]).double()
    flow = CNF(net, 2, record="all")
    density = flow(points(4, 2))
    assert density.solution.steps is not None
    gradients = torch.autograd.grad(ErrorPenalty()(density.solution), list(net.parameters()), allow_unused=True)
    assert any(g is not None and bool(g.abs().sum() > 0) for g in gradients)
    assert flow.eval()(points(4, 2)).solution.steps is None


def test_nothing_that_needs_no_gradient_gets_a_graph() -> None:
    net = MLP([2, 6, 2]).double().requires_grad_(False)
    for trace in TRACES:
        flow = CNF(net, 2, trace=trace)
        assert not flow.log_prob(points(4, 2)).requires_grad
        generator = seeded(0)
        wanted = flow.log_prob(points(4, 2), generator=generator)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found = flow.log_prob(points(4, 2), generator=seeded(0))
            torch.testing.assert_close(found.clone(), wanted, rtol=ROUNDING, atol=ROUNDING)
    constant = CNF(lambda t, y: torch.ones_like(y), 2)
    torch.testing.assert_close(constant.log_prob(points(1, 2)), Normal(0, 1).log_prob(points(1, 2) + 1).sum(1))


def test_times_and_integrals_in_place_of_the_layers() -> None:
    """STEER moves the end time; RNODE integrates along the solution: the hooks of the paper's experiment."""
    flow = CNF(linear, 3, solver=tight())
    x = points(2, 3)
    wanted = CNF(linear, 3, (0.0, 0.7), tight()).log_prob(x)
    torch.testing.assert_close(flow(x, (0.0, 0.7)).log_prob, wanted, rtol=EXACT, atol=EXACT)
    integrals = []

    def integrate(field: nn.Module, start: Tensor, ts: object, record: regnde.nn.Record) -> regnde.Solution:
        solution, integral = regnde.comparators.solve_with_integral(
            field, start, ts, regnde.comparators.RNODE(jacobian=0.0), tight(), record=record,
            of=lambda z: z[:, :-1], inner=linear,
        )  # fmt: skip
        integrals.append(float(integral))
        return solution

    torch.testing.assert_close(flow(x, integrate=integrate).log_prob, flow.log_prob(x), rtol=ROUNDING, atol=ROUNDING)
    assert integrals[0] > 0


def test_flow_learns_a_shifted_normal() -> None:
    """Its likelihood comes to the entropy of what it was shown."""
    torch.manual_seed(0)
    x = 2.0 + 0.5 * torch.randn(256, 1)
    flow = CNF(MLP([1, 8, 1]), 1, solver=Solver(method="rk4", dt0=0.25, engine="torch"))
    adam = torch.optim.Adam(flow.parameters(), 5e-2)
    for _ in range(60):
        adam.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        adam.step()
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25)
    assert float(loss.detach()) == pytest.approx(entropy, abs=0.1)
    drawn = flow.sample(2000)
    assert float(drawn.mean()) == pytest.approx(2.0, abs=0.1)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.1)


def test_copies() -> None:
    flow = CNF(MLP([2, 4, 2]).double(), 2, base=Independent(Normal(torch.zeros(2).double(), 1.0), 1))
    x = points(3, 2)
    for twin in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(twin.log_prob(x), flow.log_prob(x), rtol=EXACT, atol=EXACT)
    assert list(flow.state_dict()) == [f"field.{name}" for name in flow.field.state_dict()]
    density = flow(x)
    for made in (copy.deepcopy(density), pickle.loads(pickle.dumps(density))):
        assert isinstance(made, Density)
        assert torch.equal(made.log_prob, density.log_prob)
        assert not made.log_prob.requires_grad
    assert copy.copy(density).log_prob.requires_grad


def test_what_is_refused() -> None:
    flow = CNF(lambda t, y: -y, (2, 3))
    with pytest.raises(ValueError, match=r"data of shape \(5, 6\) do not end in a sample's shape \(2, 3\)"):
        flow(torch.zeros(5, 6))
    with pytest.raises(TypeError, match=r"real floating-point numbers, got dtype torch\.int64"):
        flow(torch.zeros(5, 2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"got dtype torch\.complex64"):
        flow(torch.zeros(5, 2, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"CNF\(trace='exakt'\): choose 'exact' or 'hutchinson'"):
        CNF(lambda t, y: -y, 2, trace="exakt")
    with pytest.raises(ValueError, match=r"base has event shape \(\) and batch shape \(2,\)"):
        CNF(lambda t, y: -y, 2, base=Normal(torch.zeros(2), 1.0))
    with pytest.raises(ValueError, match="leave out generator"):
        CNF(lambda t, y: -y, 1, base=Independent(Normal(torch.zeros(1), 1.0), 1)).sample(1, generator=torch.Generator())
