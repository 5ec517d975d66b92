"""Two processes of one test that work together through gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


def run(work: Callable[[int, str], None], folder: Path) -> None:
    """Runs `work(rank, folder)` in two processes; it ends with `leave`.

    gloo's threads may abort a process that leaves, so the processes say themselves that they have passed.
    """
    processes = torch.multiprocessing.spawn(work, (str(folder),), nprocs=2, join=False)
    assert processes is not None
    for process in processes.processes:
        process.join()
    if not all((folder / f"{rank}.passed").exists() for rank in range(2)):
        processes.join()  # raises what went wrong
        pytest.fail("a process ended without a result")


def leave(rank: int, folder: str) -> None:
    """Says that a process has passed, and waits until the other no longer works with it."""
    Path(folder, f"{rank}.passed").touch()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
