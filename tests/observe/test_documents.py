"""Where documents are: what every source of evidence says, and whether the masks keep them apart."""

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
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask

from lightning_geo.observe import AttentionCall
from lightning_geo.observe.packed import documents, isolation
from lightning_geo.observe.packed.claims import (
    Evidence,
    claimed_documents,
    evidence_in,
    flash_documents,
    kind_of,
)
from lightning_geo.observe.packed.documents import Documents
from lightning_geo.observe.packed.splitting import by_document
from lightning_geo.observe.packing import Packing
from lightning_geo.observe.spans import Spans, from_cumulative, from_numbers, from_positions, is_packed

# -- spans


@pytest.mark.parametrize(
    ("cumulative", "total", "exact", "expected"),
    [
        ([0, 3, 4, 9], 9, True, [(0, 3), (3, 4), (4, 9)]),
        ([[0, 3, 9]], 9, True, [(0, 3), (3, 9)]),  # a batch axis of one
        ([0, 3, 3, 9], 9, True, [(0, 3), (3, 3), (3, 9)]),
        ([0, 3, 7], 9, False, [(0, 3), (3, 7)]),  # the tail is no document's
        ([0, 3, 7], 9, True, None),
        ([0, 3, 10], 9, False, None),
        ([1, 3, 9], 9, True, None),
        ([0, 5, 3, 9], 9, True, None),
        ([0], 9, False, None),
        ([[0, 3], [0, 9]], 9, False, None),
    ],
)
def test_cumulative_lengths(cumulative: Any, total: int, exact: bool, expected: Spans | None) -> None:
    assert from_cumulative(np.array(cumulative), total, exact=exact) == expected


@pytest.mark.parametrize(
    ("numbers", "is_mask", "expected"),
    [
        ([[1, 1, 2, 3, 3, 0]], True, [(0, 2), (2, 3), (3, 5)]),
        ([[0, 0, 1, 2, 2, 2], [1, 1, 1, 2, 0, 0]], True, [(2, 3), (3, 6), (6, 9), (9, 10)]),
        ([[1, 1, 1, 1, 0, 0]], True, None),  # a padding mask
        ([[0, 0, 0]], True, None),
        ([[0, 0, 1, 2, 2]], False, [(0, 2), (2, 3), (3, 5)]),  # counted from 0
        ([[1, 1, 2, 2, 0]], False, [(0, 2), (2, 4)]),  # counted from 1: 0 is padding
        ([[0, 0, 1], [0, 1, 0]], False, [(2, 3), (4, 5)]),
        ([[5, 5, 7, -1, -1]], False, [(0, 2), (2, 3)]),
        ([[-1, -1]], False, None),
    ],
)
def test_document_numbers(numbers: list[list[int]], is_mask: bool, expected: Spans | None) -> None:
    assert from_numbers(np.array(numbers), is_mask=is_mask) == expected


@pytest.mark.parametrize(
    ("positions", "real", "expected"),
    [
        ([[0, 1, 2, 0, 1, 0]], None, [(0, 3), (3, 5), (5, 6)]),
        ([[0, 0, 1, 0, 0]], None, [(0, 1), (1, 3), (3, 4), (4, 5)]),  # documents of one token
        ([[2, 3, 2, 2, 3]], None, [(0, 2), (2, 3), (3, 5)]),  # RoBERTa counts from 2
        ([[4, 5, 6, 0, 1]], None, [(0, 3), (3, 5)]),  # the row begins within a document
        ([[1, 1, 1, 0, 1, 2]], None, [(3, 6)]),  # left padding as transformers fills it
        ([[0, 1, 2, 2, 2]], None, [(0, 3)]),  # the last position goes on
        ([[0, 1, 0, 1, 7, 7, 7]], None, [(0, 2), (2, 5)]),  # the first of a constant may be a jump
        ([[0, 1, 0, -1, -1]], None, [(0, 2), (2, 3)]),
        ([[1, 1, 0, 1, 0]], [[0, 0, 1, 1, 1]], [(2, 4), (4, 5)]),
        ([[0, 1, 2, 0, 1, 0, 0]], [[1, 1, 1, 1, 1, 0, 0]], [(0, 3), (3, 5)]),
        ([[0, 0, 0, 1, 2]], [[0, 0, 1, 1, 1]], [(2, 5)]),
        ([[0, 1], [0, 1]], None, [(0, 2), (2, 4)]),
        ([[0], [0]], None, [(0, 1), (1, 2)]),
        ([[0, 1]], [[0, 0]], None),
    ],
)
def test_positions_that_start_again(
    positions: list[list[int]], real: list[list[int]] | None, expected: Spans | None
) -> None:
    mask = None if real is None else np.array(real, dtype=bool)
    assert from_positions(np.array(positions), mask) == expected


def test_an_images_tokens_stand_still_in_time() -> None:
    """The first of mrope's three planes; of four, the first counts tokens as ever."""
    plane = np.array([[0, 1, 2, 2, 2, 2, 3, 4, 0, 1]])
    assert from_positions(plane, None, planes=3) == [(0, 8), (8, 10)]
    assert from_positions(np.array([[0, 0, 1]]), None, planes=4) == [(0, 1), (1, 3)]


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(lengths, st.integers(0, 5), st.booleans())
def test_all_sources_agree(sizes: list[int], padding: int, left: bool) -> None:
    """The same rows, told in three ways; padding at either end is no document."""
    total, offset = sum(sizes) + padding, padding if left else 0
    bounds = np.cumsum([0, *sizes])
    expected = list(itertools.pairwise((bounds + offset).tolist()))
    ends = offset, padding - offset
    numbers = np.pad(np.repeat(np.arange(len(sizes)) + 1, sizes), ends)[None]
    positions = np.pad(np.concatenate([np.arange(n) for n in sizes]), ends)[None]
    assert from_positions(positions, numbers > 0) == expected
    if len(sizes) > 1:
        assert from_numbers(numbers, is_mask=True) == expected
    if not padding:
        assert from_cumulative(bounds, total) == expected
        assert from_positions(positions, None) == expected
    assert is_packed(expected, total) == (len(sizes) > 1)


def test_packed_means_several_in_a_row_or_beyond_it() -> None:
    assert not is_packed([(0, 4), (5, 8)], 4)
    assert is_packed([(0, 2), (2, 4)], 4)
    assert is_packed([(0, 6), (6, 8)], 4)


# -- arguments


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cu_seq_lens_q", "cumulative"), ("cu_seqlens", "cumulative"), ("cu_seq_q", "cumulative"),
        ("cu_seqlens_k", "cumulative"), ("attention_mask", "mask"), ("mask", "mask"),
        ("position_ids", "positions"), ("input_pos", "positions"), ("seq_idx", "numbers"),
        ("document_ids", "numbers"), ("segment_ids", "numbers"), ("input_ids", None), ("labels", None),
        ("token_type_ids", None), ("max_length_q", None), ("encoder_attention_mask", None),
    ],
)  # fmt: skip
def test_names_of_arguments(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


class Takes(nn.Module):
    def forward(self, x: Tensor, mask: Tensor, batch: Any = None, **kwargs: Any) -> None:
        """Takes them in any way."""


def test_evidence_is_found_by_name_by_place_and_in_a_batch() -> None:
    ints = [torch.ones(1, 2, dtype=torch.long) * n for n in range(4)]
    module, floats = Takes(), torch.ones(1, 2)
    assert evidence_in(module, (ints[0], ints[1]), {}) == (Evidence("mask", ints[1]),)
    assert evidence_in(module, (), {"position_ids": ints[2]}) == (Evidence("positions", ints[2]),)
    assert evidence_in(module, ({"seq_idx": ints[3]},), {}) == (Evidence("numbers", ints[3]),)
    empty = (floats, torch.ones(1, 1, 2, 2, dtype=torch.long), ints[0].to("meta"), None, 3)
    assert [evidence_in(module, (), {"mask": value}) for value in empty] == [()] * 5


def test_numbers_go_before_positions_and_rows_of_other_shapes_are_passed_over() -> None:
    numbers, positions = np.array([[1, 1, 2, 2]]), np.array([[0, 1, 2, 0]])
    told = [("positions", positions), ("mask", numbers), ("mask", np.array([[1, 2]]))]
    assert list(claimed_documents(told, 1, 4)) == [[(0, 2), (2, 4)], [(0, 3), (3, 4)]]
    assert list(claimed_documents(told, 2, 2)) == []
    both = [("positions", positions)]
    assert list(claimed_documents(both, 2, 4)) == [[(0, 3), (3, 4), (4, 7), (7, 8)]]  # one row for all


def test_what_flash_attention_reads() -> None:
    """In the order in which transformers looks: mask, lengths, position ids of a single row."""
    lengths, positions = torch.tensor([0, 2, 4]), torch.tensor([[0, 1, 0, 1]])
    every = {
        "cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": 2, "max_length_k": 2,
        "position_ids": positions,
    }  # fmt: skip
    assert flash_documents(every, 1, torch.ones(1, 4)) == (None, None)
    assert flash_documents(every, 1, None) == ((lengths, lengths), None)
    assert flash_documents({**every, "max_length_k": None}, 1, None) == (None, positions)
    assert flash_documents({**every, "cu_seq_lens_q": None}, 2, None) == (None, None)
    assert flash_documents({}, 1, None) == (None, None)


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
