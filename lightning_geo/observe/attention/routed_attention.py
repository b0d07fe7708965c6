"""Attention that transformers routes through its ``AttentionInterface``, under any backend."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.packed.claims import flash_documents
from lightning_geo.utils._transformers import attention_lookups

__all__ = ["observe_routed"]

_Observe = Callable[[nn.Module, Callable[[], AttentionCall], Any], Any]


@contextmanager
def observe_routed(observe: _Observe, running: Callable[[], Any]) -> Iterator[None]:
    """Hand every routed attention call to ``observe`` while the context is open.

    Args:
        observe: Takes the calling module, a function that translates the call, and the call's result; returns
            the result for the module.
        running: Context for the original function, in which the functions that it calls are ignored.
    """

    def replace(implementation: str, attend: Callable[..., Any]) -> Callable[..., Any]:
        def observed(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
            attention_mask: Any = None, *args: Any, **kwargs: Any,
        ) -> Any:  # fmt: skip
            with running():
                result = attend(module, query, key, value, attention_mask, *args, **kwargs)
            inputs = (query, key, value, attention_mask, *args)
            return observe(
                module, lambda: _call(implementation, attend, module, inputs, kwargs, result), result
            )

        return observed

    with attention_lookups(replace):
        yield


def _call(
    implementation: str | None, attend: Callable[..., Any], module: nn.Module,
    inputs: tuple[Any, ...], options: dict[str, Any], result: Any,
) -> AttentionCall:  # fmt: skip
    """Translate one call; each backend reads causality, windows and masks in its own way."""
    query, key, value, mask, *more = inputs
    if more:
        names = list(inspect.signature(attend).parameters)[5:]
        options = {**dict(zip(names, more, strict=False)), **options}
    output = result[0] if isinstance(result, tuple) else result
    name = implementation or "eager"
    batch, heads, queries = query.shape[:3]
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    offset, window, cumulative, restarts = 0, None, None, None
    if "flash" in name:
        cumulative, restarts = flash_documents(options, batch, mask)
        offset = key.shape[2] - queries  # the last query sees the last key
        if options.get("sliding_window") is not None:
            window = (options["sliding_window"] - 1,) * 2
        if isinstance(mask, Tensor) and mask.dim() == 2:
            mask = mask[:, None, None, -key.shape[2] :] > 0
    elif name.endswith("eager") or "flex" in name:
        causal = False  # in these backends the mask includes causality
    else:
        causal = causal and mask is None and queries > 1
        if causal and key.shape[2] != queries:  # sdpa aligns causality at the top left, whatever the offset
            mask = torch.ones(1, 1, queries, key.shape[2], dtype=torch.bool, device=query.device).tril()
            causal = False
    if isinstance(mask, Tensor) and mask.shape[-1] > key.shape[2]:
        mask = mask[..., : key.shape[2]]
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        output=_per_head(output, batch, heads, queries),
        masks=tuple(m for m in (mask, options.get("position_bias")) if m is not None),
        is_causal=bool(causal),
        offset=offset,
        window=window,
        scale=options.get("scaling"),
        softcap=options.get("softcap"),
        sinks=options.get("s_aux"),
        cumulative=cumulative,
        restarts=restarts,
    )


def _per_head(output: Tensor, batch: int, heads: int, queries: int) -> Tensor | None:
    """Map [B, N, H, D], or the same with heads merged, to [B, H, N, D]."""
    if not isinstance(output, torch.Tensor) or output.numel() % (batch * heads * queries):
        return None
    return output.reshape(batch, queries, heads, -1).transpose(1, 2)
