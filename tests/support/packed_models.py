"""Documents packed and unpacked, models that take both, and attention functions that need no GPU for them.

Import as ``from support.packed_models import BUILDS, documents, flattened, padded``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_geo import GeometryRecord

VOCABULARY, FIRST = 60, 1
#: Lengths of documents: one of one token, in the middle and at the end, and three powers of two.
LENGTHS = (7, 1, 12, 3, 5, 1)

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": FIRST,
    "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_SMALL, "num_key_value_heads": 2, "use_cache": False}

BUILDS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=4)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(
            **{**_SMALL, "num_hidden_layers": 3}, local_attention=6, cls_token_id=FIRST, sep_token_id=2,
            attention_dropout=0.0, reference_compile=False,
        )
    ),
}  # fmt: skip


def build(name: str, implementation: str = "sdpa", *, single: bool = False) -> nn.Module:
    """A model with attention that is far from uniform, in eval mode, in double precision.

    ``single`` precision is for transformers' eager attention, whose softmax is float32 whatever comes: the
    mask of a double model is infinite there, and padded rows are NaN.
    """
    torch.manual_seed(0)
    model = BUILDS[name]().eval()
    if not single:  # effective ranks of few tokens amplify rounding
        model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5.0)
    model.config._attn_implementation = implementation
    return model


def documents(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[Tensor]:
    """Random ids of that many tokens, each document beginning with the first token's."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randint(3, VOCABULARY, (length,), generator=generator) for length in lengths]
    for ids in found:
        ids[0] = FIRST
    return found


def padded(given: list[Tensor]) -> dict[str, Tensor]:
    """One row per document, padded on the right."""
    ids = nn.utils.rnn.pad_sequence(given, batch_first=True)
    lengths = torch.tensor([len(x) for x in given])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}


def flattened(given: list[Tensor], *, lengths: bool = False) -> dict[str, Any]:
    """One row of them all, as transformers' own collator makes it, which in 4 takes lists alone."""
    collate = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=lengths)
    batch = dict(collate([{"input_ids": ids.tolist()} for ids in given]))
    batch.pop("labels")
    return batch


def positions_of(lengths: tuple[int, ...]) -> Tensor:
    """Positions that start again, ``[1, T]``."""
    return torch.cat([torch.arange(n) for n in lengths])[None]


def numbers_of(lengths: tuple[int, ...], total: int | None = None, left: bool = False) -> Tensor:
    """Document numbers from 1, 0 for padding up to ``total``: ``[1, T]``."""
    numbers = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))
    missing = (total or len(numbers)) - len(numbers)
    return F.pad(numbers, (missing, 0) if left else (0, missing))[None]


def apart(numbers: Tensor, *, causal: bool = True) -> Tensor:
    """``[B, 1, N, N]`` bool: the pairs that document numbers ``[B, N]`` leave visible, padding hidden."""
    mask = (numbers[:, :, None] == numbers[:, None, :]) & (numbers > 0)[:, None, :]
    return (mask.tril() if causal else mask)[:, None]


def dense(
    query: Tensor, key: Tensor, value: Tensor, bounds: tuple[Any, Any], causal: bool,
    window: tuple[int, int] = (-1, -1), scale: float | None = None,
) -> Tensor:  # fmt: skip
    """What the kernel computes: ``[tokens, H, D]``, one document after the other."""
    output = torch.zeros(*query.shape[:2], value.shape[2], dtype=query.dtype)
    pairs = [list(zip(b[:-1].tolist(), b[1:].tolist(), strict=True)) for b in bounds]
    for (a, b), (c, d) in zip(*pairs, strict=True):
        q, k, v = (x.transpose(0, 1) for x in (query[a:b], key[c:d], value[c:d]))
        distance = torch.arange(d - c) - (torch.arange(b - a) + (d - c) - (b - a))[:, None]
        mask = torch.ones_like(distance, dtype=torch.bool)
        if causal:
            mask &= distance <= 0
        if window[0] >= 0:
            mask &= distance >= -window[0]
        if window[1] >= 0:
            mask &= distance <= window[1]
        output[a:b] = F.scaled_dot_product_attention(
            q, k, v, mask, scale=scale, enable_gqa=q.shape[0] != k.shape[0]
        ).transpose(0, 1)
    return output


def flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, sliding_window: int | None = None,
    is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' ``flash_attention_forward`` with :func:`dense` in place of the kernel."""
    batch, _, length, _ = query.shape
    causal = module.is_causal if is_causal is None else is_causal
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    window = (-1, -1) if sliding_window is None else (sliding_window - 1,) * 2
    rows = torch.arange(batch + 1) * length
    real = torch.ones(batch * length, dtype=torch.bool)
    if attention_mask is not None:
        real = attention_mask.flatten().bool()
        bounds = (F.pad(attention_mask.long().sum(-1).cumsum(0), (1, 0)),) * 2
    elif kwargs.get("cu_seq_lens_q") is not None and kwargs.get("max_length_q") is not None:
        bounds = kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]
    elif batch == 1 and kwargs.get("position_ids") is not None:
        bounds = prepare_fa_kwargs_from_position_ids(kwargs["position_ids"])[0]
    else:
        bounds = rows, rows
    output = torch.zeros(*q.shape[:2], v.shape[2], dtype=q.dtype)
    output[real] = dense(q[real], k[real], v[real], bounds, causal, window, scaling)
    return output.unflatten(0, (batch, length)), None


@contextmanager
def flash_without_gpu() -> Iterator[None]:
    """Inside, models whose implementation is ``flash_attention_2`` run on :func:`flash`."""
    before = dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = flash
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS._local_mapping = before


def assert_same(ours: GeometryRecord, theirs: GeometryRecord, *, but: tuple[str, ...] = ()) -> None:
    """Equal to 1e-5 of each metric's size, absences included; packed rows have no padding to be seen."""
    but = *but, *(name for name in set(theirs) | set(ours) if name.startswith("padding_visible"))
    assert set(ours) - set(but) == set(theirs) - set(but)
    for name in set(ours) - set(but):
        mine, other = np.asarray(ours[name]), np.asarray(theirs[name])
        assert np.isfinite(other).any(), name
        scale = max(1.0, float(np.nanmax(np.abs(other))))
        # roots of eigenvalues that are rounding themselves: their digits are those of the sums' order
        scale *= 10 if name.startswith("effective_rank") else 1
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
