"""One observed attention call as metric functions read it, see :mod:`lightning_geo.metrics.registry`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_geo.functional import (
    AttentionStatistics,
    HeadMoments,
    key_entropy,
)
from lightning_geo.functional.gates import gate_shares
from lightning_geo.kernels import HIDDEN_BELOW, AttentionProblem, attention
from lightning_geo.kernels.checks import attention_problem
from lightning_geo.kernels.pairs import near_and_mutual, norm_shares
from lightning_geo.observe import AttentionCall

__all__ = ["ObservedRows", "ObservedScores", "call_statistics", "observed_scores"]

#: How many tokens away near context is.
NEAR = 4


@dataclass(frozen=True)
class ObservedRows:
    """What metric functions of kind ``sequence`` read (see ``functional.registry``)."""

    query: HeadMoments
    key: HeadMoments
    key_mask: Tensor | None
    statistics: AttentionStatistics

    @property
    def received(self) -> Tensor:
        assert self.statistics.received is not None
        return self.statistics.received


@dataclass(frozen=True)
class ObservedScores:
    """What metric functions of kind ``scores`` read."""

    #: from queries and keys as they are, None where they could not be told
    products: AttentionProblem | None
    #: whose softmax is the attention
    attended: AttentionProblem
    key_mask: Tensor | None

    @property
    def problem(self) -> AttentionProblem:
        assert self.products is not None
        return self.products

    @functools.cached_property
    def norm_shares(self) -> Tensor:
        return norm_shares(self.problem)

    @functools.cached_property
    def shares(self) -> dict[str, Tensor]:
        wanted = {
            "entropy",
            "visible_keys",
            "first_mass",
            "self_mass",
            "special_mass",
            "received",
            "logsumexp",
        }
        found = attention(replace(self.attended, requested=frozenset(wanted)))
        assert found.logsumexp is not None
        assert found.received is not None
        planes = {name: plane for name, plane in vars(found).items() if plane is not None}
        planes |= near_and_mutual(self.attended, found.logsumexp, found.live, NEAR)
        received = key_entropy(found.received, self.key_mask)
        return gate_shares(planes, received)


def call_statistics(call: AttentionCall, wanted: Iterable[str], rows: Tensor | None) -> AttentionStatistics:
    """Those statistics of one observed call, of all rows or of some."""
    query, key, masks, peak = _attended(call)
    problem = _problem(query, key, call, masks, wanted)
    # rows that were drawn here exist: to check them the host would wait for the device
    found = attention(replace(problem, rows=rows))
    if peak is None:
        return found
    if rows is not None:
        peak = peak.gather(2, rows[:, None].expand(-1, peak.shape[1], -1))
    raised = {"logsumexp": found.logsumexp, "max_logit": found.max_logit}
    return replace(found, **{name: x + peak for name, x in raised.items() if x is not None})


def observed_scores(call: AttentionCall, count: int) -> ObservedScores:
    """The scores of a call's first sequences."""
    query, keys, masks, _ = _attended(call)
    attended = _problem(query, keys, call, masks)
    products: AttentionProblem | None = attended
    if call.scores is not None:
        products = None
        if call.query is not None and call.key is not None:
            products = _problem(call.query, call.key, call, masks)
    mask = call.key_mask
    return ObservedScores(
        None if products is None else products.first_sequences(count),
        attended.first_sequences(count),
        None if mask is None else mask[:count],
    )


def _attended(call: AttentionCall) -> tuple[Tensor, Tensor, tuple[Any, ...], Tensor | None]:
    """Queries, keys and masks whose softmax is the call's attention, and [B, H, Nq] that scores lack."""
    query, key, masks, peak = call.query, call.key, call.masks, None
    if call.scores is not None:  # they are all a mask, on products that are zero
        batch, heads, queries, keys = call.scores.shape
        query = call.scores.new_zeros(1).expand(batch, heads, queries, 1)
        key = call.scores.new_zeros(1).expand(batch, heads, keys, 1)
        scores, peak = _below_peak(call.scores)
        masks = (scores, *call.masks)
    assert query is not None
    assert key is not None
    return query, key, masks, peak


def _below_peak(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores less the largest of their row, and these.

    As a mask, scores below ``HIDDEN_BELOW`` would hide their keys, and training that diverges has such. What
    hides is told by the call's masks, and by -inf.
    """
    scores = scores.to(torch.float32)
    peak = scores.amax(-1, keepdim=True)
    peak = torch.where(peak.isfinite(), peak, 0.0)
    below = scores - peak
    return torch.where(below == -torch.inf, below, below.clamp(min=HIDDEN_BELOW + 1)), peak[..., 0]


def _problem(
    query: Tensor,
    key: Tensor,
    call: AttentionCall,
    masks: tuple[Any, ...],
    wanted: Iterable[str] | None = None,
) -> AttentionProblem:
    """The call in the form of the kernels, with these queries, keys and masks."""
    problem = attention_problem(
        query,
        key,
        mask=masks or None,
        is_causal=call.is_causal,
        causal_alignment="top_left",
        query_mask=call.query_mask,
        window=call.window,
        sinks=call.sinks,
        special=call.special,
        scale=call.scale,
        softcap=call.softcap,
        statistics=wanted,
        queries=None,
    )
    return replace(problem, offset=call.offset or 0)
