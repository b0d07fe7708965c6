"""A run's pictures keep one scale: the first one's, widened in round steps, also after a resume."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_geo import GeometryMonitor
from lightning_geo.loggers.picture_scale import PictureScale, PictureScales
from lightning_geo.metrics.catalog import CATALOG
from support.lit import Classifier, loader, trainer

LOGIT, KURTOSIS = CATALOG["max_logit"], CATALOG["kurtosis"]
NUMBERS = st.lists(st.integers(-(10**6), 10**6).map(lambda n: n / 1000), min_size=1, max_size=40)


def grid(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


def is_round(number: float, span: float) -> bool:
    """Whether a number is a multiple of 1, 2 or 5 times a power of ten that divides a span into few steps."""
    steps = [m * 10.0**p for m in (1, 2, 5) for p in range(-12, 8) if span / 12 <= m * 10.0**p <= span]
    return any(abs(number / step - round(number / step)) < 1e-6 for step in steps)


@given(st.lists(NUMBERS, min_size=1, max_size=6))
def test_a_scale_never_narrows_and_holds_what_each_picture_needs(samples: list[list[float]]) -> None:
    scales, kept = PictureScales(), None
    for sample in samples:
        scale = scales.of("tag", grid(*sample), LOGIT)
        assert scale.low < scale.high
        places = np.sort(np.float32(sample))
        low, high = (places[round(share * (len(sample) - 1))] for share in (0.02, 0.98))
        assert scale.low <= low <= high <= scale.high
        if kept is None:
            assert is_round(scale.low, scale.high - scale.low)
            assert is_round(scale.high, scale.high - scale.low)
        else:
            assert scale.low <= kept.low < kept.high <= scale.high
        kept = scale


def test_a_scale_that_suffices_stays() -> None:
    scales = PictureScales()
    first = scales.of("tag", grid(3.59, 5, 15), LOGIT)
    assert (first.low, first.high) == (2.0, 16.0)
    assert scales.of("tag", grid(4, 14.9), LOGIT) == first
    assert scales.of("tag", grid(4, 17), LOGIT) == PictureScale(2.0, 18.0)
    assert scales.of("other", grid(4, 5), LOGIT) == PictureScale(4.0, 5.0)


def test_one_outlier_does_not_set_a_scale() -> None:
    values = np.random.default_rng(0).uniform(3, 15, (6, 12))
    values[0, 2] = 45.2
    assert PictureScales().of("tag", values, LOGIT) == PictureScale(2.0, 16.0)


def test_ends_are_those_of_the_definition_where_it_bounds_the_metric() -> None:
    values = grid(2.1, 3.3)
    assert PictureScales().of("tag", values, CATALOG["entropy"]) == PictureScale(0.0, 3.4)
    assert PictureScales().of("tag", values, CATALOG["effective_rank"]).low == 1.0
    assert PictureScales().of("tag", values / 9, CATALOG["self_mass"]) == PictureScale(0.0, 1.0)


def test_a_logarithmic_scale_is_round_too_and_leaves_out_what_has_no_logarithm() -> None:
    scale = PictureScales().of("tag", grid(-3.0, -1, 4.4, 17, 40), KURTOSIS)
    assert scale == PictureScale(-1.0, 47.0, -3.0)  # 2 and 50 above -3
    np.testing.assert_allclose(scale.shares(grid(-3, -1, 7, 47, 99, np.nan)), [[0, 0, 0.5, 1, 1, 0]])
    assert scale.value(0.5) == pytest.approx(7)
    assert PictureScales().of("tag", grid(0, 0), CATALOG["importance"]) == PictureScale(0.0, 1.0)


@pytest.mark.parametrize("values", [grid(np.nan), grid(np.inf, np.nan)])
def test_without_values_there_is_a_scale_and_nothing_is_remembered(values: np.ndarray) -> None:
    ends: dict[str, list[float]] = {}
    assert PictureScales(ends).of("tag", values, LOGIT) == PictureScale(0.0, 1.0)
    assert ends == {}


def test_a_resumed_run_keeps_the_scale(tmp_path: Path) -> None:
    """Of a metric that falls: alone, the resumed session's first picture would begin a narrower scale."""

    def fit(steps: int, checkpoint: str | None, version: str) -> GeometryMonitor:
        monitor = GeometryMonitor(every_n_steps=2, metrics=["metric:max_logit"], strict=True)
        logger = TensorBoardLogger(tmp_path, "tb", version=version)
        runner = trainer(tmp_path, monitor, steps=steps, logger=logger)
        runner.fit(Classifier(), loader(), loader(), ckpt_path=checkpoint)
        runner.save_checkpoint(tmp_path / f"{version}.ckpt")
        return monitor

    fit(4, None, "first")
    path = str(tmp_path / "first.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    (state,) = (s for key, s in checkpoint["callbacks"].items() if "GeometryMonitor" in key)
    [(tag, ends)] = state["picture_scales"].items()
    assert tag == "geometry_entropy/max_logit"
    state["picture_scales"][tag] = [ends[0] - 1000.0, ends[1] + 1000.0]
    torch.save(checkpoint, path)
    resumed = fit(8, path, "second")
    assert resumed.state_dict()["picture_scales"] == {tag: [ends[0] - 1000.0, ends[1] + 1000.0]}
    events = EventAccumulator(str(tmp_path / "tb" / "second"), size_guidance={"images": 0}).Reload()
    last = Image.open(io.BytesIO(events.Images(tag)[-1].encoded_image_string))
    field = np.asarray(last.convert("RGB"))[44:150, 46:270].reshape(-1, 3)
    assert (
        np.ptp(field[(field != field[:, :1]).any(1)], axis=0).max() < 12
    )  # on that scale all heads are alike
