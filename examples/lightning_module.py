"""A neural ODE in PyTorch Lightning: the penalty in `training_step`, the evaluations in the log.

pip install lightning
python examples/lightning_module.py            (half a minute)
python examples/lightning_module.py --quick    (some seconds)
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import regnde
from regnde import Solver
from regnde.nn import MLP, NeuralODE


class Classifier(lightning.LightningModule):
    """An encoder, an ODE, a readout; `weight` is a number or a `LossBudget` or `Balance`."""

    def __init__(self, weight: float | regnde.LossBudget | regnde.Balance) -> None:
        super().__init__()
        self.encoder, self.readout = nn.Linear(2, 8), nn.Linear(8, 2)
        self.ode = NeuralODE(MLP([8, 32, 8]), solver=Solver(rtol=1e-4, atol=1e-4), record="all")
        self.penalty, self.weight = regnde.ErrorPenalty("mean"), weight

    def forward(self, points: Tensor) -> tuple[Tensor, regnde.Solution]:
        """Logits and the solution."""
        solution = self.ode(self.encoder(points))
        return self.readout(solution.y1), solution

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss with the weighted penalty."""
        points, label = batch
        logits, solution = self(points)
        task, value = cross_entropy(logits, label), self.penalty(solution)
        weight = self.weight
        if not isinstance(weight, float):
            weight = weight.update(task, value, list(self.parameters()))
        self.log_dict({"task": task, "penalty": value, "weight": weight, "nfe": float(solution.stats.nfe)})
        return task + weight * value

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and evaluations of a batch; in evaluation mode nothing is recorded."""
        points, label = batch
        logits, solution = self(points)
        self.log_dict({"loss": cross_entropy(logits, label), "nfe of a solve": float(solution.stats.nfe)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-2)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """A weight that sets itself belongs to the checkpoint."""
        if not isinstance(self.weight, float):
            checkpoint["weight"] = self.weight.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Goes on with that weight."""
        if not isinstance(self.weight, float):
            self.weight.load_state_dict(checkpoint["weight"])


def points(count: int) -> TensorDataset:
    """Points in a plane, and whether x1 x2 > 0 up to noise."""
    x = torch.randn(count, 2)
    return TensorDataset(x, (x.prod(1) + 0.3 * torch.randn(count) > 0).long())


def main(epochs: int) -> None:
    """Trains without and with a penalty."""
    for weight in (0.0, 30.0):
        lightning.seed_everything(0, verbose=False)
        model = Classifier(weight)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(points(1280), 128, shuffle=True), DataLoader(points(1000), 1000))
        found = trainer.callback_metrics
        print(f"weight {weight:g}: test loss {found['loss']:.3f}, {found['nfe of a solve']:.0f} evaluations")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short training")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # so that all machines print the same
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "The '.*_dataloader' does not have many workers")
    main(4 if parser.parse_args().quick else 40)
