"""Modules that are running, and what their arguments and results say."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.call import CallKey
from lightning_geo.observe.layers.linear_run import Run
from lightning_geo.observe.packed.claims import Evidence
from lightning_geo.observe.packing import Packing

__all__ = [
    "Frame",
    "batch_first",
    "fitting",
    "given_to",
    "hidden_states",
    "in_rows",
    "input_ids_in",
    "token_states",
    "tokens_in",
]


@dataclass
class Frame:
    """A module that is running, and what happened inside so far."""

    name: str
    module: nn.Module
    input: Tensor | None = None
    input_ids: Tensor | None = None
    #: arguments by name
    given: dict[str, Any] = field(default_factory=dict)
    #: whether it was called past its ``__call__``, so that what it was given and returned is not known
    implied: bool = False
    keys: list[CallKey] = field(default_factory=list)
    emitted: CallKey | None = None
    query_mask: Tensor | None = None
    sequence_first: bool = False
    x: Tensor | None = None
    linears: list[Run] = field(default_factory=list)
    #: queries and keys of its last attention
    attended: tuple[Tensor | None, Tensor | None] | None = None
    #: attention calls that wait for its end: parts of one attention
    held: list[Any] = field(default_factory=list)
    #: whether an outer module holds what it computed
    gathered: bool = False
    evidence: tuple[Evidence, ...] = ()
    documents: Packing | None = None


#: Positional parameters by class of module. Weak: a parametrised module's class is its own, and holds it.
_POSITIONAL: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _positional(kind: Any) -> tuple[str, ...]:
    """Names of the positional parameters of a module class's ``forward``."""
    names = _POSITIONAL.get(kind)
    if names is None:
        names = _POSITIONAL[kind] = _read_positional(kind)
    return names


def _read_positional(kind: Any) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(kind.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(names[1:])


def given_to(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's call by name; those without one by position."""
    names = _positional(type(module))
    return {**{names[i] if i < len(names) else str(i): x for i, x in enumerate(args)}, **kwargs}


def tokens_in(frames: Iterable[Frame], query: Tensor | None = None) -> list[int]:
    """How many tokens each tensor of hidden states holds that running modules were given.

    Args:
        frames: The running modules.
        query: What attention was given for queries: it says nothing of its own axes.
    """
    found: list[int] = []
    for frame in frames:
        for name, x in frame.given.items():
            if not isinstance(x, Tensor) or not x.is_floating_point() or not 2 <= x.dim() <= 5:
                continue
            if "mask" in name or "bias" in name or (query is not None and _is_part(x, query)):
                continue
            # [B, N, d] or [B, H, W, d], and of images [B, d, H, W]; [B, 1, N, N] is a mask
            features = [x.shape[-1]] + ([x.shape[1]] if x.dim() == 4 and x.shape[1] > 1 else [])
            found += [x.numel() // n for n in features if n]
        if frame.input_ids is not None:
            found.append(frame.input_ids.numel())
    return found


def _is_part(x: Tensor, query: Tensor) -> bool:
    return x is query or (x.shape == query.shape and x.data_ptr() == query.data_ptr())


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
