"""Attention statistics once more, row by row in numpy and scipy, from the public arguments alone.

It shares no line and no idea with the package: it is what tells whether the oracle is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask, create_mask

Array = NDArray[Any]

ROW_FIELDS = (
    "visible_keys", "logsumexp", "entropy", "concentration", "max_probability", "max_logit", "self_mass",
    "previous_mass", "next_mass", "first_mass", "backward_mass", "forward_mass", "attention_distance",
)  # fmt: skip


def naive(arguments: dict[str, Any]) -> dict[str, Array]:
    """All statistics as float64 arrays; ``special_mass`` and ``learned_sink_mass`` where they are defined."""
    query, key = (arguments[name].double().numpy() for name in ("query", "key"))
    batch, heads, queries, dim = query.shape
    keys = key.shape[2]
    scale = arguments.get("scale")
    scale = 1 / np.sqrt(dim) if scale is None else scale
    shift = keys - queries if arguments.get("causal_alignment") == "bottom_right" else 0
    visible, bias = _masks(arguments, (batch, heads, queries, keys), shift)
    real = np.ones((batch, queries), bool) if (q := arguments.get("query_mask")) is None else q.numpy()
    special, sinks = arguments.get("special"), arguments.get("sinks")

    names = [
        *ROW_FIELDS,
        *(["special_mass"] * (special is not None)),
        *(["learned_sink_mass"] * (sinks is not None)),
    ]
    result = {name: np.full((batch, heads, queries), np.nan) for name in names}
    result["live"] = np.zeros((batch, heads, queries), bool)
    result["received"] = np.zeros((batch, heads, keys))
    for b in range(batch):
        allowed = visible[b][:, real[b]].any((0, 1))
        if queries == keys and arguments.get("query_mask") is not None:
            allowed = allowed & real[b]
        first = int(np.flatnonzero(allowed)[0]) if allowed.any() else None
        for h in range(heads):
            for i in range(queries):
                seen = np.flatnonzero(visible[b, h, i])
                row = {"visible_keys": float(len(seen))}
                live = bool(len(seen)) and bool(real[b, i])
                if live:
                    with np.errstate(all="ignore"):
                        scores = np.array(
                            [query[b, h, i] @ key[b, h * key.shape[1] // heads, j] for j in seen]
                        )
                        scores = scores * scale
                        if arguments.get("softcap"):
                            scores = arguments["softcap"] * np.tanh(scores / arguments["softcap"])
                        scores = scores + bias[b, h, i, seen]
                    if np.isfinite(scores).all():
                        p = np.zeros(keys)
                        p[seen] = scipy.special.softmax(scores)
                        row |= _row(scores, p, i + shift, first)
                        if special is not None:
                            row["special_mass"] = p[special[b].numpy()].sum()
                        if sinks is not None:
                            sink = sinks[h].double().numpy()
                            row["learned_sink_mass"] = scipy.special.softmax([*scores, sink])[-1]
                        result["received"][b, h] += p
                    else:
                        result["received"][b, h] = np.nan
                result["live"][b, h, i] = live
                for name, value in row.items():
                    result[name][b, h, i] = value
    return result


def _row(scores: Array, p: Array, position: int, first: int | None) -> dict[str, float]:
    def at(j: int | None) -> float:
        return float(p[j]) if j is not None and 0 <= j < len(p) else 0.0

    return {
        "logsumexp": scipy.special.logsumexp(scores),
        "entropy": scipy.stats.entropy(p),
        "concentration": p @ p,
        "max_probability": p.max(),
        "max_logit": scores.max(),
        "self_mass": at(position),
        "previous_mass": at(position - 1),
        "next_mass": at(position + 1),
        "first_mass": at(first),
        "backward_mass": sum(p[j] for j in range(len(p)) if j < position),
        "forward_mass": sum(p[j] for j in range(len(p)) if j > position),
        "attention_distance": sum(p[j] * abs(j - position) for j in range(len(p))),
    }


def _masks(arguments: dict[str, Any], shape: tuple[int, ...], shift: int) -> tuple[Array, Array]:
    """Visible keys and additive biases, [B, H, Nq, Nk] each."""
    visible, bias = np.ones(shape, bool), np.zeros(shape)
    window = arguments.get("window")
    left, right = (-1, -1) if window is None else (window - 1, -1) if isinstance(window, int) else window
    for i in range(shape[2]):
        for j in range(shape[3]):
            behind = i + shift - j
            if arguments.get("is_causal") and behind < 0:
                visible[:, :, i, j] = False
            if (left != -1 and behind > left) or (right != -1 and -behind > right):
                visible[:, :, i, j] = False
    masks = arguments.get("mask")
    for mask in masks if isinstance(masks, tuple) else () if masks is None else (masks,):
        if isinstance(mask, BlockMask):
            dense = create_mask(mask.mask_mod, mask.shape[0], mask.shape[1], *shape[2:], device="cpu")
            blocks = mask.to_dense().bool().numpy()
            for axis, size in zip((2, 3), mask.BLOCK_SIZE, strict=True):
                blocks = np.take(blocks, np.arange(shape[axis]) // size, axis)
            visible &= dense.numpy() & blocks
        elif mask.dtype == torch.bool:
            visible &= mask.numpy()
        else:
            values = np.broadcast_to(mask.double().numpy(), shape)
            visible &= ~(values <= -9000)
            bias = bias + np.where(values <= -9000, 0, values)
    return visible, bias
