"""This process among those that train together."""

from __future__ import annotations

import torch
import torch.distributed as dist

__all__ = ["from_rank_zero", "rank", "world_size"]


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def from_rank_zero(value: int, device: torch.device) -> int:
    """Rank 0's value, on every rank: what depends on time is decided once.

    Args:
        value: Rank 0's; the others' is not looked at.
        device: Where the process group's backend communicates.
    """
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.int64, device=device)
    dist.broadcast(shared, 0)
    return int(shared)
