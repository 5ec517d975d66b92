"""Fixed steps for a trained classifier, exported by `torch.export` and, if it is installed, by ONNX.

python examples/deployment.py            (half a minute)
python examples/deployment.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse
import importlib.util
import io

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regnde
from regnde import Solver
from regnde.nn import MLP, NeuralODE


def batch(count: int) -> tuple[Tensor, Tensor]:
    """Points of a plane with six zeros, and whether x1 x2 > 0."""
    points = torch.randn(count, 2)
    return nn.functional.pad(points, (0, 6)), (points.prod(1) > 0).long()


def main(iterations: int) -> None:
    """Trains, chooses fixed steps on samples, compares on others, exports."""
    torch.manual_seed(0)
    ode, readout = NeuralODE(MLP([8, 32, 8]), solver=Solver(rtol=1e-3, atol=1e-3), output="state"), nn.Linear(8, 2)
    model = nn.Sequential(ode, readout)

    def compute(made: tuple[Tensor, Tensor]) -> Tensor:
        y0, label = made
        return cross_entropy(model(y0), label)

    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in regnde.fit(compute, (batch(128) for _ in range(iterations)), adam):
        pass
    model.eval()

    samples, (y0, label) = batch(500)[0], batch(1000)
    grid = regnde.fixed_grid(
        ode.field, samples, ode.ts, ode.solver, share=0.95, methods=["tsit5", "dp5", "bs3", "rk4", "midpoint"]
    )
    deployed = nn.Sequential(grid, readout).eval()
    with torch.no_grad(), regnde.recording("none") as log:
        loss = cross_entropy(model(y0), label)
        print(f"adaptive: {log.nfe} evaluations, test loss {loss:.4f}")
        loss = cross_entropy(deployed(y0), label)
        print(f"fixed:    {grid.nfe} evaluations, test loss {loss:.4f}, {grid.report.chosen.method}")
        print(f"above the tolerance: {grid.beyond(y0).double().mean():.1%} of the test samples")

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(deployed, (samples[:4],), dynamic_shapes=shapes)
    print(f"torch.export: equal: {torch.equal(program.module()(y0), deployed(y0))}")
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        print(f"onnx: largest difference of a logit {onnx_difference(deployed, samples[:4], y0):.0e}")


@torch.no_grad()
def onnx_difference(model: nn.Module, few: Tensor, y0: Tensor) -> float:
    """Largest difference of the logits between the ONNX program and the model."""
    import onnxruntime

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(model, (few,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    file = io.BytesIO()
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    (logits,) = session.run(None, {session.get_inputs()[0].name: y0.numpy()})
    return float((torch.from_numpy(logits) - model(y0)).abs().max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    main(30 if parser.parse_args().quick else 300)
