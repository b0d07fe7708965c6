"""``torch.nn.attention.varlen``: attention over documents laid end to end, observed as an operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.packed.documents import PackedCallError
from lightning_geo.utils._torch import varlen_operators

__all__ = ["VARLEN", "varlen_call", "varlen_inputs"]

_PLAIN, _INTO = varlen_operators()

#: The operators behind ``varlen_attn`` and ``varlen_attn_out``, as a torch function mode sees them.
VARLEN: frozenset[Any] = frozenset(op for op in (_PLAIN, _INTO) if op is not None)

#: Their arguments in order; the second operator takes its output in front of them.
_NAMES = (
    "query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "is_causal", "scale", "window_size",
    "enable_gqa", "seqused_k", "block_table", "num_splits",
)  # fmt: skip


def varlen_call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> AttentionCall:
    """Translate one call: ``[tokens, H, D]`` becomes one row, ``[1, H, tokens, D]``.

    Raises:
        PackedCallError: If keys lie in the pages of a cache.
    """
    given = _given(func, args, kwargs)
    if given.get("seqused_k") is not None or given.get("block_table") is not None:
        raise PackedCallError("its keys lie in the pages of a cache that is only partly in use")
    output = given["out"] if "out" in given else result[0]
    causal = bool(given.get("is_causal"))
    left, right = given.get("window_size") or (-1, -1)
    query_bounds, key_bounds = given["cu_seq_q"], given.get("cu_seq_k")
    return AttentionCall(
        query=_one_row(given["query"]),
        key=_one_row(given["key"]),
        value=_one_row(given["value"]),
        output=_one_row(output),
        is_causal=causal or (left, right) == (-1, 0),
        window=None if (left, right) in ((-1, -1), (-1, 0)) else (left, right),
        scale=given.get("scale"),
        cumulative=(query_bounds, query_bounds if key_bounds is None else key_bounds),
    )


def varlen_inputs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return queries and keys from such an operator's arguments."""
    given = _given(func, args, kwargs)
    return given["query"], given["key"]


def _given(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = _NAMES if func is _PLAIN else ("out", *_NAMES)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _one_row(x: Tensor) -> Tensor:
    return x.transpose(0, 1)[None]
