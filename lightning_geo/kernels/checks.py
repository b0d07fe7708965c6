"""Checks of an attention call's tensors and options, and the form in which the kernels take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError
from lightning_geo.utils.shapes import Bool, Float, Int64, Shaped

__all__ = [
    "Mask",
    "check_finite",
    "check_flags",
    "check_query_key",
    "check_rows",
    "check_sinks",
    "positive_softcap",
    "read_masks",
    "window_sides",
]

Mask: TypeAlias = Shaped[Tensor, " ..."] | BlockMask


def check_rows(
    rows: Int64[Tensor, "batch measured"], shape: tuple[int, int], device: torch.device
) -> Int64[Tensor, "batch measured"]:
    """Raise unless ``queries`` are rows of ``shape``, [B, Nq]; on a GPU the host waits for the answer."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise ArgumentTypeError(f"Expected `queries` to be an int64 tensor of row indices but got {kind}.")
    _check_device("queries", rows, device)
    if rows.dim() != 2 or rows.shape[0] != shape[0]:
        raise ArgumentError(
            f"Expected `queries` to have shape [{shape[0]}, R], rows of each sequence, "
            f"but got {list(rows.shape)}."
        )
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < shape[1]:
        raise ArgumentError(
            f"Expected `queries` to hold row indices from 0 to {shape[1] - 1} "
            f"but got {int(rows.min())} to {int(rows.max())}."
        )
    return rows


def _check_tensor(name: str, value: object, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"Expected `{name}` to be a torch.Tensor but got {type(value).__name__}.")
    if not value.is_floating_point():
        raise ArgumentTypeError(f"Expected `{name}` to be a floating point tensor but got {value.dtype}.")
    _check_device(name, value, device)


def _check_device(name: str, value: Shaped[Tensor, " ..."], device: torch.device | None) -> None:
    if device is not None and value.device != device:
        raise ArgumentError(
            f"Expected `{name}` to be on the device of `query`, {device}, but got {value.device}. "
            "Move it there."
        )


def check_query_key(
    query: Float[Tensor, "batch heads queries dim"], key: Float[Tensor, "batch key_heads keys dim"]
) -> None:
    """Raise unless they are [B, H, Nq, D] and [B, Hk, Nk, D] on one device, H a multiple of Hk."""
    for name, value in (("query", query), ("key", key)):
        _check_tensor(name, value)
        if value.dim() != 4 or value.shape[3] == 0:
            raise ArgumentError(
                f"Expected `{name}` to have shape [batch, head, token, head_dim] but got {list(value.shape)}."
            )
    _check_device("key", key, query.device)
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ArgumentError(
            "Expected `query` and `key` to agree in batch size and head_dim, "
            f"[B, H, Nq, D] and [B, Hk, Nk, D], but got {list(query.shape)} and {list(key.shape)}."
        )
    if key.shape[2] == 0:
        raise ArgumentError(f"Expected `key` to hold at least one token but got {list(key.shape)}.")
    if key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        raise ArgumentError(
            "Expected the heads of `query` to be a multiple of the heads of `key` "
            f"but got {query.shape[1]} and {key.shape[1]}."
        )


def check_sinks(sinks: Float[Tensor, " heads"] | None, heads: int, device: torch.device) -> None:
    """Raise unless ``sinks`` is one logit per head, or None."""
    if sinks is None:
        return
    _check_tensor("sinks", sinks, device)
    if sinks.shape != (heads,):
        raise ArgumentError(
            f"Expected `sinks` to have shape [{heads}], one logit per query head, "
            f"but got {list(sinks.shape)}."
        )


def read_masks(
    masks: Mask | Sequence[Mask] | None,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch key_heads keys dim"],
) -> tuple[Shaped[Tensor, "#batch #heads #queries #keys"] | BlockRule, ...]:
    """Check the masks of a call and bring each into the form that tiles need."""
    shape = (*query.shape[:3], key.shape[2])
    several: tuple[Any, ...] = () if masks is None else (masks,)
    if isinstance(masks, (list, tuple)):
        several = tuple(masks)
    return tuple(_mask(mask, shape, query.device) for mask in several)


def check_flags(
    name: str,
    value: Bool[Tensor, "batch tokens"] | None,
    shape: tuple[int, int],
    meaning: str,
    device: torch.device,
) -> None:
    """Raise unless ``value`` is a boolean tensor of that shape, or None."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentTypeError(
            f"Expected `{name}` to be a boolean tensor, True for {meaning}, but got {kind}. "
            "Convert a 0/1 tensor with `.bool()`."
        )
    _check_device(name, value, device)
    if value.shape != shape:
        raise ArgumentError(f"Expected `{name}` to have shape {list(shape)} but got {list(value.shape)}.")


def _mask(
    mask: Mask, shape: tuple[int, int, int, int], device: torch.device
) -> Shaped[Tensor, "#batch #heads #queries #keys"] | BlockRule:
    """Check one mask and bring it into the problem's form."""
    if isinstance(mask, BlockMask):
        _check_device("mask", mask.kv_num_blocks, device)
        if mask.shape[2:] != shape[2:] or any(
            m not in (1, n) for m, n in zip(mask.shape[:2], shape[:2], strict=True)
        ):
            raise ArgumentError(
                f"Expected `mask`, a BlockMask, to be made for {list(shape)}, or 1 as batch or head, "
                f"but got {list(mask.shape)}."
            )
        return BlockRule.of(mask)
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(
            f"Expected `mask` to be a torch.Tensor or a BlockMask but got {type(mask).__name__}."
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ArgumentTypeError(
            f"Expected `mask` to be boolean, True = attend, or additive floating point but got {mask.dtype}. "
            "Convert a 0/1 mask with `.bool()`."
        )
    _check_device("mask", mask, device)
    if mask.dim() > 4 or any(
        m not in (1, n) for m, n in zip(reversed(mask.shape), reversed(shape), strict=False)
    ):
        raise ArgumentError(
            f"Expected `mask` to be broadcastable to [B, H, Nq, Nk] = {list(shape)} "
            f"but got {list(mask.shape)}. A padding mask [B, Nk] goes in as `mask[:, None, None, :]`."
        )
    mask = mask[(None,) * (4 - mask.dim())]
    # an expanded axis is read once, not once for each row
    for axis, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if stride == 0 and size > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def window_sides(window: int | tuple[int, int] | None) -> tuple[int | None, int | None]:
    """Return the number of keys before and after a position that are visible; None for all."""
    if window is None:
        return None, None
    if isinstance(window, int) and not isinstance(window, bool) and window > 0:
        return window - 1, None
    if (
        isinstance(window, (tuple, list))
        and len(window) == 2
        and all(isinstance(side, int) and side >= -1 for side in window)
    ):
        left, right = (None if side == -1 else side for side in window)
        return left, right
    raise ArgumentError(
        "Expected `window` to be a positive int (keys up to and including the query's own) or a pair "
        f"(left, right) of ints >= -1, -1 for no limit, but got {window!r}."
    )


def check_finite(name: str, value: float) -> float:
    """Raise unless ``value`` is finite."""
    if not math.isfinite(value):
        raise ArgumentError(f"Expected `{name}` to be finite but got {value!r}.")
    return float(value)


def positive_softcap(softcap: float | None) -> float | None:
    """Return ``softcap``, None where it caps nothing."""
    if softcap is None or softcap == 0:
        return None
    if softcap < 0:
        raise ArgumentError(f"Expected `softcap` to be positive, or None for none, but got {softcap!r}.")
    return check_finite("softcap", softcap)
