"""Which tokens are real: what the model was told, else what masks hide from everybody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.masks import MaskReader, rows_of, visible, with_hidden
from lightning_geo.observe.layers.frame import Frame

__all__ = ["keys_by_masks", "set_token_masks", "special_tokens_of", "told_tokens"]

#: Names by which models are told the padding of a sequence, by the role of the sequence.
_TOLD = {
    "source": ("attention_mask", "padding_mask", "key_padding_mask", "src_key_padding_mask"),
    "target": ("decoder_attention_mask", "decoder_padding_mask", "tgt_key_padding_mask"),
    "memory": ("encoder_attention_mask", "encoder_padding_mask", "memory_key_padding_mask"),
}
_TARGETS = ("decoder_", "tgt", "target", "labels")
_MEMORIES = ("encoder_", "memory")


def role_of(argument: str) -> str:
    """The role of the sequence that an argument of the model's holds, from its name."""
    if argument.startswith(_TARGETS):
        return "target"
    return "memory" if argument.startswith(_MEMORIES) else "source"


def told_tokens(
    frames: Sequence[Frame],
    argument: str | None,
    batch: int,
    length: int,
    *,
    memory: bool = False,
    cross: bool = False,
) -> Tensor | None:
    """What running modules were told of the padding of a sequence, the closest to the call first.

    Args:
        frames: The running modules, outermost first.
        argument: Name of the model's argument that the sequence comes from; None where it is not known.
        batch: Sequences.
        length: Tokens of each.
        memory: Whether it is what a cross-attention attends to.
        cross: Whether it is asked for in a cross-attention, whose own mask is about the memory.

    Returns:
        [B, N] bool, True for real tokens by the name's convention: one named by padding is True for padding.
    """
    if argument is None:
        return None
    role = role_of(argument)
    for depth, frame in reversed(list(enumerate(frames))):
        names = _TOLD[role]
        whole = any(name in frame.given for name in ("decoder_input_ids", *_TOLD["target"]))
        if role == "target" and not whole:
            names = _TOLD["source"]  # inside a decoder, its own padding goes by the plain name
        elif memory and not (whole and role == "source"):
            names = _TOLD["memory"]  # and there the plain name is not that of what it attends to
        for name in (*_of_its_own(argument), *names):
            if cross and depth and name == "key_padding_mask" and not memory:
                continue
            mask = frame.given.get(name)
            if (
                isinstance(mask, Tensor)
                and mask.shape == (batch, length)
                and _is_about(name, argument, frame)
            ):
                return _real(mask, padding="padding" in name)
    return None


def _of_its_own(argument: str) -> tuple[str, ...]:
    """The mask that goes with an argument by its name: ``visual_attention_mask`` with ``visual_feats``."""
    prefix, _, rest = argument.partition("_")
    return (f"{prefix}_attention_mask",) if rest and prefix not in ("input", "inputs") else ()


def _is_about(name: str, argument: str, frame: Frame) -> bool:
    """Whether a plainly named mask is about this argument: where there are ids, it is about these."""
    ids = [n for n in ("input_ids", "inputs_embeds") if frame.given.get(n) is not None]
    return name != "attention_mask" or not ids or argument in ids


def _real(mask: Tensor, *, padding: bool) -> Tensor:
    if mask.dtype == torch.bool:
        return ~mask if padding else mask
    if not mask.is_floating_point():
        return mask == 0 if padding else mask > 0
    additive = visible(with_hidden(mask))  # 0 and -inf; an attention mask may also hold 0 and 1
    return additive if padding else torch.where((mask < 0).any(), additive, mask > 0)


def keys_by_masks(call: AttentionCall, reader: MaskReader, *, alone: bool = False) -> Tensor | None:
    """Keys that some query other than the key's own sees under the call's masks; None if there are no masks.

    Args:
        call: The call.
        reader: Of its masks.
        alone: Whether a key that its own query alone sees counts too.

    Returns:
        bool [B, Nk].
    """
    batch, queries, keys = call.lengths
    found: Tensor | None = None
    for mask in call.masks:
        front = 0 if call.offset is None else call.offset
        if alone or call.cross or call.offset is None:
            seen = reader.once("any row", mask, lambda m: _any_row(m, queries, keys))
        else:
            seen = reader.seen(mask, queries, keys, front)
        seen = seen.expand(batch, keys)
        found = seen if found is None else found & seen
    return found


def _any_row(mask: Any, queries: int, keys: int) -> Tensor:
    """[B or 1, Nk]: keys that any query sees."""
    found: Tensor | None = None
    for rows in rows_of(mask, queries, keys):
        seen = rows.any(-2)
        found = seen if found is None else found | seen
    assert found is not None
    return found.expand(-1, keys)


def set_token_masks(
    call: AttentionCall,
    frames: Sequence[Frame],
    arguments: tuple[str | None, str | None],
    reader: MaskReader,
    known_queries: Tensor | None,
) -> bool:
    """Fill in ``query_mask`` and ``key_mask``; whether the model was told the queries'.

    Args:
        call: With its masks, ``cross`` and ``offset``.
        frames: The running modules, outermost first.
        arguments: Names of the model's arguments that queries and keys come from.
        reader: Of masks.
        known_queries: Real tokens of the queries' sequence, as an earlier self-attention told them.
    """
    batch, queries, keys = call.lengths
    seen = keys_by_masks(call, reader)
    told_keys = _consistent(told_tokens(frames, arguments[1], batch, keys, memory=call.cross), seen)
    if call.cross or call.offset is None:
        told_queries = told_tokens(frames, arguments[0], batch, queries, cross=call.cross)
        call.query_mask = told_queries if told_queries is not None else known_queries
        call.key_mask = told_keys if told_keys is not None else seen
        return told_queries is not None
    own = slice(call.offset, call.offset + queries)
    told = told_tokens(frames, arguments[0], batch, queries)
    told = _consistent(told, None if seen is None else seen[:, own])
    if told is None and told_keys is not None:
        told = told_keys[:, own]
    call.query_mask = told if told is not None else None if seen is None else seen[:, own]
    if queries == keys:
        call.key_mask = call.query_mask
    elif call.query_mask is not None:
        around = (
            torch.ones(batch, keys, dtype=torch.bool, device=call.device) if seen is None else seen.clone()
        )
        around[:, own] = call.query_mask
        call.key_mask = around
    return told is not None


def _consistent(told: Tensor | None, seen: Tensor | None) -> Tensor | None:
    """The mask as told, or its opposite where the call's masks hide just what it calls real."""
    if told is None or seen is None:
        return told
    wrong, right = (seen & ~told).any(), (seen & told).any()
    return torch.where(wrong & ~right, ~told, told)


def special_tokens_of(frames: Iterable[Frame], ids: tuple[int, ...], call: AttentionCall) -> Tensor | None:
    """[B, Nk] bool: which keys are special tokens, where a running module was given the ids."""
    batch, queries, keys = call.lengths
    if not ids or call.cross or call.offset is None:
        return None
    for frame in reversed(list(frames)):
        given = frame.input_ids
        if given is None:
            continue
        if batch == 1 and given.numel() in (queries, keys):  # rows laid one after the other
            given = given.reshape(1, -1)
        if given.shape not in ((batch, queries), (batch, keys)):
            continue
        special = torch.isin(given, torch.tensor(ids, device=given.device))
        if given.shape[1] != keys:
            whole = special.new_zeros(batch, keys)
            whole[:, call.offset : call.offset + queries] = special
            special = whole
        return special
    return None
