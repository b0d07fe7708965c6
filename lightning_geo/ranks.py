"""This process among those that train together."""

from __future__ import annotations

import torch.distributed as dist

__all__ = ["rank", "world_size"]


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
