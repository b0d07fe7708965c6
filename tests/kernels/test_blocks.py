"""``BlockMask`` on pairs of positions: what taps read padding from."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from lightning_geo.kernels import mask_rows

DOCUMENT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2, 2], [0, 1, 1, 1, 1, 1, 1, 3, 3, 3]])
RULES = {
    "causal": (lambda b, h, q, k: q >= k, None, None),
    "documents": (lambda b, h, q, k: DOCUMENT[b, q] == DOCUMENT[b, k], 2, None),
    "per head": (lambda b, h, q, k: (q - k).abs() == 2 * h, None, 2),
    "both": (lambda b, h, q, k: (q + b + h) % 3 == k % 3, 2, 2),
}


@pytest.mark.parametrize("name", RULES)
def test_pairs_agree_with_the_dense_mask(name):
    rule, batch, heads = RULES[name]
    mask = create_block_mask(rule, batch, heads, 10, 10, device="cpu", BLOCK_SIZE=4)
    rows, columns = torch.tensor([0, 3, 9, 5, 5, 2]), torch.tensor([0, 4, 7, 5, 3, 9])
    dense = create_mask(rule, batch, heads, 10, 10, device="cpu")
    got = mask_rows(mask, rows, columns)
    assert got.dtype == torch.bool
    assert torch.equal(got, dense[:, :, rows, columns].any(dim=1))
    assert got.any()
    assert not got.all()


def test_skipped_blocks_hide_without_a_rule():
    count = torch.tensor([[[1, 1]]], dtype=torch.int32)
    index = torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    mask = BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=4, seq_lengths=(8, 8))
    positions = torch.arange(8)
    assert not mask_rows(mask, positions, positions).any()
    assert mask_rows(mask, positions, positions.flip(0)).all()
