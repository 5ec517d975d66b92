"""Training at scale: several processes, kills and restarts, workers, copies, a thousand solves."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import regnde
import two_processes
from problems import exp_decay, seeded
from regnde import ErrorPenalty, Local, Solver
from regnde.nn import MLP, NeuralODE
from tolerances import EXACT, ROUNDING, SOLVER

pytestmark = pytest.mark.timeout(300)  # a loaded machine takes long to start processes that import torch

ROOT = Path(__file__).parent.parent
DTYPE = torch.float64
BATCH = torch.randn(8, 2, generator=seeded(0), dtype=DTYPE)
LOOSE = 1e-3
SOLVERS = {
    "fixed steps": Solver(method="rk4", dt0=0.1, engine="torch"),
    "per sample": Solver(rtol=LOOSE, atol=LOOSE, batch="per-sample", engine="torch"),
    "joint": Solver(rtol=LOOSE, atol=LOOSE, engine="torch"),
}


# --- gradients of two processes -----------------------------------------------------------------


def gradient(kind: str, y0: torch.Tensor, *, parallel: bool) -> torch.Tensor:
    """Gradient of a mean over the samples, with the mean penalty of a sample where each has its own steps."""
    torch.manual_seed(1)
    layer = NeuralODE(MLP([2, 8, 2]).double(), solver=SOLVERS[kind], record="none" if kind == "fixed steps" else "all")
    model = DistributedDataParallel(layer) if parallel else layer
    solution = model(y0)
    loss = solution.y1.square().sum() / len(y0)
    if kind != "fixed steps":
        loss = loss + ErrorPenalty()(solution) / (len(y0) if kind == "per sample" else 1)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in layer.parameters()])


def gradients_of_a_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {kind: gradient(kind, BATCH[rank::2], parallel=True) for kind in SOLVERS}
    torch.save(found, f"{folder}/{rank}.pt")
    two_processes.leave(rank, folder)


def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    """To rounding where no sample depends on another; to the tolerance with one error norm per process."""
    two_processes.run(gradients_of_a_rank, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for kind in SOLVERS:
        torch.testing.assert_close(first[kind], second[kind], rtol=EXACT, atol=EXACT)
        joined = gradient(kind, BATCH, parallel=False)
        tolerance = SOLVER * LOOSE if kind == "joint" else 10 * ROUNDING
        torch.testing.assert_close(first[kind], joined, rtol=tolerance, atol=tolerance)


# --- kill and resume ----------------------------------------------------------------------------


@contextlib.contextmanager
def ranks(steps: int, checkpoint: Path, world: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of examples/ddp.py, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "examples" / "ddp.py"), f"--steps={steps}", f"--checkpoint={checkpoint}"]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT / "python"), **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def run(steps: int, checkpoint: Path, world: int) -> str:
    with ranks(steps, checkpoint, world) as processes:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * world, outputs
    return outputs[0]


def test_resume_after_kill_9_of_a_rank(tmp_path: Path) -> None:
    """A rank dies in the middle; the job starts again after the last whole step and ends as if nothing had been."""
    checkpoint = tmp_path / "killed.pt"
    with ranks(100_000, checkpoint, world=2) as processes:
        deadline = time.monotonic() + 200
        while step_of(checkpoint) < 3:
            assert time.monotonic() < deadline, "no three steps in 200 s"
            assert all(process.poll() is None for process in processes)
            time.sleep(0.05)
        seen = step_of(checkpoint)
        processes[1].kill()  # SIGKILL
        assert processes[1].wait(timeout=120) == -9
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert processes[0].wait(timeout=120) != 0  # gloo notices; one that waits for ever is killed on leaving
    kept = step_of(checkpoint)
    assert kept >= seen
    output = run(kept + 3, checkpoint, world=2)
    assert f"starting after step {kept}\n" in output
    assert step_of(checkpoint) == kept + 3

    run(kept + 3, tmp_path / "alone.pt", world=1)  # one process, never killed
    ends = [torch.load(p, weights_only=True)["model"] for p in (checkpoint, tmp_path / "alone.pt")]
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-3, atol=1e-4)


# --- one process --------------------------------------------------------------------------------


class Solved(torch.utils.data.Dataset):
    """Items that are solved for, in whatever process asks."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return regnde.solve(exp_decay, [float(index)], [0.0, 1.0], Solver(engine="torch")).y1.detach()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_case_22_data_loader_workers(method: str) -> None:
    regnde.solve(exp_decay, [1.0], [0.0, 1.0], Solver(engine="torch"))  # the parent has solved before it forks
    loader = torch.utils.data.DataLoader(Solved(), batch_size=3, num_workers=2, multiprocessing_context=method)
    found = torch.cat(list(loader)).flatten()
    torch.testing.assert_close(found, torch.exp(torch.tensor(-1.0)) * torch.arange(6.0), rtol=1e-5, atol=0)


def layers() -> dict[str, torch.nn.Module]:
    """Every layer of regnde.nn, small."""
    made = {"MLP": MLP([2, 4, 2]), "NeuralODE": NeuralODE(MLP([2, 4, 2]), record="all")}
    if "NeuralSDE" in regnde.nn.__all__:
        made["NeuralSDE"] = regnde.nn.NeuralSDE(MLP([2, 4, 2]), MLP([2, 4, 2]))
    return made


def output(layer: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(5)  # the noise of an SDE
    y0 = torch.ones(3, 2)
    return layer(torch.tensor(0.5), y0) if isinstance(layer, MLP) else layer(y0).y1


@pytest.mark.parametrize("name", ["MLP", "NeuralODE", "NeuralSDE"])
def test_case_17_every_layer_is_copied_pickled_and_stored(name: str) -> None:
    if name not in layers():
        pytest.skip(f"this version has no nn.{name}")
    layer = layers()[name]
    for _ in range(2):  # before and after a backward pass
        whole, state = BytesIO(), BytesIO()
        torch.save(layer, whole)
        torch.save(layer.state_dict(), state)
        whole.seek(0)
        state.seek(0)
        stored = layers()[name]
        stored.load_state_dict(torch.load(state, weights_only=True))
        loaded = torch.load(whole, weights_only=False)  # this file, written above
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, stored):
            torch.testing.assert_close(output(other), output(layer), rtol=EXACT, atol=EXACT)
        output(layer).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("record", ["none", "all", Local(seed=0)], ids=["none", "all", "local"])
def test_case_17_no_growth_in_a_thousand_solves(record: regnde.Local | str) -> None:
    layer = NeuralODE(MLP([2, 4, 2]), solver=Solver(rtol=1e-2, atol=1e-2, engine="torch"), record=record)
    y0 = torch.ones(3, 2)

    def live() -> int:
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    def train() -> None:
        solution = layer(y0)
        loss = solution.y1.sum() if solution.steps is None else solution.y1.sum() + ErrorPenalty()(solution)
        loss.backward()

    train()
    gc.collect()
    before = live()
    gc.disable()
    try:
        for _ in range(1000):
            train()
        assert live() <= before
    finally:
        gc.enable()
