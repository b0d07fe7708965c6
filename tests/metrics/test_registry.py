from __future__ import annotations

import dataclasses

import pytest

from lightning_geo.functional import (
    METRIC_FUNCTIONS,
    computes,
    metric_function,
)
from lightning_geo.measurement.sample_statistics import SOURCES, SampleStatistics
from lightning_geo.metrics import catalog
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import select


@pytest.mark.parametrize("name", select([*{spec.family for spec in catalog.CATALOG.values()}]))
def test_one_collector_offers_what_a_metric_reads(name):
    reads = set(reads_of(name))
    assert len([source for source in SOURCES if reads <= source.offers]) == 1


def test_nothing_is_registered_that_the_catalog_does_not_have():
    assert set(METRIC_FUNCTIONS) <= set(catalog.CATALOG)


def test_parts_and_other_axes_share_one_function():
    assert metric_function("effective_rank.query") is metric_function("effective_rank")
    assert metric_function("cone.head") is metric_function("cone.output") is metric_function("cone")
    assert metric_function("qk_alignment") is not metric_function("drift.key")
    assert metric_function("velocity.value") is metric_function("drift")


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match=r"'redundncy'. Did you mean 'redundancy'?"):
        computes("redundncy")
    with pytest.raises(KeyError, match="no_such_metric"):
        metric_function("no_such_metric")


def test_a_metric_has_one_function():
    before = METRIC_FUNCTIONS["redundancy"]
    with pytest.raises(
        ValueError, match=r"'redundancy' is already computed by lightning_geo\.functional\.head\._redundancy"
    ):
        computes("redundancy")(lambda norms: norms)
    assert METRIC_FUNCTIONS["redundancy"] is before


def test_a_metric_without_function_is_the_quantity_of_its_name(monkeypatch):
    spec = dataclasses.replace(catalog.CATALOG["stable_rank"], name="gap", parts=("query",))
    monkeypatch.setitem(catalog.CATALOG, "gap", spec)
    assert reads_of("gap.query") == ("gap",)
    with pytest.raises(LookupError, match=r"a source of data for 'gap.query', which reads \['gap'\]"):
        SampleStatistics(["gap.query"])
    monkeypatch.setitem(METRIC_FUNCTIONS, "gap", None)  # restored afterwards
    del METRIC_FUNCTIONS["gap"]

    def gap(eigenvalues):
        return eigenvalues[..., 0] - eigenvalues[..., 1]

    assert computes("gap", reads=("eigenvalues",))(gap) is gap
    assert metric_function("gap.query") is gap
    assert SampleStatistics(["gap.query"]).collectors
