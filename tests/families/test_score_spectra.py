"""The family ``score_spectra`` against n×n matrices in float64, through ``measure``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from families import matrices
from families.models import FAMILIES
from families.packaged import EVERY
from families.reference import Layer, layers_of
from lightning_geo import measure
from lightning_geo.functional import von_neumann_entropy
from lightning_geo.kernels import AttentionProblem
from lightning_geo.kernels.pairs import score_histogram

NAMES = ("bert", "gpt2", "gpt_neox", "llama", "t5", "vit", "deberta_v2", "mistral", "packaged_bert")
CASES = [(name, padding) for name in NAMES for padding in EVERY[name].paddings]


def expected(layer: Layer) -> dict[str, NDArray[np.float64]]:
    """[head] of every metric, over the first two sequences."""
    assert layer.query is not None
    assert layer.key is not None
    found: dict[str, list[list[float]]] = {}
    for b in range(2):
        scores = layer.query[b] @ layer.key[b].swapaxes(-1, -2)
        real = layer.queries[b]
        for one in scores:
            visible = one[layer.visible[b] & real[:, None]]
            values = {"score_entropy": matrices.score_entropy(visible)}
            if not layer.cross:
                whole = one[real][:, real]
                for part, matrix in (("", whole), (".symmetric", (whole + whole.T) / 2)):
                    values[f"von_neumann_entropy{part}"] = matrices.von_neumann_entropy(matrix)
                    values[f"von_neumann_entropy{part}.paper"] = matrices.von_neumann_entropy(
                        matrix, paper=True
                    )
            for name, value in values.items():
                found.setdefault(name, [[], []])[b].append(value)
    return {name: np.mean(values, axis=0) for name, values in found.items()}


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_every_metric_is_that_of_the_full_matrix(name: str, padding: str) -> None:
    family = EVERY[name]
    model = family.build(family.implementations[0]).double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in family.batch(padding).items()}
    record = measure(model, batch, metrics="score_spectra")
    for stack, layers in layers_of(name, padding).items():
        for index, layer in enumerate(layers):
            wanted = expected(layer)
            assert set(record.stacks[stack]) == set(wanted)
            for metric, values in wanted.items():
                # ten times what was seen; a product that falls into another bin is 0.01 and more
                tolerance = 5e-4 if metric == "score_entropy" else 5e-6
                np.testing.assert_allclose(
                    record.stacks[stack][metric][index], values, atol=tolerance, err_msg=metric
                )


def test_the_paper_is_off_by_default() -> None:
    family = FAMILIES["bert"]
    assert "score_entropy" not in measure(family.build("sdpa"), family.batch("none"))


def test_histograms_are_numpys_whatever_the_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    # integers: products are exact, and many lie on an edge
    query = torch.randint(-3, 4, (2, 4, 9, 5), generator=generator).float()
    key = torch.randint(-3, 4, (2, 2, 11, 5), generator=generator).float()
    real = torch.rand(2, 9, generator=generator) > 0.2
    problem = AttentionProblem(query, key, 0.1, query_mask=real, offset=2, right=0)
    products = query @ key.repeat_interleave(2, 1).mT
    seen = (torch.arange(11) <= torch.arange(9)[:, None] + 2) & real[:, :, None]
    for tile in (1, 50, 1 << 20):
        counts = score_histogram(problem, 16, tile)
        for b in range(2):
            for h in range(4):
                values = products[b, h][seen[b]].numpy()
                low, high = values.min(), values.max()
                place = np.minimum((values - low) / (high - low) * 16, 15).astype(int)
                np.testing.assert_array_equal(counts[b, h], np.bincount(place, minlength=16))


def test_what_has_no_spectrum_has_no_entropy() -> None:
    query = torch.ones(3, 6, 4)
    query[0] = 0.0
    query[1, 2, 3] = torch.inf
    values = von_neumann_entropy(query, torch.ones(3, 6, 4))
    assert values.isnan().tolist() == [True, True, False]
    assert values[2].abs() < 1e-6  # rank one
    with pytest.raises(ValueError, match="of the same tokens and size"):
        von_neumann_entropy(torch.ones(5, 4), torch.ones(6, 4))
