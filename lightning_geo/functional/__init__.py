"""Metrics as pure functions of tensors: a value computed by hand equals the one in the chart.

Each function is batched over leading axes, takes any floating point type, computes in float32 or wider,
changes no argument, and returns NaN where its metric is not defined. :mod:`.registry` says which
function computes which metric of the catalog.
"""

from __future__ import annotations

from lightning_geo.functional._tensors import masked_mean
from lightning_geo.functional.attention import attention_statistics
from lightning_geo.functional.cone import cone_index, mean_cosine
from lightning_geo.functional.entropy import key_entropy, normalized_entropy
from lightning_geo.functional.gates import gate_labels
from lightning_geo.functional.head import complementarity, head_similarity, linear_cka, redundancy
from lightning_geo.functional.importance import head_importance
from lightning_geo.functional.moments import head_moments, qk_cosine
from lightning_geo.functional.projection import HeadReads, projection_strength
from lightning_geo.functional.score_spectra import von_neumann_entropy
from lightning_geo.functional.spectrum import effective_rank, participation_ratio, stable_rank, top_share
from lightning_geo.functional.stream import (
    kurtosis,
    skewness,
    stream_statistics,
    token_norm,
    update_ratio,
)
from lightning_geo.functional.subspace import (
    principal_angles,
    principal_subspace,
    projection_similarity,
    subspace_distance,
)
from lightning_geo.functional.updates import bf16_share, unchanged_share, update_size, weight_similarity
from lightning_geo.functional.visibility import visible_share
from lightning_geo.functional.weights import HeadWeights
from lightning_geo.kernels import AttentionStatistics, HeadMoments, StreamStatistics
from lightning_geo.metrics.registry import METRIC_FUNCTIONS, computes, metric_function

__all__ = [
    "METRIC_FUNCTIONS",
    "AttentionStatistics",
    "HeadMoments",
    "HeadReads",
    "HeadWeights",
    "StreamStatistics",
    "attention_statistics",
    "bf16_share",
    "complementarity",
    "computes",
    "cone_index",
    "effective_rank",
    "gate_labels",
    "head_importance",
    "head_moments",
    "head_similarity",
    "key_entropy",
    "kurtosis",
    "linear_cka",
    "masked_mean",
    "mean_cosine",
    "metric_function",
    "normalized_entropy",
    "participation_ratio",
    "principal_angles",
    "principal_subspace",
    "projection_similarity",
    "projection_strength",
    "qk_cosine",
    "redundancy",
    "skewness",
    "stable_rank",
    "stream_statistics",
    "subspace_distance",
    "token_norm",
    "top_share",
    "unchanged_share",
    "update_ratio",
    "update_size",
    "visible_share",
    "von_neumann_entropy",
    "weight_similarity",
]
