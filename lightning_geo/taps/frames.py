"""Modules that are running, and what their arguments and results say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_geo.taps.call import CallKey
from lightning_geo.taps.evidence import Evidence
from lightning_geo.taps.packing import Packing
from lightning_geo.taps.projections import Run

__all__ = [
    "OTHER_SEQUENCE",
    "Frame",
    "batch_first",
    "fitting",
    "heads_named_by",
    "hidden_states",
    "in_rows",
    "input_ids_in",
    "token_states",
]

#: Keyword arguments by which modules are given another sequence to attend to.
OTHER_SEQUENCE = ("key_value_states", "encoder_hidden_states", "memory", "context")


@dataclass
class Frame:
    """A module that is running, and what happened inside so far."""

    name: str
    module: nn.Module
    input: Tensor | None = None
    input_ids: Tensor | None = None
    cross: bool = False
    keys: list[CallKey] = field(default_factory=list)
    issued: CallKey | None = None
    query_mask: Tensor | None = None
    sequence_first: bool = False
    traced: bool = False
    x: Tensor | None = None
    linears: list[Run] = field(default_factory=list)
    evidence: tuple[Evidence, ...] = ()
    documents: Packing | None = None


def heads_named_by(module: nn.Module) -> int | None:
    """How many heads an attention module says that it has."""
    names = ("num_heads", "num_attention_heads", "n_heads", "n_head")
    found = (getattr(module, name, None) for name in names)
    return next((n for n in found if isinstance(n, int)), None)


def hidden_states(values: Iterable[Any]) -> Tensor | None:
    """First floating point tensor with batch, token and feature axes."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (3, 4):
            return value.flatten(1, 2) if value.dim() == 4 else value
    return None


def token_states(values: Iterable[Any]) -> Tensor | None:
    """Hidden states; those of rows laid one after the other, ``[tokens, d]``, where there are no others."""
    values = tuple(values)
    flat = (x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 2)
    states = hidden_states(values)
    return next(flat, None) if states is None else states


def in_rows(x: Tensor | None, documents: Packing | None) -> Tensor | None:
    """``[B, N, d]``, or ``[tokens, d]`` as one row of documents; ``None`` where they are not those tokens."""
    if x is None or x.dim() > 2:
        return x
    return x[None] if documents is not None and documents.holds(x[None]) else None


def input_ids_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    ids = kwargs.get("input_ids", args[0] if args else None)
    integer = isinstance(ids, Tensor) and not ids.is_floating_point() and ids.dim() in (1, 2)
    return ids if integer else None


def batch_first(x: Tensor | None, frame: Frame) -> Tensor | None:
    return x.transpose(0, 1) if x is not None and x.dim() > 2 and frame.sequence_first else x


def fitting(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask, where it is about the tokens of ``x`` (not so for Swin's windows)."""
    return mask if mask is not None and mask.shape == x.shape[:2] else None
