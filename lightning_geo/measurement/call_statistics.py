"""Statistics of one observed attention call, and its single scores."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_geo.functional import (
    AttentionStatistics,
    key_entropy,
)
from lightning_geo.functional.gates import gate_shares
from lightning_geo.functional.score_spectra import (
    SYMMETRIC_PRODUCTS,
    WHOLE_PRODUCTS,
    ScoreProducts,
    score_products,
)
from lightning_geo.kernels import HIDDEN_BELOW, AttentionProblem, attention
from lightning_geo.kernels.pairs import near_and_mutual, norm_shares
from lightning_geo.observe import AttentionCall

__all__ = ["ObservedScores", "call_statistics", "observed_scores"]

#: How many tokens away near context is.
_NEAR = 4

#: Statistics that the shares of gates are made of.
_SHARES = frozenset(
    {"entropy", "visible_keys", "first_mass", "self_mass", "special_mass", "received", "logsumexp"}
)


@dataclass(frozen=True)
class ObservedScores:
    """The argument of metric functions that read ``scores`` or ``attended``."""

    #: products of queries and keys; None where these are unknown
    products: AttentionProblem | None
    #: scores whose softmax is the attention
    attended: AttentionProblem
    key_mask: Tensor | None

    @property
    def problem(self) -> AttentionProblem:
        assert self.products is not None
        return self.products

    @functools.cached_property
    def norm_shares(self) -> Tensor:
        return norm_shares(self.problem)

    @property
    def dtype(self) -> torch.dtype:
        return self.problem.query.dtype

    def score_products(self, names: Iterable[str]) -> ScoreProducts:
        """What is left of queries and keys for spectra, by the names of products."""
        problem = self.problem
        mask = None if problem.query_mask is None else problem.query_mask[:, None]
        return ScoreProducts(score_products(problem.query, problem.key, mask, names), self.dtype)

    @functools.cached_property
    def spectrum(self) -> Tensor:
        return self.score_products(WHOLE_PRODUCTS).spectrum

    @functools.cached_property
    def symmetric_spectrum(self) -> Tensor:
        return self.score_products(SYMMETRIC_PRODUCTS).symmetric_spectrum

    @functools.cached_property
    def shares(self) -> dict[str, Tensor]:
        statistics = attention(replace(self.attended, requested=_SHARES))
        assert statistics.logsumexp is not None
        assert statistics.received is not None
        planes = {name: plane for name, plane in vars(statistics).items() if plane is not None}
        planes |= near_and_mutual(self.attended, statistics.logsumexp, statistics.live, _NEAR)
        received = key_entropy(statistics.received, self.key_mask)
        return gate_shares(planes, received)


def call_statistics(
    call: AttentionCall, requested: Iterable[str], rows: Tensor | None
) -> AttentionStatistics:
    """Return the requested statistics of one observed call, of all rows or of some."""
    attended, peak = _attended(call)
    statistics = attention(attended.problem(frozenset(requested), rows))
    if peak is None:
        return statistics
    if rows is not None:
        peak = peak.gather(2, rows[:, None].expand(-1, peak.shape[1], -1))
    raised = {"logsumexp": statistics.logsumexp, "max_logit": statistics.max_logit}
    return replace(statistics, **{name: x + peak for name, x in raised.items() if x is not None})


def observed_scores(call: AttentionCall, count: int) -> ObservedScores:
    """The scores of a call's first sequences."""
    attended, _ = _attended(call)
    problem = attended.problem().first_sequences(count)
    products: AttentionProblem | None = problem
    if call.scores is not None:
        known = call.query is not None and call.key is not None
        products = call.problem().first_sequences(count) if known else None
    mask = call.key_mask
    return ObservedScores(products, problem, None if mask is None else mask[:count])


def _attended(call: AttentionCall) -> tuple[AttentionCall, Tensor | None]:
    """A call of queries and keys whose softmax is this call's, and [B, H, Nq] that its scores lack.

    Scores that the model wrote out become a mask, on products that are zero.
    """
    if call.scores is None:
        return call, None
    batch, heads, queries, keys = call.scores.shape
    scores, peak = _below_peak(call.scores)
    zero = call.scores.new_zeros(1)
    attended = replace(
        call,
        query=zero.expand(batch, heads, queries, 1),
        key=zero.expand(batch, heads, keys, 1),
        masks=(scores, *call.masks),
        scores=None,
    )
    return attended, peak


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
