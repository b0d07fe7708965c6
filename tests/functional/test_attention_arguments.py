"""What the public function says of bad arguments."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import AttentionProblem

B, H, NQ, NK, D = 2, 4, 11, 11, 8

Q, K = torch.zeros(B, H, NQ, D), torch.zeros(B, H, NK, D)

BAD = {
    "query no tensor": ({"query": [1.0]}, TypeError, "`query` to be a torch.Tensor but got list"),
    "query integer": ({"query": Q.long()}, TypeError, "`query` to be a floating point.*got torch.int64"),
    "query rank": ({"query": Q[0]}, ValueError, r"`query` to have shape .* but got \[4, 11, 8\]"),
    "key rank": ({"key": K[0]}, ValueError, r"`key` to have shape .* but got \[4, 11, 8\]"),
    "no head_dim": ({"query": Q[..., :0], "key": K[..., :0]}, ValueError, "`query` to have shape"),
    "no keys": ({"key": K[:, :, :0]}, ValueError, r"`key` to hold at least one token but got \[2, 4, 0, 8\]"),
    "head_dim": ({"key": K[..., :4]}, ValueError, r"agree in batch size and head_dim.*\[2, 4, 11, 4\]"),
    "batch": ({"key": K[:1]}, ValueError, r"agree in batch size and head_dim.*\[1, 4, 11, 8\]"),
    "groups": ({"key": K[:, :3]}, ValueError, "a multiple of the heads of `key` but got 4 and 3"),
    "no key heads": ({"key": K[:, :0]}, ValueError, "a multiple of the heads of `key` but got 4 and 0"),
    "mask type": ({"mask": 1}, TypeError, "`mask` to be a torch.Tensor or a BlockMask but got int"),
    "mask integer": ({"mask": torch.ones(NQ, NK).long()}, TypeError, r"got torch.int64.*`\.bool\(\)`"),
    "mask [B, Nk]": ({"mask": torch.ones(B, NK) > 0}, ValueError, r"got \[2, 11\].*mask\[:, None, None, :\]"),
    "mask rank": ({"mask": torch.ones(1, 1, 1, 1, 1)}, ValueError, "broadcastable"),
    "second mask": ({"mask": (Q[0, 0, :, :1], torch.ones(3, 3))}, ValueError, r"got \[3, 3\]"),
    "block mask": (
        {"mask": create_block_mask(lambda b, h, i, j: i >= j, None, None, 9, NK, device="cpu")},
        ValueError, r"a BlockMask, to be made for \[2, 4, 11, 11\].*got \[1, 1, 9, 11\]",
    ),
    "block mask heads": (
        {"mask": create_block_mask(lambda b, h, i, j: i >= j, None, 3, NQ, NK, device="cpu")},
        ValueError, r"got \[1, 3, 11, 11\]",
    ),
    "alignment": ({"causal_alignment": "top_right"}, ValueError, "`causal_alignment`.*'top_right'"),
    "query_mask type": ({"query_mask": torch.ones(B, NQ)}, TypeError, "`query_mask` to be.*float32"),
    "query_mask shape": ({"query_mask": torch.ones(1, NQ) > 0}, ValueError, r"`query_mask`.*got \[1, 11\]"),
    "special type": ({"special": [0]}, TypeError, "`special` to be a boolean.*got list"),
    "special shape": ({"special": torch.ones(NK) > 0}, ValueError, r"`special`.*\[2, 11\].*\[11\]"),
    "sinks type": ({"sinks": torch.ones(H).int()}, TypeError, "`sinks`.*int32"),
    "sinks shape": ({"sinks": torch.ones(1, H)}, ValueError, r"`sinks`.*\[4\].*\[1, 4\]"),
    "window zero": ({"window": 0}, ValueError, "`window`.*got 0"),
    "window bool": ({"window": True}, ValueError, "`window`.*got True"),
    "window float": ({"window": 4.0}, ValueError, "`window`.*got 4.0"),
    "window triple": ({"window": (1, 2, 3)}, ValueError, r"`window`.*got \(1, 2, 3\)"),
    "window negative": ({"window": (-2, 0)}, ValueError, r"`window`.*got \(-2, 0\)"),
    "softcap": ({"softcap": -1.0}, ValueError, "`softcap` to be positive.*-1.0"),
    "softcap nan": ({"softcap": math.nan}, ValueError, "`softcap` to be finite.*nan"),
    "scale": ({"scale": math.inf}, ValueError, "`scale` to be finite.*inf"),
    "device": ({"key": K.to("meta")}, ValueError, "`key` to be on the device of `query`, cpu, but got meta"),
    "backend": ({"backend": "cuda"}, ValueError, "`backend` to be one of .*'triton'.*got 'cuda'"),
    "statistics": ({"statistics": ["entropi"]}, ValueError, "got 'entropi'. Did you mean 'entropy'"),
    "queries type": ({"queries": torch.ones(B, 2)}, TypeError, "`queries` to be an int64.*float32"),
    "queries shape": ({"queries": torch.zeros(3).long()}, ValueError, r"`queries`.*\[2, R\].*got \[3\]"),
    "queries range": ({"queries": torch.tensor([[0], [NQ]])}, ValueError, "from 0 to 10 but got 0 to 11"),
    "mask device": ({"mask": torch.ones(NK, device="meta")}, ValueError, "`mask` to be on the device"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.wrong_arguments
def test_bad_arguments_are_named(name):
    change, error, message = BAD[name]
    with pytest.raises(error, match=message):
        attention_statistics(**({"query": Q, "key": K} | change))


@pytest.mark.wrong_arguments
def test_a_problem_that_is_made_by_hand_is_checked():
    with pytest.raises(ValueError, match=r"`query` to have shape .* but got \[4, 11, 8\]"):
        AttentionProblem(Q[0], K, 1.0)
