"""Trains a neural ODE on several processes; killed at any moment, it goes on after its last checkpoint.

    torchrun --nproc-per-node 2 examples/ddp.py --steps 200 --checkpoint ddp.pt

Each process solves its share of every batch. DistributedDataParallel averages the gradients, so a loss
that is a mean over samples has the gradient of the joined batch (multiply a sum by the number of
processes). What is equal: to rounding with fixed steps or `batch="per-sample"`, where no sample depends
on the others; to the tolerance with one error norm per process, `batch="joint"`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import regnde

SIZE = 16
SOLVER = regnde.Solver(rtol=1e-4, atol=1e-4, batch="per-sample")


def batch(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This process's share of the batch of a step, which is a function of the step: states, quarter turns of them."""
    y0 = torch.randn(SIZE, 2, generator=torch.Generator().manual_seed(step))
    return y0[rank::world], torch.stack([-y0[:, 1], y0[:, 0]], 1)[rank::world]


def save(path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint beside the last one and puts it in its place at once: a kill leaves one of the two."""
    fresh = path.with_suffix(".new")
    torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, fresh)
    os.replace(fresh, path)


def main(steps: int, checkpoint: Path, weight: float = 1e-2) -> float:
    """Trains up to a number of steps in all, from the checkpoint if there is one; the last loss."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    layer = regnde.nn.NeuralODE(regnde.nn.MLP([2, 16, 2]), solver=SOLVER, record="all")
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    done, loss = 0, torch.tensor(0.0)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)  # tensors and numbers: nothing in it is executed
        layer.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    if rank == 0:
        print(f"starting after step {done}", flush=True)
    parallel = DistributedDataParallel(layer)
    for step in range(done, steps):
        y0, target = batch(step, rank, world)
        solution = parallel(y0)
        task = (solution.y1 - target).square().mean()
        loss = task + weight * regnde.ErrorPenalty()(solution) / len(y0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            save(checkpoint, step + 1, layer, optimizer)
    if rank == 0:
        print(f"step {steps}: loss {loss.item():.4f} with {world} processes")
    dist.barrier()  # a process that leaves while the other still reduces may abort at its exit
    dist.destroy_process_group()
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint", type=Path, default=Path("ddp.pt"))
    parser.add_argument("--quick", action="store_true", help="ten steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(10 if arguments.quick else arguments.steps, arguments.checkpoint)
