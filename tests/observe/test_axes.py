"""Which axis is heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_geo.observe.evidence.axes import Axes, UnknownAxesError, declared_heads, find_axes
from lightning_geo.observe.evidence.folds import Folds

SIZES = st.integers(1, 4)


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[Tensor, Tensor, int | None, list[int]]:
    """Queries in some layout, the same as [B, H, N, D], the declared heads, and the tokens."""
    batch, heads, rows, windows = (draw(SIZES) for _ in range(4))
    layout = draw(st.sampled_from(["BHND", "folded", "single", "BWHND", "BHWND", "HBND"]))
    if layout == "single":
        heads = 1
    windows = windows if "W" in layout else 1
    hidden = torch.arange(batch * windows * rows * heads * 3.0).view(batch, windows, rows, heads, 3)
    canonical = hidden.permute(0, 1, 3, 2, 4).flatten(0, 1)
    q = {
        "BHND": lambda: canonical,
        "folded": lambda: canonical.flatten(0, 1),
        "single": lambda: canonical[:, 0],
        "BWHND": lambda: hidden.permute(0, 1, 3, 2, 4),
        "BHWND": lambda: hidden.permute(0, 3, 1, 2, 4),
        "HBND": lambda: hidden[:, 0].permute(2, 0, 1, 3),
    }[layout]()
    declared = draw(st.sampled_from([heads, None])) if layout == "BHND" else heads
    return q, canonical, declared, [batch * windows * rows]


@given(laid_out())
def test_every_layout_becomes_batch_and_heads(case: tuple[Tensor, Tensor, int | None, list[int]]) -> None:
    q, canonical, declared, tokens = case
    found = find_axes(q, declared, tokens, lambda x, heads: False)(q)
    # where sizes agree, axes may be told apart by memory alone: nothing but their order may then differ
    if found.shape == canonical.shape:
        lead = q.shape[:-2]
        if len({n for n in lead if n > 1}) == len([n for n in lead if n > 1]):
            assert found.equal(canonical)
    else:
        pytest.fail(f"{list(q.shape)} became {list(found.shape)} for {list(canonical.shape)}")


def test_memory_tells_axes_of_one_size_apart() -> None:
    hidden = torch.arange(2 * 3 * 5 * 3 * 4.0).view(2, 3, 5, 3, 4)  # [B, W, N, H, D]
    for order in ((0, 1, 3, 2, 4), (0, 3, 1, 2, 4)):
        q = hidden.permute(order)
        found = find_axes(q, 3, [30])(q)
        assert found.equal(hidden.permute(0, 1, 3, 2, 4).flatten(0, 1))


def test_four_axes_are_batch_and_heads_where_nothing_else_is_said() -> None:
    assert find_axes(torch.zeros(2, 3, 5, 4), None, []) == Axes(1)
    assert find_axes(torch.zeros(3, 3, 5, 4), 3, []) == Axes(1)


def test_one_head_in_windows_is_no_axis_of_heads() -> None:
    assert find_axes(torch.zeros(2, 6, 5, 4), None, [60]) == Axes(None)
    assert find_axes(torch.zeros(2, 6, 5, 4), 1, [60]) == Axes(None)


@pytest.mark.parametrize(
    ("shape", "declared", "tokens"),
    [
        ((6, 5, 4), None, []),  # [B, N, D] or [B*H, N, D]
        ((6, 5, 4), 4, [7]),
        ((6, 5, 4), 3, [10]),  # [B*H, N, D] or [H*B, N, D]
        ((2, 3, 7, 5, 4), None, []),
        ((2, 3, 7, 5, 4), 4, [50]),
    ],
)
def test_what_cannot_be_told_is_refused(
    shape: tuple[int, ...], declared: int | None, tokens: list[int]
) -> None:
    with pytest.raises(UnknownAxesError, match=r"order in it is unknown|cannot tell|holds sequences"):
        find_axes(torch.zeros(shape), declared, tokens)


@pytest.mark.parametrize(
    ("axes", "mask", "expected"),
    [
        (Axes(2), (5, 7), (1, 1, 5, 7)),
        (Axes(2), (7,), (1, 1, 1, 7)),
        (Axes(2), (4, 5, 7), (1, 4, 5, 7)),
        (Axes(2), (2, 1, 1, 5, 7), (6, 1, 5, 7)),
        (Axes(2), (3, 4, 1, 7), (6, 4, 1, 7)),
        (Axes(1), (3, 1, 5, 7), (1, 3, 5, 7)),
        (Axes(None), (3, 4, 5, 7), (24, 1, 5, 7)),
    ],
)
def test_masks_follow_their_queries(axes: Axes, mask: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert axes.mask(torch.zeros(mask), (2, 3, 4)).shape == expected


@pytest.mark.parametrize("name", ["num_heads", "heads", "n_head", "num_attention_heads"])
def test_modules_declare_heads_by_many_names(name: str) -> None:
    module = nn.Module()
    assert declared_heads(module) is None
    setattr(module, name, 6)
    assert declared_heads(module) == 6
    holder = nn.Module()
    holder.config = type("Config", (), {name: 4})()
    assert declared_heads(holder) == 4
    module.heads = nn.ModuleList()  # no number: nothing is declared by it
    assert declared_heads(module) == (None if name == "heads" else 6)


@pytest.mark.parametrize(
    ("fold", "heads_first"),
    [
        (lambda x: x.view(2, 5, 3, 4).transpose(1, 2).reshape(6, 5, 4), False),
        (lambda x: x.view(2, 5, 3, 4).permute(2, 0, 1, 3).contiguous().view(-1, 5, 4), True),
        (lambda x: torch.cat(x.split(4, 2), 0), True),
        (lambda x: x.transpose(0, 1).contiguous().view(5, 6, 4).transpose(0, 1) * 2, False),
        (lambda x: x.view(2, 5, 3, 4).transpose(1, 2).flatten(0, 1).softmax(-1), False),
    ],
)
def test_where_axes_were_joined_tells_their_order(fold: Any, heads_first: bool) -> None:
    folds = Folds()
    x = torch.arange(120.0).view(2, 5, 12)

    class Following(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            folds.follow(func, args, kwargs or {}, result)
            return result

    with Following():
        q = fold(x)
    assert folds.heads_first(q, 3) is heads_first
    assert folds.heads_first(torch.zeros(6, 5, 4), 3) is None
    found = find_axes(q, 3, [10], folds.heads_first)(q)
    if not (q.min() >= 0 and q.max() <= 1):  # not of the softmax
        scaled = q.flatten()[1] - q.flatten()[0]
        assert (found / scaled).equal(x.view(2, 5, 3, 4).transpose(1, 2))
