"""The sequences of a model's call: its rows, or the documents packed into one row."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_geo.observe.packed.claims import claimed_documents, kind_of
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.observe.spans import Spans

__all__ = ["CallSequences", "documents_taken", "tokens_of_documents"]

#: Names of FlashAttention's argument for the length of the longest document.
_LONGEST = r"max_?(length|seq_?lens?)(_q|_k|_kv)?"


@dataclass(frozen=True)
class CallSequences:
    """Sequences and tokens of one call, for each part that it can be divided into.

    Args:
        divisible: Whether it can be divided into rows, or into the documents of its only row.
        counts: Sequences in each part; a call that cannot be divided is one part.
        tokens: Real tokens in each part; 0 if unknown (images).
        documents: Spans of the only row's documents, if these are the parts.
        packed: Whether rows hold several documents.
    """

    divisible: bool
    counts: tuple[int, ...]
    tokens: tuple[int, ...]
    documents: Spans | None = None
    packed: bool = False

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Sequences and tokens of each part."""
        return list(zip(self.counts, self.tokens, strict=True))

    @classmethod
    def of(cls, call: Call, *, packed: bool = True) -> CallSequences:
        """Count the sequences and tokens of a call.

        Args:
            call: Arguments of the model; documents are recognised by the names of keyword arguments.
            packed: Whether to look for documents, for which the host reads tensors.
        """
        sizes = [x.shape[0] for x in call.tensors() if x.dim() > 0]
        rows = sizes[0] if sizes else 1
        divisible = len(set(sizes)) == 1
        shape = _row_shape(call)
        spans = None
        if packed and shape is not None:
            spans = next(_claims(call, *shape), None)
            if spans is None and shape[0] == 1 and _has_lengths(call) and _can_be_cut(call, shape[1]):
                spans = [(0, shape[1])]  # a row of one document among packed ones
        if shape is None or spans is None:
            known = packed and shape is not None and shape[0] == rows
            tokens = _real_tokens(call, shape) if known and shape is not None else [0] * rows
            if divisible:
                return cls(True, (1,) * rows, tuple(tokens))
            return cls(False, (rows,), (sum(tokens),))
        batch, length = shape
        if batch == 1 and _can_be_cut(call, length):
            lengths = tuple(stop - start for start, stop in spans)
            return cls(True, (1,) * len(spans), lengths, spans, packed=len(spans) > 1)
        counts, tokens = [0] * batch, [0] * batch
        for start, stop in spans:
            counts[start // length] += 1
            tokens[start // length] += stop - start
        if divisible and batch == rows and batch > 1:
            return cls(True, tuple(max(1, n) for n in counts), tuple(tokens), packed=True)
        return cls(False, (len(spans),), (sum(tokens),), packed=True)


def documents_taken(call: Call, documents: Spans, indices: Sequence[int]) -> tuple[Call, Spans]:
    """Return a call with some of the documents of its only row.

    Args:
        call: The whole call, divisible into documents according to :class:`CallSequences`.
        documents: Spans of its documents.
        indices: Indices of the documents to take, ascending.

    Returns:
        The call, and the spans of the documents in it.
    """
    kept = [documents[index] for index in indices]
    lengths = [stop - start for start, stop in kept]
    bounds = [0, *np.cumsum(lengths).tolist()]
    tokens = torch.cat([torch.arange(start, stop) for start, stop in kept])
    total = _length(call)

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: cut(str(key), item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(cut(name, item) for item in value)
        if kind_of(name) == "cumulative" and isinstance(value, Tensor):
            return torch.tensor(bounds, dtype=value.dtype, device=value.device).view(*value.shape[:-1], -1)
        if re.fullmatch(_LONGEST, name):
            return torch.full_like(value, max(lengths)) if isinstance(value, Tensor) else max(lengths)
        if isinstance(value, Tensor):
            for axis in _token_axes(value, total) or ():
                value = value.index_select(axis, tokens.to(value.device))
        return value

    args = tuple(cut("", value) for value in call.args)
    taken = Call(args, {name: cut(name, value) for name, value in call.kwargs.items()}, call.method)
    return taken, list(itertools.pairwise(bounds))


def tokens_of_documents(call: Call, documents: Spans) -> list[dict[str, list[Tensor]]]:
    """Return each document's entries of every tensor, by argument, as in a row of its own.

    Cumulative lengths are left out and document numbers start anew, since both depend on the rest of the row.
    """
    length = _length(call)
    named = [*((str(i), x) for i, x in enumerate(call.args)), *call.kwargs.items()]
    return [
        {name: tensors for name, x in named if (tensors := list(_own(name, x, length, span)))}
        for span in documents
    ]


def _own(name: str, value: Any, length: int, span: tuple[int, int]) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _own(str(key), item, length, span)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _own(name, item, length, span)
    elif isinstance(value, Tensor) and kind_of(name) != "cumulative" and not re.fullmatch(_LONGEST, name):
        axes = _token_axes(value, length) if value.dim() else None
        for axis in axes or ():
            value = value.narrow(axis, span[0], span[1] - span[0])
        if axes and 0 not in axes and value.shape[0] == 1:
            value = value[0]
        if kind_of(name) in ("mask", "numbers") and not value.is_floating_point() and value.dim() == 1:
            value = torch.ones_like(value) if kind_of(name) == "mask" else value - value.min()
        yield value


def _named(call: Call) -> Iterator[tuple[str, Any]]:
    """Yield arguments by name, and entries of mappings one level deep; positional arguments have no name."""
    for name, value in [*(("", x) for x in call.args), *call.kwargs.items()]:
        if isinstance(value, Mapping):
            yield from ((str(key), item) for key, item in value.items())
        else:
            yield name, value


def _row_shape(call: Call) -> tuple[int, int] | None:
    """Return rows and tokens per row by ``input_ids`` or the first tensor; ``None`` if it holds no tokens."""
    tensors = [(name, x) for name, x in _named(call) if isinstance(x, Tensor) and x.dim() > 0]
    named = dict(tensors)
    if not tensors:
        return None
    main = named.get("input_ids", tensors[0][1])
    flat = any(kind_of(name) == "cumulative" for name in named)
    if main.is_floating_point():
        if main.dim() == 3:
            return main.shape[0], main.shape[1]
        return (1, main.shape[0]) if flat and main.dim() == 2 else None
    if main.dim() == 2:
        return main.shape[0], main.shape[1]
    return (1, main.shape[0]) if flat and main.dim() == 1 else None


def _has_lengths(call: Call) -> bool:
    return any(kind_of(name) == "cumulative" and isinstance(x, Tensor) for name, x in _named(call))


def _length(call: Call) -> int:
    shape = _row_shape(call)
    assert shape is not None
    return shape[1]


def _claims(call: Call, batch: int, length: int) -> Iterator[Spans]:
    kinds = ((kind_of(name), x) for name, x in _named(call) if isinstance(x, Tensor) and x.dim() > 0)
    claims = [
        (kind, x) for kind, x in kinds if kind is not None and not x.is_floating_point() and x.dim() < 4
    ]
    evidence = [(kind, x.detach().to("cpu", torch.int64).numpy()) for kind, x in claims]
    return claimed_documents(evidence, batch, length)


def _real_tokens(call: Call, shape: tuple[int, int]) -> list[int]:
    masks = (x for name, x in _named(call) if kind_of(name) == "mask" and isinstance(x, Tensor))
    mask = next((x for x in masks if x.shape == shape and not x.is_floating_point()), None)
    return [shape[1]] * shape[0] if mask is None else (mask != 0).sum(-1).tolist()


def _can_be_cut(call: Call, length: int) -> bool:
    """Whether every tensor has one entry per token, or can be rebuilt from the documents' lengths."""
    named = _named(call)
    rebuilt = {id(x) for name, x in named if kind_of(name) == "cumulative" or re.fullmatch(_LONGEST, name)}
    cut = [x for x in call.tensors() if id(x) not in rebuilt and x.dim() > 0]
    return all(_token_axes(x, length) is not None for x in cut)


def _token_axes(x: Tensor, length: int) -> tuple[int, ...] | None:
    """Return the token axes of ``[1, N, ...]``, ``[planes, 1, N]``, ``[1, 1, N, N]`` or ``[N, ...]``.

    ``None`` if there is none, or if another axis has the same length, so that the tokens' axis is ambiguous.
    """
    shape = tuple(x.shape)
    pairs = shape[-2:] == (length, length) and length > 1
    if shape == (1, 1, length, length):
        return (2, 3) if length > 1 else (3,)
    if shape == (1, 1, 1, length):
        return (3,)
    if len(shape) == 3 and shape[1:] == (1, length) and shape[0] in (3, 4):
        return (2,)
    if len(shape) in (2, 3) and shape[0] == 1 and shape[1] == length:
        return (1,) if not (pairs and len(shape) == 3) else (1, 2) if x.dtype == torch.bool else None
    if len(shape) in (1, 2) and shape[0] == length:
        return (0,) if not pairs else (0, 1) if x.dtype == torch.bool else None
    return None
