"""The attention calls that are measured, with the masks that transformers makes of padding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.calls import problem_of
from lightning_geo.kernels import STATISTICS, AttentionProblem
from on_device.bench import Bench

__all__ = ["PADDINGS", "SHAPES", "TINY", "Shape", "flash", "padded", "problem", "tensors"]


class Shape(NamedTuple):
    """Sizes of one attention call."""

    batch: int
    heads: int
    key_heads: int
    tokens: int
    width: int
    causal: bool


SHAPES = {
    "BERT B32 H12 N512 D64": Shape(32, 12, 12, 512, 64, False),
    "Llama B8 H32/8 N2048 D128 causal": Shape(8, 32, 8, 2048, 128, True),
    "long B1 H32/8 N16384 D128 causal": Shape(1, 32, 8, 16384, 128, True),
    "ViT-L B64 H16 N197 D64": Shape(64, 16, 16, 197, 64, False),
}
TINY = {name: shape._replace(batch=2, heads=4, key_heads=2, tokens=40) for name, shape in SHAPES.items()}

#: How padding reaches the kernels: not at all, as one row of keys, or as the matrix that sdpa is given.
PADDINGS = ("none", "key row", "matrix")


def tensors(bench: Bench, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Query and key as projections leave them: ``[B, N, H, D]`` transposed."""

    def drawn(heads: int) -> Tensor:
        x = torch.randn(shape.batch, shape.tokens, heads, shape.width, device=bench.device)
        return x.to(dtype).transpose(1, 2)

    return drawn(shape.heads), drawn(shape.key_heads)


def real_tokens(bench: Bench, shape: Shape) -> Tensor:
    """``[B, N]``: sequences lose up to a fifth of their tokens at the right end."""
    lost = torch.arange(shape.batch, device=bench.device) * (shape.tokens // 5) // max(shape.batch - 1, 1)
    return torch.arange(shape.tokens, device=bench.device) < (shape.tokens - lost)[:, None]


def padded(real: Tensor, padding: str, causal: bool) -> dict[str, Any]:
    """Arguments of ``attention_statistics`` that say what is padding and what is causal."""
    if padding == "none":
        return {"is_causal": causal}
    if padding == "key row":
        return {"is_causal": causal, "mask": real[:, None, None], "query_mask": real}
    tokens = real.shape[1]
    matrix = real[:, None, None].expand(-1, 1, tokens, -1)
    if causal:
        matrix = matrix & torch.ones(tokens, tokens, dtype=torch.bool, device=real.device).tril()
    return {"mask": matrix.contiguous(), "query_mask": real}


def problem(
    bench: Bench,
    shape: Shape,
    padding: str = "none",
    requested: frozenset[str] = frozenset(STATISTICS),
    **options: Any,
) -> AttentionProblem:
    """The call of a shape."""
    query, key = tensors(bench, shape)
    options = padded(real_tokens(bench, shape), padding, shape.causal) | options
    statistics = sorted(requested & set(_available(options)))
    return problem_of({"query": query, "key": key, "statistics": statistics, **options})


def _available(options: dict[str, Any]) -> list[str]:
    left_out = {"special_mass": "special", "learned_sink_mass": "sinks"}
    return [name for name in STATISTICS if name not in left_out or left_out[name] in options]


def flash(bench: Bench, call: AttentionProblem, causal: bool) -> Callable[[], object]:
    """SDPA's forward of a call: FlashAttention, or what the mask makes of it."""
    mask = call.masks[0] if call.masks else None
    grouped = call.group_size > 1

    def run() -> None:
        backend = (
            contextlib.nullcontext()
            if bench.tiny or mask is not None
            else sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        )
        with backend, torch.no_grad():
            F.scaled_dot_product_attention(
                call.query, call.key, call.key, attn_mask=mask, is_causal=causal and mask is None,
                enable_gqa=grouped,
            )  # fmt: skip

    return run
