"""Multiply what each head gives to its output projection, in whatever layout the model computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lightning_geo.observe.attention.sdpa import MULTI_HEAD, multi_head_call
from lightning_geo.observe.call import AttentionCall

__all__ = ["HeadView", "check_scalable", "scale_multi_head", "scale_result"]


def check_scalable(name: str, call: AttentionCall, factor: Tensor) -> None:
    """Raise unless the heads' outputs are known and the factor has one number for each.

    Args:
        name: Of the module that computes the attention.
        call: The attention.
        factor: [B or 1, H].

    Raises:
        LookupError: If the outputs could not be told from what the model computed.
        ValueError: If the factor is of another shape.
    """
    if call.output is None:
        raise LookupError(f"the outputs of the heads of {name!r} cannot be told, so not be changed")
    batch, heads = call.output.shape[:2]
    if factor.dim() != 2 or factor.shape[0] not in (1, batch) or factor.shape[1] != heads:
        raise ValueError(
            f"Expected the factor of {name!r} to be [{batch} or 1, {heads}] but got {list(factor.shape)}."
        )


@dataclass(frozen=True)
class HeadView:
    """How what an attention function returned is seen head by head, [B, H, N, D].

    Args:
        stride: Of what was returned.
        seen: Shape of the view.
        seen_stride: Its strides.
        offset: Where it begins.
    """

    stride: tuple[int, ...]
    seen: tuple[int, ...]
    seen_stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, result: Tensor, seen: Tensor) -> HeadView:
        """Find it, given both.

        Raises:
            LookupError: If ``seen`` is not the result seen in another way.
        """
        same = seen.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
        if not same or seen.numel() != result.numel():
            raise LookupError("the heads' outputs are no view of what the attention function returned")
        offset = int(seen.storage_offset()) - int(result.storage_offset())
        return cls(result.stride(), tuple(seen.shape), seen.stride(), offset)

    def __call__(self, x: Tensor) -> Tensor:
        """See another tensor of the result's shape and strides in the same way."""
        return x.as_strided(self.seen, self.seen_stride, int(x.storage_offset()) + self.offset)


def scale_result(result: Any, call: AttentionCall, factor: Tensor) -> Any:
    """Return an attention function's result with every head's output multiplied by its factor.

    A new tensor of the same layout: the one that ``call.output`` is a view of stays as it is.

    Args:
        result: Head outputs, or a tuple that begins with them.
        call: The same call, translated.
        factor: [B or 1, H]; gradients flow to it.

    Raises:
        LookupError: If ``call.output`` is not the result seen in another way.
    """
    if isinstance(result, tuple):
        return scale_result(result[0], call, factor), *result[1:]
    assert call.output is not None
    view, fresh = HeadView.of(result, call.output), result.clone()
    if fresh.stride() != view.stride:
        raise LookupError("the heads' outputs lie in memory in a way that a copy does not keep")
    view(fresh).mul_(factor[:, :, None, None])
    return fresh


def scale_multi_head(
    result: Any, call: AttentionCall, factor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The same for ``F.multi_head_attention_forward``, which projects inside: its end is done again.

    Raises:
        LookupError: In training with dropout, where the end cannot be repeated.
    """
    given = MULTI_HEAD.bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    if a["training"] and a["dropout_p"] > 0:
        raise LookupError("nn.MultiheadAttention with dropout in training mode cannot be repeated")
    output = multi_head_call(args, kwargs)[0].output  # with a graph, unlike the one that was observed
    assert output is not None
    scaled = (output * factor[:, :, None, None]).permute(2, 0, 1, 3).flatten(2)
    projected = F.linear(scaled, a["out_proj_weight"], a["out_proj_bias"])
    first = result[0]
    return projected.reshape(first.shape).to(first.dtype), *result[1:]
