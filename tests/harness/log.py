"""What attention modules computed, written down outside of every module while a log is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Seen", "last_seen", "note", "recording"]


@dataclass
class Seen:
    """One attention between tokens, float64 where it counts.

    Args:
        module: That computes it.
        query: [B, H, Nq, D].
        key: [B, H, Nk, D], repeated where heads share them.
        scale: Of their products.
        cross: Whether keys are of a memory.
        bias: [1, H or 1, Nq, Nk], or None.
        part: Whether it is one head of several modules that belong to ``module``.
        value: [B, H, Nk, D], repeated likewise; None where outputs are not of this attention alone.
        output: [B, H, Nq, D], what the model made of them: the truth must give the same. [B, Nq, d] after
            ``project``, where heads do not show.
        project: What the outputs of heads went through.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    scale: float
    cross: bool
    bias: Tensor | None = None
    part: bool = False
    value: Tensor | None = None
    output: Tensor | None = None
    project: nn.Linear | None = None


_log: list[Seen] | None = None  # outside of every module: a model that is measured writes nothing


@contextmanager
def recording() -> Iterator[list[Seen]]:
    """Collect what attention modules compute while the context is open."""
    global _log
    _log = []
    try:
        yield _log
    finally:
        _log = None


def note(seen: Seen) -> None:
    """Write it down where a log is open."""
    if _log is not None:
        seen.query, seen.key = seen.query.detach().double(), seen.key.detach().double()
        seen.bias = None if seen.bias is None else seen.bias.detach().double()
        _log.append(seen)


def last_seen() -> Seen | None:
    """The newest entry of the open log."""
    return _log[-1] if _log else None
