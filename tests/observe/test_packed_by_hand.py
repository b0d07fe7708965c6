"""Packed rows in models written by hand: document numbers, ``varlen_attn``, cross-attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo import measure
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.observe import Tap
from support.packed_models import (
    FIRST,
    VOCABULARY,
    apart,
    assert_same,
    dense,
    documents,
    flash_without_gpu,
    numbers_of,
    padded,
)

SPECIAL = [FIRST]


@pytest.fixture(autouse=True)
def _flash() -> Iterator[None]:
    with flash_without_gpu():
        yield


class Layer(nn.Module):
    """Attention whose heads are computed by one of several functions."""

    def __init__(self, how: str, causal: bool) -> None:
        super().__init__()
        self.how, self.causal = how, causal
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).unbind(-3)
        if self.how == "varlen":
            from torch.nn.attention.varlen import varlen_attn

            longest = int(cu_seqlens.diff().max())
            window = (-1, 0) if self.causal else (-1, -1)
            q, k, v = (y.flatten(0, -3) for y in (q, k, v))
            mixed = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, window_size=window)
            return self.out(mixed.reshape(*x.shape))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if self.how == "sdpa":
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.how == "flex":
            from torch.nn.attention.flex_attention import flex_attention

            mixed = flex_attention(q, k, v, block_mask=mask)
        else:
            scores = q @ k.transpose(-1, -2) / 8**0.5
            mixed = torch.softmax(scores.masked_fill(~mask, -1e9), dim=-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Hand(nn.Module):
    """Embeddings, layers of :class:`Layer`; the mask is made of document numbers in its arguments."""

    def __init__(self, how: str = "sdpa", causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleList(Layer(how, causal) for _ in range(2))
        self.causal = causal
        with torch.no_grad():
            for layer in self.layers:
                layer.qkv.weight.mul_(3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        mask = None if attention_mask is None else apart(attention_mask, causal=self.causal)
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x, mask, cu_seqlens)
        return x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("how", ["sdpa", "by hand"])
def test_document_numbers_in_the_padding_mask(how: str, causal: bool) -> None:
    rows = ((7, 1, 2), (3, 5), (4,))
    given = documents(sum(rows, ()))
    numbers = torch.cat([numbers_of(row, 10) for row in rows])
    ids = torch.zeros(3, 10, dtype=torch.long)
    ids[numbers > 0] = torch.cat(given)
    model = Hand(how, causal)
    alone = measure(model, padded(given), special_token_ids=SPECIAL)
    packed = measure(model, {"input_ids": ids, "attention_mask": numbers}, special_token_ids=SPECIAL)
    assert_same(packed, alone)
    positional = measure(model, (ids, numbers), special_token_ids=SPECIAL)
    assert_same(positional, alone)


@pytest.fixture
def varlen() -> Iterator[None]:
    """``varlen_attn`` on the CPU: the operator is the true one, its kernel :func:`dense`."""
    pytest.importorskip("torch.nn.attention.varlen")

    def kernel(q: Tensor, k: Tensor, v: Tensor, *more: Any, **options: Any) -> Any:
        names = ("cu_seq_q", "cu_seq_k", "max_q", "max_k", "is_causal", "scale", "window_size")
        given = {**dict(zip(names, more, strict=False)), **options}
        window = tuple(given.get("window_size") or (-1, -1))
        bounds = given["cu_seq_q"], given["cu_seq_k"]
        output = dense(q, k, v, bounds, bool(given.get("is_causal")), window, given.get("scale"))
        return output, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)

    with torch.library._scoped_library("torch_attn", "IMPL") as library:
        library.impl("_varlen_attn", kernel, "CPU", allow_override=True)
        yield


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize("shape", [(28,), (1, 28), (2, 14)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_varlen_attention(causal: bool, shape: tuple[int, ...]) -> None:
    """Tokens end to end without a batch axis, as one row, or as rows that documents go beyond."""
    lengths = (7, 1, 12, 3, 5)
    given = documents(lengths)
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    model = Hand("varlen", causal)
    reference = Hand("sdpa", causal)
    alone = measure(reference, padded(given), special_token_ids=SPECIAL)
    batch = {"input_ids": torch.cat(given).view(shape), "cu_seqlens": bounds}
    assert_same(measure(model, batch, special_token_ids=SPECIAL), alone)


class Crossed(nn.Module):
    """Queries of one packed row attend to keys of another; grouped heads, a window where one is given."""

    def __init__(self, window: tuple[int, int] = (-1, -1), packed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(16, 32), nn.Linear(16, 32)
        self.window, self.packed = window, packed

    def forward(
        self, x: Tensor, memory: Tensor, cu_seqlens: Tensor | None = None, cu_seqlens_k: Tensor | None = None,
        mask: Tensor | None = None, used: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        from torch.nn.attention.varlen import varlen_attn

        q = self.query(x).unflatten(-1, (4, 8))
        k, v = self.key(memory).unflatten(-1, (2, 2, 8)).unbind(-3)
        if not self.packed:
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2)
        longest = int(cu_seqlens.diff().max()), int(cu_seqlens_k.diff().max())
        return varlen_attn(
            q, k, v, cu_seqlens, cu_seqlens_k, *longest, window_size=self.window, enable_gqa=True,
            seqused_k=used,
        ).flatten(1)  # fmt: skip


def crossed(queries: tuple[int, ...], keys: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Arguments of :class:`Crossed`, packed and one document at a time."""
    x, memory = (torch.randn(sum(n), 16, generator=torch.Generator().manual_seed(3)) for n in (queries, keys))
    bounds = [torch.tensor([0, *np.cumsum(n)], dtype=torch.int32) for n in (queries, keys)]
    packed = {"x": x, "memory": memory, "cu_seqlens": bounds[0], "cu_seqlens_k": bounds[1]}
    rows = [
        nn.utils.rnn.pad_sequence(y.split(n), batch_first=True) for y, n in ((x, queries), (memory, keys))
    ]
    mask = torch.arange(max(keys)) < torch.tensor(keys)[:, None]
    return packed, {"x": rows[0], "memory": rows[1], "mask": mask[:, None, None]}


@pytest.mark.usefixtures("varlen")
def test_cross_attention_of_packed_rows() -> None:
    """Equally many queries each, so that unpacked there is no padded query, which nothing would tell."""
    packed, alone = crossed((4, 4, 4), (7, 2, 11))
    metrics = ["entropy", "cone", "effective_rank", "key_norm"]
    ours = measure(Crossed(), packed, metrics=[*metrics, "pattern"])  # no position in another sequence
    assert_same(ours, measure(Crossed(packed=False), alone, metrics=metrics))


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize("case", ["causal", "cache"])
def test_what_cannot_be_divided_is_absent_with_the_reason(case: str) -> None:
    packed, _ = crossed((4, 4), (7, 2))
    tap = Tap(Holder(Crossed((-1, 0) if case == "causal" else (-1, -1))))
    used = torch.tensor([7, 2], dtype=torch.int32) if case == "cache" else None
    with torch.no_grad(), tap.open(SampleStatistics(["entropy"])):
        tap._model(**packed, used=used)
    assert not tap.failures
    ((reason, modules),) = tap.coverage.left_out.items()
    assert modules == ["inner"]
    assert ("unequal numbers of queries and keys" if case == "causal" else "pages of a cache") in reason


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


class Pooling(Hand):
    """Its layers return every second token: nobody knows which document one is of."""

    class Pool(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, *args: Any) -> Tensor:
            return self.layer(*args)[:, ::2]

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Pool(self.layers[0])])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.layers[0](self.embed(input_ids), apart(attention_mask), None)


def test_hidden_states_of_other_tokens_are_absent_with_the_reason() -> None:
    numbers = numbers_of((3, 5))
    tap, statistics = (
        Tap(Pooling()),
        SampleStatistics(["entropy", "cone.attention", "cone.output", "hidden_norm"]),
    )
    with torch.no_grad(), tap.open(statistics):
        tap._model(numbers + 5, numbers)
    assert not tap.failures
    assert list(tap.coverage.left_out.values()) == [["layers.0"]]
    assert "other tokens than the packed rows" in next(iter(tap.coverage.left_out))
    assert not statistics.blocks
    statistics.settle()
    (layer,) = statistics.layers.values()
    assert {"row(entropy)", "attention(cone.attention)"} <= layer.names.keys()
