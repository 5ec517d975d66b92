"""Public ways to use torchdiffeq and torchsde, unchanged on the drop-ins: values, gradients, a penalty in four lines.

The reference for adaptive methods is torchdiffeq itself at a tolerance of 1e-10.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regnde
from tolerances import ROUNDING, SOLVER

pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed (pip install regnde[test])")

ADAPTIVE = {  # and the solves of one loss
    "augmented": 1,
    "latent": 7,
    "neural_cde": 1,
    "cnf": 1,
    "ffjord": 1,
    "hamiltonian": 1,
    "graph": 1,
    "point_process": 3,
    "population": 2,
    "single_cell": 1,
    "images": 1,
}
FIXED = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}  # evaluations a step
TIGHT, GIVEN = 1e-10, 1e-5


def made(name: str, *arguments: object, **options: object) -> tuple[ModuleType, nn.Module, Any]:
    torch.manual_seed(4)
    module = importlib.import_module(f"clients.{name}")
    return module, *module.make(*arguments, **options)


def slopes(loss: Tensor, model: nn.Module) -> Tensor:
    parameters = list(model.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
    )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_client_is_regularised_in_four_lines(name: str) -> None:
    module, model, data = made(name, TIGHT, TIGHT)
    reference = module.loss(model, data)
    wanted = slopes(reference, model)

    module, model, data = made(name, GIVEN, GIVEN)
    with regnde.install("torchdiffeq"), regnde.recording() as log:
        loss = module.loss(model, data)
    penalty = log.penalty(regnde.ErrorPenalty("mean"))
    (loss + 0.1 * penalty).backward(retain_graph=True)

    assert len(log.solutions) == ADAPTIVE[name]
    assert loss.item() == pytest.approx(reference.item(), rel=SOLVER * GIVEN)
    of_task, of_penalty = slopes(loss, model), slopes(penalty, model)
    torch.testing.assert_close(of_task, wanted, rtol=0, atol=SOLVER * GIVEN * float(wanted.norm()))
    assert bool(torch.isfinite(of_penalty).all())
    assert bool(of_penalty.any())
    together = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    torch.testing.assert_close(together, of_task + 0.1 * of_penalty, rtol=0, atol=ROUNDING * float(together.norm()))


@pytest.mark.parametrize("name", ["neural_cde", "graph"])
def test_a_regularised_client_takes_fewer_evaluations(name: str) -> None:
    evaluations = []
    for penalty in (None, regnde.ErrorPenalty("mean")):
        module, model, data = made(name, GIVEN, GIVEN)
        adam = torch.optim.Adam(model.parameters(), 3e-2)
        with regnde.install("torchdiffeq"):
            compute = lambda batch: module.loss(model, batch)  # noqa: B023, E731 - used within the loop
            steps = list(regnde.fit(compute, [data] * 20, adam, penalty=penalty, weight=regnde.Balance(1.0)))
        assert steps[-1].task < steps[0].task
        evaluations.append(steps[-1].nfe)
    assert evaluations[1] < evaluations[0]


@pytest.mark.parametrize("name", ["augmented", "graph"])
def test_the_direct_and_the_adjoint_way_are_one(name: str) -> None:
    found = []
    for adjoint in (True, False):
        module, model, data = made(name, GIVEN, GIVEN, adjoint=adjoint)
        with regnde.install("torchdiffeq"), regnde.recording() as log:
            loss = module.loss(model, data)
        found.append(slopes(loss + log.penalty(regnde.ErrorPenalty("mean")), model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=ROUNDING * float(found[0].norm()))


def test_a_hamiltonian_on_a_fixed_grid_is_counted_and_has_no_penalty() -> None:
    module, model, data = made("hamiltonian", GIVEN, GIVEN, solver="rk4")
    wanted = module.loss(model, data)
    with regnde.install("torchdiffeq"), regnde.recording() as log:
        got = module.loss(model, data)
    assert got.item() == pytest.approx(wanted.item(), rel=ROUNDING)
    torch.testing.assert_close(slopes(got, model), slopes(wanted, model), rtol=0, atol=SOLVER * GIVEN)
    assert log.nfe == 4 * 2
    with pytest.raises(ValueError, match="estimates no error"):
        log.penalty(regnde.ErrorPenalty("mean"))


@pytest.mark.parametrize("method", FIXED)
def test_a_sampler_gets_the_same_samples(method: str) -> None:
    module, model, noise = made("sampler")
    sampler = module.ODESolver(model)
    wanted = sampler.sample(noise, 0.125, method, grad=True)
    with regnde.install("torchdiffeq"), regnde.recording("none") as log:
        got = sampler.sample(noise, 0.125, method, grad=True)
    torch.testing.assert_close(got, wanted, rtol=ROUNDING, atol=ROUNDING)
    of_got, of_wanted = slopes(got.square().sum(), model), slopes(wanted.square().sum(), model)
    torch.testing.assert_close(of_got, of_wanted, rtol=0, atol=ROUNDING * float(of_wanted.norm()))
    assert log.nfe == 8 * FIXED[method]


def test_a_stochastic_client_is_regularised_in_four_lines() -> None:
    pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    module, model, y0 = made("stochastic")
    with torch.no_grad():
        model.log_sigma.fill_(-20)  # without noise the ODE is the reference
    ode = regnde.Solver(rtol=TIGHT, atol=TIGHT)
    wanted = (regnde.solve(model.f, y0, [0.0, 1.0], ode).y1 - 2 * y0).square().mean()
    with regnde.install("torchsde"), regnde.recording() as log:
        loss = module.loss(model, y0, adaptive=True)
    penalty = log.penalty(regnde.ErrorPenalty("mean"))
    (loss + 0.1 * penalty).backward()

    assert loss.item() == pytest.approx(wanted.item(), rel=0.1)
    assert log.nfe > 0
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with regnde.install("torchsde"), regnde.recording() as log:
        module.loss(model, y0)
    with pytest.raises(ValueError, match="sdeint without adaptive=True"):
        log.penalty(regnde.ErrorPenalty("mean"))


STOCHASTIC = {  # shape of the noise, whether torchsde's adjoint is exact, options of the loss
    "latent_sde": ((6, 2), False, {}),
    "lorenz_sde": ((5, 5), True, {}),
    "gan": ((7, 3), True, {}),
    "population_sde": ((8, 2), False, {}),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_client_of_torchsde_has_the_same_loss_on_its_noise(name: str) -> None:
    """Along torchsde's own path, to rounding; gradients too where its adjoint is exact, else near them."""
    theirs = pytest.importorskip("torchsde", reason="torchsde is not installed (pip install regnde[test])")
    shape, exact, options = STOCHASTIC[name]
    outcomes = []
    for ours in (False, True):
        module, model, data = made(name)
        bm = theirs.BrownianInterval(0.0, 1.0, shape, dtype=torch.float64, entropy=5)
        if ours:
            with regnde.install("torchsde"), regnde.recording("none") as log:
                loss = module.loss(model, data, bm=bm, **options)
            assert len(log.solutions) == 1
        else:
            loss = module.loss(model, data, bm=bm, **options)
        outcomes.append((loss.item(), slopes(loss, model)))
    (wanted, of_wanted), (got, of_got) = outcomes
    assert got == pytest.approx(wanted, rel=1e3 * ROUNDING)
    allowed = 1e-6 if exact else 0.05
    torch.testing.assert_close(of_got, of_wanted, rtol=0, atol=allowed * float(of_wanted.norm()))


@pytest.mark.parametrize("name", ["latent_sde", "lorenz_sde", "population_sde"])
def test_a_client_of_torchsde_is_regularised_with_adaptive_steps(name: str) -> None:
    module, model, data = made(name)
    with regnde.install("torchsde"), regnde.recording() as log:
        loss = module.loss(model, data, adaptive=True, dt_min=1e-2, method="srk")
    penalty = log.penalty(regnde.ErrorPenalty("mean"))
    of_penalty = slopes(penalty, model)
    (loss + 0.1 * penalty).backward()
    assert log.nfe > 0
    assert bool(of_penalty.any())
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
