from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from lightning_geo.functional import (
    METRIC_FUNCTIONS,
    HeadReads,
    HeadWeights,
    attention_statistics,
    computes,
    head_moments,
    metric_function,
    stream_statistics,
)
from lightning_geo.kernels import STATISTICS, STREAM, AttentionProblem
from lightning_geo.kernels.pairs import norm_shares
from lightning_geo.measurement.sample_statistics import SOURCES, SampleStatistics
from lightning_geo.metrics import catalog
from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import select

BATCH, HEADS, KEY_HEADS, TOKENS, WIDTH = 2, 4, 2, 6, 5


@dataclasses.dataclass
class Scores:
    problem: AttentionProblem

    @property
    def norm_shares(self) -> torch.Tensor:
        return norm_shares(self.problem)

    @property
    def shares(self) -> dict[str, torch.Tensor]:
        return {gate: torch.rand(BATCH, HEADS) for gate in GATES}


def quantities() -> dict[str, tuple[object, tuple[int, ...]]]:
    """Everything that a metric function may read, and the shape that it then returns."""
    generator = torch.Generator().manual_seed(0)
    random = functools.partial(torch.randn, generator=generator)
    query, key = random(BATCH, HEADS, TOKENS, WIDTH), random(BATCH, KEY_HEADS, TOKENS, WIDTH)
    mask = torch.tensor([[True] * TOKENS, [True] * 4 + [False] * 2])
    attention = attention_statistics(
        query, key, mask=mask[:, None, None], query_mask=mask, sinks=torch.zeros(HEADS),
        special=torch.zeros(BATCH, TOKENS, dtype=torch.bool),
    )  # fmt: skip
    stream = stream_statistics(*random(1, BATCH, TOKENS, WIDTH), mask, random(BATCH, TOKENS, WIDTH))
    moments = {"query": head_moments(query, mask), "key": head_moments(key, mask)}
    moments["output"] = moments["query"]
    tokens = mask.sum(-1)
    joint = random(40, HEADS * WIDTH)
    basis, other = torch.linalg.qr(random(2, HEADS, WIDTH, 2)).Q
    wide, narrow = random(3, HEADS, WIDTH, 20), random(3, KEY_HEADS, WIDTH, 20)
    start = {"query": wide[2], "key": narrow[2], "value": narrow[2], "output": wide[2]}
    weights = HeadWeights(wide[0], *narrow[:2], wide[1], start=start)
    scores = Scores(AttentionProblem(query, key, 1.0, query_mask=mask))
    heads = (BATCH, HEADS)
    found: dict[str, tuple[object, tuple[int, ...]]] = {
        **{name: (getattr(stream, name), (BATCH, TOKENS)) for name in STREAM if name != "directions"},
        **{name: (getattr(attention, name), (*heads, TOKENS)) for name in STATISTICS},
        "received": (attention.received, heads),
        "key_mask": (mask, heads),
        "directions": (stream.directions, (BATCH,)),
        "tokens": (tokens, (BATCH,)),
        "directed": (stream.directed, (BATCH,)),
        **{f"{role}.directions": (m.directions, heads) for role, m in moments.items()},
        **{
            f"{role}.tokens": (tokens[:, None].expand(m.directed.shape), heads) for role, m in moments.items()
        },
        "output.directed": (moments["output"].directed, heads),
        "query.length": (torch.rand(heads), heads),
        "key.length": (torch.rand(heads), heads),
        "eigenvalues": (torch.rand(HEADS, WIDTH, generator=generator).sort(descending=True).values, (HEADS,)),
        **{f"basis{which}": (basis, (HEADS,)) for which in ("", ".query")},
        **{f"basis{which}": (other, (HEADS,)) for which in (".key", ".baseline", ".previous")},
        "covariance": ((joint.T @ joint).reshape(HEADS, WIDTH, HEADS, WIDTH), (HEADS,)),
        "weights": (weights, (HEADS,)),
        "inputs": (HeadReads(random(BATCH, TOKENS, 20), narrow[0], mask=mask, heads=HEADS), heads),
        "scores": (scores, heads),
        "attended": (scores, heads),
        "margins": (torch.rand(len(GATES), HEADS, generator=generator), ()),
        "slope": (random(HEADS), (HEADS,)),
    }
    return found


#: Quantities that functions with parts are called for one by one.
BY_PART = {"weights", "scores", "attended", "margins"}


@pytest.mark.parametrize("name", catalog.CATALOG)
def test_every_metric_is_computed_from_the_quantities_that_it_reads(name):
    spec = catalog.CATALOG[name]
    offered = quantities()
    reads = reads_of(name)
    part = spec.parts[:1] if set(reads) <= BY_PART else ()
    values = metric_function(name)(*(offered[quantity][0] for quantity in reads), *part)
    shape = offered[reads[0]][1]
    if "head" not in spec.axes and reads[0] in ("covariance", "weights"):
        shape = ()
    assert values.shape == shape
    assert values.is_floating_point()
    finite = values[values.isfinite()]
    assert finite.numel(), "nothing is defined on ordinary input"
    low, high = spec.range
    assert low is None or (finite >= low).all()
    assert high is None or (finite <= high).all()


@pytest.mark.parametrize("name", select([*{spec.family for spec in catalog.CATALOG.values()}]))
def test_one_collector_offers_what_a_metric_reads(name):
    reads = set(reads_of(name))
    assert len([source for source in SOURCES if reads <= source.offers]) == 1
    assert set().union(*(source.offers for source in SOURCES)) == set(quantities())


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
