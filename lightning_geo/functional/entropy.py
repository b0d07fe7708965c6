"""Entropy of attention on a scale that lengths do not shift: per query, and over the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.functional._tensors import as_float, check_mask, shannon_entropy
from lightning_geo.kernels.workspace import constant, where_defined
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.errors import ArgumentError
from lightning_geo.utils.shapes import Bool, Float, Num

__all__ = ["key_entropy", "normalized_entropy"]


@computes("normalized_entropy", reads=("entropy", "visible_keys"))
def normalized_entropy(
    entropy: Float[Tensor, "*batch"], visible_keys: Num[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    r"""Entropy of a query's attention as a share of that of uniform attention.

    .. math:: H / \ln(\text{visible keys})

    Args:
        entropy: In nats, one per query, any shape.
        visible_keys: How many keys each query may attend to, same shape, integer or float.

    Returns:
        In [0, 1], shape of ``entropy``; NaN where fewer than two keys are visible.

    Raises:
        TypeError: If ``entropy`` is not floating point.
        ValueError: If the shapes differ.

    Source: Shannon 1948 (efficiency, normalised entropy).

    Example:
        >>> normalized_entropy(torch.tensor([1.3863, 0.0, 0.0]), torch.tensor([4, 4, 1]))
        tensor([1., 0., nan])
    """
    entropy = as_float(entropy, "entropy")
    if visible_keys.shape != entropy.shape:
        raise ArgumentError(
            f"Expected `visible_keys` to have the shape of `entropy`, {list(entropy.shape)}, "
            f"but got {list(visible_keys.shape)}."
        )
    ratio = entropy / visible_keys.clamp(min=2).to(entropy.dtype).log()
    return where_defined(visible_keys >= 2, ratio.clamp(0, 1))


@computes("key_entropy", reads=("received", "key_mask"))
def key_entropy(
    received: Float[Tensor, "*batch heads keys"], key_mask: Bool[Tensor, "*#batch #keys"] | None = None
) -> Float[Tensor, "*batch heads"]:
    r"""Entropy of the attention that keys receive from all queries together, as a share of its maximum.

    .. math:: -\frac{1}{\ln n} \sum_j r_j \ln r_j, \quad
              r_j = \text{received}_j \Big/ \sum_{j'} \text{received}_{j'}

    Low: all queries pick the same few keys, vertical stripes in the attention matrix.

    Args:
        received: Attention that each key receives, summed over queries, ``[..., head, key]``.
        key_mask: Boolean ``[..., key]`` (no head axis), True = real key. The rest has no influence.

    Returns:
        ``[..., head]`` in [0, 1]; NaN where fewer than two keys are valid or none receives anything.

    Raises:
        TypeError: If ``received`` is not floating point or ``key_mask`` not boolean.
        ValueError: If shapes do not fit.

    Source: Shannon 1948.

    Example:
        >>> key_entropy(torch.tensor([[2.0, 2.0, 2.0, 2.0], [0.0, 8.0, 0.0, 0.0]]))
        tensor([1., 0.])
    """
    received = as_float(received, "received", "head key")
    if key_mask is None:
        keys = received.new_full(received.shape[:-1], received.shape[-1])
    else:
        shape = torch.Size([*received.shape[:-2], received.shape[-1]])
        check_mask(key_mask, shape, "key_mask")
        valid = key_mask[..., None, :].expand(received.shape)
        keys = valid.sum(-1, dtype=received.dtype)
        received = torch.where(valid, received, constant(0.0, received))
    total = received.sum(-1, keepdim=True)
    share = received / torch.where(total == 0, constant(1.0, total), total)
    ratio = (shannon_entropy(share) / keys.clamp(min=2).log()).clamp(0, 1)
    return where_defined((keys >= 2) & (total.squeeze(-1) != 0), ratio)
