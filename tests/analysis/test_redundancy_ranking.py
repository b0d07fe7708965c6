"""Heads that repeat others: their order, on the largest pair left at each turn, and what is refused."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats
from numpy.typing import NDArray

from lightning_geo import GeometryHistory, GeometryRecord
from lightning_geo.analysis.redundancy_ranking import redundancy_ranking


def history(similarity: NDArray[Any], *, stored: bool = True) -> GeometryHistory:
    """A run in which these heads [layer, head, head] are so similar."""
    without = np.where(np.eye(similarity.shape[1], dtype=bool), -1, similarity)
    matrices = {"encoder": {"head_similarity": similarity}} if stored else {}
    return GeometryHistory(
        [GeometryRecord({"encoder": {"redundancy": without.max(-1)}}, matrices=matrices, step=7)]
    )


@given(arrays(np.float64, (2, 4, 4), elements=floats(0, 1, width=16)))
def test_each_turn_takes_from_the_most_similar_pair_that_is_left(values: NDArray[Any]) -> None:
    similarity = (values + values.swapaxes(1, 2)) / 2
    ranking = redundancy_ranking(history(similarity)).ranking
    assert sorted(ranked.head[1:] for ranked in ranking) == list(itertools.product(range(2), range(4)))
    left = {layer: set(range(4)) for layer in range(2)}
    for ranked in ranking:
        pairs = [
            similarity[layer, a, b]
            for layer, heads in left.items()
            for a, b in itertools.combinations(sorted(heads), 2)
        ]
        _, layer, head = ranked.head
        if pairs:
            assert ranked.similarity == max(pairs)
            assert ranked.similar in left[layer] - {head}
            assert ranked.similarity == similarity[layer, head, ranked.similar]
        else:
            assert ranked.similar is None
            assert math.isnan(ranked.similarity)
        assert ranked.redundancy == max(similarity[layer, head, other] for other in range(4) if other != head)
        left[layer].remove(head)


def test_without_stored_similarities_the_measured_redundancy_counts() -> None:
    similarity = np.array([[[1, 0.2, 0.9], [0.2, 1, 0.3], [0.9, 0.3, 1]]])
    found = redundancy_ranking(history(similarity, stored=False), 0.6)
    assert [ranked.head.head for ranked in found.ranking] == [0, 2, 1]
    assert (found.similarities, found.count, found.step) == (False, 2, 7)
    assert all(ranked.similar is None for ranked in found.ranking)


def test_heads_without_a_value_are_left_out() -> None:
    similarity = np.array([[[1, np.nan, 0.9], [np.nan] * 3, [0.9, np.nan, 1]]])
    record = GeometryRecord(
        {"encoder": {"redundancy": np.array([[0.9, np.nan, 0.9]])}},
        matrices={"encoder": {"head_similarity": similarity}},
    )
    ranking = redundancy_ranking(GeometryHistory([record])).ranking
    assert [(ranked.head.head, ranked.similar) for ranked in ranking] == [(0, 2), (2, None)]


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="neither `importance` nor `redundancy`"):
        redundancy_ranking(GeometryHistory([GeometryRecord({"encoder": {"entropy": np.ones((1, 2))}})]))
    with pytest.raises(ValueError, match=r"within \(0, 1\) but got 2"):
        redundancy_ranking(history(np.ones((1, 2, 2))), 2)
