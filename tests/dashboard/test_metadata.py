"""Tags, and what the page is told about a metric."""

from __future__ import annotations

import pytest

from lightning_geo.dashboard.metadata import TagAddress, describe, parse_tag, tag_of
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.metrics.spec import WORDS
from lightning_geo.storage.events import metadata_tag, record_event, session_tag
from support.records import make_record


def test_every_stored_metric_is_found_again_and_nothing_else() -> None:
    record = make_record(stacks=("encoder", "decoder.cross"))
    record.matrices = {"encoder": {"basis.query": record.stacks["encoder"]["entropy"]}}
    found = [parse_tag(value.tag) for value in record_event(record, "geometry").summary.value]
    expected = {("geometry", stack, metric) for stack in record.stacks for metric in select()}
    assert {address for address in found if address} == expected


def test_tags_and_series_are_each_others_inverse() -> None:
    address = TagAddress("train-2", "decoder.cross", "effective_rank.query")
    assert parse_tag(tag_of(address)) == address


@pytest.mark.parametrize(
    "tag",
    [
        metadata_tag("geometry"),
        session_tag("geometry"),
        "loss",
        "",
        "lightning_geo",
        "other/geometry/encoder/entropy",
        "lightning_geo/geometry/../../etc/passwd",
    ],
)
def test_other_tags_are_no_series(tag: str) -> None:
    assert parse_tag(tag) is None


@pytest.mark.parametrize("metric", select())
def test_what_is_told_is_the_catalogs(metric: str) -> None:
    told, spec = describe(metric), spec_of(metric)
    names = ("family", "unit", "formula", "meaning", "range", "axes", "log_from", *WORDS)
    assert {name: told[name] for name in names} == {name: getattr(spec, name) for name in names}
    assert metric in (told["base"], f"{told['base']}.{told['part']}")
