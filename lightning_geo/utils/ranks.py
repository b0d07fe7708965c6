"""This process among those that train together."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lightning_geo.utils.errors import OtherRankError

__all__ = [
    "Replicas",
    "everyones",
    "failure_of_any_rank",
    "from_rank_zero",
    "is_known_to_rank_zero",
    "known_to_rank_zero",
    "on_all_ranks",
    "rank",
    "world_size",
]


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@dataclass(frozen=True)
class Replicas:
    """The replicas of a model, which train on other inputs each: single ranks, or groups with a part each.

    Args:
        index: Of this rank's replica.
        leaders: The first rank of each.
    """

    index: int
    leaders: tuple[int, ...]

    @classmethod
    def of_ranks(cls) -> Replicas:
        """Each rank has one."""
        return cls(rank(), tuple(range(world_size())))

    @classmethod
    def led_by(cls, leader: int | None) -> Replicas:
        """Return the same on every rank, all of which call this.

        Args:
            leader: The first rank of this rank's replica; ``None`` for this rank.
        """
        everyone = everyones(rank() if leader is None else leader)
        leaders = tuple(sorted(set(everyone)))
        return cls(leaders.index(everyone[rank()]), leaders)


def from_rank_zero(value: int, device: torch.device) -> int:
    """Return rank 0's value on every rank: decisions that depend on time are made once.

    Args:
        value: Rank 0's; the others' is not looked at.
        device: Where the process group's backend communicates.
    """
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.int64, device=device)
    dist.broadcast(shared, 0)
    return int(shared)


def on_all_ranks(ok: bool, device: torch.device) -> bool:
    """Whether ``ok`` holds on every rank: if one rank cannot take part, none does, or the others would wait.

    Args:
        ok: This rank's.
        device: Where the process group's backend communicates.
    """
    if world_size() == 1:
        return ok
    shared = torch.tensor(int(ok), dtype=torch.int64, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MIN)
    return bool(shared)


def everyones(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def known_to_rank_zero(error: Exception) -> Exception:
    """Mark an error as known to rank 0, so that this rank does not report it again; returns the error."""
    with contextlib.suppress(Exception):  # a class of the user's may refuse attributes
        error._lightning_geo_known = True  # type: ignore[attr-defined]
    return error


def is_known_to_rank_zero(error: Exception) -> bool:
    """Whether :func:`known_to_rank_zero` marked an error."""
    return getattr(error, "_lightning_geo_known", False)


def failure_of_any_rank(error: Exception | None) -> Exception:
    """Return this rank's error, or one that names the others': rank 0 alone warns, and must know all.

    Args:
        error: This rank's; ``None`` where another failed, or they do not fit together.
    """
    if isinstance(error, OtherRankError):
        error = None
    everyone = everyones(None if error is None else f"{type(error).__name__}: {error}")
    reasons = [f"rank {index}: {reason}" for index, reason in enumerate(everyone) if reason is not None]
    others = "; ".join(reasons)
    if error is not None:
        # rank 0 warns of its own error alone if it has one; otherwise its warning names this one too
        return known_to_rank_zero(error) if everyone[0] in (None, everyone[rank()]) else error
    return RuntimeError(f"another rank failed ({others})" if others else "ranks saw other layers")
