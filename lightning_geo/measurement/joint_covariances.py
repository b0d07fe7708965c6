"""How much the outputs of a layer's heads have in common: norms and traces of blocks of their covariance."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torch import Tensor

from lightning_geo.functional.head import block_norms, block_traces
from lightning_geo.measurement.derived_stack import DerivedStack, in_parts, layers_by_shape
from lightning_geo.measurement.head_sketch import sketched_norms
from lightning_geo.measurement.sums import covariances, joined

__all__ = ["ComparedHeads", "joint_covariances"]


class ComparedHeads(NamedTuple):
    """What the heads of layers are compared by.

    Args:
        indices: The L layers.
        norms: ``[L, H, H]``: Frobenius norms of the blocks of the covariance of all heads' outputs.
        traces: ``[L, H]``: traces of the blocks on its diagonal.
    """

    indices: list[int]
    norms: Tensor
    traces: Tensor


def joint_covariances(stack: DerivedStack) -> tuple[list[tuple[list[int], Tensor]], list[ComparedHeads]]:
    """Return each head's own covariance where there is one of all heads, and what heads are compared by.

    Args:
        stack: Layers with sums of the outputs of all heads, or sketches of them.

    Returns:
        Layers with the covariances ``[L, H, D, D]`` of their heads; and layers with as many heads at a time.
    """
    own: list[tuple[list[int], Tensor]] = []
    by_heads: dict[int, list[ComparedHeads]] = {}
    for indices in layers_by_shape(stack.layers, "heads.second"):
        second = stack.layers[indices[0]].sums["heads.second"]
        width, device = second.shape[-1], second.device
        for part in in_parts(indices, 8 * width * width, device):
            covariance, broken = covariances([stack.layers[i] for i in part], ["heads"] * len(part))
            stack.add_broken(part, broken)
            covariance = covariance[:, 0].float()
            heads = stack.heads[part[0]]
            covariance = covariance.unflatten(1, (heads, -1)).unflatten(3, (heads, -1))
            compared = ComparedHeads(part, block_norms(covariance), block_traces(covariance))
            by_heads.setdefault(heads, []).append(compared)
            # each head's own is a block of that of all heads together
            own.append((part, covariance.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)))
    for indices in layers_by_shape(stack.layers, "heads.sketch"):
        layers = [stack.layers[i] for i in indices]
        covariance, broken = covariances(layers, ["output"] * len(indices))
        stack.add_broken(indices, broken)
        norms = sketched_norms(layers, covariance)
        traces = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        compared = ComparedHeads(indices, norms.float(), traces.float())
        by_heads.setdefault(norms.shape[1], []).append(compared)
    return own, [_together(compared) for compared in by_heads.values()]


def _together(parts: list[ComparedHeads]) -> ComparedHeads:
    indices = list(itertools.chain(*(part.indices for part in parts)))
    return ComparedHeads(indices, joined([p.norms for p in parts]), joined([p.traces for p in parts]))
