"""Translate attention recognised in matrix products and softmaxes into attention calls."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_geo.observe.attention.terms import Term
from lightning_geo.observe.attention.traced_tensors import Softmax, WrittenAttention
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.observe.evidence.axes import Axes, UnknownAxesError
from lightning_geo.observe.evidence.masks import MaskReader, visible

__all__ = ["assembled", "written_calls"]


def written_calls(
    attention: WrittenAttention, axes: Callable[[Tensor, Tensor | None], Axes], reader: MaskReader
) -> list[AttentionCall]:
    """Return a call for each softmax; with several softmaxes, calls have no values and outputs.

    Args:
        attention: The recognised attention.
        axes: Finds the axis of heads in queries, or in scores, from their keys too.
        reader: Reads masks.

    Raises:
        UnknownAxesError: If the axis of heads is unknown.
    """
    calls = [_call(softmax, attention, axes, reader) for softmax in attention.softmaxes]
    if len(calls) > 1:
        for call in calls:
            call.value = call.output = None
    return calls


def _call(
    softmax: Softmax,
    attention: WrittenAttention,
    axes: Callable[[Tensor, Tensor | None], Axes],
    reader: MaskReader,
) -> AttentionCall:
    scores, lead = softmax.scores, softmax.scores.shape[:-2]
    query = softmax.query
    layout = axes(scores if query is None or query.shape[:-2] != lead else query, softmax.key)
    if softmax.known.keys is not None and attention.value is not None:
        scores = scores[..., : attention.value.shape[-2]]  # columns without a key have no values
    whole = layout(scores)
    roles = softmax.query, softmax.key, attention.value, attention.output
    q, k, v, output = (_heads(x, layout, lead, whole) for x in roles)
    if k is not None and k.shape[2] != whole.shape[3]:
        q = k = None
    if output is not None and output.shape[1:3] != whole.shape[1:3]:
        output = None
    masks = [
        _mask(term, softmax.axes, layout, lead, whole, reader) if {*term.axes} == {*softmax.axes} else None
        for term in softmax.known.terms
    ]
    if softmax.known.opaque or any(mask is None for mask in masks):
        masks = [visible(whole)]
    return AttentionCall(q, k, v, output, masks=tuple(masks), scores=whole)


def _heads(x: Tensor | None, axes: Axes, lead: torch.Size, scores: Tensor) -> Tensor | None:
    """Map [..., N, D] to [B, h, N, D], h dividing H; None if the sizes do not allow it."""
    if x is None:
        return None
    batch, heads = scores.shape[:2]
    try:
        if x.dim() == len(lead) + 2:
            x = axes.grouped(x, scores.flatten(0, 1)) if axes.folded else axes(x)
        elif x.dim() == 3 and x.shape[0] % batch == 0:
            x = x.unflatten(0, (batch, -1))
    except (UnknownAxesError, RuntimeError):
        return None
    if x.dim() == 4 and x.shape[0] == 1 and batch > 1:
        x = x.expand(batch, -1, -1, -1)
    return x if x.dim() == 4 and x.shape[0] == batch and heads % x.shape[1] == 0 else None


def _mask(
    term: Term, places: tuple[int, int], axes: Axes, lead: torch.Size, scores: Tensor, reader: MaskReader
) -> Tensor | None:
    """Return a term as a bool mask [B or 1, H or 1, Nq or 1, Nk or 1]; None if its shape does not fit."""
    mask = term.mask if term.mask.dtype == torch.bool else visible(reader.hiding(term.mask))
    mask = mask[(None,) * (len(term.shape) - mask.dim())].movedim(places, (-2, -1))
    before = tuple(n for i, n in enumerate(term.shape) if i - len(term.shape) not in places)
    if any(m not in (1, n) for m, n in zip(mask.shape[-2:], scores.shape[-2:], strict=True)):
        return None
    if before == tuple(lead):
        return axes.mask(mask, lead)
    if before == tuple(scores.shape[:2]):
        return mask
    if before == (math.prod(scores.shape[:2]),) and mask.shape[0] == 1:
        return mask[None]
    return None


def assembled(pieces: list[AttentionCall]) -> AttentionCall:
    """Join calls that hold consecutive query rows into one call.

    Keys of the pieces cannot be matched: shorter rows are padded with hidden keys, and the call has no
    positions.

    Args:
        pieces: Calls with scores, of the same sequences and heads, in order.

    Raises:
        LeftOutError: Some pieces' keys are known and others' are not, so that a key that a row picked twice
            would count twice: BigBird in transformers 4 multiplies some blocks in another shape.
    """
    if len({piece.key is None for piece in pieces}) > 1:
        raise LeftOutError("its blocks of keys cannot be told apart, so that a key could count twice")
    batch = min(piece.lengths[0] for piece in pieces)
    width = max(piece.lengths[2] for piece in pieces)
    rows = []
    for piece in pieces:
        scores = F.pad(_hidden(piece), (0, width - piece.lengths[2]), value=-torch.inf)
        # Blocks of rows in the batch axis become consecutive rows of their sequence.
        rows.append(scores.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3))
    return AttentionCall(None, None, None, None, scores=torch.cat(rows, dim=2), offset=None)


def _hidden(piece: AttentionCall) -> Tensor:
    assert piece.scores is not None
    scores = piece.scores
    for mask in piece.masks:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores if piece.key is None else _each_key_once(scores, piece.key)


def _each_key_once(scores: Tensor, key: Tensor) -> Tensor:
    """Merge the columns of one key: rows that pick blocks of keys (BigBird) may pick a block twice.

    Probabilities of equal keys are added. Keys are compared by their projection on a random direction.

    Args:
        scores: [B, H, rows, columns].
        key: [B, Hk, columns, D].

    Returns:
        Scores of the same shape, with each key's total in one column and -inf in its other columns.
    """
    direction = torch.rand(key.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    marks = key.to(torch.float64) @ direction.to(key.device)
    marks = marks.repeat_interleave(scores.shape[1] // key.shape[1], dim=1)
    ordered, order = marks.sort(dim=-1, stable=True)
    fresh = torch.cat([torch.ones_like(ordered[..., :1], dtype=torch.bool), ordered.diff(dim=-1) != 0], -1)
    groups = torch.zeros_like(order).scatter(-1, order, fresh.cumsum(-1) - 1)
    peak = scores.amax(-1, keepdim=True)
    weights = torch.zeros_like(scores).scatter_add(
        -1, groups[..., None, :].expand_as(scores), (scores - peak).exp()
    )
    return weights.log() + peak
