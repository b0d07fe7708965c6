"""The trend against NumPy's polynomial fit and mean, and what outliers, gaps and resuming do to it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.analysis.findings.trend import Trend

steps_of = st.lists(st.integers(1, 200), min_size=6, max_size=40).map(np.cumsum)


@given(steps_of, st.integers(8, 16), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_prediction_is_that_of_the_line_through_the_last_values(
    steps: np.ndarray, window: int, guard: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(10, 1, (len(steps), 3))
    trend = Trend(window, guard, floor=1e9)  # nothing is cut
    for i, (step, row) in enumerate(zip(steps, values, strict=True)):
        prediction, _ = trend.update(int(step), row)
        past = slice(max(0, i - guard - window), max(0, i - guard))
        if i < 4 + guard:
            assert np.isnan(prediction).all()
            continue
        offset = steps[past].mean()
        line = np.polyfit((steps[past] - offset) / 100, values[past], 1)
        expected = line[0] * (step - offset) / 100 + line[1]
        # float32 holds the values; a prediction far ahead of close steps magnifies its rounding
        ahead = 1 + abs(step - offset) / max(np.ptp(steps[past]), 1)
        assert prediction == pytest.approx(expected, rel=1e-5 * ahead, abs=1e-4 * ahead)


@given(steps_of, st.integers(8, 16), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_without_a_slope_the_prediction_is_the_mean_and_errors_count_by_their_root_mean_square(
    steps: np.ndarray, window: int, guard: int, seed: int
) -> None:
    values = np.random.default_rng(seed).uniform(9, 11, (len(steps), 3))
    trend = Trend(window, guard, floor=0.0, slope=False, settled=30)
    errors: list[np.ndarray] = []
    for i, (step, row) in enumerate(zip(steps, values, strict=True)):
        prediction, score = trend.update(int(step), row)
        past = values[max(0, i - guard - window) : max(0, i - guard)]
        if i < 4 + guard:
            continue
        error = (row - past.mean(axis=0)) / np.sqrt(1 + 1 / len(past))
        assert prediction == pytest.approx(past.mean(axis=0), rel=1e-5)
        known = errors[: len(errors) - guard]
        errors.append(error)
        if len(known) < 4:
            continue
        # the first `window` errors count alike, and each later one takes its share from all before
        weights = np.array([1 / max(k, 1) for k in range(1, len(known) + 1)])
        for k in range(window, len(known)):
            weights[k] = 1 / window
        shares = [w * np.prod(1 - weights[k + 1 :]) for k, w in enumerate(weights)]
        usual = np.sqrt(np.sum([s * e**2 for s, e in zip(shares, known, strict=True)], axis=0))
        expected = error / (usual * (1 + 4 / len(known)) * max(1, 30 / i) ** 3)
        assert score == pytest.approx(expected, rel=1e-3, abs=1e-4)
        if (np.abs(error) > 2.9 * usual).any():
            return  # from here on an error is cut


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3))
def test_noise_is_seldom_unusual_and_a_jump_of_twenty_deviations_always(seed: int, spread: float) -> None:
    noise = np.random.default_rng(seed).normal(0, spread, (80, 50))
    values = 100 + 0.3 * np.arange(80)[:, None] + noise
    values[70:, 7] += 25 * spread
    trend, scores = Trend(64, 0, floor=0.0), []
    for step, row in enumerate(values):
        scores.append(trend.update(10 * step, row)[1])
    score = np.array(scores)
    others = np.delete(score, 7, axis=1)
    assert np.nanmax(np.abs(others[10:])) < 8
    assert (score[70:72, 7] > 8).all()


def test_one_outlier_moves_the_trend_by_no_more_than_three_usual_errors() -> None:
    trend = Trend(16, 0, floor=0.01)
    for step in range(12):
        trend.update(step, np.array([1.0, 1.0]))
    _, score = trend.update(12, np.array([1.0, 1e6]))
    # float32 predicts 1 to 1e-6, and the usual error is 1 % of it
    assert abs(score[0]) < 1e-6 / 0.01
    assert score[1] > 1e6
    prediction, score = trend.update(13, np.array([1.0, 1.0]))
    assert prediction[0] == pytest.approx(1, rel=1e-6)
    assert 1 < prediction[1] < 1.1
    assert abs(score[1]) < 2  # nor is the value after it unusual


def test_a_lasting_change_becomes_the_trend() -> None:
    trend = Trend(16, 0, floor=0.01)
    scores = [trend.update(step, np.array([1.0 if step < 20 else 2.0]))[1][0] for step in range(80)]
    assert scores[20] > 8
    assert max(map(abs, scores[60:])) < 1


def test_a_missing_value_is_its_own_prediction() -> None:
    rows = [np.array([float(i), float(i)]) for i in range(20)]
    rows[9][1] = np.nan
    trend = Trend(8, 0, floor=0.01)
    predictions = np.array([trend.update(i, row)[0] for i, row in enumerate(rows)])
    assert predictions[4:, 1] == pytest.approx(predictions[4:, 0], rel=1e-5)
    never = Trend(8, 0, floor=0.01)
    assert all(np.isnan(never.update(i, np.array([np.nan]))[0]).all() for i in range(10))


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_a_resumed_trend_goes_on_as_if_it_had_not_stopped(stop: int, guard: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 1, (40, 4))
    whole = Trend(12, guard, floor=0.01, absolute=True)
    for step in range(stop):
        whole.update(step, values[step])
    resumed = Trend(12, guard, floor=0.01, absolute=True)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for step in range(stop, 40):
        np.testing.assert_array_equal(whole.update(step, values[step]), resumed.update(step, values[step]))


def test_a_slow_change_shows_beside_a_guard_and_for_longer_without_a_slope() -> None:
    values = np.random.default_rng(0).normal(0, 0.05, 120)
    values[80:] += 0.1 * np.arange(40)  # a learning rate that grows by a tenth each step, as a logarithm
    found = {}
    for guard, slope in ((0, True), (8, True), (8, False)):
        trend = Trend(16, guard, floor=0.02, absolute=True, slope=slope)
        scores = np.array([trend.update(step, np.array([value]))[1][0] for step, value in enumerate(values)])
        found[guard, slope] = (scores[80:100] > 6).sum()
    assert found[0, True] < 2 < found[8, True] < found[8, False]


def test_a_bump_is_soon_forgotten() -> None:
    random = np.random.default_rng(0)
    values = 10 + random.normal(0, 0.1, 130)
    values[60:90] += 2 * np.sin(np.linspace(0, np.pi, 30))  # it comes and goes
    values[125:] += 2
    trend, score = Trend(16, 0, floor=0.0), np.zeros(130)
    for step, value in enumerate(values):
        score[step] = trend.update(step, np.array([value]))[1][0]
    assert (score[125:128] > 4).all()
    assert np.abs(score[115:125]).max() < 4
