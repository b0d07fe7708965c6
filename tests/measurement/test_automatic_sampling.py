"""Which calls are sampled unless the user says otherwise: those of more than 2,048 rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_geo import GeometryMonitor
from lightning_geo.measurement.collectors import attention_rows
from lightning_geo.measurement.sample import Measurement
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import select
from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.storage.record import GeometryRecord


class Attend(torch.nn.Module):
    """Attention with two heads of what it is given."""

    num_heads = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def automatic(*lengths: int, max_queries: object = "auto") -> tuple[Measurement, GeometryRecord]:
    model = torch.nn.Sequential(Attend())
    generator = torch.Generator().manual_seed(0)
    measurement = Measurement({"": Tap(model)}, select("entropy"), max_queries=max_queries)
    with torch.no_grad(), measurement.observe():
        for length in lengths:
            model(torch.randn(1, length, 8, generator=generator))
    assert not measurement.failures
    return measurement, GeometryRecord(measurement.compute().stacks)


def test_long_sequences_are_sampled_unless_the_user_says_otherwise():
    exact = {length: automatic(length, max_queries=None)[1] for length in (2048, 2049)}
    measurement, record = automatic(2048)
    assert set(record) == set(exact[2048])
    assert all(np.array_equal(record[name], exact[2048][name]) for name in record)
    assert not measurement.coverage.left_out

    measurement, record = automatic(2049)
    entropy, error = record["entropy"], record["entropy.stderr"]
    assert set(exact[2049]) - set(record) == {"max_logit", "key_entropy"}
    assert (error > 0).all()
    assert (np.abs(entropy - exact[2049]["entropy"]) < 4 * error).all()
    assert (entropy != exact[2049]["entropy"]).any()
    [(reason, modules)] = measurement.coverage.left_out.items()
    assert "512 random query rows" in reason
    assert modules == ["0"]

    measurement, record = automatic(2049, max_queries=100)
    assert (record["entropy.stderr"] > error).all()
    assert not measurement.coverage.left_out
    assert (automatic(2048, max_queries=100)[1]["entropy.stderr"] > 0).all()


@pytest.mark.parametrize("lengths", [(2049, 30), (30, 2049)])
def test_short_calls_beside_long_ones_say_nothing_for_these(lengths):
    record, exact = automatic(*lengths)[1], automatic(*lengths, max_queries=None)[1]
    assert set(exact) - set(record) == {"max_logit", "key_entropy"}
    assert (np.abs(record["entropy"] - exact["entropy"]) < 4 * record["entropy.stderr"]).all()
    alone = automatic(2049)[1]["entropy.stderr"]
    np.testing.assert_allclose(record["entropy.stderr"], alone / 2, rtol=0.3)


@pytest.mark.parametrize("lengths", [(2049, 30), (30, 40)])
def test_ranks_with_calls_of_unequal_length_have_the_same_sums(lengths, monkeypatch):
    monkeypatch.setattr(attention_rows, "world_size", lambda: 2)
    samples = []
    for length in lengths:
        x = torch.randn(1, 2, length, 4)
        samples.append(SampleStatistics(select("entropy"), "auto"))
        samples[-1].attention(CallKey("layer"), AttentionCall(x, x, None, None))
    layouts = []
    for sample in samples:
        [(_, layer)] = sample.named()
        layouts.append({**layer.names, **{n: x.shape for n, x in {**layer.sums, **layer.maxima}.items()}})
    assert layouts[0] == layouts[1]


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"None \(all rows\) but got 'all'"):
        GeometryMonitor(max_queries="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`max_queries` to be an integer of at least 1 but got 0"):
        GeometryMonitor(max_queries=0)
