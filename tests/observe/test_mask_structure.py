"""Masks written out for every pair are measured as a row of keys and a band where they are that."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_geo.kernels import AttentionProblem, attention
from lightning_geo.kernels.reference import reference
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.mask_structure import MaskStructures
from support.not_waiting import not_waiting

N = 9
TRIANGLE = torch.ones(N, N, dtype=torch.bool).tril()
DISTANCE = torch.arange(N)[:, None] - torch.arange(N)

#: Masks [N, N] without padding that a row of keys and a band stand for, and others.
STRUCTURED = {
    "row": TRIANGLE | True,
    "causal": TRIANGLE,
    "window": TRIANGLE & (DISTANCE < 4),
}
OTHERS = {
    "prefix": TRIANGLE | (torch.arange(N) < 3),
    "documents": (torch.arange(N)[:, None] < 4) == (torch.arange(N) < 4),
    "two-sided window": DISTANCE.abs() < 3,
    "strided": DISTANCE % 2 == 0,
}


@st.composite
def calls(draw: Any, pairs: st.SearchStrategy[str]) -> tuple[AttentionCall, nn.Module]:
    """A self-attention with such a mask, padded on either side, whose padded rows see anything."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    lengths = torch.tensor(draw(st.lists(st.integers(1, N), min_size=1, max_size=3)))[:, None]
    place = torch.arange(N)
    real = place >= N - lengths if draw(st.booleans()) else place < lengths
    mask = ({**STRUCTURED, **OTHERS}[draw(pairs)] & real[:, None])[:, None]
    rows = draw(st.sampled_from(["as they are", "none", "all", "random"]))
    chance = torch.rand(mask.shape, generator=generator) < 0.5
    whatever = {"as they are": mask, "none": chance & False, "all": chance | True, "random": chance}[rows]
    mask = torch.where(real[:, None, :, None], mask, whatever)
    if draw(st.booleans()):
        mask = mask.expand(-1, 2, -1, -1)
        mask = mask.contiguous() if draw(st.booleans()) else mask
    masks: tuple[Tensor, ...] = (mask,)
    if draw(st.booleans()):
        hidden = draw(st.sampled_from([-torch.inf, -3e38, -1e4]))
        masks = (torch.zeros(mask.shape).masked_fill(~mask, hidden),)
    if draw(st.booleans()):
        masks = (*masks, real[:, None, None])
    query, key = torch.randn(2, len(lengths), 2, N, 3, generator=generator)
    call = AttentionCall(query, key, key, query, masks=masks, query_mask=real, key_mask=real)
    module = nn.Identity()
    module.is_causal, module.sliding_window = draw(st.booleans()), 4  # type: ignore[assignment]
    return call, module


def is_dense(call: AttentionCall) -> bool:
    return any(mask.shape[2] > 1 for mask in call.masks)


def assert_right(call: AttentionCall, whole: AttentionProblem) -> None:
    """Real rows have the statistics that the mask as it was written gives them."""
    got, expected = attention(call.problem()), reference(whole)
    live = expected.live
    assert got.live.equal(live)
    for field in dataclasses.fields(expected):
        value, truth = getattr(got, field.name), getattr(expected, field.name)
        if truth is not None:
            rows = slice(None) if field.name == "received" else live
            np.testing.assert_allclose(value[rows], truth[rows], rtol=1e-4, atol=1e-5, err_msg=field.name)


@given(calls(st.sampled_from([*STRUCTURED, *OTHERS])))
def test_statistics_are_those_of_the_written_mask(drawn: tuple[AttentionCall, nn.Module]) -> None:
    call, module = drawn
    whole = call.problem()
    MaskStructures().simplify(call, "layer", module)
    assert_right(call, whole)


@given(calls(st.sampled_from(list(STRUCTURED))))
def test_what_is_a_row_of_keys_and_a_band_is_measured_as_that(drawn: tuple[AttentionCall, nn.Module]) -> None:
    call, module = drawn
    MaskStructures().simplify(call, "layer", module)
    assert not is_dense(call)


@given(calls(st.sampled_from([*STRUCTURED, *OTHERS])), st.sampled_from(["bias", "nan", "hidden", "per head"]))
def test_one_entry_of_a_real_row_decides(drawn: tuple[AttentionCall, nn.Module], change: str) -> None:
    call, module = drawn
    assert call.query_mask is not None
    index = call.query_mask.nonzero()[0]
    place = (index[0], slice(1) if change == "per head" else slice(None), index[1], index[1])
    mask = call.masks[0].expand(-1, 2, -1, -1).clone()
    floats = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask
    values = {"bias": 0.5, "nan": torch.nan, "hidden": -torch.inf, "per head": -torch.inf}
    floats[place] = torch.where(floats[place] == 0, values[change], 0.0)
    call.masks = floats, *call.masks[1:]
    whole = call.problem()
    MaskStructures().simplify(call, "layer", module)
    if change == "nan":
        assert is_dense(call)
    else:
        assert_right(call, whole)


@given(
    calls(st.sampled_from(list(STRUCTURED))), calls(st.sampled_from([*STRUCTURED, *OTHERS])),
)  # fmt: skip
def test_without_waiting_a_mask_is_structured_from_the_second_sample_on_or_counts_for_nothing(
    first: tuple[AttentionCall, nn.Module], other: tuple[AttentionCall, nn.Module]
) -> None:
    structures, (call, module) = MaskStructures(), first
    with not_waiting():
        whole = call.problem()
        for sample in range(2):
            seen = dataclasses.replace(call)
            structures.simplify(seen, "layer", module)
            assert is_dense(seen) == (sample == 0)
            assert_right(seen, whole)
            structures.clear()
            assert structures.settle() == []
        seen = dataclasses.replace(other[0])
        structures.simplify(seen, "layer", module)
        if structures.settle():
            assert not attention(seen.problem()).live.any()
            seen = dataclasses.replace(other[0])
            structures.simplify(seen, "layer", module)
            assert is_dense(seen)
        assert_right(seen, other[0].problem())
