"""Which of several training processes this is, and what only one of them does.

One process is rank 0 of 1. Knows torch's process group; knows no model.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def world_size() -> int:
    """Training processes in all, on all nodes: of the group, else as torchrun says."""
    if dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes files and shows progress."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def first_says(number: int) -> int:
    """The first process's number, on every process."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    said = torch.tensor([number], device=device)
    dist.broadcast(said, 0)
    return int(said)


def wait_for_all() -> None:
    """Go on when every process is here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
