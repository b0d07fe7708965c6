"""The numbers of one attention in float64, as DESIGN defines them: dense matrices and loops over sequences.

Nothing here imports lightning_geo. What is not defined is NaN; what the harness cannot tell is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.description import ENTROPY, PATTERN, Description
from harness.models import Built, Layer, run

__all__ = ["Facts", "Truth", "numbers", "truth_of"]

Numbers = dict[str, NDArray[np.float64]]


@dataclass
class Truth:
    """What a record must say of one attention.

    Args:
        path: Of the module that computes it; what stands in a record may be one inside or around it.
        order: Which of the module's attentions it is.
        index: The layer's number; None where the tree leaves it open.
        cross: Whether it attends to a memory.
        heads: How many.
        numbers: [H] by metric.
    """

    path: str
    order: int
    index: int | None
    cross: bool
    heads: int
    numbers: Numbers


@dataclass
class Facts:
    """Dense facts about one attention.

    Args:
        probabilities: [B, H, Nq, Nk] float64 over visible keys; rows without any are NaN.
        visible: [B, H, Nq, Nk] bool.
        documents: [B, Nq], the sequence that each real row belongs to, from 1 on; 0 for padding.
        key_documents: [B, Nk], the same for keys.
        offset: Key position of row 0.
        cross: Whether keys are of a memory.
        scores: [B, H, Nq, Nk], None where they are not known.
    """

    probabilities: Tensor
    visible: Tensor
    documents: Tensor
    key_documents: Tensor
    offset: int = 0
    cross: bool = False
    scores: Tensor | None = None


def truth_of(built: Built) -> list[Truth]:
    """Run the model by itself and compute what a record of it must say."""
    d = built.description
    result = []
    for layer in run(built):
        facts = _facts(built, layer)
        heads = facts.probabilities.shape[1]
        result.append(Truth(layer.path, layer.repeat, layer.index, layer.seen.cross, heads, numbers(facts)))
    assert result or d.parts == "channels_only", "the model computed no attention"
    return result


def _facts(built: Built, layer: Layer) -> Facts:
    seen, plan, d = layer.seen, built.plan, built.description
    scores = seen.query @ seen.key.transpose(-1, -2) * seen.scale
    keys = scores.shape[-1]
    real = plan.real
    if seen.cross:
        key_real, visible = plan.memory_real, plan.memory_real[:, None, None]
    else:
        key_real = plan.real_keys(keys)
        # keys behind the sequence are visible to every row
        visible = torch.nn.functional.pad(plan.structure, (0, keys - plan.structure.shape[-1]), value=True)
        visible = visible.expand(-1, -1, real.shape[1], -1)
        if visible.shape[0] not in (1, len(scores)):  # [W, 1, n, n], the same for every sequence of windows
            visible = visible.repeat(len(scores) // len(visible), 1, 1, 1)
        visible = visible & key_real[:, None, None]
        bias = seen.bias if seen.bias is not None else plan.bias
        if bias is not None:
            scores = scores + bias.double()
    documents, key_documents = real.long(), key_real.long()
    if plan.documents is not None and not seen.cross:
        documents = key_documents = plan.documents
    visible = visible.expand(scores.shape)
    p = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    rows = p[documents[:, None].expand(p.shape[:3]) > 0]
    assert bool(rows.isfinite().all()), f"the harness made a row that sees nothing, or is not finite: {d}"
    _check_the_model(d, layer, p, documents > 0)
    offset = 0 if seen.cross else plan.offset
    return Facts(p, visible, documents, key_documents, offset, seen.cross, scores)


def _check_the_model(d: Description, layer: Layer, p: Tensor, real: Tensor) -> None:
    """These probabilities give the model's own outputs: masks and axes of the harness are what they claim."""
    seen = layer.seen
    if seen.value is None or seen.output is None:
        return
    mine, output = p @ seen.value, seen.output
    if seen.project is not None:
        weight, bias = seen.project.weight.detach().double(), seen.project.bias.detach().double()
        mine = mine.transpose(1, 2).flatten(2) @ weight.T + bias
        off = (mine - output)[real].abs().max()
    else:
        off = (mine - output).transpose(1, 2)[real].abs().max()
    bound = 0.15 if d.dtype == "bfloat16" else 1e-3
    assert off < bound, f"the harness's own model does not compute what the truth says, by {off:.3g}: {d}"


def numbers(facts: Facts) -> Numbers:
    """Every metric of one attention, [H] each."""
    p = facts.probabilities.numpy()
    _, heads, queries, keys = p.shape
    i, j = np.arange(queries)[:, None] + facts.offset, np.arange(keys)[None]
    values: dict[str, list[NDArray[np.float64]]] = {}
    for b, document in _sequences(facts):
        rows = (facts.documents[b] == document).numpy()
        real = (facts.key_documents[b] == document).numpy()
        q, visible = p[b][:, rows], facts.visible[b].numpy()[:, rows].sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            row_entropy = -np.where(q > 0, q * np.log(q), 0.0).sum(-1)
            normalized = np.where(visible >= 2, row_entropy / np.log(visible), np.nan)
        received = q.sum(1)[:, real]
        planes = {
            "entropy": row_entropy,
            "normalized_entropy": normalized,
            "concentration": (q**2).sum(-1),
            "max_probability": q.max(-1),
        }
        if not facts.cross:
            first = np.zeros(keys, dtype=bool)
            first[real.argmax()] = True
            weights = {
                "self_mass": i == j, "previous_mass": j == i - 1, "next_mass": j == i + 1,
                "first_mass": first[None], "backward_mass": j < i, "forward_mass": j > i,
                "attention_distance": np.abs(i - j),
            }  # fmt: skip
            planes |= {
                name: (q * np.broadcast_to(w, (queries, keys))[rows]).sum(-1) for name, w in weights.items()
            }
        for name, plane in planes.items():
            values.setdefault(name, []).append(_mean(plane))
        values.setdefault("key_entropy", []).append(_spread(received))
    result = {name: _mean(np.stack(several, 1)) for name, several in values.items()}
    none = np.full(heads, np.nan)
    result |= {name: none for name in PATTERN if name not in result}
    if facts.scores is not None:
        seen = facts.visible & (facts.documents > 0)[:, None, :, None]
        result["max_logit"] = facts.scores.masked_fill(~seen, -torch.inf).amax((0, 2, 3)).numpy()
    return {name: result[name] for name in (*ENTROPY, *PATTERN) if name in result}


def _sequences(facts: Facts) -> list[tuple[int, int]]:
    """Rows of the batch and the documents in them."""
    return [(b, int(n)) for b, row in enumerate(facts.documents) for n in row.unique() if n > 0]


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, n] to [H], over what is defined."""
    count = (~np.isnan(values)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.nansum(values, 1) / count, np.nan)


def _spread(received: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of what keys receive [H, n], as a share of its maximum."""
    if received.shape[1] < 2:
        return np.full(len(received), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = received / received.sum(-1, keepdims=True)
        return -np.where(share > 0, share * np.log(share), 0.0).sum(-1) / np.log(received.shape[1])
