"""Wrong arguments that ended in a wrong number, or in a message of torch's or Python's: each says what to give."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import regnde
from problems import exp_decay
from regnde import Balance, BrownianPath, Event, LastStep, LossBudget, Solver, comparators
from regnde.nn import CNF, MLP, BackwardGRU, ContextGRU, LatentODE, LatentSDE, LinearPath, NeuralCDE, NeuralODE

TS = torch.tensor([0.0, 1.0])
ONE = torch.tensor(1.0)


def time_last(y: Tensor, t: Tensor) -> Tensor:
    """A field in scipy's order: on a 0-dim state it gave 0.5 for 0.368."""
    return -y


@pytest.mark.parametrize(
    "call",
    [
        lambda: regnde.odeint(time_last, ONE, TS),
        lambda: regnde.odeint(time_last, ONE, TS, method="rk4"),
        lambda: regnde.odeint_adjoint(time_last, ONE, TS, adjoint_params=()),
        lambda: regnde.odeint_dense(time_last, ONE, TS[0], TS[1]),
        lambda: regnde.odeint_event(exp_decay, ONE, TS[0], event_fn=lambda y, t: y - 0.5),
        lambda: Event(lambda y, t: y - 0.5),
        lambda: regnde.FixedGrid(time_last, [0.0, 1.0], [0.0, 1.0]),
        lambda: NeuralCDE(lambda z, t: z),
        lambda: CNF(time_last, 1),
        lambda: comparators.solve_with_integral(exp_decay, ONE, TS, comparators.RNODE(), inner=time_last),
        lambda: regnde.solve(functools.partial(lambda y, t, k: -k * y, k=1.0), ONE, TS),
        lambda: LatentSDE(ContextGRU(3), lambda t, z, c: -z, time_last, exp_decay, torch.nn.Linear(4, 3), latent=4),
        lambda: LatentSDE(ContextGRU(3), lambda z, t, c: -z, exp_decay, exp_decay, torch.nn.Linear(4, 3), latent=4),
    ],
)
def test_functions_of_the_state_and_the_time_are_refused_wherever_they_are_given(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"with the time first, \w+\(t, y\): define it as \w+\(t, [xyz]\)"):
        call()


def test_partial_functions_with_the_time_first_are_solved() -> None:
    for field in (
        functools.partial(lambda rate, t, y: -rate * y, 1.0),
        functools.partial(lambda t, y, rate: -rate * y, rate=1.0),
        functools.partial(exp_decay),
    ):
        assert float(regnde.solve(field, ONE, TS).y1) == pytest.approx(0.3679, abs=1e-4)


def test_the_condition_of_an_event_takes_a_time_and_a_state_and_returns_a_number() -> None:
    with pytest.raises(TypeError, match=r"condition takes \(y\), .* give lambda t, y: condition\(y\)"):
        Event(lambda y: y.sum())
    above = Event(lambda t, y: y.flatten() > 0.5)  # True and False have no zero between them
    for solver in (Solver(), Solver(batch="per-sample")):
        with pytest.raises(TypeError, match=r"must return (a )?real .* torch\.bool"):
            regnde.solve(exp_decay, torch.ones(1, 1), TS, solver, event=above)


def latent_sde(prior: Callable[[Tensor, Tensor], Tensor]) -> LatentSDE:
    encoder = ContextGRU(3, latent=4)
    return LatentSDE(encoder, lambda t, z, c: -z, prior, lambda t, z: 0.5 + 0 * z, torch.nn.Linear(4, 3), latent=4)


def test_a_prior_drift_of_another_shape_than_the_state_is_not_broadcast() -> None:
    """The divergence was that from another prior."""
    series = torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7)
    for prior in (lambda t, z: -z[:, :1], lambda t, z: 0 * t):
        with pytest.raises(ValueError, match=r"prior's drift returned shape .* for a state of shape \(5, 4\)"):
            latent_sde(prior)(*series)


@pytest.mark.parametrize("model", [LatentODE(BackwardGRU(3, latent=4), exp_decay, torch.nn.Linear(4, 3)), latent_sde])
def test_series_whose_shapes_do_not_fit(model: Any) -> None:
    values, mask, ts = torch.zeros(5, 7, 3), torch.ones(5, 7, 3), torch.linspace(0, 1, 7)
    layer = model if isinstance(model, LatentODE) else model(exp_decay)
    for series, message in (
        ((values, mask[..., 0], ts), r"mask must have the shape of values, \(5, 7, 3\).*got \(5, 7\)"),
        ((values, mask, ts[:6]), r"values of shape \(5, 7, 3\) need 7 times, got ts of shape \(6,\)"),
        ((values[0], mask[0], ts), r"values must have the shape \(batch, times, features\), got \(7, 3\)"),
    ):
        for read in (layer, layer.encoder):
            with pytest.raises(ValueError, match=message):
                read(*series)
    assert layer(values, mask.bool(), ts).values.shape == values.shape


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MLP([2, 8.0, 2]), r"MLP\(sizes=\[2, 8\.0, 2\]\): give a list of widths"),
        (lambda: MLP(8), r"MLP\(sizes=8\): give a list of widths"),
        (lambda: MLP([2, 2], activation="tanh"), r"MLP\(activation='tanh'\): give a function such as torch\.tanh"),
        (lambda: MLP([2, 2], activation=torch.nn.Tanh), r"give a function such as torch\.tanh, or an object nn\.Tanh"),
        (lambda: NeuralODE(MLP([2, 2]), ts=1.0), r"ts must be a sequence of times such as \[0\.0, 1\.0\], got 1\.0"),
        (lambda: NeuralODE(MLP([2, 2]), Solver()), r"ts must be a sequence of times .* got Solver\(\)"),
        (lambda: CNF(MLP([2, 2]), 2).sample((3,)), r"CNF\.sample\(\(3,\)\): give the number of samples"),
        (lambda: LinearPath(torch.tensor([[0.0], [torch.inf]])), "needs finite values, .* a missing one is NaN"),
        (lambda: BrownianPath(0, 1, 3), r"BrownianPath\(shape=3\): give the shape as a tuple"),
        (lambda: BrownianPath(0, 1, (3,), seed=1.5), r"BrownianPath\(seed=1\.5\): give a whole number"),
        (lambda: BrownianPath(0, 1, (3,))(TS), r"called with one time, got shape \(2,\)"),
        (lambda: regnde.Local(seed=1.5), r"Local\(seed=1\.5\): give a whole number"),
        (lambda: regnde.JuliaField(exp_decay), r"give Julia source as text, such as"),
        (lambda: regnde.sdeint(regnde.SDE(exp_decay, exp_decay), torch.ones(2, 2), TS), r"is solved by regnde\.solve"),
        (lambda: regnde.solve(ItoObject(), torch.ones(2, 2), TS), r"got ItoObject\. An object of torchsde's kind is"),
        (lambda: regnde.solve(exp_decay, ONE, []), r"one or more times such as \[0\.0, 1\.0\], got none\.$"),
        (lambda: regnde.diagnose(exp_decay, ONE, TS, "bs3"), r"got 'bs3': write Solver\(method='bs3'\)"),
        (lambda: regnde.diagnose(exp_decay, ONE, TS, methods="bs3"), r"methods='bs3': give a list of names, \['bs3'\]"),
        (lambda: integral(comparators.RNODE, 8), r"give an object such as RNODE\(\)"),
        (lambda: integral(comparators.RNODE(), 0), r"nodes=0: give a whole number above zero"),
        (lambda: Balance("10%"), r"Balance\(fraction='10%', .*: fraction must be a number above zero"),
        (lambda: Balance(every=2.5), r"every a whole number of at least 1"),
        (lambda: LastStep("a"), r"LastStep\(size='a'\): give a finite number above zero"),
        (
            lambda: LastStep().load_state_dict({"state": {}}),
            r"no 'size': give what .* a LastStep returned, got .*'state'",
        ),
        (lambda: Balance().load_state_dict(LossBudget(1.0).state_dict()), r"no 'task', .* a Balance returned"),
        (lambda: LossBudget(1.0).load_state_dict(Balance().state_dict()), r"no 'share', .* a LossBudget returned"),
        (lambda: regnde.NeuralODE, r"no attribute 'NeuralODE': it is regnde\.nn\.NeuralODE"),
        (lambda: regnde.NoSuchName, r"no attribute 'NoSuchName'$"),
    ],
)
def test_the_message_says_what_to_give(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        call()


class ItoObject:
    """As torchsde has it."""

    sde_type, noise_type = "ito", "diagonal"


def integral(integrand: Any, nodes: int) -> Any:
    return comparators.solve_with_integral(exp_decay, ONE, TS, integrand, nodes=nodes)


@pytest.mark.parametrize("weight", [Balance(), LossBudget(1.0)])
def test_what_update_is_given(weight: Balance | LossBudget) -> None:
    net = MLP([2, 2])
    sol = regnde.solve(net, torch.ones(3, 2), TS, record="all")
    task, penalty = sol.y1.square(), regnde.ErrorPenalty()(sol)
    with pytest.raises(ValueError, match=r"update: task has the shape \(3, 2\): reduce it to one number"):
        weight.update(task, penalty, net.parameters())
    for parameters, kind in ((net, "MLP"), (net.named_parameters(), "tuple")):
        with pytest.raises(TypeError, match=rf"such as list\(model\.parameters\(\)\), got a {kind}"):
            weight.update(task.mean(), penalty, parameters)
    (task.mean() + penalty).backward()
    with pytest.raises(RuntimeError) as caught:
        weight.update(task.mean(), penalty, net.parameters())
    assert "call update before loss.backward()" in caught.value.__notes__[0]


def test_what_fit_and_cheapen_are_given() -> None:
    net = MLP([2, 2])
    adam = torch.optim.Adam(net.parameters())

    def compute(y0: Tensor) -> Tensor:
        return regnde.solve(net, y0, TS).y1.square().mean()

    with pytest.raises(TypeError, match=r"optimizer must be a torch optimiser, .* got generator"):
        next(regnde.fit(compute, [torch.ones(3, 2)], net.parameters()))
    with pytest.raises(ValueError, match=r"weight=-1\.0\): below zero a weight makes the penalty larger"):
        next(regnde.fit(compute, [torch.ones(3, 2)], adam, penalty=regnde.ErrorPenalty(), weight=-1.0))
    with pytest.raises(ValueError, match=r"budget=2\): give a share of the loss, 0\.02 for 2 %"):
        regnde.cheapen(compute, [torch.ones(3, 2)], adam, budget=2)
