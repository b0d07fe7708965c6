"""What changed within a run, in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo.analysis.changes import change_of, changes, layer_changes
from lightning_geo.analysis.runs import metric_series
from support.records import run_of


def test_a_change_is_last_minus_first_where_and_when() -> None:
    # layer 1 head 0 goes 4 of its 8 by step 10; the spread at the start is 0.5
    history = run_of({"entropy": [[[1, 1], [2, 2]], [[1, 1], [6, 2]], [[1, 1.5], [7, 2]], [[1, 2], [10, 2]]]})
    [series] = metric_series(history)
    change = change_of(series, history.steps)
    assert change is not None
    assert change.cells.tolist() == [[0, 1], [8, 0]]
    assert (change.first, change.last) == (1.5, 3.75)
    assert change.most == (1, 0)
    assert change.half == 20  # |4| of |9| at step 10, |5.5| of |9| at step 20
    assert change.size == pytest.approx(np.sqrt((1 + 64) / 4) / 0.5)
    assert change_of(series._replace(values=series.values[:1]), history.steps[:1]) is None


def test_samples_without_a_value_are_passed_over() -> None:
    history = run_of({"entropy": [[[np.nan]], [[1.0]], [[2.0]], [[np.nan]]]})
    [series] = metric_series(history)
    change = change_of(series, history.steps)
    assert change is not None
    assert (change.first, change.last, change.half) == (1.0, 2.0, 20)


def test_layers_count_alike_whatever_the_unit() -> None:
    start, end = [[1, 2], [3, 4]], [[1, 2], [5, 6]]
    thousandfold = [(1000 * np.array(of)).tolist() for of in (start, end)]
    one = layer_changes(changes(run_of({"entropy": [start, end]})))
    two = layer_changes(changes(run_of({"entropy": [start, end], "attention_distance": thousandfold})))
    for [(stack, sizes)] in (one, two):
        assert stack == "encoder"
        np.testing.assert_allclose(sizes, [0, np.sqrt(2)])  # mean square 1
