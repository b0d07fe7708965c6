"""Finds the real tokens: by the model's padding masks, else by keys that masks hide from all queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.masks import MaskReader, rows_of, visible, with_hidden
from lightning_geo.observe.layers.frame import Frame
from lightning_geo.utils.device_copy import without_waiting

__all__ = [
    "input_ids_of",
    "keys_by_masks",
    "set_token_masks",
    "special_tokens_of",
    "tokens_from_arguments",
]

#: Names of padding masks among a model's arguments, by the role of the sequence.
_MASK_NAMES = {
    "source": ("attention_mask", "padding_mask", "key_padding_mask", "src_key_padding_mask"),
    "target": ("decoder_attention_mask", "decoder_padding_mask", "tgt_key_padding_mask"),
    "memory": ("encoder_attention_mask", "encoder_padding_mask", "memory_key_padding_mask"),
}
_TARGETS = ("decoder_", "tgt", "target", "labels")
_MEMORIES = ("encoder_", "memory")


def _role_of(argument: str) -> str:
    """Return the role of the sequence in an argument of the model, by the argument's name."""
    if argument.startswith(_TARGETS):
        return "target"
    return "memory" if argument.startswith(_MEMORIES) else "source"


def tokens_from_arguments(
    frames: Sequence[Frame],
    argument: str | None,
    batch: int,
    length: int,
    *,
    memory: bool = False,
    cross: bool = False,
    reader: MaskReader,
) -> Tensor | None:
    """Return the padding mask of a sequence that a running module was called with, the innermost first.

    Args:
        frames: The running modules, outermost first.
        argument: Name of the model's argument that the sequence comes from; None if unknown.
        batch: Number of sequences.
        length: Tokens of each.
        memory: Whether the sequence is the memory that a cross-attention attends to.
        cross: Whether the call is a cross-attention, whose own mask belongs to the memory.
        reader: Reads masks.

    Returns:
        [B, N] bool, True for real tokens; ``None`` if no module has such a mask. The argument's name decides
        how to read it: a mask named after padding marks padding.
    """
    if argument is None:
        return None
    role = _role_of(argument)
    for depth, frame in reversed(list(enumerate(frames))):
        names = _MASK_NAMES[role]
        whole = any(name in frame.given for name in ("decoder_input_ids", *_MASK_NAMES["target"]))
        if role == "target" and not whole:
            names = _MASK_NAMES["source"]  # inside a decoder, the plain name means the decoder's own padding
        elif memory and not (whole and role == "source"):
            names = _MASK_NAMES["memory"]  # inside a decoder, the memory's mask has another name
        for name in (*_of_its_own(argument), *names):
            if cross and depth and name == "key_padding_mask" and not memory:
                continue
            mask = frame.given.get(name)
            if (
                isinstance(mask, Tensor)
                and mask.shape == (batch, length)
                and _is_about(name, argument, frame)
            ):
                read = partial(_real, padding="padding" in name)
                real: Tensor = reader.once(f"real by {name}", mask, read)
                return real
    return None


def _of_its_own(argument: str) -> tuple[str, ...]:
    """Return the mask named after an argument: ``visual_attention_mask`` for ``visual_feats``."""
    prefix, _, rest = argument.partition("_")
    return (f"{prefix}_attention_mask",) if rest and prefix not in ("input", "inputs") else ()


def _is_about(name: str, argument: str, frame: Frame) -> bool:
    """Whether a mask belongs to this argument: plain ``attention_mask`` belongs to ids, if given."""
    ids = [n for n in ("input_ids", "inputs_embeds") if frame.given.get(n) is not None]
    return name != "attention_mask" or not ids or argument in ids


def _real(mask: Tensor, *, padding: bool) -> Tensor:
    if mask.dtype == torch.bool:
        return ~mask if padding else mask
    if not mask.is_floating_point():
        return mask == 0 if padding else mask > 0
    additive = visible(with_hidden(mask))  # 0 and -inf, or, in an attention mask, 0 and 1
    return additive if padding else torch.where((mask < 0).any(), additive, mask > 0)


def keys_by_masks(call: AttentionCall, reader: MaskReader, *, alone: bool = False) -> Tensor | None:
    """Return keys that a query besides their own sees under the call's masks; None without masks.

    Args:
        call: The call.
        reader: Reads its masks.
        alone: Whether to include keys that only their own query sees.

    Returns:
        bool [B, Nk].
    """
    batch, queries, keys = call.lengths
    common: Tensor | None = None
    for mask in call.masks:
        front = 0 if call.offset is None else call.offset
        if alone or call.cross or call.offset is None:
            seen = reader.once("any row", mask, lambda m: _any_row(m, queries, keys))
        else:
            seen = reader.seen(mask, queries, keys, front)
        seen = reader.once(f"of {batch} {keys}", seen, lambda s: s.expand(batch, keys))
        common = seen if common is None else common & seen
    return common


def _any_row(mask: Any, queries: int, keys: int) -> Tensor:
    """Return the keys that any query sees, [B or 1, Nk]."""
    any_seen: Tensor | None = None
    for rows in rows_of(mask, queries, keys):
        seen = rows.any(-2)
        any_seen = seen if any_seen is None else any_seen | seen
    assert any_seen is not None
    return any_seen.expand(-1, keys)


def set_token_masks(
    call: AttentionCall,
    frames: Sequence[Frame],
    arguments: tuple[str | None, str | None],
    reader: MaskReader,
    known_queries: Tensor | None,
    proves: Callable[[Tensor], bool] = lambda tokens: False,
) -> bool:
    """Fill in ``query_mask`` and ``key_mask``.

    Args:
        call: The call with its masks, ``cross`` and ``offset``.
        frames: The running modules, outermost first.
        arguments: Names of the model's arguments that queries and keys come from.
        reader: Reads masks.
        known_queries: Real tokens of the queries' sequence, known from an earlier self-attention.
        proves: Whether the call's masks are known to show some tokens to themselves, and nothing else.

    Returns:
        Whether the queries' mask is an argument of the model rather than deduced from the call's masks.
    """
    batch, queries, keys = call.lengths
    passed_keys = tokens_from_arguments(frames, arguments[1], batch, keys, memory=call.cross, reader=reader)
    alike = not call.cross and call.offset == 0 and queries == keys and arguments[0] == arguments[1]
    if alike and passed_keys is not None and proves(passed_keys):
        call.query_mask = call.key_mask = passed_keys
        return True
    seen = keys_by_masks(call, reader)
    passed_keys = _consistent(passed_keys, seen, reader)
    if call.cross or call.offset is None:
        passed_queries = tokens_from_arguments(
            frames, arguments[0], batch, queries, cross=call.cross, reader=reader
        )
        call.query_mask = passed_queries if passed_queries is not None else known_queries
        call.key_mask = passed_keys if passed_keys is not None else seen
        return passed_queries is not None
    own = slice(call.offset, call.offset + queries)
    passed = tokens_from_arguments(frames, arguments[0], batch, queries, reader=reader)
    seen_own = None if seen is None else _own(seen, own, reader)
    passed = _consistent(passed, seen_own, reader)
    if passed is None and passed_keys is not None:
        passed = _own(passed_keys, own, reader)
    call.query_mask = passed if passed is not None else seen_own
    if queries == keys:
        call.key_mask = call.query_mask
    elif call.query_mask is not None:
        around = (
            torch.ones(batch, keys, dtype=torch.bool, device=call.device) if seen is None else seen.clone()
        )
        around[:, own] = call.query_mask
        call.key_mask = around
    return passed is not None


def _own(mask: Tensor, own: slice, reader: MaskReader) -> Tensor:
    """Return the part of a mask of keys that is the queries' own: the same tensor for every layer."""
    if own == slice(0, mask.shape[1]):
        return mask
    part: Tensor = reader.once(f"own {own}", mask, lambda m: m[:, own])
    return part


def _consistent(mask: Tensor | None, seen: Tensor | None, reader: MaskReader) -> Tensor | None:
    """Return the mask, inverted if the call's masks hide exactly the tokens that it marks as real."""
    if mask is None or seen is None:
        return mask
    consistent: Tensor = reader.once_of_both("consistent", mask, seen, _not_inverted)
    return consistent


def _not_inverted(mask: Tensor, seen: Tensor) -> Tensor:
    inverted = ~mask
    wrong, right = (seen & inverted).any(), (seen & mask).any()
    return torch.where(wrong & ~right, inverted, mask)


def input_ids_of(frames: Iterable[Frame], call: AttentionCall) -> Tensor | None:
    """Return the ids of a call's queries, or of all its keys, [B, N] or [N]; None if no module has them."""
    batch, queries, keys = call.lengths
    if call.cross or call.offset is None:
        return None
    for frame in reversed(list(frames)):
        tokens = frame.input_ids
        if tokens is None:
            continue
        end_to_end = batch == 1 and tokens.numel() in (queries, keys)
        if end_to_end or tokens.shape in ((batch, queries), (batch, keys)):
            return tokens
    return None


def special_tokens_of(
    tokens: Tensor | None, ids: tuple[int, ...], call: AttentionCall, reader: MaskReader
) -> Tensor | None:
    """Return which keys are special tokens, [B, Nk] bool; None if the call's input ids are unknown.

    Args:
        tokens: See :func:`input_ids_of`.
        ids: Of special tokens.
        call: The call.
        reader: Reads each tensor once.
    """
    batch, _, keys = call.lengths
    if not ids or tokens is None:
        return None
    special: Tensor = reader.once(f"special {ids}", tokens, lambda t: _special(t, ids))
    special = special.reshape(batch, -1)
    if special.shape[1] != keys:
        assert call.offset is not None
        whole = special.new_zeros(batch, keys)
        whole[:, call.offset : call.offset + special.shape[1]] = special
        special = whole
    return special


def _special(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    return torch.isin(tokens, without_waiting(torch.tensor(ids), tokens.device))
