"""The plan: its order, its reasons, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats
from numpy.typing import NDArray
from torch.utils.data import default_collate

from lightning_geo import (
    GeometryHistory,
    GeometryRecord,
    measure,
    pruning_plan,
)
from lightning_geo.analysis.pruning import Head
from support.lit import bert, sequences


def history(
    importance: NDArray[Any], similarity: NDArray[Any] | None = None, *more: GeometryRecord
) -> GeometryHistory:
    layers, heads = importance.shape
    model = {"class": "Bert", "stacks": {"encoder": {"heads": [heads] * layers}}}
    matrices = {} if similarity is None else {"encoder": {"head_similarity": similarity}}
    record = GeometryRecord({"encoder": {"importance": importance}}, model, matrices, step=7)
    return GeometryHistory([record, *more])


def alike(layers: int, heads: int, *pairs: tuple[int, int, int, float]) -> NDArray[Any]:
    result = np.broadcast_to(np.eye(heads), (layers, heads, heads)).copy()
    for layer, one, other, value in pairs:
        result[layer, one, other] = result[layer, other, one] = value
    return result


def test_without_similar_heads_the_order_is_that_of_importance() -> None:
    importance = np.random.default_rng(0).random((3, 4))
    plan = pruning_plan(history(importance, alike(3, 4)), 0.5)
    expected = [Head("encoder", *map(int, divmod(i, 4))) for i in np.argsort(importance.ravel())]
    assert [ranked.head for ranked in plan.ranking] == expected == list(plan.by_importance)
    assert plan.heads == tuple(expected[:6])
    assert (plan.step, plan.similarities) == (7, True)


def test_a_redundant_important_pair_loses_one_and_not_both() -> None:
    importance = np.array([[0.9, 1.0, 0.6, 0.7], [0.8, 0.85, 1.1, 1.2]])
    plan = pruning_plan(history(importance, alike(2, 4, (0, 0, 1, 0.98))), 0.5)
    assert [tuple(head)[1:] for head in plan.heads] == [(0, 2), (0, 0), (0, 3), (1, 0)]
    removed, stays = (next(r for r in plan.ranking if r.head[1:] == (0, h)) for h in (0, 1))
    assert "duplicates head 1 (0.98)" in removed.reason
    assert removed.score == pytest.approx(0.9 * (1 - 0.6 / 2))
    assert "kept in place of head 0" in stays.reason
    assert stays.score == 1.0  # nobody is like it any more
    alone = pruning_plan(history(importance), 0.5)
    assert [tuple(head)[1:] for head in alone.heads] == [(0, 2), (0, 3), (1, 0), (1, 1)]
    assert not alone.similarities


def test_of_a_group_that_says_the_same_one_stays() -> None:
    group = alike(1, 4, (0, 0, 1, 1.0), (0, 0, 2, 1.0), (0, 1, 2, 1.0))
    plan = pruning_plan(history(np.array([[0.7, 0.8, 0.9, 0.5]]), group), 0.5)
    assert [ranked.head.head for ranked in plan.ranking] == [0, 1, 3, 2]
    assert "kept in place of head 1" in plan.ranking[-1].reason


@given(
    arrays(float, (2, 5), elements=floats(0, 10, width=32)),
    arrays(float, (2, 5, 5), elements=floats(0.875, 1, width=32)),
)
def test_always_the_smallest_score_of_those_left(importance: NDArray[Any], pairs: NDArray[Any]) -> None:
    similarity = np.maximum(pairs, pairs.swapaxes(1, 2))

    def score(layer: int, head: int) -> float:
        others = [similarity[layer, head, h] for at, h in left if at == layer and h != head]
        repeated = max((max(others, default=0.0) - 0.95) / 0.05, 0.0)
        return float(importance[layer, head] * (1 - repeated / 2))

    left = [(layer, head) for layer in range(2) for head in range(5)]
    for ranked in pruning_plan(history(importance, similarity), 0.5).ranking:
        _, layer, head = ranked.head
        assert ranked.score == pytest.approx(score(layer, head))
        assert ranked.score <= min(score(*other) for other in left) + 1e-9
        left.remove((layer, head))


def test_the_last_sample_that_has_it_counts() -> None:
    later = GeometryRecord({"encoder": {"entropy": np.ones((1, 3))}}, step=9)
    plan = pruning_plan(history(np.array([[0.3, np.nan, 0.2]]), None, later), 0.9)
    assert [head.head for head in plan.heads] == [2, 0]  # without a number nothing is removed
    assert plan.step == 7


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_is_within_0_and_1(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"`fraction` to be a share of the heads within \(0, 1\) but got"):
        pruning_plan(history(np.ones((1, 3))), fraction)


def test_what_is_no_fraction() -> None:
    with pytest.raises(TypeError, match="`fraction` to be a number but got str"):
        pruning_plan(history(np.ones((1, 3))), "0.3")  # type: ignore[arg-type]


def test_a_run_without_importance_says_how_to_get_it() -> None:
    record = GeometryRecord({"encoder": {"entropy": np.ones((1, 3))}})
    with pytest.raises(ValueError, match=r'(?s)has only entropy.*metrics=\["importance", "head", ...\]'):
        pruning_plan(GeometryHistory([record]))


def test_a_record_measured_by_hand_is_enough() -> None:
    record = measure(bert(), default_collate(sequences(4)), metrics=["importance", "head"])
    plan = pruning_plan(GeometryHistory([record]), 0.5)
    assert plan.similarities
    assert len(plan.heads) == record["importance"].size // 2
