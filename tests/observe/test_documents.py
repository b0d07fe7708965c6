"""Where documents are: what every source of evidence says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_geo.observe.packed.claims import (
    Evidence,
    claimed_documents,
    evidence_in,
    flash_documents,
    kind_of,
)
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
