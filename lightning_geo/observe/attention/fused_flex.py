"""Compute ``flex_attention`` in an eager replay as the model's compiled code computes it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.replay.torch_compile import as_compiled

__all__ = ["fused_flex", "with_blocks"]

#: Devices whose compiled kernel never holds all scores at once; eager code does.
_DEVICES = ("cuda",)

#: Kernel options that ``flex_attention`` sets itself and rejects from callers.
_OWN_OPTIONS = ("OUTPUT_LOGSUMEXP", "OUTPUT_MAX")


def fused_flex(
    function: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Compute on a GPU with a compiled kernel: eager code would need memory for all scores at once.

    Args:
        function: ``flex_attention``.
        given: The function's local variables after it checked its arguments.

    Returns:
        The output and two empty statistics, which the caller ignores; ``None`` if eager code must compute it.
    """
    query = given["query"]
    if query.device.type not in _DEVICES or given.get("return_lse") or given.get("return_aux") is not None:
        return None
    options = {k: v for k, v in given["kernel_options"].items() if k not in _OWN_OPTIONS}
    if options.get("BACKEND") == "AUTO":
        del options["BACKEND"]
    with as_compiled():
        try:
            output: Tensor = _compiled(function)(
                query,
                given["key"],
                given["value"],
                given["score_mod"],
                given["block_mask"],
                given["scale"],
                given["enable_gqa"],
                options,
            )
        except Exception:
            # There is no compiler, or no kernel for this device: the slower eager code computes instead.
            return None
    nothing = query.new_empty(0)
    return output, nothing, nothing


@functools.lru_cache(maxsize=1)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Each compilation counts against a function's recompilation limit. Compile a function of our own, so that
    # the limit of the model's stays untouched.
    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        score_mod: Any,
        mask: Any,
        scale: float,
        gqa: bool,
        options: Any,
    ) -> Any:  # fmt: skip
        return function(
            query, key, value, score_mod, mask, scale=scale, enable_gqa=gqa, kernel_options=options
        )

    return torch.compile(attend)


def with_blocks(args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, ...]:
    """Hide the blocks that compiled code skips: eager code reads ``mask_mod`` only, not the blocks.

    Args:
        args: The operator's arguments: query, key, value, score_mod, the mask as a tuple that ends with its
            mask_mod, ...
        given: Local variables of ``flex_attention``.
    """
    mask = given["block_mask"]
    blocks = mask.to_dense().bool()
    size, mask_mod = mask.BLOCK_SIZE, mask.mask_mod
    sequences, heads = blocks.shape[:2]

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Any:
        block = blocks[
            b if sequences > 1 else torch.zeros_like(b),
            h if heads > 1 else torch.zeros_like(h),
            query // size[0],
            key // size[1],
        ]
        return mask_mod(b, h, query, key) & block

    return *args[:4], (*args[4][:-1], visible), *args[5:]
