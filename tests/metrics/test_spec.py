"""The table of metrics and the record."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.families.entry import entry
from lightning_geo.metrics.families.masks import SOURCES
from lightning_geo.metrics.gates import GATES, MIXED
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.metrics.spec import ROLES, STAGES, WORDS, MetricSpec
from lightning_geo.storage.record import GeometryRecord, lookup
from support.records import make_record

FAMILIES = {spec.family for spec in CATALOG.values()}


@pytest.mark.parametrize("spec", CATALOG.values(), ids=lambda spec: spec.name)
def test_every_metric_says_what_it_is(spec: object) -> None:
    spec = CATALOG[spec.name]  # type: ignore[attr-defined]
    assert spec.unit in {"1", "dimensions", "heads", "logits", "loss", "nats", "radians", "tokens"}
    assert spec.axes in (("layer",), ("layer", "head"))
    known = STAGES, ("query", "key", "direction"), GATES, (*GATES, MIXED), SOURCES
    assert set(spec.parts) <= {*ROLES} or spec.parts in known
    assert {*spec.headline, *spec.key} <= set(spec.stored_names)
    low, high = spec.range
    assert low is None or high is None or low < high


def unworded(spec: MetricSpec) -> list[str]:
    """The words that someone who meets a metric first would miss, or stumble over."""
    missing = [name for name in WORDS if not getattr(spec, name).strip()]
    ends = {"question": "?", "higher": ".", "lower": ".", "worry": "."}
    wrong = [name for name, end in ends.items() if not getattr(spec, name).endswith(end)]
    cased = [name for name in ("title", "question", "worry") if getattr(spec, name)[:1].islower()]
    cased += [name for name in ("higher", "lower") if getattr(spec, name)[:1].isupper()]
    long = [name for name in WORDS if len(getattr(spec, name)) > (60 if name == "title" else 220)]
    return sorted({*missing, *wrong, *cased, *long})


@pytest.mark.parametrize("spec", CATALOG.values(), ids=lambda spec: spec.name)
def test_every_metric_is_explained_in_plain_words(spec: MetricSpec) -> None:
    assert unworded(spec) == []
    assert spec.meaning == f"Higher: {spec.higher} Lower: {spec.lower}"
    # what is known of BERT or a decoder was measured; all else says why there is no number
    assert re.search(r"\d|not measured", spec.usual)


def test_no_two_metrics_share_a_title() -> None:
    titles = [spec.title for spec in CATALOG.values()]
    assert sorted(set(titles)) == sorted(titles)


@pytest.mark.parametrize("name", WORDS)
def test_an_entry_without_one_of_its_words_is_refused(name: str) -> None:
    assert name in unworded(replace(CATALOG["entropy"], **{name: ""}))
    words = {word: getattr(CATALOG["entropy"], word) for word in WORDS if word != name}
    with pytest.raises(TypeError, match=name):
        entry("m", "f", ("layer",), "1", "x", "here", **words)  # type: ignore[arg-type]


def test_stored_names_are_unique_and_lead_back_to_their_metric() -> None:
    stored = [name for spec in CATALOG.values() for name in spec.stored_names]
    assert len(set(stored)) == len(stored)
    assert tuple(stored) == select(sorted(FAMILIES))
    measured = {spec.family for spec in CATALOG.values() if spec.default}
    assert select() == select(sorted(measured)), "a family is measured by default as a whole or not at all"
    assert measured == {"entropy", "pattern", "cone", "subspace", "stream", "head", "updates", "masks"}
    for spec in CATALOG.values():
        assert all(spec_of(name) is spec for name in spec.stored_names)
    with pytest.raises(KeyError):
        spec_of("cone.query")


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("entropy", None),
        ("metric:entropy", ["entropy"]),
        ("drift", [f"drift.{role}" for role in ROLES]),
        (["drift.key", "metric:entropy"], ["entropy", "drift.key"]),  # in the order of the table
        ("metric:cone", ["cone.input", "cone.attention", "cone.output", "cone.head"]),
        ("head", ["redundancy", "complementarity"]),
        ("write_overlap", ["write_overlap"]),  # named, though it is not measured by default
    ],
)
def test_select_resolves_families_metrics_and_parts(wanted: str | list[str], names: list[str] | None) -> None:
    if names is None:  # a name that is both a family and a metric means the family
        names = [name for spec in CATALOG.values() if spec.family == wanted for name in spec.stored_names]
        assert len(names) > 1
    assert select(wanted) == tuple(names)


@given(st.sets(st.sampled_from(select()), min_size=1))
def test_select_keeps_the_tables_order_whatever_is_asked(wanted: set[str]) -> None:
    # "metric:" leads to the one where the name is a family's too
    assert select(f"metric:{name}" for name in wanted) == tuple(n for n in select() if n in wanted)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("entropie", "entropy"), ("drift.queri", "drift.query"), ("cones", "cone")]
)
def test_an_unknown_metric_is_named_with_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"but got '{wrong}'. Did you mean '{meant}'"):
        select(["entropy", wrong])


def test_no_metric_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one metric or family, but got none"):
        select([])


def test_roles_and_stages_are_stacked_last() -> None:
    record = make_record(layers=2, heads=3)
    assert record["effective_rank"].shape == (2, 3, 4)
    assert record["cone"].shape == (2, 3)
    for place, role in enumerate(ROLES):
        np.testing.assert_array_equal(record["effective_rank"][..., place], record[f"effective_rank.{role}"])
    part = make_record(metrics=["drift.key", "drift.value"])
    np.testing.assert_array_equal(part["drift"][..., 0], part["drift.key"])


def test_several_stacks_must_be_named() -> None:
    stacks, metrics = ("encoder", "decoder.cross"), ("entropy", "drift.query")
    record = make_record(stacks=stacks, metrics=metrics)
    assert list(record) == record.keys() == [f"{stack}/{metric}" for stack in stacks for metric in metrics]
    assert all(key in record for key in record)
    np.testing.assert_array_equal(record["decoder.cross/entropy"], record.stacks["decoder.cross"]["entropy"])
    assert record["decoder.cross/drift"].shape == (2, 3, 1)
    with pytest.raises(KeyError, match=r"several stacks.*encoder/entropy.*decoder.cross/entropy"):
        record["entropy"]
    del record.stacks["encoder"]["entropy"]
    assert "entropy" in record  # only one has it now


def test_a_part_or_a_further_run_never_makes_a_bare_name_ambiguous() -> None:
    names, metrics = ("encoder", "encoder.part2", "encoder.run2.part3"), select("drift")
    stacks = make_record(stacks=names, metrics=metrics).stacks
    np.testing.assert_array_equal(lookup(stacks, "drift"), lookup(stacks, "encoder/drift"))
    second = stacks["encoder.part2"]["drift.key"]
    np.testing.assert_array_equal(lookup(stacks, "encoder.part2/drift.key"), second)
    del stacks["encoder"]["drift.key"]
    with pytest.raises(KeyError, match="several stacks"):  # which of the parts?
        lookup(stacks, "drift.key")
    stacks["decoder"] = stacks["encoder"]
    with pytest.raises(KeyError, match=r"one of \['encoder/drift.query', 'decoder/drift.query'\]"):
        lookup(stacks, "drift.query")


def test_a_part_whose_main_stack_is_not_there_is_a_stack_like_others() -> None:
    stacks = make_record(stacks=("text.part2", "image"), metrics=["entropy"]).stacks
    with pytest.raises(KeyError, match="several stacks"):
        lookup(stacks, "entropy")


@pytest.mark.parametrize("key", ["entropi", "decoder/entropy", "", "drift.queries"])
def test_what_is_not_there_is_a_key_error_with_the_nearest_name(key: str) -> None:
    stacks = make_record(metrics=["entropy"]).stacks
    assert key not in GeometryRecord(stacks)
    with pytest.raises(KeyError, match=r"Did you mean 'entropy'\? Stacks: \['encoder'\]"):
        lookup(stacks, key)


def test_metadata_is_json_and_everything_but_the_arrays() -> None:
    record = make_record(50)
    metadata = json.loads(json.dumps(record.metadata()))
    assert GeometryRecord(record.stacks, **metadata).metadata() == record.metadata()
    assert metadata["step"] == 50


def test_summaries_are_means_but_for_the_largest_logit() -> None:
    record = make_record(stacks=("a", "b"), metrics=["entropy", "max_logit", "hidden_norm"])
    record.stacks["a"]["entropy"][0] = np.nan
    record.stacks["b"]["hidden_norm"][:] = np.nan
    record.stacks["b"]["max_logit"][0, 0] = np.inf
    found = record.summaries()
    assert "b/hidden_norm" not in found  # nothing to summarise: left out, never 0
    assert found["a/entropy"] == pytest.approx(record["a/entropy"][1].mean())
    assert found["b/entropy"] == pytest.approx(record["b/entropy"].mean())
    assert found["a/max_logit"] == record["a/max_logit"].max()
    assert np.isfinite(found["b/max_logit"])


def test_records_compare_by_identity() -> None:
    record = make_record()
    assert record == record
    assert record != make_record()
