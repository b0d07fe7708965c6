"""Which heads a rank has, from the linear layers that tensor parallelism split."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_geo.observe import AttentionCall, HeadSlice
from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.observe.heads import head_slices
from lightning_geo.observe.heads.head_slices import HeadSlices
from lightning_geo.utils._torch import SplitGroup

#: Heads of 4 features: 8 heads, 4 of them for keys, on two ranks.
QUERY, KEY = (32, 16), (16, 8)


def slice_of(
    monkeypatch: pytest.MonkeyPatch,
    widths: list[tuple[int, int]],
    heads: int = 4,
    key_heads: int = 2,
    groups: int = 1,
    path: str = "attention",
) -> HeadSlice:
    monkeypatch.setattr(head_slices, "output_widths", lambda module: widths)
    query, key = torch.zeros(2, heads, 5, 4), torch.zeros(2, key_heads, 5, 4)
    modules = {"attention": nn.Linear(4, 4), "attention.core": nn.Identity(), "": nn.Identity()}
    slices = HeadSlices()
    slices.begin([SplitGroup(None, 1, (0, 1))] * groups)
    return slices.slice_of(AttentionCall(query, key, key, query), path, modules)


@pytest.mark.parametrize("path", ["attention", "attention.core"])
def test_equal_parts_of_queries_and_keys_are_a_slice(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    assert slice_of(monkeypatch, [QUERY, KEY, KEY], path=path) == HeadSlice(1, 2)


@pytest.mark.parametrize(
    "widths",
    [[QUERY, KEY, KEY], [], [(16, 8)]],
    ids=["gathered afterwards", "nothing is split", "as wide as one"],
)
def test_layers_that_show_all_their_heads_are_whole(
    monkeypatch: pytest.MonkeyPatch, widths: list[tuple[int, int]]
) -> None:
    heads = 4 if widths == [(16, 8)] else 8
    assert slice_of(monkeypatch, widths, heads, key_heads=4) == HeadSlice()


def test_a_model_that_nothing_splits_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slice_of(monkeypatch, [QUERY], groups=0) == HeadSlice()


@pytest.mark.parametrize(
    "options",
    [
        {"widths": [QUERY], "key_heads": 1},
        {"widths": [QUERY, KEY], "key_heads": 4},
        {"widths": [(96, 48)]},
        {"widths": [(36, 20), (16, 8)], "heads": 5},
        {"widths": [QUERY, KEY], "groups": 2},
        {"widths": [QUERY, KEY], "path": "elsewhere"},
    ],
    ids=["keys repeated", "keys whole", "fused", "unequal", "two dimensions", "no projections"],
)
def test_what_the_layers_do_not_decide_is_left_out(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    with pytest.raises(LeftOutError, match="which of its heads are here is unknown"):
        slice_of(monkeypatch, **options)  # type: ignore[arg-type]
