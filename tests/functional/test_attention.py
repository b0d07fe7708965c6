"""The public function against torch's own attention, against identities, and its answers to bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.masking_utils import sliding_window_causal_mask_function

from lightning_geo.functional import attention_statistics
from lightning_geo.kernels import AttentionStatistics

B, H, NQ, NK, D = 2, 4, 11, 11, 8


def qk(queries: int = NQ, keys: int = NK, key_heads: int = H) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(queries * 100 + keys)
    query = 2 * torch.randn(B, H, queries, D, generator=generator)
    return query, torch.randn(B, key_heads, keys, D, generator=generator)


def assert_matches(statistics: AttentionStatistics, p: torch.Tensor, shift: int = 0) -> None:
    """Compare with the attention matrix that torch computed."""
    p = p.double()
    position = torch.arange(p.shape[2])[:, None] + shift
    behind = position - torch.arange(p.shape[3])
    expected = {
        "entropy": torch.special.entr(p).sum(-1),
        "concentration": p.square().sum(-1),
        "max_probability": p.amax(-1),
        "self_mass": (p * (behind == 0)).sum(-1),
        "previous_mass": (p * (behind == 1)).sum(-1),
        "next_mass": (p * (behind == -1)).sum(-1),
        "backward_mass": (p * (behind > 0)).sum(-1),
        "forward_mass": (p * (behind < 0)).sum(-1),
        "attention_distance": (p * behind.abs()).sum(-1),
        "received": p.sum(-2),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(statistics, name), value, rtol=1e-5, atol=1e-5, err_msg=name)


OPTIONS = {
    "none": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.2},
    "bool": {"attn_mask": torch.rand(B, 1, NQ, NK, generator=torch.Generator().manual_seed(1)) > 0.3},
    "float": {"attn_mask": torch.randn(H, NQ, NK, generator=torch.Generator().manual_seed(2))},
}


@pytest.mark.parametrize("key_heads", [H, 2, 1])
@pytest.mark.parametrize("option", OPTIONS)
def test_agrees_with_scaled_dot_product_attention(option, key_heads):
    query, key = qk(key_heads=key_heads)
    sdpa = dict(OPTIONS[option])
    identity = torch.eye(NK, dtype=torch.float64).expand(B, key_heads, NK, NK)
    p = F.scaled_dot_product_attention(
        query.double(), key.double(), identity, **_double(sdpa), enable_gqa=True
    )
    mask = sdpa.pop("attn_mask", None)
    assert_matches(attention_statistics(query, key, mask=mask, **sdpa), p)


def _double(options: dict) -> dict:
    mask = options.get("attn_mask")
    return options if mask is None or mask.dtype == torch.bool else {**options, "attn_mask": mask.double()}


@pytest.mark.parametrize(("queries", "keys"), [(5, 12), (12, 12)])
def test_causal_alignments_are_torchs(queries, keys):
    query, key = qk(queries, keys)
    identity = torch.eye(keys).expand(B, H, keys, keys)
    top_left = F.scaled_dot_product_attention(query, key, identity, is_causal=True)
    assert_matches(attention_statistics(query, key, is_causal=True), top_left)
    lower_right = causal_lower_right(queries, keys)
    bottom_right = F.scaled_dot_product_attention(query, key, identity, attn_mask=lower_right)
    got = attention_statistics(query, key, is_causal=True, causal_alignment="bottom_right")
    assert_matches(got, bottom_right, shift=keys - queries)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("per", ["all", "sequence and head"])
def test_agrees_with_flex_attention(per):
    query, key = qk(20, 28)
    limit = torch.tensor([[4, 9, 30, 12], [8, 3, 17, 28]])
    every = per == "all"
    mask = create_block_mask(
        lambda b, h, i, j: (i + 7 >= j) if every else (j < limit[b, h]),
        None if every else B, None if every else H, 20, 28, device="cpu", BLOCK_SIZE=16,
    )  # fmt: skip
    identity = torch.eye(28).expand(B, H, 28, 28)
    with torch.no_grad():
        p = flex_attention(query, key, identity, block_mask=mask)
    assert_matches(attention_statistics(query, key, mask=mask), p)


@pytest.mark.parametrize("width", [1, 4, 50])
def test_an_int_window_is_transformers_sliding_window(width):
    query, key = qk()
    rule = sliding_window_causal_mask_function(width)
    index = torch.arange(NK)
    mask = rule(0, 0, index[:, None], index).expand(NK, NK)
    windowed = attention_statistics(query, key, is_causal=True, window=width)
    masked = attention_statistics(query, key, mask=mask)
    torch.testing.assert_close(windowed.entropy, masked.entropy)
    torch.testing.assert_close(windowed.visible_keys, masked.visible_keys)


def test_a_pair_is_a_window_on_both_sides():
    # FlashAttention: i + Nk - Nq - left <= j <= i + Nk - Nq + right
    query, key = qk(4, 6)
    got = attention_statistics(query, key, window=(2, 1), causal_alignment="bottom_right")
    assert got.visible_keys[0, 0].tolist() == [4, 4, 4, 3]
    got = attention_statistics(query, key, window=(2, 1))
    assert got.visible_keys[0, 0].tolist() == [2, 3, 4, 4]
    got = attention_statistics(query, key, window=(0, -1))
    assert got.visible_keys[0, 0].tolist() == [6, 5, 4, 3]


def test_softmax_identities():
    query, key = (x.double() for x in qk())
    scale = 1 / math.sqrt(D)
    base = attention_statistics(query, key)
    attended = F.scaled_dot_product_attention(query, key, key)
    entropy = base.logsumexp - scale * (query * attended).sum(-1)
    torch.testing.assert_close(base.entropy, entropy.float(), rtol=1e-5, atol=1e-5)
    doubled = attention_statistics(query, key, scale=2 * scale)
    concentration = (doubled.logsumexp - 2 * base.logsumexp).exp()
    torch.testing.assert_close(base.concentration, concentration, rtol=1e-5, atol=1e-5)
    causal = attention_statistics(query, key, is_causal=True)
    until_here = (causal.logsumexp - base.logsumexp).exp()
    torch.testing.assert_close(base.backward_mass + base.self_mass, until_here, rtol=1e-5, atol=1e-5)
    swapped = attention_statistics(key, query, mask=-base.logsumexp[:, :, None])
    torch.testing.assert_close(base.received, swapped.logsumexp.exp(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base.max_probability, (base.max_logit - base.logsumexp).exp())


@given(
    seed=st.integers(0, 2**31),
    queries=st.integers(1, 30),
    keys=st.integers(1, 30),
    size=st.floats(0, 30),
    causal=st.booleans(),
    alignment=st.sampled_from(["top_left", "bottom_right"]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_what_always_holds(seed, queries, keys, size, causal, alignment, dtype):
    generator = torch.Generator().manual_seed(seed)
    query = (torch.randn(2, 4, queries, 5, generator=generator) * size).to(dtype)
    key = torch.randn(2, 2, keys, 5, generator=generator).to(dtype)
    mask = torch.rand(2, 1, queries, keys, generator=generator) > 0.2
    real = torch.rand(2, queries, generator=generator) > 0.2
    got = attention_statistics(
        query, key, mask=mask, is_causal=causal, causal_alignment=alignment, query_mask=real,
        sinks=torch.zeros(4), special=torch.ones(2, keys, dtype=torch.bool),
    )  # fmt: skip
    live = got.live
    assert torch.equal(live, (got.visible_keys > 0) & real[:, None])
    planes = {n: v for n, v in vars(got).items() if n not in ("live", "visible_keys", "received")}
    for name, value in planes.items():
        assert value.dtype == torch.float32, name
        assert torch.equal(~value.isnan(), live), name
    assert not got.received.isnan().any()
    torch.testing.assert_close(got.received.sum(-1), live.sum(-1).float(), rtol=1e-5, atol=1e-5)
    x = {name: value[live] for name, value in vars(got).items() if name != "received"}
    slack = 1e-5
    around = x["self_mass"] + x["backward_mass"] + x["forward_mass"]
    torch.testing.assert_close(around, torch.ones_like(around), rtol=0, atol=slack)
    assert (x["previous_mass"] <= x["backward_mass"] + slack).all()
    assert (x["next_mass"] <= x["forward_mass"] + slack).all()
    assert (x["entropy"] >= 0).all()
    assert (x["entropy"] <= x["visible_keys"].log() + slack).all()
    assert (1 / x["concentration"] <= x["entropy"].exp() * (1 + slack)).all()
    assert (x["concentration"] <= x["max_probability"] + slack).all()
    assert (x["attention_distance"] <= max(queries, keys) + abs(keys - queries)).all()
    torch.testing.assert_close(x["special_mass"], torch.ones_like(around), rtol=0, atol=slack)
    torch.testing.assert_close(x["learned_sink_mass"], 1 / (1 + x["logsumexp"].exp()), rtol=1e-5, atol=1e-6)


def test_shifting_scores_changes_only_their_level():
    query, key = qk()
    base = attention_statistics(query, key)
    shifted = attention_statistics(query, key, mask=torch.full((NQ, 1), 3.0))
    torch.testing.assert_close(shifted.logsumexp, base.logsumexp + 3)
    torch.testing.assert_close(shifted.max_logit, base.max_logit + 3)
    torch.testing.assert_close(shifted.entropy, base.entropy)


def test_the_first_token_is_the_first_that_anyone_may_see():
    query, key = qk()
    zeros, ones = torch.zeros(B, H, NQ), torch.ones(B, H, NQ)

    def first_mass(**options) -> torch.Tensor:
        return attention_statistics(0 * query, key, **options).first_mass[:, 0]

    torch.testing.assert_close(first_mass()[0], ones[0, 0] / NK)
    # left padding: key 3 of the second sequence
    keep = torch.arange(NK) >= torch.tensor([[0], [3]])
    got = first_mass(mask=keep[:, None, None], is_causal=True, query_mask=keep)
    torch.testing.assert_close(got[1, 3:], 1 / torch.arange(1.0, NK - 2))
    assert got[1, :3].isnan().all()
    # padded rows tell it even where the mask does not
    got = first_mass(is_causal=True, query_mask=keep)
    torch.testing.assert_close(got[1, 3:], 1 / torch.arange(4.0, NK + 1))
    # rows whose window has passed it
    got = first_mass(is_causal=True, window=2)
    torch.testing.assert_close(got[0], torch.tensor([1, 0.5] + [0.0] * (NK - 2)))
    # no real token at all
    assert first_mass(query_mask=zeros[:, 0].bool()).isnan().all()


def test_several_masks_all_apply():
    query, key = qk()
    first, second = torch.rand(NQ, NK) > 0.3, torch.rand(B, 1, 1, NK) > 0.3
    together = attention_statistics(query, key, mask=[first, second])
    torch.testing.assert_close(
        together.entropy, attention_statistics(query, key, mask=first & second).entropy, equal_nan=True
    )


def test_no_softcap_is_spelled_none_or_zero():
    query, key = qk()
    assert torch.equal(
        attention_statistics(query, key, softcap=0.0).entropy, attention_statistics(query, key).entropy
    )


def test_scores_may_come_as_the_mask():
    # models that compute softmax by hand show their scores and nothing else
    query, key = qk()
    scores = query @ key.mT / math.sqrt(D)
    got = attention_statistics(torch.zeros(B, H, NQ, 1), torch.zeros(B, H, NK, 1), mask=scores)
    assert_matches(got, scores.softmax(-1))


def test_some_statistics_of_some_rows():
    query, key = qk()
    rows = torch.tensor([[3, 0], [1, 1]])
    whole = attention_statistics(query, key)
    part = attention_statistics(query, key, statistics=["entropy", "attention_distance"], queries=rows)
    for field in ("entropy", "attention_distance"):
        expected = getattr(whole, field).gather(2, rows[:, None].expand(-1, H, -1))
        torch.testing.assert_close(getattr(part, field), expected)
    assert part.received is None
    assert attention_statistics(query, key, statistics="entropy").attention_distance is None


def test_says_which_backend_it_picked(caplog):
    query, key = qk()
    with caplog.at_level("DEBUG", "lightning_geo.kernels"):
        picked = attention_statistics(query, key)
        oracle = attention_statistics(query, key, backend="reference")
    assert "backend chunked for tensors on cpu" in caplog.text
    assert "backend reference" in caplog.text
    assert oracle.entropy.dtype == torch.float64
    torch.testing.assert_close(picked.entropy, oracle.entropy.float())
