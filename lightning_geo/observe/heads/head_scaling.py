"""Multiply each head's output before its output projection, in the layout in which the model computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_geo.observe.attention.sdpa import MULTI_HEAD, multi_head_call
from lightning_geo.observe.call import AttentionCall
from lightning_geo.utils.errors import ArgumentError, GeometryError

__all__ = ["FixedHeadsError", "HeadView", "check_scalable", "scale_multi_head", "scale_result"]


class FixedHeadsError(GeometryError, LookupError):
    """The outputs of heads cannot be seen or changed in the way in which the model computes them."""


def check_scalable(name: str, call: AttentionCall, factor: Tensor) -> None:
    """Raise unless the heads' outputs are known and the factor has one number for each.

    Args:
        name: Name of the module that computes the attention.
        call: The attention.
        factor: [B or 1, H].

    Raises:
        LookupError: If the heads' outputs are unknown.
        ValueError: If the factor is of another shape.
    """
    if call.output is None:
        raise FixedHeadsError(
            f"the outputs of the heads of {name!r} are unknown, so that they cannot be scaled"
        )
    batch, heads = call.output.shape[:2]
    if factor.dim() != 2 or factor.shape[0] not in (1, batch) or factor.shape[1] != heads:
        raise ArgumentError(
            f"Expected the factor of {name!r} to be [{batch} or 1, {heads}] but got {list(factor.shape)}."
        )


@dataclass(frozen=True)
class HeadView:
    """A view of an attention function's result head by head, [B, H, N, D].

    Args:
        stride: Strides of the result.
        seen: Shape of the view.
        seen_stride: Strides of the view.
        offset: Start of the view in the result, in entries.
    """

    stride: tuple[int, ...]
    seen: tuple[int, ...]
    seen_stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, result: Tensor, seen: Tensor) -> HeadView:
        """Find the view ``seen`` of a result.

        Raises:
            LookupError: If ``seen`` is not a view of the whole result.
        """
        same = seen.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
        if not same or seen.numel() != result.numel():
            raise FixedHeadsError("the heads' outputs are no view of the attention function's result")
        offset = int(seen.storage_offset()) - int(result.storage_offset())
        return cls(result.stride(), tuple(seen.shape), seen.stride(), offset)

    def __call__(self, x: Tensor) -> Tensor:
        """Take the same view of another tensor with the result's shape and strides."""
        return x.as_strided(self.seen, self.seen_stride, int(x.storage_offset()) + self.offset)


def scale_result(result: Any, call: AttentionCall, factor: Tensor) -> Any:
    """Return an attention function's result with every head's output multiplied by its factor.

    The result is copied: ``call.output``, a view of the original, stays as it is.

    Args:
        result: Head outputs, or a tuple that begins with them.
        call: The same call, translated.
        factor: [B or 1, H]; gradients flow to it.

    Raises:
        LookupError: If ``call.output`` is not a view of the whole result.
    """
    if isinstance(result, tuple):
        return scale_result(result[0], call, factor), *result[1:]
    assert call.output is not None
    view, fresh = HeadView.of(result, call.output), result.clone()
    if fresh.stride() != view.stride:
        raise FixedHeadsError("a copy of the attention function's result has another memory layout")
    view(fresh).mul_(factor[:, :, None, None])
    return fresh


def scale_multi_head(
    result: Any, call: AttentionCall, factor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Scale heads in ``F.multi_head_attention_forward``, and repeat its output projection.

    Raises:
        LookupError: In training with dropout, whose mask cannot be drawn again.
    """
    bound = MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    a = bound.arguments
    if a["training"] and a["dropout_p"] > 0:
        raise FixedHeadsError("nn.MultiheadAttention with dropout in training mode cannot be computed again")
    # The observed output has no graph: compute it once more, so that gradients flow to the factor.
    output = multi_head_call(args, kwargs)[0].output
    assert output is not None
    scaled = (output * factor[:, :, None, None]).permute(2, 0, 1, 3).flatten(2)
    projected = F.linear(scaled, a["out_proj_weight"], a["out_proj_bias"])
    first = result[0]
    return projected.reshape(first.shape).to(first.dtype), *result[1:]
