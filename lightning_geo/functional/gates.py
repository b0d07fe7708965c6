"""Gates: whether a head is open, closed, or attends to itself, near context, a few keys or groups.

The names follow "The geometry of BERT" (arXiv 2502.12033); the criteria are this module's own. Each
gate has one or two conditions on shares between 0 and 1, and its *margin* is how far the least
fulfilled of them is from its threshold: 0.1 is clearly inside, -0.1 clearly outside. A head is the gate of
the largest margin that is not negative, and *mixed* if there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import masked_mean
from lightning_geo.functional.entropy import normalized_entropy
from lightning_geo.functional.observed_call import ObservedScores
from lightning_geo.metrics.gates import GATES, MIXED
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Float, Int64, Shaped

__all__ = ["gate_count", "gate_labels", "gate_margins", "gate_shares"]

#: Threshold of each gate, chosen on the 72 heads of the packaged BERT on news so that the gates separate the
#: patterns in the pictures of ``examples/gates.py``; equal thresholds do not.
_THRESHOLDS = {
    "open": 0.85,  # normalized entropy: e^(0.85 ln n) keys share the attention, half of 100
    "closed": 0.40,  # mass on special tokens or on the first: 20 times what a uniform head leaves there
    "instance": 0.40,  # mass on the token itself
    "backward": 0.35,  # mass on the 4 tokens before
    "forward": 0.35,  # mass on the 4 tokens after
    "directional": 0.85,  # entropy of what keys receive, below: stripes, keys that all queries pick
    "cluster": 0.40,  # reciprocity: of g tokens that share their attention evenly it is (g - 1) / g
}


@computes("gate", reads=("attended",))
def gate_margins(scores: ObservedScores, part: str) -> Float[Tensor, "batch heads"]:
    r"""Margin of one gate, by sequence.

    - open: normalized entropy; closed: the larger of ``special_mass`` and ``first_mass``; instance:
      ``self_mass``; backward and forward: mass on the 4 tokens before and after; each less its threshold.
    - directional: the threshold less ``key_entropy``; cluster: reciprocity less its threshold,
      :math:`\sum_{i \ne j} p_{ij} p_{ji} / \sum_{ij} p_{ij}^2`. Both only as far as the head is not open
      and not closed, cluster also not instance.

    Args:
        scores: The attention call, queries and keys being the same tokens.
        part: One of :data:`~lightning_geo.metrics.gates.GATES`.

    Returns:
        ``[B, H]``.

    Source: The geometry of BERT, arXiv 2502.12033 (the names).
    """
    over = {name: scores.shares[name] - _THRESHOLDS[name] for name in GATES}
    over["directional"] = -over["directional"]
    margins = [over[part]]
    if part in ("directional", "cluster"):
        margins += [-over["open"], -over["closed"]]
    if part == "cluster":
        margins.append(-over["instance"])
    return torch.stack(margins).amin(0)


def gate_labels(margins: Float[Tensor, "7 ..."]) -> Int64[Tensor, " ..."]:
    """The gate of each head: its index in :data:`~lightning_geo.metrics.gates.GATES`, or one more for mixed.

    Args:
        margins: ``[7, ...]``, in the order of ``GATES``.

    Returns:
        int64 ``[...]``; -1 where margins are NaN.

    Example:
        >>> gate_labels(torch.tensor([[0.1, -0.2], [0.05, -0.1]] + [[-1.0, -1.0]] * 5))
        tensor([0, 7])
    """
    best, label = margins.max(0)
    label = torch.where(best < 0, len(GATES), label)
    return torch.where(margins.isnan().any(0), -1, label)


@computes("gate_count", reads=("margins",))
def gate_count(margins: Float[Tensor, "7 *layers heads"], part: str) -> Float[Tensor, "*layers"]:
    """Count the heads of a layer that are one gate: a scalar.

    Args:
        margins: ``[7, ..., H]``, in the order of ``GATES``.
        part: One of ``GATES``, or ``"mixed"``.
    """
    count = (gate_labels(margins) == (*GATES, MIXED).index(part)).sum(-1)
    return torch.where(margins.isnan().all(-1).all(0), torch.nan, count.to(margins.dtype))


def gate_shares(
    statistics: dict[str, Shaped[Tensor, "batch heads ..."]], key_entropy: Float[Tensor, "batch heads"]
) -> dict[str, Float[Tensor, "batch heads"]]:
    """Return the shares that the gates' conditions compare, ``[B, H]`` each.

    Args:
        statistics: Planes ``[B, H, N]`` of ``AttentionStatistics``, ``live`` among them, and the
            ``backward``, ``forward`` and ``cluster`` of
            :func:`lightning_geo.kernels.pairs.near_and_mutual`.
        key_entropy: ``[B, H]``.
    """
    live = statistics["live"]

    def mean(plane: Float[Tensor, "batch heads rows"]) -> Float[Tensor, "batch heads"]:
        return masked_mean(plane, live & ~plane.isnan())

    parked = mean(statistics["first_mass"])
    if "special_mass" in statistics:
        parked = torch.maximum(parked, mean(statistics["special_mass"]))
    return {
        "open": mean(normalized_entropy(statistics["entropy"], statistics["visible_keys"])),
        "closed": parked,
        "instance": mean(statistics["self_mass"]),
        "backward": statistics["backward"],
        "forward": statistics["forward"],
        "directional": key_entropy,
        "cluster": statistics["cluster"],
    }
