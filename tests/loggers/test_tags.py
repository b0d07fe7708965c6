"""Which numbers appear under which tags."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo.loggers.pictures import pictures
from lightning_geo.loggers.tags import layer_range, scalars
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.key_metrics import SCALARS, key_metrics, key_metrics_by_stack
from lightning_geo.metrics.selection import select
from lightning_geo.storage.events import record_event
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record


def test_bert_base_stays_under_400_keys() -> None:
    record = make_record(layers=12, heads=12)
    numbers = {*scalars(record, level="layer"), *layer_range(record)}
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
    found = scalars(record, level="layer")
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
    assert set(model) == {f"geometry/{name}" for name in key_metrics(select())}
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
    assert set(scalars(record, "probe", "layer")) == {
        "probe/encoder/entropy",
        "probe/decoder.cross/entropy",
        *(f"probe_entropy/{stack}/entropy/layer_{n:02d}" for stack in record.stacks for n in range(2)),
    }


def test_numbers_of_more_than_100_layers_sort() -> None:
    tags = [t for t in scalars(make_record(layers=101, metrics=["entropy"]), level="layer") if "layer" in t]
    assert tags == sorted(tags)
    assert tags[-1].endswith("layer_100")
    assert tags[0].endswith("layer_000")


ALL = select(sorted({spec.family for spec in CATALOG.values()}))


@pytest.mark.parametrize("stacks", [1, 2, 3, 7, 40])
def test_no_run_has_more_than_16_scalars_and_each_stack_has_the_same(stacks: int) -> None:
    names = [f"stack_{number:02d}" for number in range(stacks)]
    record = make_record(stacks=names, metrics=ALL)
    record.coverage = {"seen": 4, "measured": 3, "left_out": {}}
    found = scalars(record, measured=ALL)
    assert "geometry/coverage" in found
    assert SCALARS - stacks < len(found) <= SCALARS or stacks > SCALARS
    assert len(found) <= SCALARS
    by_stack = {
        stack: {name for s, name in key_metrics_by_stack(names, ALL) if s == stack} for stack in names
    }
    assert len(set(map(frozenset, by_stack.values()))) == 1 or stacks > SCALARS


def test_what_is_said_first_is_one_metric_of_each_family() -> None:
    key = [name for spec in CATALOG.values() for name in spec.key]
    assert len(key) == SCALARS - 1
    assert sorted(key_metrics()) == sorted(key)
    families = {spec.family for spec in CATALOG.values() if spec.key}
    family_of = {name: spec.family for spec in CATALOG.values() for name in spec.stored_names}
    assert {family_of[name] for name in key_metrics()[: len(families)]} == families


def test_metrics_that_somebody_named_are_scalars_while_there_is_room() -> None:
    # by default no metric but the key ones
    assert set(key_metrics(select())) == set(key_metrics()) - {"importance"}
    # what is named besides follows, what is named alone is all there
    more = key_metrics([*select(), *select("symmetry")])
    assert more[-1] == "symmetry"
    assert len(more) == len(key_metrics(select())) + 1
    assert key_metrics(select("entropy"))[:3] == ["entropy", "normalized_entropy", "max_logit"]
    assert set(key_metrics(select("entropy"))) == set(select("entropy"))
    record = make_record(metrics=["concentration"])
    assert set(scalars(record, measured=["concentration"])) == {"geometry/concentration"}
    assert scalars(record) == {}


@pytest.mark.parametrize("metric", ["entropy", "max_logit", "kurtosis"])
def test_the_range_of_layers_is_of_their_own_numbers(metric: str) -> None:
    record = make_record(layers=5, heads=4, metrics=[metric])
    values = record[metric].astype(np.float64)
    of_layers = [float(row.max() if metric == "max_logit" else row.mean()) for row in values]
    found = layer_range(record)
    low, high = (found[f"geometry_layers/{metric}/{end}"] for end in ("min", "max"))
    assert (low, high) == pytest.approx((min(of_layers), max(of_layers)))
    mean = found.get(f"geometry_layers/{metric}/mean", scalars(record)[f"geometry/{metric}"])
    assert mean == pytest.approx(np.mean(of_layers))
    assert low < mean < high


def test_layers_without_value_and_single_layers_have_no_range() -> None:
    record = make_record(layers=3, metrics=["entropy", "kurtosis"])
    record.stacks["encoder"]["entropy"][1:] = np.nan
    record.stacks["encoder"]["kurtosis"][:] = np.nan
    found = layer_range(record)
    assert set(found) == {"geometry_layers/entropy/min", "geometry_layers/entropy/max"}
    assert len(set(found.values())) == 1
    assert layer_range(make_record(layers=1)) == {}
