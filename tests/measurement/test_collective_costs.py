"""What a sample sends between ranks: a formula, checked against a count."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_geo.measurement import rank_reduction
from lightning_geo.measurement.head_sketch import ROWS
from lightning_geo.measurement.rank_reduction import _LARGE, reduce_over_ranks
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap

#: By number of layers, what tests/benchmarks/README.md says.
PUBLISHED = {12: (14, 71e6), 80: (242, 2.8e9)}


class Attention(nn.Module):
    """Attention without parameters, whose keys and values are shared by groups of heads."""

    def __init__(self, heads: int, key_heads: int, width: int) -> None:
        super().__init__()
        self.sizes = heads, key_heads, width

    def forward(self, x: Tensor) -> Tensor:
        heads, key_heads, width = self.sizes
        query = x.unflatten(-1, (heads, width)).transpose(1, 2)
        key = x[..., : key_heads * width].unflatten(-1, (key_heads, width)).transpose(1, 2)
        output = F.scaled_dot_product_attention(query, key, key, enable_gqa=True)
        return x + output.transpose(1, 2).flatten(2)


class Stack(nn.Module):
    """Layers of attention."""

    def __init__(self, layers: int, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(*sizes) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def counted(
    layers: int, heads: int, key_heads: int, width: int, ranks: int
) -> tuple[Counter[str], Counter[str]]:
    """Numbers and bytes of the collectives of one sample, of which each rank has the same."""
    model = Stack(layers, heads, key_heads, width)
    measurement = Measurement({"": Tap(model)}, select(None))
    with torch.no_grad(), measurement.observe():
        model(torch.randn(1, 3, heads * width))
    numbers, sizes = Counter[str](), Counter[str]()

    def all_gather(everyone: list[Tensor], own: Tensor) -> None:
        numbers["all_gather"] += 1
        sizes["all_gather"] += sum(x.nbytes for x in everyone)
        for other in everyone:
            other.copy_(own)

    def all_reduce(flat: Tensor, operation: Any) -> None:
        numbers["all_reduce"] += 1
        sizes["all_reduce"] += flat.nbytes

    with (
        patch.object(rank_reduction, "world_size", return_value=ranks),
        patch.object(dist, "all_gather", all_gather),
        patch.object(dist, "all_reduce", all_reduce),
    ):
        statistics = list(measurement._statistics.values())
        assert reduce_over_ranks(statistics, True, torch.device("cpu")).valid
    return numbers, sizes


def expected(layers: int, heads: int, key_heads: int, width: int, ranks: int) -> tuple[Counter[str], int]:
    """The formula of tests/benchmarks/README.md: numbers of collectives, and bytes of what is added up."""
    moments = [8 * h * width**2 for h in (heads, key_heads, key_heads)]
    if heads * width > 1024:
        moments += [8 * heads * width**2, 4 * ROWS * heads * width]
    else:  # the outputs of all heads together
        moments += [8 * (heads * width) ** 2]
    large = sum(size >= _LARGE for size in moments)
    return Counter({"all_gather": 1, "all_reduce": 2 + layers * large}), layers * sum(moments)


@pytest.mark.parametrize(
    ("sizes", "ranks"),
    [
        ((2, 4, 4, 16), 2),  # everything is small: one sum and one maximum
        ((12, 12, 12, 64), 8),  # a joint covariance of all heads' outputs, which is large
        ((2, 64, 8, 128), 64),  # grouped queries, wide layers
        pytest.param((80, 64, 8, 128), 64, marks=pytest.mark.slow),
    ],
)
def test_the_formula_of_what_a_sample_sends(sizes: tuple[int, int, int, int], ranks: int) -> None:
    numbers, payload = expected(*sizes, ranks)
    counts, sent = counted(*sizes, ranks)
    assert counts == numbers
    assert sent["all_gather"] == 48 * ranks
    layers, heads, _, width = sizes
    assert 0 <= sent["all_reduce"] - payload <= layers * heads * (32 * width + 400) + layers * 3_000
    if layers in PUBLISHED:
        assert (counts["all_reduce"], float(f"{sent['all_reduce']:.2g}")) == PUBLISHED[layers]
