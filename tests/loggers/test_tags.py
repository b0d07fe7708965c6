"""Which numbers appear under which tags."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo.loggers.pictures import pictures
from lightning_geo.loggers.tags import scalars
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import select
from lightning_geo.storage.events import record_event
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record


def test_bert_base_stays_under_400_keys() -> None:
    record = make_record(layers=12, heads=12)
    numbers = set(scalars(record))
    shown = {tag for tag, _ in pictures(record)}
    stored = {value.tag for value in record_event(record, "geometry").summary.value}
    assert len(numbers | shown | stored) < 400
    assert not numbers & shown  # a shared tag would hide both
    assert not (numbers | shown) & stored


def test_at_most_20_headline_metrics_that_exist() -> None:
    headline = [name for spec in CATALOG.values() if spec.default for name in spec.headline]
    assert len(headline) <= 20
    assert set(headline) <= set(select([*{spec.family for spec in CATALOG.values()}]))


def test_values_are_means_over_layers_and_heads_and_the_largest_logit() -> None:
    record = make_record(layers=3, heads=5)
    found = scalars(record)
    entropy, logit = record["entropy"].astype(np.float64), record["max_logit"]
    assert found["geometry/entropy"] == pytest.approx(entropy.mean(), rel=1e-6)
    assert found["geometry/max_logit"] == logit.max()
    for layer in range(3):
        assert found[f"geometry_entropy/entropy/layer_{layer:02d}"] == pytest.approx(entropy[layer].mean())
        assert found[f"geometry_entropy/max_logit/layer_{layer:02d}"] == logit[layer].max()
        assert found[f"geometry_cone/cone.output/layer_{layer:02d}"] == record["cone.output"][layer]


def test_levels_are_each_finer_than_the_one_before() -> None:
    record = make_record(layers=2, heads=3)
    model, layer, head = (scalars(record, level=level) for level in ("model", "layer", "head"))
    assert set(model) == {f"geometry/{name}" for name in select()}
    assert model.items() < layer.items() < head.items()
    assert head["geometry_entropy/entropy/layer_01/head_02"] == record["entropy"][1, 2]
    assert {tag.rpartition("/")[2] for tag in head.keys() - layer.keys()} == {"head_00", "head_01", "head_02"}


def test_what_is_not_finite_is_left_out_and_not_counted() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [np.inf, 3.0]], np.float32)
    found = scalars(GeometryRecord({"encoder": {"entropy": values, "max_logit": values}}), level="head")
    for metric in ("entropy", "max_logit"):
        prefix = f"geometry_entropy/{metric}"
        layers = {tag: value for tag, value in found.items() if tag.startswith(f"{prefix}/")}
        assert layers == {
            f"{prefix}/layer_00": 1.0,
            f"{prefix}/layer_00/head_00": 1.0,
            f"{prefix}/layer_02": 3.0,
            f"{prefix}/layer_02/head_01": 3.0,
        }
    assert found["geometry/entropy"] == 2.0
    assert found["geometry/max_logit"] == 3.0


def test_several_stacks_and_the_monitors_name_are_in_every_tag() -> None:
    record = make_record(stacks=("encoder", "decoder.cross"), metrics=["entropy"])
    assert set(scalars(record, "probe")) == {
        "probe/encoder/entropy",
        "probe/decoder.cross/entropy",
        *(f"probe_entropy/{stack}/entropy/layer_{n:02d}" for stack in record.stacks for n in range(2)),
    }


def test_numbers_of_more_than_100_layers_sort() -> None:
    tags = [t for t in scalars(make_record(layers=101, metrics=["entropy"])) if "layer" in t]
    assert tags == sorted(tags)
    assert tags[-1].endswith("layer_100")
    assert tags[0].endswith("layer_000")
