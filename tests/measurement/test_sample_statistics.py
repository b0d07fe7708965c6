"""Statistics add up: over sequences, batches and ranks, and what is broken spoils no more than itself."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_geo.functional import attention_statistics, cone_index
from lightning_geo.measurement.rank_reduction import reduce_over_ranks
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.sums import covariances
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import AttentionCall, BlockCall, CallKey
from support.means import means_of

KEY = CallKey("layers.0.attention")
FAMILIES = sorted({spec.family for spec in CATALOG.values()})
METRICS = tuple(name for name in select(FAMILIES) if not compares_samples(name))
LENGTHS = (7, 5, 1, 6)


def call_of(rows: slice = slice(None), *, heads: int = 4, kv_heads: int = 2) -> AttentionCall:
    """Some of four padded sequences, with a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, h, 7, 6, generator=generator) for h in (heads, kv_heads, kv_heads))
    valid = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    p = torch.softmax(torch.einsum("bhid,bhjd->bhij", query, key.repeat_interleave(heads // kv_heads, 1)), -1)
    output = p @ value.repeat_interleave(heads // kv_heads, 1)
    parts = (x[rows] + 3 for x in (query, key, value, output))
    return AttentionCall(
        *parts, masks=(valid[rows][:, None, None],), query_mask=valid[rows], key_mask=valid[rows]
    )


def block_of(rows: slice = slice(None)) -> BlockCall:
    x = torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return BlockCall("layers.0", (KEY,), x[rows], (x * 1.5 + 0.1)[rows], valid[rows])


def sample_of(*rows: slice, metrics: tuple[str, ...] = METRICS) -> SampleStatistics:
    sample = SampleStatistics(metrics)
    for part in rows:
        call, block = call_of(part), block_of(part)
        sample.attention(KEY, call)
        assert block.output is not None
        sample.attention_module(KEY, block.output, block.mask)
        sample.block(block)
    return sample


def assert_same_statistics(ours: SampleStatistics, theirs: SampleStatistics) -> None:
    for mine, other in zip(ours.everything(), theirs.everything(), strict=True):
        assert mine.names == other.names
        for one, two in ((mine.sums, other.sums), (mine.maxima, other.maxima)):
            assert one.keys() == two.keys()
            for name, value in one.items():
                torch.testing.assert_close(value, two[name], rtol=1e-6, atol=1e-5, msg=name)


@given(st.sets(st.integers(1, 3)))
def test_batches_add_up_to_the_whole(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 4]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    assert_same_statistics(sample_of(*parts), sample_of(slice(0, 4)))


def test_means_are_over_valid_tokens_then_sequences() -> None:
    sample = sample_of(slice(0, 4))
    values, call = means_of(sample, KEY), call_of()
    assert call.query is not None
    assert call.key is not None
    assert call.output is not None
    plain = attention_statistics(call.query, call.key, mask=call.masks[0], query_mask=call.query_mask)
    entropy, expected, cones = plain.entropy.double(), [], []
    for row, length in enumerate(LENGTHS):
        expected.append(entropy[row, :, :length].mean(-1))
        cones.append(cone_index(call.output[row, :, :length].double(), normalized=True))
    np.testing.assert_allclose(values["entropy"], torch.stack(expected).mean(0), rtol=1e-6)
    np.testing.assert_allclose(values["cone.head"], torch.stack(cones).mean(0), rtol=1e-6)
    logits = plain.max_logit.masked_fill(~plain.live, -torch.inf)
    np.testing.assert_allclose(values["max_logit"], logits.amax((0, 2)), rtol=1e-6)


def test_without_masks_every_token_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8, generator=generator), torch.randn(2, 2, 3, 8, generator=generator)
    sample = SampleStatistics(("query_norm", "key_norm", "qk_cosine"))
    sample.attention(KEY, AttentionCall(query, key, None, None))
    means = {name: value.float() for name, value in means_of(sample, KEY).items()}
    pairs = torch.cosine_similarity(query[:, :, :, None], key.repeat_interleave(2, 1)[:, :, None], dim=-1)
    torch.testing.assert_close(means["qk_cosine"], pairs.mean((0, -2, -1)))
    torch.testing.assert_close(means["query_norm"], query.norm(dim=-1).mean((0, -1)))
    torch.testing.assert_close(means["key_norm"], key.norm(dim=-1).mean((0, -1))[[0, 0, 1, 1]])


@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("masked", [True, False])
def test_covariances_survive_a_mean_far_from_zero(mean: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 5, 3, 4, generator=generator, dtype=torch.float64) * 1e-2 + mean
    mask = torch.rand(6, 5, generator=generator) < 0.7 if masked else torch.ones(6, 5, dtype=torch.bool)
    sample = SampleStatistics(("effective_rank.query",))
    for rows in (slice(0, 2), slice(2, 6)):
        part, real = x[rows].float().transpose(1, 2), mask[rows] if masked else None
        sample.attention(KEY, AttentionCall(part, part, part, part, query_mask=real, key_mask=real))
    sample.settle()
    [covariance], _ = covariances([sample.layers[KEY]], ["query"])
    kept = x.float().double()[mask]
    for head in range(3):
        expected = np.cov(kept[:, head].T.numpy(), bias=True)
        np.testing.assert_allclose(covariance[head], expected, rtol=1e-3, atol=1e-7)


def test_fewer_than_two_tokens_have_no_covariance() -> None:
    x, real = torch.ones(1, 2, 3, 4), torch.tensor([[True, False, False]])
    sample = SampleStatistics(("effective_rank.query",))
    sample.attention(KEY, AttentionCall(x, x, x, x, query_mask=real, key_mask=real))
    sample.settle()
    assert covariances([sample.layers[KEY]], ["query"])[0].isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("role", ["query", "key"])
def test_a_broken_sequence_does_not_count(bad: float, role: str) -> None:
    call = call_of()
    x: Tensor = getattr(call, role)
    x[1, 0, 2, 3] = bad
    sample = SampleStatistics(("entropy", "self_mass", "max_logit", "key_entropy", "query_norm"))
    sample.attention(KEY, call)
    whole = sample_of(slice(0, 1), slice(2, 4), metrics=("entropy", "self_mass", "max_logit"))
    sample.settle()
    layer = sample.layers[KEY]
    heads = 2 if role == "key" else 1  # its head, or those that share the key
    assert layer.sums["broken"] == heads
    assert layer.sums["row(entropy self_mass)"][1].tolist()[0] == [3] * heads + [4] * (4 - heads)
    values, expected = means_of(sample, KEY), means_of(whole, KEY)
    for name in ("entropy", "self_mass", "max_logit"):
        np.testing.assert_allclose(values[name][:heads], expected[name][:heads], rtol=1e-6, err_msg=name)
    assert all(value.isfinite().all() for value in values.values())


def test_padding_may_hold_anything() -> None:
    call = call_of()
    assert call.query_mask is not None
    for x in (call.query, call.key, call.value, call.output):
        assert x is not None
        x.transpose(1, 2)[~call.query_mask] = torch.nan
    sample = SampleStatistics(METRICS)
    sample.attention(KEY, call)
    plain = SampleStatistics(METRICS)
    plain.attention(KEY, call_of())
    assert_same_statistics(sample, plain)
    assert sample.layers[KEY].sums["broken"] == 0


def test_zeroed_statistics_keep_their_layout_and_add_nothing() -> None:
    sample, whole = sample_of(slice(0, 4)), sample_of(slice(0, 4))
    sample.zero()
    for layer in sample.everything():
        assert all(not value.any() for value in layer.sums.values())
        assert all((value == -torch.inf).all() for value in layer.maxima.values())
    sample.attention(KEY, call_of())
    for each in (sample, whole):
        each.settle()
    [group] = [name for name in whole.layers[KEY].sums if name.startswith("row(")]
    assert sample.layers[KEY].sums[group].equal(whole.layers[KEY].sums[group])


def test_calls_that_have_other_metrics_are_counted_together() -> None:
    """Where queries of one call have no place among its keys, pattern is that of the other calls."""
    metrics = select(["entropy", "pattern", "gates"])
    calls = call_of(slice(0, 2)), dataclasses.replace(call_of(slice(2, 4)), offset=None)
    alone = [SampleStatistics(metrics) for _ in calls]
    both = [SampleStatistics(metrics) for _ in calls]
    for sample, call in zip(alone, calls, strict=True):
        sample.attention(KEY, call)
    for sample, order in zip(both, (calls, calls[::-1]), strict=True):
        for call in order:
            sample.attention(KEY, call)
    first, second = (means_of(sample, KEY) for sample in alone)
    assert "self_mass" in first
    assert "self_mass" not in second
    for sample in both:
        sample.settle()
        assert sample.layers[KEY].names.keys() == both[0].layers[KEY].names.keys()  # as ranks need it
        values = means_of(sample, KEY)
        assert values.keys() == first.keys() | second.keys()
        torch.testing.assert_close(values["entropy"], (first["entropy"] + second["entropy"]) / 2)
        torch.testing.assert_close(values["self_mass"], first["self_mass"])


def test_alone_there_is_nothing_to_reduce() -> None:
    sample, whole = sample_of(slice(0, 4)), sample_of(slice(0, 4))
    assert reduce_over_ranks([sample], True, torch.device("cpu")).valid
    assert not reduce_over_ranks([sample], False, torch.device("cpu")).valid
    assert_same_statistics(sample, whole)


def test_only_what_was_asked_for_is_kept() -> None:
    def kept(*metrics: str) -> set[str]:
        sample = sample_of(slice(0, 4), metrics=select(list(metrics)))
        return {name for layer in sample.everything() for name in (*layer.sums, *layer.maxima)}

    assert kept("metric:entropy") == {"broken", "row(entropy)"}
    assert kept("max_logit") == {"broken", "max_logit"}
    assert kept("hidden_norm") == {"tokens(hidden_norm)"}
    assert kept("effective_rank.value") == {"value.count", "value.sum", "value.second"}
    assert kept("qk_alignment") == {f"{r}.{p}" for r in ("query", "key") for p in ("count", "sum", "second")}
    assert kept("redundancy") == {"heads.count", "heads.sum", "heads.second"}
