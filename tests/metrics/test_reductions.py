"""The one way in which arrays over layers and heads become fewer numbers."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo import GeometryHistory, GeometryRecord
from lightning_geo.analysis.runs import metric_series
from lightning_geo.loggers.tags import scalars
from lightning_geo.metrics.reductions import reduce_finite, root_mean_square
from lightning_geo.metrics.selection import spec_of

#: [layer, head]: numbers, a gap, infinities, and a layer without any value.
CELLS = np.array([[1.0, 2.0, 6.0], [np.nan, 4.0, 8.0], [np.inf, -np.inf, 5.0], [np.nan] * 3])


@pytest.mark.parametrize(
    ("summary", "layers", "model"),
    [("mean", [3.0, 6.0, 5.0, np.nan], 26 / 6), ("max", [6.0, 8.0, 5.0, np.nan], 8.0)],
)
def test_values_that_are_not_finite_do_not_count(summary: str, layers: list[float], model: float) -> None:
    np.testing.assert_array_equal(reduce_finite(CELLS, summary, keep=1), layers)  # type: ignore[arg-type]
    assert reduce_finite(CELLS, summary) == pytest.approx(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("summary", ["mean", "max"])
@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_leading_axes_are_kept(summary: str, keep: int) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    result = reduce_finite(values, summary, keep=keep)  # type: ignore[arg-type]
    reference = values.max if summary == "max" else values.mean
    assert result.shape == values.shape[:keep]
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, reference(axis=tuple(range(keep, 3))), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_nothing_has_no_value(shape: tuple[int, ...]) -> None:
    for summary in ("mean", "max"):
        assert np.isnan(reduce_finite(np.zeros(shape), summary))  # type: ignore[arg-type]


def test_a_long_float32_sum_keeps_its_digits() -> None:
    values = np.full(10_000_000, 0.1, np.float32)
    assert reduce_finite(values) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_the_root_mean_square_is_of_finite_values() -> None:
    np.testing.assert_allclose(
        root_mean_square(CELLS, keep=1), [np.sqrt(41 / 3), np.sqrt(40), 5.0, np.nan], rtol=1e-12
    )
    assert root_mean_square(np.array([[3.0, -4.0]], np.float16)) == pytest.approx(np.sqrt(12.5))


@pytest.mark.parametrize("metric", ["entropy", "max_logit"])
def test_summaries_series_and_tags_agree(metric: str) -> None:
    summary = spec_of(metric).summary
    record = GeometryRecord({"encoder": {metric: CELLS.astype(np.float32)}})
    model = float(reduce_finite(CELLS, summary))
    assert record.summaries()[metric] == pytest.approx(model)
    [series] = metric_series(GeometryHistory([record]))
    assert series.model() == pytest.approx([model])
    tags = {
        tag.rpartition("/")[2]: value
        for tag, value in scalars(record, level="layer").items()
        if "layer_" in tag
    }
    layers = reduce_finite(CELLS, summary, keep=1)
    assert tags == {f"layer_{i:02d}": value for i, value in enumerate(layers) if np.isfinite(value)}


def test_the_test_above_has_a_metric_of_each_kind() -> None:
    assert {spec_of(metric).summary for metric in ("entropy", "max_logit")} == {"mean", "max"}
