from __future__ import annotations

import dataclasses

import pytest
import torch

from lightning_geo.functional import (
    METRIC_FUNCTIONS,
    HeadMoments,
    HeadReads,
    HeadWeights,
    attention_statistics,
    computes,
    head_moments,
    metric_function,
    stream_statistics,
)
from lightning_geo.kernels import AttentionProblem
from lightning_geo.kernels.pairs import norm_shares
from lightning_geo.metrics import catalog
from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.spec import MetricSpec

BATCH, HEADS, KEY_HEADS, TOKENS, WIDTH = 2, 4, 2, 6, 5


@dataclasses.dataclass
class Call:
    query: HeadMoments
    key: HeadMoments
    key_mask: torch.Tensor | None
    statistics: object

    @property
    def received(self) -> torch.Tensor:
        return self.statistics.received


@dataclasses.dataclass
class Scores:
    problem: AttentionProblem

    @property
    def norm_shares(self) -> torch.Tensor:
        return norm_shares(self.problem)

    @property
    def shares(self) -> dict[str, torch.Tensor]:
        return {gate: torch.rand(BATCH, HEADS) for gate in GATES}


@pytest.fixture(scope="module")
def call() -> Call:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(BATCH, HEADS, TOKENS, WIDTH, generator=generator)
    key = torch.randn(BATCH, KEY_HEADS, TOKENS, WIDTH, generator=generator)
    mask = torch.tensor([[True] * TOKENS, [True] * 4 + [False] * 2])
    statistics = attention_statistics(
        query,
        key,
        mask=mask[:, None, None],
        query_mask=mask,
        sinks=torch.zeros(HEADS),
        special=torch.zeros(BATCH, TOKENS, dtype=torch.bool),
    )
    return Call(head_moments(query, mask), head_moments(key, mask), mask, statistics)


def arguments(spec: MetricSpec, call: Call) -> tuple[tuple[object, ...], tuple[int, ...]]:
    """What a function of this kind is called with, and the shape that it must return."""
    generator = torch.Generator().manual_seed(1)
    if spec.kind == "row":
        return tuple(getattr(call.statistics, field) for field in reads_of(spec.name)), (BATCH, HEADS, TOKENS)
    if spec.kind == "sequence":
        return (call,), (BATCH, HEADS)
    if spec.kind == "directions":
        moments = call.query
        valid = moments.valid.sum(-1)[:, None].expand(BATCH, HEADS)
        if "head" in spec.axes:
            return (moments.directions, valid, moments.directed), (BATCH, HEADS)
        return (moments.directions[:, 0], valid[:, 0], moments.directed[:, 0]), (BATCH,)
    if spec.kind == "tokens":
        x, before = torch.randn(2, BATCH, TOKENS, WIDTH, generator=generator)
        stream = stream_statistics(x, call.key_mask, before)
        return tuple(getattr(stream, field) for field in reads_of(spec.name)), (BATCH, TOKENS)
    if spec.kind == "moments":
        return (torch.rand(HEADS, WIDTH, generator=generator).sort(descending=True).values,), (HEADS,)
    if spec.kind == "heads":
        x = torch.randn(40, HEADS * WIDTH, generator=generator)
        covariance = (x.T @ x).reshape(HEADS, WIDTH, HEADS, WIDTH)
        return (covariance,), (HEADS,) if "head" in spec.axes else ()
    if spec.kind == "weights":
        query, output = torch.randn(2, HEADS, WIDTH, 20, generator=generator)
        key, value, start = torch.randn(3, KEY_HEADS, WIDTH, 20, generator=generator)
        weights = HeadWeights(query, key, value, output, start={"key": start, "value": start, "query": output,
                              "output": query})  # fmt: skip
        return (weights, *spec.parts[:1]), (HEADS,) if "head" in spec.axes else ()
    if spec.kind == "scores":
        query = torch.randn(BATCH, HEADS, TOKENS, WIDTH, generator=generator)
        key = torch.randn(BATCH, KEY_HEADS, TOKENS, WIDTH, generator=generator)
        scores = Scores(AttentionProblem(query, key, 1.0, query_mask=call.key_mask))
        return (scores, *spec.parts[:1]), (BATCH, HEADS)
    if spec.kind == "counts":
        return (torch.rand(len(GATES), HEADS, generator=generator), *spec.parts[:1]), ()
    if spec.kind == "reads":
        x = torch.randn(BATCH, TOKENS, 20, generator=generator)
        weight = torch.randn(KEY_HEADS, WIDTH, 20, generator=generator)
        return (HeadReads(x, weight, mask=call.key_mask, heads=HEADS),), (BATCH, HEADS)
    if spec.kind == "slopes":
        return (torch.randn(HEADS, generator=generator),), (HEADS,)
    assert spec.kind == "bases"
    u, v = torch.linalg.qr(torch.randn(2, HEADS, WIDTH, 2, generator=generator)).Q
    return (u, v), (HEADS,)


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_every_metric_is_computed_as_its_kind_promises(name, call):
    spec = catalog.CATALOG[name]
    inputs, shape = arguments(spec, call)
    values = metric_function(name)(*inputs)
    assert values.shape == shape
    assert values.is_floating_point()
    finite = values[values.isfinite()]
    assert finite.numel(), "nothing is defined on ordinary input"
    low, high = spec.range
    assert low is None or (finite >= low).all()
    assert high is None or (finite <= high).all()


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
        ValueError, match=r"'redundancy' is already computed by lightning_geo\.functional\.head\.redundancy"
    ):
        computes("redundancy")(lambda covariance: covariance)
    assert METRIC_FUNCTIONS["redundancy"] is before


def test_a_new_metric_is_a_spec_and_a_function(monkeypatch):
    spec = dataclasses.replace(catalog.CATALOG["stable_rank"], name="gap", parts=("query",))
    monkeypatch.setitem(catalog.CATALOG, "gap", spec)
    with pytest.raises(KeyError, match="No function computes 'gap'"):
        metric_function("gap.query")
    monkeypatch.setitem(METRIC_FUNCTIONS, "gap", None)  # restored afterwards
    del METRIC_FUNCTIONS["gap"]

    def gap(eigenvalues):
        return eigenvalues[..., 0] - eigenvalues[..., 1]

    assert computes("gap")(gap) is gap
    assert metric_function("gap.query") is gap
