"""Tensors that cross to Julia by DLPack: those on CUDA devices and, to try the way itself, some on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import regnde
from regnde import SDE, BrownianPath, Local, Solver
from regnde._engines.julia import packages, runtime
from regnde._engines.julia.arguments import DLPACK, ArgumentBuffer
from regnde._errors import EngineUnavailable
from tolerances import ROUNDING

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("julia")]

TIMES = [0.0, 0.4, 0.4, 1.0]


def net(device: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(device, dtype)


def everything(device: str, dtype: torch.dtype, kind: str) -> list[Tensor]:
    """States, records and gradients of one solve, on the CPU."""
    module = net(device, dtype)
    y0 = torch.linspace(-1, 1, 15, dtype=dtype).reshape(5, 3).to(device).requires_grad_()
    ts = torch.tensor(TIMES, dtype=torch.float64, requires_grad=kind == "times")
    scale = torch.tensor(0.3, dtype=dtype)  # on the CPU wherever the state is, as torch allows
    field = SDE(lambda t, y: module(y), lambda t, y: scale * y) if kind == "sde" else lambda t, y: module(y) * scale
    record = Local(seed=1, sampling="step", detach_state=False) if kind == "local" else "all"
    solver = Solver(
        method="sosri" if kind == "sde" else "tsit5",
        rtol=1e-3,
        atol=1e-3,
        gradient="checkpoint" if kind == "checkpoint" else "discrete",
        engine="julia",
    )
    noise = BrownianPath(0.0, 1.0, (5, 3), seed=3) if kind == "sde" else None
    sol = regnde.solve(field, y0, ts, solver, record=record, noise=noise)
    assert sol.ys.device == y0.device
    assert sol.steps.error.device == y0.device
    value = sol.ys.square().sum() + 10 * sol.steps.error.sum()
    wanted = [y0, *module.parameters(), *([ts] if kind == "times" else [])]
    return [x.detach().cpu() for x in (sol.ys, sol.steps.error, *torch.autograd.grad(value, wanted))]


@pytest.mark.parametrize("kind", ["discrete", "checkpoint", "times", "local", "sde"])
def test_dlpack_gives_julia_the_same_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The structures that CUDA tensors cross by, here of CPU tensors: every bit is the same."""
    expected = everything("cpu", torch.float64, kind)
    try:
        runtime.load("DLPack")
    except EngineUnavailable as problem:
        pytest.skip(str(problem).split(" Julia says")[0])
    plain, crossed = ArgumentBuffer.tensor, []

    def tensor(self: ArgumentBuffer, x: Tensor | None) -> None:
        if x is None:
            return plain(self, x)
        crossed.append(x)
        self.alive.append(x)
        self.add(DLPACK, self.dlpack(x))

    monkeypatch.setattr(ArgumentBuffer, "tensor", tensor)
    found = everything("cpu", torch.float64, kind)
    assert len(crossed) > 8
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 3, 1)])
def test_dlpack_sizes_are_reversed(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack says of strides what suits it where a size is 1."""
    y0 = torch.randn(shape, dtype=torch.float64)
    solver = Solver(engine="julia")
    expected = regnde.solve(lambda t, y: -y.cos(), y0, [0.0, 1.0], solver).y1
    try:
        runtime.load("DLPack")
    except EngineUnavailable as problem:
        pytest.skip(str(problem).split(" Julia says")[0])

    def tensor(self: ArgumentBuffer, x: Tensor | None) -> None:
        if x is None:
            return ArgumentBuffer.add(self, 1, -1, 0)
        self.alive.append(x)
        self.add(DLPACK, self.dlpack(x))

    monkeypatch.setattr(ArgumentBuffer, "tensor", tensor)
    assert torch.equal(regnde.solve(lambda t, y: -y.cos(), y0, [0.0, 1.0], solver).y1, expected)


@pytest.fixture
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if names := runtime.missing(*packages.CUDA.names):
        pytest.skip(f"Julia has no {' and '.join(names)}: python -m regnde julia --cuda")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["discrete", "checkpoint", "times", "local", "sde"])
def test_cuda_agrees_with_the_cpu(kind: str, dtype: torch.dtype) -> None:
    tolerance = ROUNDING if dtype == torch.float64 else 1e-3  # TF32 aside, sums are in another order
    for a, b in zip(everything("cuda", dtype, kind), everything("cpu", dtype, kind), strict=True):
        torch.testing.assert_close(a, b, rtol=100 * tolerance, atol=tolerance)


@pytest.mark.usefixtures("cuda")
def test_cuda_waits_for_torch_and_torch_for_cuda() -> None:
    """The state is still being computed when the solve is asked for; its result is used at once."""
    big = torch.randn(4000, 4000, device="cuda")
    for _ in range(3):
        y0 = (big @ big @ big)[:5, :3].tanh().contiguous()
        y1 = regnde.solve(lambda t, y: -y, y0, [0.0, 1.0], Solver(engine="julia", rtol=1e-6, atol=1e-6)).y1
        torch.testing.assert_close(y1 * 1.0, y0 * torch.exp(torch.tensor(-1.0, device="cuda")), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("cuda")
def test_cuda_memory_is_torchs_own() -> None:
    """Nothing that Julia has wrapped stays in torch's books after the solution is gone."""
    module, y0 = net("cuda", torch.float32), torch.randn(512, 3, device="cuda")

    def step() -> None:
        sol = regnde.solve(lambda t, y: module(y), y0, [0.0, 1.0], Solver(engine="julia"))
        sol.y1.sum().backward()
        module.zero_grad()

    step()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        step()
    assert torch.cuda.memory_allocated() <= before
