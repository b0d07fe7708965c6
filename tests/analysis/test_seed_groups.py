"""Groups of seeds: the statistic against scipy's, and what chance makes of noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lightning_geo import GeometryHistory, GeometryRecord
from lightning_geo.analysis.seed_groups import compare_groups
from lightning_geo.utils.errors import RunError


def runs(values: NDArray[np.float64], **metadata: object) -> list[GeometryHistory]:
    """A run for each first index, [run, layer, head]."""
    return [
        GeometryHistory([GeometryRecord({"encoder": {"entropy": of}}, step=60, **metadata)]) for of in values
    ]


def noise(seed: int, count: int, layers: int = 6, heads: int = 12) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, layers, heads))


def test_mean_spread_and_statistic_are_those_of_scipy() -> None:
    a, b = noise(1, 4), noise(2, 3)
    found = compare_groups(runs(a), runs(b))
    assert found.sizes == (4, 3)
    result = stats.ttest_ind(b, a)
    error = np.abs((b.mean(0) - a.mean(0)) / result.statistic)
    for row in found.rows:
        cell = row.layer, row.head
        assert row.mean_a == pytest.approx(a.mean(0)[cell])
        assert row.spread_b == pytest.approx(b.std(0, ddof=1)[cell])
        moderated = (b.mean(0) - a.mean(0))[cell] / (error[cell] + np.median(error))
        assert row.statistic == pytest.approx(moderated)


def test_noise_is_called_noise_as_often_as_chance_says() -> None:
    """Of all ways to divide the same runs, the k-th clearest has the chance k/35: uniform, exactly."""
    values = noise(0, 8)
    least = []
    for others in itertools.combinations(range(1, 8), 3):  # run 0 is in the first group: sides do not count
        a = [0, *others]
        b = [run for run in range(8) if run not in a]
        least.append(min(row.chance for row in compare_groups(runs(values[a]), runs(values[b])).rows))
    # however many cells there are
    assert sorted(least) == pytest.approx([way / 35 for way in range(1, 36)], rel=1e-12)


def test_a_true_difference_comes_first() -> None:
    a, b = noise(1, 5), noise(2, 5)
    b[:, 3, 7] += 8
    found = compare_groups(runs(a), runs(b))
    first, second = found.rows[:2]
    assert (first.metric, first.layer, first.head) == ("entropy", 3, 7)
    assert first.chance == 1 / 126 == 1 / found.splits
    assert second.chance > 0.05


def test_many_runs_are_shuffled_a_bounded_number_of_times() -> None:
    found = compare_groups(runs(noise(1, 9)), runs(noise(2, 10)))
    assert found.splits <= 201


def test_one_group_has_a_mean_and_a_spread() -> None:
    a = noise(1, 3)
    found = compare_groups(runs(a), [])
    assert all(np.isnan([row.statistic, row.chance, row.mean_b]).all() for row in found.rows)
    assert found.rows[0].spread_a > 0


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(RunError, match="two runs or more"):
        compare_groups(runs(noise(1, 1)), runs(noise(2, 1)))
    with pytest.raises(RunError, match="different models"):
        compare_groups(runs(noise(1, 2)), runs(noise(2, 2, heads=8)))
    other = [GeometryHistory([GeometryRecord({"encoder": {"entropy": noise(3, 1)[0]}}, step=5)])]
    with pytest.raises(RunError, match="no step in common"):
        compare_groups(runs(noise(1, 2)), other)
    with pytest.raises(RunError, match="No metric of attention_distance"):
        compare_groups(runs(noise(1, 2)), runs(noise(2, 2)), ["attention_distance"])


def test_other_inputs_are_said() -> None:
    a = [*runs(noise(1, 1), probe_fingerprint="x"), *runs(noise(2, 1), probe_fingerprint="y")]
    assert any("2 different probes" in note for note in compare_groups(a, []).notes)
