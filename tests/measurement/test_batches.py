"""Gathering tensors of several layers changes no number, whatever happens to them afterwards."""

from __future__ import annotations

import gc
import weakref
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_geo.kernels.workspace import reuse_scratch
from lightning_geo.measurement import batches
from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import AttentionCall, BlockCall, CallKey
from support.means import means_of

METRICS = tuple(name for name in select() if not compares_samples(name))

#: Heads of queries, of keys, and their width.
LAYERS = ((2, 2, 3), (2, 2, 3), (4, 2, 2))
#: One call: its layer, batch, tokens, which mask is used, and the type.
CALLS = st.tuples(
    st.integers(0, 2), st.integers(1, 2), st.integers(1, 5), st.sampled_from(["none", "shared", "own"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip


def sample_of(
    calls: list[tuple[int, ...]], *, gathered: bool, spoil: bool = False
) -> dict[object, dict[str, Tensor]]:
    """The means of every layer and block; ``spoil``: everything that was shown is overwritten afterwards."""
    limit = batches._LIMIT
    batches._LIMIT = limit if gathered else {"cpu": 0}
    try:
        generator = torch.Generator().manual_seed(0)
        sample, shared = SampleStatistics(METRICS), {}
        for layer, batch, tokens, kind, dtype in calls:
            heads, key_heads, width = LAYERS[layer]
            mask = torch.arange(tokens) < torch.tensor([tokens, max(tokens - 2, 1)])[:batch, None]
            mask = None if kind == "none" else mask
            if kind == "shared":
                mask = shared.setdefault((batch, tokens), mask)
            q, k, v, o = (
                torch.randn(batch, h, tokens, width, generator=generator).to(dtype) + 1
                for h in (heads, key_heads, key_heads, heads)
            )
            x, y = torch.randn(2, batch, tokens, 6, generator=generator).to(dtype)
            key = CallKey(f"layers.{layer}")
            masks = () if mask is None else (mask[:, None, None],)
            sample.attention(key, AttentionCall(q, k, v, o, masks=masks, query_mask=mask, key_mask=mask))
            sample.attention_module(key, y, mask)
            sample.block(BlockCall(key.module, (key,), x, y, mask))
            if spoil:
                for tensor in (q, k, v, o, x, y):
                    tensor.fill_(7)
                if kind == "own" and mask is not None:
                    mask.logical_not_()
        sample.settle()
        return {where: means_of(sample, where) for where in (*sample.layers, *sample.blocks)}
    finally:
        batches._LIMIT = limit


@pytest.mark.slow
@given(calls=st.lists(CALLS, min_size=1, max_size=7), spoil=st.booleans(), as_on_cuda=st.booleans())
def test_gathering_changes_no_number(calls: list[tuple[int, ...]], spoil: bool, as_on_cuda: bool) -> None:
    apart = sample_of(calls, gathered=False)
    with patch.object(batches, "_APART", ("cpu",) if as_on_cuda else ()):
        together = sample_of(calls, gathered=True, spoil=spoil)
    assert_same(together, apart)


@pytest.mark.slow
@given(calls=st.lists(CALLS, min_size=1, max_size=7), spoil=st.booleans())
def test_results_of_large_tensors_wait_for_others(calls: list[tuple[int, ...]], spoil: bool) -> None:
    apart = sample_of(calls, gathered=False)
    with patch.object(batches, "limit_of", lambda device: 0), reuse_scratch():  # nothing is gathered
        together = sample_of(calls, gathered=True, spoil=spoil)
    assert_same(together, apart)


def assert_same(together: dict[object, dict[str, Tensor]], apart: dict[object, dict[str, Tensor]]) -> None:
    assert together.keys() == apart.keys()
    for where, means in apart.items():
        assert together[where].keys() == means.keys()
        for name, value in means.items():
            torch.testing.assert_close(
                together[where][name], value, rtol=2e-5, atol=2e-5, equal_nan=True, msg=f"{name} of {where}"
            )


def test_a_mask_that_changes_between_layers_is_not_shared() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    query = torch.tensor([1.0, 2.0, 9.0])[None, None, :, None]
    sample = SampleStatistics(("query_norm",))
    for layer in range(2):
        sample.attention(CallKey(f"{layer}"), AttentionCall(query, query, None, None, query_mask=mask))
        mask[0, 2] = False
    assert means_of(sample, CallKey("0"))["query_norm"] == 4.0
    assert means_of(sample, CallKey("1"))["query_norm"] == 1.5


def test_a_sample_that_is_given_up_frees_its_memory_at_once() -> None:
    sample = SampleStatistics(METRICS)
    x = torch.ones(1, 2, 3, 4)
    sample.attention(CallKey("layer"), AttentionCall(x, x, x, x))
    sample.block(BlockCall("layer", (CallKey("layer"),), x[0], x[0], None))
    alive = [weakref.ref(collector) for collector in sample.collectors]
    assert len(alive) > 3
    gc.disable()
    try:
        del sample
        assert [type(found).__name__ for collector in alive if (found := collector()) is not None] == []
    finally:
        gc.enable()


def test_memory_is_taken_for_the_calls_that_are_expected() -> None:
    taken, x = [], torch.ones(1, 2, 3, 4)
    for calls in (None, 3):
        sample = SampleStatistics(("query_norm", "effective_rank.query"), calls=calls)
        for layer in range(8):  # more than were expected
            sample.attention(CallKey(f"{layer}"), AttentionCall(x * layer, x, x, x))
            if layer == 0:
                held = [o for o in gc.get_objects() if isinstance(o, batches._Batch)]
                taken.append(sum(tensor.nbytes for batch in held for tensor in batch.tensors.values()))
                del held
        sample.settle()
        norms = [means_of(sample, CallKey(f"{layer}"))["query_norm"].tolist() for layer in range(8)]
        assert norms == [[2.0 * layer] * 2 for layer in range(8)]
    assert 0 < taken[1] * 5 < taken[0]
