"""Whether the masks of a call keep documents apart, and how a call is split into them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lightning_geo.observe import AttentionCall
from lightning_geo.observe.packed import documents, isolation
from lightning_geo.observe.packed.claims import Evidence
from lightning_geo.observe.packed.documents import Documents
from lightning_geo.observe.packed.splitting import by_document
from lightning_geo.observe.packing import Packing

# -- calls


def call_of(numbers: Tensor, mask: Any, heads: int = 2, **options: Any) -> AttentionCall:
    """Random attention over rows with these document numbers."""
    generator = torch.Generator().manual_seed(0)
    shape = numbers.shape[0], heads, numbers.shape[1], 3
    q, k, v, o = (torch.randn(shape, generator=generator) for _ in range(4))
    return AttentionCall(q, k, v, o, masks=() if mask is None else (mask,), **options)


NUMBERS = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 3, 3, 3]])
SPANS = [(0, 3), (3, 5), (6, 7), (7, 9), (9, 12)]
APART = (NUMBERS[:, :, None] == NUMBERS[:, None, :])[:, None] & (NUMBERS > 0)[:, None, None, :]


def block_mask(mask: Tensor) -> Any:
    table = mask[:, 0]  # rules of torch 2.6 look up tables by tensors alone
    return create_block_mask(
        lambda b, h, i, j: table[b, i, j], mask.shape[0], None, *mask.shape[2:], device="cpu"
    )


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: (~m).float() * -1e9, block_mask, "scores"])
@pytest.mark.parametrize("spoilt", [None, (0, 1, 3), (0, 4, 5), (1, 0, 1)])
def test_documents_count_where_no_query_sees_another(wrap: Any, spoilt: tuple[int, int, int] | None) -> None:
    """One visible pair joins a row, padding as a key too; a padded query sees what it likes."""
    mask = APART.clone()
    mask[0, 0, 5] = True
    expected = list(SPANS)
    if spoilt is not None:
        row, i, j = spoilt
        mask[row, 0, i, j] = True
        expected = [(0, 6), *SPANS[2:]] if row == 0 else [*SPANS[:2], (6, 12)]
    call = call_of(NUMBERS, None if wrap == "scores" else wrap(mask))
    if wrap == "scores":
        call.scores = torch.randn(2, 2, 6, 6).masked_fill(~mask, -1e9)
        call.masks = (mask if mask.dim() == 4 else mask[:, None],)  # as the tap tells what hides in scores
    packing = Documents().of(call, [(Evidence("mask", NUMBERS),)])
    assert packing is not None
    assert packing.queries == packing.keys == expected


PADDING = APART.any(2, keepdim=True)


@pytest.mark.parametrize(
    "mask",
    [None, PADDING, PADDING.expand(2, 1, 6, 6), torch.zeros(2, 2, 6, 6)],
    ids=["none", "padding", "expanded", "bias"],
)
def test_rows_whose_documents_see_each_other_are_sequences(mask: Tensor | None) -> None:
    assert Documents().of(call_of(NUMBERS, mask), [(Evidence("mask", NUMBERS),)]) is None
    assert Documents().of(call_of(NUMBERS, APART), []) is None


def test_causality_counts_as_a_mask() -> None:
    """A mask that hides what lies behind alone; the function hides what lies ahead."""
    behind = APART | torch.ones(6, 6, dtype=torch.bool).triu(1)
    told = [(Evidence("mask", NUMBERS),)]
    assert Documents().of(call_of(NUMBERS, behind), told) is None
    packing = Documents().of(call_of(NUMBERS, behind, is_causal=True), told)
    assert packing is not None
    assert packing.queries == SPANS


def test_layers_share_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is compared with documents once, however many layers slice it anew."""
    looks: list[Any] = []

    def counted(*args: Any) -> list[bool]:
        looks.append(args)
        return isolation.joined_rows(*args)

    monkeypatch.setattr(documents, "joined_rows", counted)
    found, told = Documents(), [(Evidence("mask", NUMBERS),)]
    first = found.of(call_of(NUMBERS, APART), told)
    for _ in range(3):
        assert found.of(call_of(NUMBERS, APART[..., :6]), told) is first
    assert len(looks) == 1
    found.of(call_of(NUMBERS, APART.clone()), told)
    assert len(looks) == 2
    found.start_over()
    assert found.of(call_of(NUMBERS, APART), told) is not first


def test_a_mask_that_changes_in_place_is_looked_at_again() -> None:
    found, told, mask = Documents(), [(Evidence("mask", NUMBERS),)], APART.clone()
    assert found.of(call_of(NUMBERS, mask), told) is not None
    mask.fill_(True)
    assert found.of(call_of(NUMBERS, mask), told) is None


# -- splitting


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_padding_wastes_half_at_most(sizes: list[int]) -> None:
    bounds = np.cumsum([0, *sizes]).tolist()
    spans = list(itertools.pairwise(bounds))
    packing = Packing(spans, spans, bounds[-1], torch.device("cpu"))
    x = torch.arange(1.0, bounds[-1] + 1)[None, :, None]
    parts = packing.split_hidden(x)
    assert sum(part.numel() for part, _ in parts) < 2 * bounds[-1]
    tokens = torch.cat([part[m] if m is not None else part.flatten(0, 1) for part, m in parts])
    assert sorted(tokens.flatten().tolist()) == x.flatten().tolist()
    # the first document is in the first batch, and documents within one keep their order
    call = replace(call_of(torch.zeros(1, bounds[-1]), None), documents=packing)
    numbers = [part.portion.numbers for part in by_document(call)]
    assert numbers[0][0] == 0
    assert all(list(n) == sorted(n) for n in numbers)
    assert sorted(sum(numbers, ())) == list(range(len(sizes)))


@pytest.mark.parametrize("kind", ["bool", "float", "heads", "block", "scores"])
def test_parts_attend_as_the_whole_does(kind: str) -> None:
    """A random mask within documents: attention of every part is the whole's, token for token."""
    generator = torch.Generator().manual_seed(1)
    mask = APART & ((torch.rand(2, 1, 6, 6, generator=generator) < 0.6) | torch.eye(6, dtype=torch.bool))
    bias: Any = mask
    if kind == "float":
        bias = torch.randn(2, 1, 6, 6, generator=generator).masked_fill(~mask, -torch.inf)
    if kind == "heads":
        bias = torch.randn(2, 2, 6, 6, generator=generator).masked_fill(~mask, -torch.inf)
    call = call_of(NUMBERS, block_mask(mask) if kind == "block" else bias)
    call.output = F.scaled_dot_product_attention(call.query, call.key, call.value, bias)
    if kind == "scores":
        call.scores = (call.query @ call.key.mT / 3**0.5).masked_fill(~mask, -torch.inf)
        call.masks = (mask,)
    packing = Documents().of(call, [(Evidence("mask", NUMBERS),)])
    assert packing is not None
    count = 0
    for part in by_document(replace(call, documents=packing)):
        scores = part.scores
        if scores is None:
            scores = part.query @ part.key.mT / 3**0.5
            for m in part.masks:
                m = m if isinstance(m, Tensor) else written_out(m, scores)
                scores = scores.masked_fill(~m, -torch.inf) if m.dtype == torch.bool else scores + m
        mixed = scores.softmax(-1) @ part.value
        real = torch.ones(mixed.shape[0], mixed.shape[2], dtype=torch.bool)
        real = real if part.query_mask is None else part.query_mask
        ours, theirs = (x.transpose(1, 2)[real] for x in (mixed, part.output))
        torch.testing.assert_close(ours, theirs)
        count += int(real.sum())
    assert count == 11


def written_out(mask: Any, scores: Tensor) -> Tensor:
    """A ``BlockMask`` written out."""
    places = torch.meshgrid(*(torch.arange(n) for n in (scores.shape[0], *scores.shape[2:])), indexing="ij")
    told = [
        mask.mask_mod(d, torch.tensor(0), i, j)
        for d, i, j in zip(*(p.flatten() for p in places), strict=True)
    ]
    return torch.stack(told).view(scores.shape[0], 1, *scores.shape[2:])
