"""A training loop without `fit`: mixed precision, clipping, schedules, a weight that sets itself; stopped and resumed.

python examples/plain_loop.py            (half a minute)
python examples/plain_loop.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import regnde
from regnde import Solver
from regnde.nn import MLP, NeuralODE


class Model(nn.Module):
    """An encoder, an ODE, a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.readout = nn.Linear(2, 8), nn.Linear(8, 2)
        self.ode = NeuralODE(MLP([8, 32, 8]), solver=Solver(rtol=1e-2, atol=1e-2), record="all")

    def forward(self, points: Tensor) -> tuple[Tensor, regnde.Solution]:
        """Logits and the solution, which has the records."""
        start = self.encoder(points)
        with torch.autocast(start.device.type, enabled=False):  # rounding to 8 bits would cost the solver steps
            solution = self.ode(start.float())
        return self.readout(solution.y1), solution


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Points, and whether x1 x2 > 0 up to noise; a function of the step, so that a resumed run sees the same."""
    generator = torch.Generator().manual_seed(step)
    points, noise = torch.randn(128, 2, generator=generator), torch.randn(128, generator=generator)
    return points, (points.prod(1) + 0.3 * noise > 0).long()


def train(checkpoint: Path, steps: int, until: int, device: str) -> str:
    """Trains up to a step, from the checkpoint if there is one."""
    torch.manual_seed(0)
    model = Model().to(device)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")  # for float16; bfloat16 needs none
    half = torch.float16 if device == "cuda" else torch.bfloat16
    penalty, budget = regnde.ErrorPenalty("mean"), regnde.LossBudget(None)
    stateful = {"model": model, "adam": adam, "scheduler": scheduler, "scaler": scaler, "budget": budget}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved.pop("step")
        for name, state in saved.items():
            stateful[name].load_state_dict(state)
    for step in range(first, until):
        points, label = (x.to(device) for x in batch(step))
        with torch.autocast(device, half):
            logits, solution = model(points)
            task = cross_entropy(logits, label)
            value = penalty(solution)
        parameters = list(model.parameters())
        weight = budget.update(task, value, parameters, scale=scaler.get_scale())  # before backward()
        adam.zero_grad()
        scaler.scale(task + weight * value).backward()
        scaler.unscale_(adam)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(adam)
        scaler.update()
        scheduler.step()
    torch.save({"step": until, **{name: each.state_dict() for name, each in stateful.items()}}, checkpoint)
    return f"loss {task:.3f}, weight {weight:.2f}, {solution.stats.nfe} evaluations"


def main(steps: int) -> None:
    """Trains at once, and in two halves with a checkpoint between them: the same."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        print(f"at once:    {train(Path(folder, 'one.pt'), steps, steps, device)}")
        print(f"first half: {train(Path(folder, 'two.pt'), steps, steps // 2, device)}")
        print(f"resumed:    {train(Path(folder, 'two.pt'), steps, steps, device)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    main(40 if parser.parse_args().quick else 300)
