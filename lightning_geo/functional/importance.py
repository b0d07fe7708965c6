"""First-order effect on the loss of removing a head."""

from __future__ import annotations

from torch import Tensor

from lightning_geo.functional._tensors import as_float
from lightning_geo.metrics.registry import computes
from lightning_geo.utils.shapes import Float

__all__ = ["head_importance"]


@computes("importance", reads=("head_gradient",))
def head_importance(head_gradient: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""First-order change of a sequence's loss when a head is silenced, whatever its sign.

    .. math:: \left|\frac{\partial L}{\partial \xi_h}\right| = |\langle o_h, \partial L / \partial o_h\rangle|

    with a factor ξ on the head's output o, at ξ = 1; the inner product runs over tokens and features.

    Args:
        head_gradient: ``[...]``, the loss's derivative by the factor.

    Returns:
        ``[...]`` >= 0, float32 (float64 stays).

    Raises:
        TypeError: If ``head_gradient`` is not floating point.

    Source: Michel et al. 2019, Are Sixteen Heads Really Better than One?, equation 2.

    Example:
        >>> import torch
        >>> output, weight = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -4.0])
        >>> factor = torch.ones((), requires_grad=True)
        >>> loss = (factor * output) @ weight
        >>> head_importance(torch.autograd.grad(loss, factor)[0])  # |1 · 3 − 2 · 4|
        tensor(5.)
    """
    return as_float(head_gradient, "head_gradient").abs()
