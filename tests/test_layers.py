"""Layers in pipelines: what they return, more room for a state, torch.compile, copies and stored parameters."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from io import BytesIO

import pytest
import torch
from torch import Tensor, nn

from problems import exp_decay, seeded
from regnde import SDE, BrownianPath, ErrorPenalty, Solution, Solver, recording, solve
from regnde.nn import CNF, MLP, Augmented, NeuralCDE, NeuralODE, NeuralSDE
from tolerances import EXACT, ROUNDING, SOLVER

TS = (0.0, 0.3, 1.0)
ROUGH = Solver(rtol=0.1, atol=0.1)


class Matrix(nn.Module):
    """A field for a neural CDE."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.layer, self.shape = nn.Linear(hidden, hidden * channels), (hidden, channels)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)).unflatten(-1, self.shape)


class LogProb(nn.Module):
    """The log densities of a flow, as a layer."""

    def __init__(self, flow: CNF) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


MODELS = {
    "NeuralODE": lambda: nn.Sequential(nn.Linear(2, 4), NeuralODE(MLP([4, 8, 4]), output="state"), nn.Linear(4, 1)),
    "NeuralSDE": lambda: nn.Sequential(
        NeuralSDE(MLP([2, 8, 2]), MLP([2, 2]), solver=ROUGH, output="state"), nn.Linear(2, 1)
    ),
    "Augmented": lambda: nn.Sequential(Augmented(NeuralODE(MLP([4, 8, 4]), output="state"), 2), nn.Linear(4, 1)),
    "CNF": lambda: LogProb(CNF(MLP([2, 8, 2]), 2)),
    "CNF, hutchinson": lambda: LogProb(CNF(MLP([2, 8, 2]), 2, trace="hutchinson")),
    "NeuralCDE": lambda: nn.Sequential(NeuralCDE(Matrix(4, 2), nn.Linear(2, 4), output="state"), nn.Linear(4, 1)),
}


def inputs(name: str) -> Tensor:
    shape = (5, 6, 2) if name == "NeuralCDE" else (5, 2)
    return torch.randn(shape, generator=seeded(3))


def gradients(model: nn.Module, called: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(1)  # noise of an SDE, vectors of a trace
    called(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_compiled_models_train_alike(name: str) -> None:
    """What is around a solve is compiled; the solve is not, so that every number is the same."""
    model, x = MODELS[name](), inputs(name)
    alone, compiled = gradients(model, model, x), gradients(model, torch.compile(model, backend="eager"), x)
    for a, b in zip(alone, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)
        assert bool((a != 0).any())


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_stored_parameters(name: str) -> None:
    model, x = MODELS[name](), inputs(name)
    for _ in range(2):  # before and after a backward pass
        stored, file = MODELS[name](), BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        stored.load_state_dict(torch.load(file, weights_only=True))
        wanted = gradients(model, model, x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), stored):
            for a, b in zip(gradients(other, other, x), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=EXACT, atol=EXACT)


def test_outputs_of_an_ode() -> None:
    y0 = torch.ones(3, 2, dtype=torch.float64)
    solver = Solver(rtol=1e-9, atol=1e-9)
    layers = {output: NeuralODE(exp_decay, TS, solver, output=output) for output in ("solution", "state", "states")}
    solution = layers["solution"](y0)
    assert isinstance(solution, Solution)
    assert torch.equal(layers["state"](y0), solution.y1)
    assert torch.equal(layers["states"](y0), solution.ys)
    assert layers["states"](y0).shape == (3, 3, 2)
    end = layers["state"](y0, (0.0, 2.0))
    torch.testing.assert_close(end, y0 * math.exp(-2), rtol=SOLVER * 1e-9, atol=0)
    assert "output='state'" in repr(layers["state"])
    for layer in (NeuralODE, lambda f, **k: NeuralSDE(f, f, **k)):
        with pytest.raises(ValueError, match=r"\(output='end'\): choose 'solution', 'state' \(the last one\)"):
            layer(exp_decay, output="end")


def test_outputs_of_an_sde() -> None:
    y0, noise = torch.ones(3, 2), BrownianPath(0.0, 1.0, (3, 2), seed=4)
    ys = solve(SDE(exp_decay, lambda t, y: 0.1 * y), y0, TS, noise=noise).ys
    for output, wanted in (("state", ys[-1]), ("states", ys)):
        layer = NeuralSDE(exp_decay, lambda t, y: 0.1 * y, TS, output=output)
        assert torch.equal(layer(y0, noise=noise), wanted)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "NeuralSDE"])
def test_records_of_a_pipeline_are_reached_by_a_recording(name: str) -> None:
    """A layer that returns a tensor keeps no solution: the log has it, and its penalty a gradient."""
    model, x = MODELS[name](), inputs(name)
    with recording() as log:
        loss = model(x).square().sum()
    (solution,) = log.solutions
    assert solution.steps is not None
    task = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    both = torch.autograd.grad(loss + 100 * log.penalty(ErrorPenalty()), list(model.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(task, both, strict=True))


def test_nothing_stays_behind_a_pipeline() -> None:
    model, x = MODELS["NeuralODE"](), inputs("NeuralODE")
    held = weakref.ref(model(x))
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("dim", [-1, 1, 0])
def test_augmented_state(dim: int) -> None:
    """A field that turns the first entry into the new ones: they are its integral, from zero."""

    def field(t: Tensor, y: Tensor) -> Tensor:
        own, _ = y.split([2, 2], dim)
        return torch.cat([torch.zeros_like(own), own], dim)

    shape = [3, 3, 3]
    shape[dim] = 2
    y0 = torch.randn(shape, dtype=torch.float64)
    layer = Augmented(NeuralODE(field, (0.0, 2.0), output="state"), extra=2, dim=dim)
    torch.testing.assert_close(layer(y0), torch.cat([y0, 2 * y0], dim), rtol=ROUNDING, atol=ROUNDING)
    torch.testing.assert_close(layer(y0, (0.0, 1.0)), torch.cat([y0, y0], dim), rtol=ROUNDING, atol=ROUNDING)


def test_augmented_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Augmented\(extra=0\)"):
        Augmented(NeuralODE(exp_decay), extra=0)
    with pytest.raises(ValueError, match=r"state of shape \(3, 2\) has no such dimension"):
        Augmented(NeuralODE(exp_decay), extra=1, dim=2)(torch.ones(3, 2))
