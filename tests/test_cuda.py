"""The torch engine on a GPU gives what it gives on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import regnde
from regnde import SDE, BrownianPath, ErrorPenalty, Increment, Solver
from regnde._engines.torch.grid_noise import GridNoise
from regnde._normals import Normals
from regnde.nn import MLP, NeuralODE
from tolerances import CANCELLED, DEVICES, NEAR_ONE, ROUNDING, SINGLE, TF32

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")

CLOSE = 1e-4  # in float32; TF32 would be off by 1e-3
EQUATIONS = ["ode", "per-sample", "sde"]


def solved(device: str, equation: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The states, and the gradients of a loss on them and of the penalty by the first weight."""
    torch.manual_seed(0)
    net = MLP([2, 16, 2]).to(device, dtype)
    y0 = torch.linspace(-1, 1, 20, dtype=dtype).reshape(10, 2).to(device)
    noise = regnde.BrownianPath(0.0, 1.0, y0.shape, seed=1) if equation == "sde" else None
    sol = regnde.solve(
        SDE(net, lambda t, y: 0.1 * y) if equation == "sde" else net,
        y0,
        torch.linspace(0, 1, 7),
        Solver(engine="torch", batch="per-sample" if equation == "per-sample" else "joint"),
        record="all",
        noise=noise,
    )
    assert sol.ys.device.type == sol.steps.error.device.type == device
    of_loss, of_penalty = (
        torch.autograd.grad(x, net.weights[0], retain_graph=True)[0]
        for x in (sol.ys.square().sum(), ErrorPenalty()(sol))
    )
    with torch.no_grad():
        again = regnde.solve(net, y0, [0.0, 1.0], Solver(engine="torch"))
    return {"states": sol.ys, "loss": of_loss, "penalty": of_penalty, "without a graph": again.y1}


@pytest.fixture
def coarse_products() -> Iterator[None]:
    """Products of float32 rounded to ten bits, as many training scripts ask for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_torch_engine_on_cuda_agrees_with_the_cpu(equation: str) -> None:
    cuda, cpu = (solved(device, equation, torch.float64) for device in ("cuda", "cpu"))
    for name, wanted in cpu.items():
        torch.testing.assert_close(cuda[name].cpu(), wanted, rtol=CANCELLED, atol=CANCELLED)


@pytest.mark.usefixtures("coarse_products")
@pytest.mark.parametrize("equation", EQUATIONS)
def test_rounded_products_in_the_field(equation: str) -> None:
    """Not the penalty: its error estimates are differences that are hardly larger than this rounding."""
    cuda, cpu = (solved(device, equation, torch.float32) for device in ("cuda", "cpu"))
    for name in ("states", "loss", "without a graph"):
        torch.testing.assert_close(cuda[name].cpu(), cpu[name], rtol=TF32, atol=TF32)


def test_stops_events_and_dense_output_on_cuda() -> None:
    found = []
    for device in ("cuda", "cpu"):
        stops, level = (torch.tensor(x, dtype=torch.float64, device=device, requires_grad=True) for x in ([0.4], 0.2))
        y0 = torch.ones(2, dtype=torch.float64, device=device)
        event = regnde.Event(lambda t, y, level=level: y[0] - level)
        sol = regnde.solve(
            lambda t, y: torch.where(t < 0.4, -y, -3 * y), y0, [0.0, 9.0], stops=stops, event=event, dense=True
        )
        times = torch.tensor([0.1, 0.4, 0.5], device=device)
        torch.testing.assert_close(sol(times), sol(times.cpu()), rtol=ROUNDING, atol=ROUNDING)
        loss = sol.events.t.sum() + sol.y1.sum() + sol(times).sum() + sol.ts[-1].to(device)
        found.append([sol.y1, sol.events.t, *torch.autograd.grad(loss, (stops, level))])
        assert {x.device.type for x in (sol.y1, sol.events.t, sol.events.y, sol.events.which)} == {device}
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("coarse_products")
def test_tf32_does_not_reach_the_solver() -> None:
    y0 = torch.linspace(-1, 1, 20).reshape(10, 2)
    ts = torch.linspace(0, 1, 7)
    exact = y0 * torch.exp(-ts)[:, None, None]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ys = regnde.solve(lambda t, y: -y, y0.cuda(), ts, Solver(engine="torch")).ys
        torch.testing.assert_close(ys.cpu(), exact, rtol=CLOSE, atol=CLOSE)


def test_cuda() -> None:
    layer = NeuralODE(MLP([2, 8, 2]), solver=Solver(rtol=1e-4, atol=1e-4, engine="torch"), record="all")
    outcomes = []
    for device in ("cpu", "cuda"):
        layer.zero_grad()
        layer.to(device)
        solution = layer(torch.ones(4, 2, device=device))
        (solution.y1.sum() + ErrorPenalty()(solution)).backward()
        assert solution.y1.device.type == device
        outcomes.append((solution.y1.detach().cpu(), layer.field.weights[0].grad.cpu()))
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", ["joint", "per-sample"])
def test_states_and_tolerances_of_parts_on_cuda(batch: str) -> None:
    outcomes = []
    for device in ("cpu", "cuda"):
        y0 = {"x": torch.ones(3, 2, device=device), "v": (torch.zeros(3, 2, device=device),)}
        solver = Solver(atol={"x": torch.tensor([1e-5, 1e-4], device=device), "v": 1e20}, batch=batch, engine="torch")
        sol = regnde.solve(lambda t, y: {"x": y["v"][0], "v": (-y["x"],)}, y0, [0.0, 1.0], solver, record="all")
        assert sol.y1["x"].device.type == sol.steps.error.device.type == device
        outcomes.append(sol.y1["v"][0].cpu())
    torch.testing.assert_close(*outcomes, rtol=CLOSE, atol=CLOSE)
    y0 = {"x": torch.ones(3), "v": torch.ones(3, device="cuda")}
    with pytest.raises(ValueError, match=r"y0\['x'\] is on cpu, y0\['v'\] on cuda:0"):
        regnde.solve(lambda t, y: y, y0, [0.0, 1.0])
    numbers = regnde.solve(lambda t, y: {k: -x for k, x in y.items()}, {"c": 1.0, "v": y0["v"]}, [0.0, 1.0])
    assert numbers.y1["c"].device.type == "cuda"  # numbers go to where the tensors are


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("entries", [1, 1000, 100_003])
def test_normals_on_cuda_are_those_of_the_cpu(entries: int, dtype: torch.dtype) -> None:
    """The integers are the same; log, cos, sin and the square root differ by units in the last place."""
    rows, found = np.array([0, 1, 12345, 2**40]), []
    for device in ("cpu", "cuda"):
        out = torch.empty(4, 2, entries, dtype=torch.float64, device=device)
        Normals(7, 1, entries, torch.device(device), dtype).fill(rows, out)
        found.append(out.cpu())
    close, near = (DEVICES, DEVICES) if dtype == torch.float64 else (SINGLE, NEAR_ONE)
    torch.testing.assert_close(*found, rtol=close, atol=near)
    assert ((found[0] - found[1]).abs() > 10 * close).double().mean() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (100, 33)], ids=str)
def test_a_path_on_cuda_is_that_of_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    path = BrownianPath(-1.0, 3.0, shape, seed=5, dtype=dtype)
    there = path.to("cuda")
    assert there.independent().device.type == there.device.type == "cuda"
    close = ROUNDING if dtype == torch.float64 else SINGLE
    for s, t in ((-1.0, 3.0), (0.1, 0.7), (0.7, 0.701), (2.0, 3.0), (0.3, 0.3)):
        wanted, got = path.increment(s, t), there.increment(s, t)
        assert (got.w.device.type, got.w.dtype, got.w.shape) == ("cuda", dtype, torch.Size(shape))
        torch.testing.assert_close(got.w.cpu(), wanted.w, rtol=0, atol=close)
        torch.testing.assert_close(got.h.cpu(), wanted.h, rtol=0, atol=close / max(t - s, 1e-3))
    assert path.increment(0.1, 0.7).w.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adaptive_steps_without_a_path_on_cuda_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    sde, ends = SDE(lambda t, y: -y, lambda t, y: 0.2 * y), []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        y0 = torch.linspace(-1, 1, 100, dtype=dtype, device=device).reshape(50, 2)
        ends.append(regnde.solve(sde, y0, [0.0, 1.0], Solver(rtol=1e-2, atol=1e-2, engine="torch")).y1)
    assert ends[1].is_cuda
    torch.testing.assert_close(ends[1].cpu(), ends[0], rtol=CLOSE, atol=CLOSE)


class Watched(BrownianPath):
    """A path that tells where its increments were made."""

    seen: set[str] = set()  # noqa: RUF012 - of all its copies

    def increment(self, s: float, t: float) -> Increment:
        """That of the path."""
        made = super().increment(s, t)
        self.seen |= {made.w.device.type, made.h.device.type}
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("method", ["sriw1", "em", "reversible_heun"])
def test_the_noise_of_a_solve_on_cuda_is_made_there(method: str, dtype: torch.dtype) -> None:
    sde = SDE(lambda t, y: -y, lambda t, y: 0.2 * y, calculus="ito" if method != "reversible_heun" else "stratonovich")
    solver, ends = Solver(method=method, dt0=0.05 if method != "sriw1" else None, engine="torch"), []
    for device in ("cpu", "cuda"):
        Watched.seen.clear()
        path = Watched(0.0, 1.0, (50, 2), seed=3)
        y0 = torch.linspace(-1, 1, 100, dtype=dtype, device=device).reshape(50, 2)
        ends.append(regnde.solve(sde, y0, [0.0, 1.0], solver, noise=path).y1)
        assert Watched.seen == {device}
    torch.testing.assert_close(ends[1].cpu(), ends[0], rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("area", [False, True], ids=lambda yes: f"area={yes}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_noise_of_fixed_steps_on_cuda_is_that_of_the_cpu(dtype: torch.dtype, area: bool) -> None:
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        noise = GridNoise((100, 3), torch.zeros(1, dtype=dtype, device=device), 5, area=area)
        made = [x for k in range(5) for x in noise.increment(0.2 * k, 0.2 * k + 0.2)]
        assert {x.device.type for x in made} == {device}
        found.append(torch.stack(made).cpu())
    close = DEVICES if dtype == torch.float64 else SINGLE
    torch.testing.assert_close(*found, rtol=close, atol=close)
