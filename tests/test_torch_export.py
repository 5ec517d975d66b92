"""torch.export and ONNX of solves with fixed steps: the same numbers, any batch size, clear refusals."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regnde
from problems import exp_decay, seeded
from regnde import FixedGrid, Solver
from regnde.nn import CNF, MLP, Augmented, CubicPath, LinearPath, NeuralCDE, NeuralODE
from tolerances import EXACT, SINGLE

BATCH = torch.export.Dim("batch")
QUIET = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def exported(model: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(model.eval(), (x,), dynamic_shapes=({0: BATCH},))


def points(samples: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(samples, 3, generator=seeded(samples)).to(dtype)


@QUIET
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("ts", [(0.0, 1.0), (1.0, 0.35, 0.0), (0.0, 0.0, 1.0, 1.0), (0.5, 0.5)], ids=str)
def test_a_layer_with_fixed_steps(method: str, ts: tuple[float, ...]) -> None:
    layer = NeuralODE(MLP([3, 8, 3]), ts, Solver(method=method, dt0=0.6), output="states")
    model = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 2))
    program = exported(model, points(4))
    for samples in (1, 4, 7):
        found, wanted = program.module()(points(samples)), model(points(samples))
        torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


@QUIET
@pytest.mark.parametrize("method", ["tsit5", "bs3", "heun", "dp5", "vern7"])
def test_a_fixed_grid_of_a_method_that_adapts(method: str) -> None:
    """Its further stages for save times inside of steps included; the program is stored and read again."""
    grid = FixedGrid(MLP([3, 8, 3]).double(), (0.0, 0.6, 1.0), (0.0, 0.4, 1.0), method, output="states")
    file = BytesIO()
    torch.export.save(exported(grid, points(4, torch.float64)), file)
    file.seek(0)
    program = torch.export.load(file)
    y0 = points(6, torch.float64)
    torch.testing.assert_close(program.module()(y0), grid(y0), rtol=EXACT, atol=EXACT)


@QUIET
def test_other_layers_around_fixed_steps() -> None:
    solver = Solver(method="rk4", dt0=1.0)
    augmented = Augmented(NeuralODE(MLP([5, 8, 5]), solver=solver, output="state"), 2)
    program = exported(augmented, points(4))
    torch.testing.assert_close(program.module()(points(6)), augmented(points(6)), rtol=EXACT, atol=EXACT)

    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 8)

        def forward(self, t: Tensor, z: Tensor) -> Tensor:
            return self.layer(z).unflatten(-1, (4, 2))

    for path in (CubicPath, LinearPath):  # its knots are stops: the field is evaluated beside them
        driven = NeuralCDE(Matrix(), nn.Linear(2, 4), solver, path=path, output="state")
        series = [torch.randn(batch, 4, 2, generator=seeded(batch)) for batch in (3, 6)]
        program = exported(driven, series[0])
        torch.testing.assert_close(program.module()(series[1]), driven(series[1]), rtol=EXACT, atol=EXACT)


@QUIET
def test_what_can_not_be_exported() -> None:
    net, x = MLP([3, 8, 3]), points(4)

    def refused(layer: nn.Module, message: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            torch.export.export(layer, (x,))

    refused(NeuralODE(net, output="state"), "'tsit5' adapts its steps.*choose fixed steps with regnde.fixed_grid")
    fixed = Solver(method="rk4", dt0=0.5)
    refused(NeuralODE(net, solver=fixed, record="all", output="state"), "a graph has no records")
    refused(regnde.nn.NeuralSDE(net, net, solver=Solver(method="em", dt0=0.5), output="state"), "solve of an SDE")
    refused(NeuralODE(net, nn.Parameter(torch.tensor([0.0, 1.0])), fixed, output="state"), "times", TypeError)
    refused(NeuralODE(net, solver=Solver(method="rk4"), output="state"), "give its size")

    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return regnde.solve(net, x, [0.0, 1.0], fixed, dense=True)(0.5)

    refused(Dense(), "a graph has no dense output")

    class Module(nn.Module):
        def __init__(self, ts: object, **other: object) -> None:
            super().__init__()
            self.ts, self.other = ts, other

        def forward(self, y: Tensor) -> Tensor:
            return regnde.solve(exp_decay, y, self.ts, fixed, **self.other).y1

    refused(Module(torch.tensor([0.0, 1.0])), "give ts as a list of floats", TypeError)
    refused(Module([0, 1], stops=torch.tensor([0.5])), "give stops as a list of floats", TypeError)
    refused(Module([0, 1], event=regnde.Event(lambda t, y: y.sum())), "leave event= out")


@QUIET
def test_samples_of_a_flow_are_exported_as_its_field() -> None:
    flow = CNF(MLP([3, 8, 3]), 3)
    z = points(50)
    grid = regnde.fixed_grid(flow.field, z, flow.ts[::-1], Solver(rtol=1e-3, atol=1e-3), share=1.0)
    torch.testing.assert_close(exported(grid, z).module()(z), grid(z), rtol=EXACT, atol=EXACT)


@QUIET
@pytest.mark.timeout(400)  # the exporter is slow to import
@pytest.mark.parametrize("kind", ["layer", "grid"])
def test_onnx_runs_in_onnxruntime(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'regnde[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'regnde[onnx]'")
    net = MLP([3, 8, 3])
    if kind == "layer":
        model: nn.Module = nn.Sequential(NeuralODE(net, solver=Solver(method="rk4", dt0=0.5), output="state"))
    else:
        model = FixedGrid(net, (0.0, 0.1, 1.0), (0.0, 0.4, 1.0), "tsit5", output="states")
    program = torch.onnx.export(
        model.eval(), (points(4),), dynamo=True, dynamic_shapes=({0: BATCH},), input_names=["y0"], verbose=False
    )
    program.save(str(tmp_path / "model.onnx"))
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for samples in (4, 9):
        (found,) = session.run(None, {"y0": points(samples).numpy()})
        np.testing.assert_allclose(found, model(points(samples)).detach(), rtol=SINGLE, atol=SINGLE)
