from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_geo.functional import (
    qk_cosine,
    token_norm,
)
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.observe import AttentionCall, CallKey
from support.means import means_of

SEEDS = st.integers(0, 2**32 - 1)


def measured(
    query: Tensor, key: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """What a sample of each sequence says, [B, H] by metric."""
    values = []
    for i in range(len(query)):
        b = slice(i, i + 1)
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        own = {name: None if mask is None else mask[b] for name, mask in masks.items()}
        sample = SampleStatistics(("query_norm", "key_norm", "qk_cosine"))
        call = AttentionCall(query[b], key[b], None, None, **own)
        sample.attention(CallKey("layer"), call)
        values.append(means_of(sample, CallKey("layer")))
    return {name: torch.stack([value[name] for value in values]) for name in values[0]}


@given(
    seed=SEEDS,
    batch=st.integers(1, 2),
    key_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    lengths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep=st.sampled_from([0.3, 1.0]),
    dtype=st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_query_and_key_numbers_agree_with_loops(seed, batch, key_heads, group, lengths, keep, dtype):
    rng = np.random.default_rng(seed)
    nq, nk = lengths
    query = torch.tensor(rng.normal(1, 1, (batch, key_heads * group, nq, 4))).to(dtype)
    key = torch.tensor(rng.normal(1, 1, (batch, key_heads, nk, 4))).to(dtype)
    query_mask, key_mask = (torch.tensor(rng.random((batch, n)) < keep) for n in lengths)
    query.transpose(1, 2)[~query_mask] = torch.nan
    key.transpose(1, 2)[~key_mask] = torch.inf
    got = measured(query, key, query_mask, key_mask)
    for b, h in np.ndindex(batch, key_heads * group):
        qs = query[b, h][query_mask[b]].double().numpy()
        ks = key[b, h // group][key_mask[b]].double().numpy()
        cosines = [q @ k / np.linalg.norm(q) / np.linalg.norm(k) for q in qs for k in ks]
        expected = {
            "qk_cosine": np.mean(cosines) if cosines else np.nan,
            "query_norm": np.mean(np.linalg.norm(qs, axis=-1)) if len(qs) else np.nan,
            "key_norm": np.mean(np.linalg.norm(ks, axis=-1)) if len(ks) else np.nan,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(float(got[name][b, h]), value, rtol=1e-5, atol=1e-5)


def test_cosines_are_not_taken_beyond_one_by_rounding():
    x = torch.randn(500, 1, 1, 17, generator=torch.Generator().manual_seed(0)).expand(500, 1, 33, 17)
    assert qk_cosine(x, 3 * x).max() == 1
    assert qk_cosine(x, -3 * x).min() == -1


def test_without_masks_every_token_counts():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8, generator=generator), torch.randn(2, 2, 3, 8, generator=generator)
    got = measured(query, key)
    pairs = torch.cosine_similarity(query[:, :, :, None], key.repeat_interleave(2, 1)[:, :, None], dim=-1)
    torch.testing.assert_close(got["qk_cosine"].float(), pairs.mean((-2, -1)))
    torch.testing.assert_close(got["query_norm"].float(), token_norm(query))
    torch.testing.assert_close(got["key_norm"].float(), token_norm(key)[:, [0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: qk_cosine(torch.ones(3, 5, 2), torch.ones(2, 5, 2)),
            ValueError,
            "multiple of the number of key heads but got 3 and 2",
        ),
        (
            lambda: qk_cosine(torch.ones(3, 5, 2), torch.ones(3, 5, 1)),
            ValueError,
            r"agree in D.*\[3, 5, 2\] and \[3, 5, 1\]",
        ),
        (lambda: qk_cosine(torch.ones(2, 3, 5, 2), torch.ones(3, 5, 2)), ValueError, "agree in D"),
        (
            lambda: qk_cosine(torch.ones(3, 3, 5, 2), torch.ones(3, 3, 5, 2), torch.ones(3, 3, 5).bool()),
            ValueError,
            "`query_mask`",
        ),
        (
            lambda: qk_cosine(torch.ones(2, 3, 5, 2), torch.ones(2, 3, 5, 2), None, torch.ones(2, 5)),
            TypeError,
            "`key_mask`",
        ),
    ],
)
@pytest.mark.wrong_arguments
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
