"""Memory on the CPU: what a step on a large state, or the graph of a solve, frees is kept for the next."""

from __future__ import annotations

import functools

import torch

__all__ = ["keep_freed_memory"]

BLOCK = 31 * 2**20  # bytes: just below the largest block that glibc learns from


@functools.cache
def keep_freed_memory() -> None:
    """Lets the C library keep up to twice `BLOCK` of memory that was freed; once a process.

    glibc gives blocks of more than 128 KiB back to the system when they are freed, and a step on a large
    state then pays for every page of its stages again, up to a fifth of a forward solve. Once it has seen
    such a block freed it keeps all below that size: mallopt(3), M_MMAP_THRESHOLD. This block is never touched,
    so that it costs no memory. Other C libraries take no notice.
    """
    torch.empty(BLOCK, dtype=torch.uint8, device="cpu")
