"""Running modules, and the hidden states, ids and token counts in their arguments and results."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lightning_geo.observe.call import CallKey
from lightning_geo.observe.layers.linear_run import LinearRun
from lightning_geo.observe.packed.claims import Evidence
from lightning_geo.observe.packing import Packing

__all__ = [
    "Frame",
    "batch_first",
    "fitting",
    "given_to",
    "in_rows",
    "input_ids_in",
    "token_states",
    "tokens_in",
]


@dataclass
class Frame:
    """A running module, and the events inside it so far."""

    name: str
    module: nn.Module
    input: Tensor | None = None
    input_ids: Tensor | None = None
    #: arguments by name
    given: dict[str, Any] = field(default_factory=dict)
    #: whether its ``forward`` was called directly, so that hooks saw neither arguments nor result
    implied: bool = False
    keys: list[CallKey] = field(default_factory=list)
    emitted: CallKey | None = None
    query_mask: Tensor | None = None
    sequence_first: bool = False
    x: Tensor | None = None
    linears: list[LinearRun] = field(default_factory=list)
    #: queries and keys of its last attention
    attended: tuple[Tensor | None, Tensor | None] | None = None
    #: attention calls held until it ends: parts of one attention
    held: list[Any] = field(default_factory=list)
    #: whether an outer module holds its attention calls
    gathered: bool = False
    evidence: tuple[Evidence, ...] = ()
    documents: Packing | None = None
    #: tokens, and features of the heads, of an attention of which this process has a slice of the heads
    slice_shape: tuple[int, int] | None = None


#: Positional parameters by module class. Weak: a parametrised module has a class of its own, which holds it.
_POSITIONAL: weakref.WeakKeyDictionary[Any, tuple[str, ...]] = weakref.WeakKeyDictionary()


def _positional(kind: Any) -> tuple[str, ...]:
    """Return the names of the positional parameters of a module class's ``forward``."""
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
    """Return the arguments of a module's call by name, those without a name by position."""
    names = _positional(type(module))
    return {**{names[i] if i < len(names) else str(i): x for i, x in enumerate(args)}, **kwargs}


def tokens_in(frames: Iterable[Frame], query: Tensor | None = None) -> list[int]:
    """Count the tokens of every hidden-states tensor among the arguments of running modules.

    Args:
        frames: The running modules.
        query: Queries of the attention. They are left out: their axes are the ones in question.
    """
    counts: list[int] = []
    for frame in frames:
        for name, x in frame.given.items():
            if not isinstance(x, Tensor) or not x.is_floating_point() or not 2 <= x.dim() <= 5:
                continue
            if "mask" in name or "bias" in name or (query is not None and _is_part(x, query)):
                continue
            # [B, N, d] or [B, H, W, d], and of images [B, d, H, W]; [B, 1, N, N] is a mask
            features = [x.shape[-1]] + ([x.shape[1]] if x.dim() == 4 and x.shape[1] > 1 else [])
            counts += [x.numel() // n for n in features if n]
        if frame.input_ids is not None:
            counts.append(frame.input_ids.numel())
    return counts


def _is_part(x: Tensor, query: Tensor) -> bool:
    return x is query or (x.shape == query.shape and x.data_ptr() == query.data_ptr())


def _hidden_states(values: Iterable[Any]) -> Tensor | None:
    """Return the first floating point tensor with batch, token and feature axes."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (3, 4):
            return value.flatten(1, 2) if value.dim() == 4 else value
    return None


def token_states(values: Iterable[Any]) -> Tensor | None:
    """Return hidden states; of rows laid end to end, ``[tokens, d]``, if there are no others."""
    values = tuple(values)
    flat = (x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 2)
    states = _hidden_states(values)
    return next(flat, None) if states is None else states


def in_rows(x: Tensor | None, documents: Packing | None) -> Tensor | None:
    """Return ``[B, N, d]``, ``[tokens, d]`` as one row; ``None`` if the row does not fit the documents."""
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
    """Return the mask if it fits the tokens of ``x``, unlike that of Swin's windows."""
    return mask if mask is not None and mask.shape == x.shape[:2] else None
