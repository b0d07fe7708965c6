"""Some query rows stand for all: exact for those taken, an unbiased mean, an error that can be trusted."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
from transformers import BertModel

from lightning_geo import measure
from lightning_geo.loggers.tags import headlines, scalars
from lightning_geo.measurement import sample_statistics
from lightning_geo.measurement.row_sampling import draw_rows, variance_of_mean
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import is_standard_error, select, spec_of
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Tap
from lightning_geo.storage.record import GeometryRecord
from support.means import means_of
from texts import bbc_news, tokenizer_of
from texts import packaged_bert as directory

SIZE = 24
METRICS = select(["entropy", "pattern"])


def packaged_bert() -> BertModel:
    return BertModel.from_pretrained(directory(), attn_implementation="sdpa").eval()


class Keep:
    """An observer that keeps the attention calls."""

    def __init__(self) -> None:
        self.calls: dict[CallKey, AttentionCall] = {}

    def attention(self, key: CallKey, call: AttentionCall) -> None:
        self.calls[key] = call

    def attention_module(self, key: CallKey, output: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Not needed."""

    def block(self, block: BlockCall) -> None:
        """Not needed."""


@functools.cache
def activations() -> AttentionCall:
    """The attention of a middle layer of the packaged BERT on BBC News, padded to 96 tokens."""
    rows = [text[: 150 + 35 * i] for i, text in enumerate(bbc_news().documents[:8])]
    tokenize = tokenizer_of(directory())
    batch = tokenize(rows, truncation=True, max_length=96, padding="max_length", return_tensors="pt")
    model = packaged_bert()
    keep, tap = Keep(), Tap(model)
    with torch.no_grad(), tap.open(keep):
        model(**batch)
    return list(keep.calls.values())[3]


def record_of(call: AttentionCall, max_queries: int | None, seed: str = "") -> dict[str, np.ndarray]:
    sample = SampleStatistics(METRICS, max_queries, seed)
    sample.attention(CallKey("layer"), call)
    return {name: value.numpy() for name, value in means_of(sample, CallKey("layer")).items()}


def test_draws_real_rows_once_each():
    mask = torch.arange(50) < torch.tensor([[50], [20], [3], [0]])
    sample = draw_rows(4, 50, mask, 8, "seed", torch.device("cpu"))
    assert sample.rows.shape == (4, 8)
    for rows, real in zip(sample.rows.tolist(), (50, 20, 3, 0), strict=True):
        assert len(set(rows)) == 8
        assert sum(row < real for row in rows) == min(8, real)
    assert sample.fraction.tolist() == pytest.approx([8 / 50, 8 / 20, 1, 1])
    assert (sample.rows.diff(dim=1) > 0).all()
    again = draw_rows(4, 50, mask, 8, "seed", torch.device("cpu"))
    other = draw_rows(4, 50, mask, 8, "other", torch.device("cpu"))
    assert torch.equal(sample.rows, again.rows)
    assert not torch.equal(sample.rows, other.rows)
    assert draw_rows(4, 8, None, 8, "seed", torch.device("cpu")) is None


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_rows(2, 50, None, 8, "seed", torch.device("cpu"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_variance_is_the_textbooks():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 1, 6))
    counted = np.ones_like(values, bool)
    counted[1, 0, 4:] = False
    fraction = np.array([0.25, 1.0])
    got = variance_of_mean(*map(torch.tensor, (values, counted, fraction)))
    expected = 0.75 * values[0, 0].var(ddof=1) / 6
    np.testing.assert_allclose(got[:, 0], [expected, 0.0])
    one = variance_of_mean(torch.ones(1, 1, 1), torch.ones(1, 1, 1).bool(), torch.tensor([0.5]))
    assert one.isnan().all()  # one row of several says nothing about their spread


def test_rows_that_are_measured_are_measured_exactly():
    call = activations()
    assert call.query_mask is not None
    lengths = call.query_mask.sum(-1)
    assert lengths.min() < 50 < lengths.max() < 96
    whole, most = record_of(call, None), record_of(call, int(lengths.max()))
    for name in whole.keys() - {"key_entropy", "max_logit"}:
        np.testing.assert_allclose(most[name], whole[name], rtol=1e-5)
        np.testing.assert_array_equal(most[f"{name}.stderr"], 0)


@pytest.mark.slow
def test_intervals_cover_the_exact_value():
    """1,000 draws on real activations: the 95 % interval covers the exact mean in 93-97 %."""
    call = activations()
    exact = record_of(call, None)
    names = [name for name in METRICS if f"{name}.stderr" in record_of(call, SIZE)]
    assert {"entropy", "normalized_entropy", "concentration", "self_mass", "attention_distance"} <= set(names)
    hits = {name: [] for name in names}
    estimates = {name: [] for name in names}
    for draw in range(1000):
        got = record_of(call, SIZE, str(draw))
        for name in names:
            error = np.abs(got[name] - exact[name])
            hits[name].append(error <= 1.96 * got[f"{name}.stderr"])
            estimates[name].append(got[name])
    for name in ("entropy", "normalized_entropy", "concentration", "max_probability", "attention_distance"):
        coverage = np.mean(hits[name])
        assert 0.93 <= coverage <= 0.97, f"{name}: {coverage:.3f}"
        mean, spread = np.mean(estimates[name], 0), np.std(estimates[name], 0)
        # unbiased: the mean of 1,000 estimates within 4.5 of its own standard errors, for every head
        assert np.all(np.abs(mean - exact[name]) <= 4.5 * spread / 1000**0.5 + 1e-6), name


def causal_calls(generator: torch.Generator, lengths: list[int]) -> list[AttentionCall]:
    """One sequence each, of scores so small that entropy grows as ln(position): position alone decides."""
    calls = []
    for length in lengths:
        query, key = (torch.randn(1, 2, length, 8, generator=generator) * 0.1 for _ in range(2))
        mask = torch.ones(length, length).tril().bool()
        calls.append(AttentionCall(query, key, None, None, masks=(mask,)))
    return calls


def ranks_and_layers(
    monkeypatch: pytest.MonkeyPatch, calls: list[list[AttentionCall]], max_queries: int | None, name: str
) -> dict[str, np.ndarray]:
    """Entropy [layer, head] and its error, of what each rank was shown in every layer, merged over ranks."""
    model = torch.nn.Linear(1, 1)
    samples = []
    for rank, mine in enumerate(calls):
        monkeypatch.setattr(sample_statistics, "rank", lambda rank=rank: rank)
        measurement = Measurement({name: Tap(model)}, select(["metric:entropy"]), max_queries=max_queries)
        samples.append(measurement._statistics[name])
        for call in mine:
            for layer in range(6):
                samples[-1].attention(CallKey(f"layers.{layer}"), call)
    for sample in samples:
        sample.settle()
    first, *others = (sample.layers for sample in samples)
    for layer, statistics in first.items():
        for other in others:
            assert other[layer].sums.keys() == statistics.sums.keys()  # else ranks drop the sample
            for key, value in other[layer].sums.items():
                statistics.add(key, value)
    values = [means_of(samples[0], key) for key in first]
    return {key: torch.stack([value[key] for value in values]).numpy() for key in values[0]}


@pytest.mark.slow
def test_intervals_cover_over_calls_ranks_and_layers(monkeypatch):
    """Draws must differ from call to call, rank to rank and layer to layer for errors to shrink with them."""
    generator = torch.Generator().manual_seed(0)
    calls = [causal_calls(generator, [80, 80, 24, 8]) for _ in range(4)]
    exact = ranks_and_layers(monkeypatch, calls, None, "")["entropy"]
    hits, errors = [], []
    for draw in range(100):
        got = ranks_and_layers(monkeypatch, calls, 16, f"run {draw}")
        errors.append((got["entropy"] - exact) / got["entropy.stderr"])
        hits.append(np.abs(errors[-1]) <= 1.96)
    assert 0.93 <= np.mean(hits) <= 0.97
    # layers that drew alike would err alike, and the error of their mean would not shrink
    of_layers = np.stack(errors)[..., 0]
    together = of_layers.mean(1).std() * of_layers.shape[1] ** 0.5
    assert 0.8 <= together <= 1.25


def test_rows_stay_the_same_at_every_sample(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    calls = [causal_calls(generator, [40, 40, 60]) for _ in range(2)]
    first, second = (ranks_and_layers(monkeypatch, calls, 8, "") for _ in range(2))
    for name in ("entropy", "entropy.stderr"):
        np.testing.assert_array_equal(first[name], second[name])


def test_calls_that_are_run_but_not_counted_move_no_draw():
    """A rank that lacks a kind of call runs one to show its layers: what it counts keeps its rows."""
    calls = causal_calls(torch.Generator().manual_seed(0), [60, 40])
    alone, after = (SampleStatistics(METRICS, 8) for _ in range(2))
    after.attention(CallKey("layer"), calls[0])
    after.zero()
    for sample in (alone, after):
        sample.attention(CallKey("layer"), calls[1])
    values = [means_of(sample, CallKey("layer")) for sample in (alone, after)]
    assert values[0].keys() == values[1].keys()
    for name in values[0]:
        torch.testing.assert_close(values[0][name], values[1][name], rtol=0, atol=0, equal_nan=True)


def test_calls_of_unequal_length_are_all_counted():
    """Means over rows stand for all rows; what is no such mean is absent, also beside short calls."""
    short, long = activations(), causal_calls(torch.Generator().manual_seed(0), [200])[0]
    metrics = select(["entropy", "pattern", "query_norm", "qk_cosine"])
    for calls in ((short, long), (long, short), (short,)):
        calls = [dataclasses.replace(c, query=c.query[:, :2], key=c.key[:, :2]) for c in calls]
        some, full = (SampleStatistics(metrics, size) for size in (96, None))
        for sample in (some, full):
            for call in calls:
                sample.attention(CallKey("layer"), call)
        got, whole = (means_of(sample, CallKey("layer")) for sample in (some, full))
        assert {"max_logit", "key_entropy"} <= whole.keys()
        assert not {"max_logit", "key_entropy"} & got.keys()
        assert {"entropy", "query_norm", "qk_cosine"} <= got.keys()
        np.testing.assert_allclose(got["query_norm"], whole["query_norm"], rtol=1e-5)
        error = (got["entropy"] - whole["entropy"]).abs()
        assert (error <= 4 * got["entropy.stderr"] + 1e-6).all()
        assert (got["entropy.stderr"] > 0).all() == (len(calls) > 1)


def test_what_is_no_mean_over_rows_is_exact_or_absent():
    call = activations()
    sample = SampleStatistics(select(["max_logit", "key_entropy", "query_norm", "metric:entropy"]), SIZE)
    sample.attention(CallKey("layer"), call)
    whole = SampleStatistics(select(["query_norm"]))
    whole.attention(CallKey("layer"), call)
    values = means_of(sample, CallKey("layer"))
    assert set(values) == {"entropy", "entropy.stderr", "query_norm"}
    expected = means_of(whole, CallKey("layer"))["query_norm"]
    torch.testing.assert_close(values["query_norm"], expected)


def test_a_record_has_the_errors_and_charts_have_not():
    model = packaged_bert()
    measurement = Measurement({"": Tap(model)}, METRICS, max_queries=8)
    with torch.no_grad(), measurement.observe():
        model(torch.randint(1000, 2000, (2, 32)))
    record = GeometryRecord(measurement.compute().stacks)
    assert record["entropy.stderr"].shape == record["entropy"].shape
    assert (record["entropy.stderr"] > 0).all()
    assert spec_of("entropy.stderr").family == "entropy"
    assert "max_logit" not in record
    assert not any(is_standard_error(name) for name in record.summaries())
    assert not any("stderr" in tag for tag in scalars(record, level="head"))
    assert not any("stderr" in headline.name for headline in headlines(record))
    assert "entropy.stderr" not in measure(model, torch.randint(1000, 2000, (2, 32)))
