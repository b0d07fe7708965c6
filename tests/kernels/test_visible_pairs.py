"""Pairs that masks leave visible, against a dense bool mask built by hand."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from lightning_geo.kernels.visible_pairs import Sight, visible_pairs


def lengths(flags: list[tuple[bool, int]], n: int) -> Tensor:
    """Which tokens are real: some missing on the left or on the right."""
    columns = torch.arange(n)
    return torch.stack([columns >= k if left else columns < n - k for left, k in flags])


@given(
    n=st.integers(1, 9),
    pads=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=3),
    band=st.tuples(st.none() | st.integers(0, 4), st.none() | st.integers(0, 3)),
    masks=st.lists(st.sampled_from(["row", "dense", "additive", "heads", "block"]), max_size=2),
    hides_padding=st.booleans(),
    knows=st.sampled_from(["nothing", "tokens", "told", "ids"]),
    seed=st.integers(0, 99),
)
def test_counts_are_those_of_the_dense_mask(
    n: int,
    pads: list[tuple[bool, int]],
    band: tuple[int | None, int | None],
    masks: list[str],
    hides_padding: bool,
    knows: str,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, heads = len(pads), 2
    real = lengths(pads, n)
    i, j = torch.arange(n)[:, None], torch.arange(n)
    dense = torch.ones(batch, heads, n, n, dtype=torch.bool)
    if band[0] is not None:
        dense &= j >= i - band[0]
    if band[1] is not None:
        dense &= j <= i + band[1]
    given: list[object] = []
    if hides_padding:
        given.append(real[:, None, None, :])
        dense = dense & real[:, None, None, :]
    for kind in masks:
        shape = {"row": (1, 1, 1, n), "heads": (batch, heads, n, n)}.get(kind, (1, 1, n, n))
        mask = torch.rand(shape, generator=generator) < 0.7
        dense = dense & mask
        if kind == "additive":
            given.append(torch.where(mask, 0.5, -torch.inf))
        elif kind == "block":
            whole = mask[0, 0]
            given.append(
                create_block_mask(lambda b, h, q, k, m=whole: m[q, k], None, None, n, n, device="cpu")
            )
        else:
            given.append(mask)
    tokens = None if knows == "nothing" else real
    if knows == "nothing":
        real = torch.ones_like(real)
    padding = ~real if knows in ("told", "ids") else torch.zeros_like(real)
    sight = Sight(batch, n, n, 0, *band, has_padding_mask=knows == "told")
    ids = padding if knows == "ids" else None
    if knows == "ids" and seed % 2:
        tokens = None
    found = visible_pairs(sight, tuple(given), tokens, tokens, ids, torch.device("cpu"))  # type: ignore[arg-type]
    expected = np.zeros(4)
    for b in range(batch):
        shown = dense[b].double().mean(0)
        if not (dense[b].any(0) & real[b][:, None]).any():
            continue  # nothing tells what the mask is
        later = real[b][:, None] & real[b] & (j > i)
        beyond = real[b][:, None] & padding[b]
        expected += [float(x) for x in (shown[later].sum(), shown[beyond].sum(), later.sum(), beyond.sum())]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_long_masks_are_read_at_some_rows() -> None:
    n = 300
    causal = torch.ones(1, 1, n, n, dtype=torch.bool).tril()
    for mask, share in ((causal, 0.0), (torch.ones_like(causal), 1.0), (causal.mT, 1.0)):
        visible, _, pairs, _ = visible_pairs(Sight(2, n, n), (mask,), None, None, None, torch.device("cpu"))
        assert visible / pairs == share
