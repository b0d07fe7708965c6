"""A policy: limits that a run must keep, who owns them, and waivers with an end."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAMPLES", "Limit", "Places", "Policy", "Samples", "Waiver"]

Samples = Literal["last", "all", "measured"]

SAMPLES: tuple[Samples, ...] = ("last", "all", "measured")


@dataclass(frozen=True)
class Places:
    """Stacks, layers and heads that a limit or a waiver is about; ``None`` for all of them."""

    stacks: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def cells(self, existing: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the existing layers or heads are meant.

        Args:
            existing: [layer] or [layer, head]: the layers, or the heads of each layer, that the model has.

        Example:
            >>> Places(layers=(1, 9)).cells(np.ones((2, 2), bool))
            array([[False, False],
                   [ True,  True]])
        """
        meant: NDArray[np.bool_] = existing.copy()
        if self.layers is not None:
            meant[[layer not in self.layers for layer in range(len(meant))]] = False
        if self.heads is not None and meant.ndim > 1:
            meant[:, [head not in self.heads for head in range(meant.shape[1])]] = False
        return meant

    def missing(self, existing: NDArray[np.bool_]) -> list[str]:
        """Name the layers and heads that are meant but that the model does not have.

        Example:
            >>> Places(layers=(1, 9), heads=(0, 7)).missing(np.ones((2, 2), bool))
            ['layer 9', 'head 7']
        """
        rows = existing.reshape(len(existing), -1)
        layers = list(np.logical_or.reduce(rows, axis=1))
        heads = list(np.logical_or.reduce(Places(layers=self.layers).cells(rows)))
        return [
            f"{noun} {number}"
            for noun, numbers, known in (("layer", self.layers, layers), ("head", self.heads, heads))
            for number in numbers or ()
            if number >= len(known) or not known[number]
        ]


@dataclass(frozen=True)
class Limit:
    """One requirement of a policy.

    Args:
        name: Name by which waivers and reports refer to it.
        metrics: Stored names; each is a check of its own.
        places: Where it holds.
        at_least: Lowest value that passes.
        at_most: Highest value that passes.
        change_at_most: Largest absolute difference to the last sample of an earlier release that passes;
            such a limit has no other.
        samples: Samples that must keep it: the ``"last"`` one, ``"all"``, or those that ``"measured"`` the
            metric at all, for metrics that not every sample has.
        from_step: First step of these samples.
        required: Whether the audit fails where a value is missing.
        why: Reason, for readers.
    """

    name: str
    metrics: tuple[str, ...]
    places: Places = Places()
    at_least: float | None = None
    at_most: float | None = None
    change_at_most: float | None = None
    samples: Samples = "last"
    from_step: int = 0
    required: bool = True
    why: str = ""

    @property
    def of_change(self) -> bool:
        """Whether it limits the difference to an earlier release."""
        return self.change_at_most is not None


@dataclass(frozen=True)
class Waiver:
    """A breach that somebody accepts for a while.

    Args:
        limit: Name of the limit that it excuses from.
        reason: Why.
        approved_by: Who accepts it.
        expires: Last day on which it holds.
        metrics: Stored names of the limit that it is about; ``None`` for all of them.
        places: Where it holds.
    """

    limit: str
    reason: str
    approved_by: str
    expires: dt.date
    metrics: tuple[str, ...] | None = None
    places: Places = Places()

    def covers(self, limit: str, metric: str, stack: str) -> bool:
        """Return whether it is about a check."""
        return (
            self.limit == limit
            and (self.metrics is None or metric in self.metrics)
            and (self.places.stacks is None or stack in self.places.stacks)
        )


@dataclass(frozen=True)
class Policy:
    """Limits with their owner.

    Args:
        name: Title.
        owner: Who decides on it.
        limits: At least one.
        waivers: Exceptions.
        purpose: Its purpose, for readers.
        path: File that it was read from.
        hash: SHA-256 of that file.
    """

    name: str
    owner: str
    limits: tuple[Limit, ...]
    waivers: tuple[Waiver, ...] = ()
    purpose: str = ""
    path: str = ""
    hash: str = ""
