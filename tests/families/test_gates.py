"""The family ``gates`` against attention matrices in float64, and heads whose gate is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from families.expected import probabilities
from families.matrices import gate_margins
from families.models import FAMILIES
from families.packaged import EVERY
from families.reference import Layer, layers_of
from lightning_geo import measure
from lightning_geo.functional import gate_labels
from lightning_geo.kernels import AttentionProblem, attention
from lightning_geo.kernels.pairs import near_and_mutual
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.selection import select
from lightning_geo.observe import AttentionCall, CallKey
from support.means import means_of

Array = NDArray[np.float64]
NAMES = (
    "bert",
    "gpt2",
    "gpt_neox",
    "llama",
    "t5",
    "vit",
    "deberta_v2",
    "bloom",
    "gemma2",
    "mistral",
    "gpt_oss",
    "packaged_bert",
)
CASES = [(name, padding) for name in NAMES for padding in EVERY[name].paddings]


def expected(layer: Layer) -> Array:
    """[gate, head], over the first two sequences."""
    found = [
        [
            [margins[gate] for gate in GATES]
            for margins in (
                gate_margins(p, layer.visible[b], layer.queries[b], layer.keys[b])
                for p in probabilities(layer)[b]
            )
        ]
        for b in range(2)
    ]
    return np.mean(found, axis=0).T


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_margins_and_counts_are_those_of_the_full_matrices(name: str, padding: str) -> None:
    family = EVERY[name]
    record = measure(family.build(family.implementations[0]), family.batch(padding), metrics="gates")
    for stack, layers in layers_of(name, padding).items():
        if layers[0].cross:
            assert not record.stacks.get(stack)
            continue
        for index, layer in enumerate(layers):
            arrays = record.stacks[stack]
            margins = expected(layer)
            for gate, values in zip(GATES, margins, strict=True):
                np.testing.assert_allclose(arrays[f"gate.{gate}"][index], values, atol=6e-6, err_msg=gate)
            labels = gate_labels(torch.from_numpy(margins)).tolist()
            for place, gate in enumerate((*GATES, "mixed")):
                assert arrays[f"gate_count.{gate}"][index] == labels.count(place)


def _matrix(kind: str, n: int = 32) -> torch.Tensor:
    """Scores of a head that is what its name says."""
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    scores = {
        "open": torch.zeros(n, n),
        "closed": 6.0 * (j == 0),
        "instance": 6.0 * (i == j),
        "backward": 6.0 * (j == i - 2),
        "forward": 6.0 * (j == i + 1),
        "directional": 6.0 * ((j % 11) == 5),
        "cluster": 6.0 * (i // 8 == j // 8),
        "mixed": 2.2 * (j == 0) + 2.2 * (j == i - 1) + 1.5 * ((i * 7 + 3) % n == j) + 1.5 * (i == j),
    }[kind]
    return scores.float()


@pytest.mark.parametrize("kind", [*GATES, "mixed"])
def test_a_head_is_what_it_was_made_to_be(kind: str) -> None:
    statistics = SampleStatistics(select("gates"))
    statistics.attention(
        CallKey("a"), AttentionCall(None, None, None, None, scores=_matrix(kind)[None, None])
    )
    values = means_of(statistics, CallKey("a"))
    label = gate_labels(torch.stack([values[f"gate.{gate}"] for gate in GATES]))
    assert (*GATES, "mixed")[int(label)] == kind, values


def test_tiles_make_no_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 21, 5, generator=generator)
    key = torch.randn(2, 2, 21, 5, generator=generator)
    real = torch.rand(2, 21, generator=generator) > 0.2
    problem = AttentionProblem(query, key, 1.0, softcap=3.0, query_mask=real, masks=(real[:, None, None],))
    found = attention(problem)
    assert found.logsumexp is not None
    one, many = (near_and_mutual(problem, found.logsumexp, found.live, 4, tile) for tile in (1 << 20, 1))
    for name, values in one.items():
        torch.testing.assert_close(values, many[name])


def test_one_gate_alone_can_be_asked_for() -> None:
    family = FAMILIES["bert"]
    record = measure(family.build("sdpa"), family.batch("none"), metrics=["gate.open", "gate_count.open"])
    assert set(record.stacks["encoder"]) == {"gate.open", "gate_count.open"}
