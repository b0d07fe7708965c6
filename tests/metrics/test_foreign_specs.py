"""Specs that files carry: what can be registered comes back, and nothing else comes in."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign_specs import as_stored, check_spec, differing_fields, read_specs
from lightning_geo.metrics.selection import select, spec_of
from lightning_geo.metrics.spec import WORDS, MetricSpec
from support.registry import spec_named

TEXTS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
ENDS = st.none() | st.floats(-1e9, 1e9)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True).map(lambda name: f"x_{name}")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def specs(draw: st.DrawFn) -> MetricSpec:
    spec = MetricSpec(
        draw(NAMES), draw(NAMES), draw(st.sampled_from([("layer", "head"), ("layer",)])),
        *(draw(TEXTS) for _ in range(4)),
        parts=draw(st.just(()) | st.just(("query", "key"))),
        summary=draw(st.sampled_from(["mean", "max"])),
        self_attention=draw(st.booleans()), default=draw(st.booleans()), signed=draw(st.booleans()),
        **{name: draw(st.just("") | TEXTS) for name in WORDS},
    )  # fmt: skip
    spec = replace(spec, log_from=None if spec.signed else draw(ENDS))
    low, high = draw(st.tuples(ENDS, ENDS).filter(lambda r: None in r or r[0] < r[1]))
    return replace(spec, range=(low, high), headline=tuple(spec.stored_names[: draw(st.integers(0, 1))]))


@given(specs())
def test_what_can_be_registered_comes_back(spec: MetricSpec) -> None:
    check_spec(spec)
    stored = json.loads(json.dumps({spec.name: as_stored(spec)}))
    assert read_specs(stored) == ({spec.name: spec}, [])
    assert differing_fields(spec, replace(spec, meaning="other", headline=())) == ()
    assert differing_fields(spec, replace(spec, unit=f"{spec.unit}s")) == ("unit",)
    assert select(["metric:entropy", spec.name], {spec.name: spec}) == ("entropy", *spec.stored_names)
    assert all(spec_of(name, {spec.name: spec}) is spec for name in spec.stored_names)
    assert spec_of(f"{spec.stored_names[0]}.stderr", {spec.name: spec}).unit == spec.unit


@given(specs(), st.data())
def test_a_damaged_spec_is_said_and_left_out_and_the_others_stay(
    spec: MetricSpec, data: st.DataObject
) -> None:
    stored: dict[str, Any] = as_stored(spec)
    field = data.draw(st.sampled_from([*stored]))
    stored[field] = data.draw(JUNK)
    found, problems = read_specs({spec.name: stored, "fine": as_stored(spec_named("fine"))})
    assert found["fine"] == spec_named("fine")
    assert len(problems) == 2 - len(found)
    for problem in problems:
        assert spec.name in problem
    for name, read in found.items():
        check_spec(read)
        assert name == read.name


@given(JUNK)
def test_anything_may_stand_in_a_file(junk: object) -> None:
    found, problems = read_specs(junk)
    assert found == {}
    assert len(problems) == (len(junk) if isinstance(junk, dict) else 1)


def test_a_file_cannot_change_what_a_built_in_name_means() -> None:
    evil = as_stored(replace(CATALOG["entropy"], unit="bananas", family="evil"))
    assert read_specs({"entropy": evil})[0] == {}
    fake = {"entropy": replace(CATALOG["entropy"], unit="bananas")}
    assert spec_of("entropy", fake) is CATALOG["entropy"]
    # of a family that is built in, it does not join it
    joins = replace(spec_named("joins"), family="entropy")
    assert "joins" not in select("entropy", {"joins": joins})
    assert select("joins", {"joins": joins}) == ("joins",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "entropy"}, "`name` to be new but got 'entropy'"),
        ({"name": "subspace"}, "the name of a built-in metric or family"),
        ({"name": "coverage"}, "`name` to be new"),
        ({"name": "my/metric"}, "`name` to be a letter followed by"),
        ({"name": "<script>"}, "`name` to be a letter followed by"),
        ({"name": "métrique"}, "`name` to be a letter followed by"),
        ({"family": "a b"}, "`family` to be a letter followed by"),
        ({"parts": ("stderr",)}, "`parts`"),
        ({"axes": ("head",)}, "`axes`"),
        ({"meaning": "two\nlines"}, "`meaning` to be one line"),
        ({"unit": ""}, "`unit` to be one line"),
        ({"range": (1.0, 0.0)}, "`range`"),
        ({"range": (float("nan"), None)}, "`range`"),
        ({"headline": ("other",)}, "`headline`"),
        ({"key": ("other",)}, "`key`"),
        ({"name": "heads"}, "`name` to be new"),
        ({"summary": "median"}, "`summary`"),
        ({"title": "two\nlines"}, "`title` to be one line of 0 to 1000"),
        ({"question": 3}, "`question` to be one line"),
        ({"log_from": float("inf")}, "`log_from`"),
        ({"log_from": 0.0, "signed": True}, "`log_from` to be None or, of a metric that is not `signed`"),
    ],
)
def test_what_cannot_be_registered_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_spec(replace(spec_named("mine"), **fields))
