"""Which tokens are real, by what the model was told and by what masks hide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.masks import MaskReader
from lightning_geo.observe.evidence.tokens import set_token_masks
from lightning_geo.observe.layers.frame import Frame

REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
OTHER = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]]).bool()
HIDING = (REAL[:, None, None, :],)


def frames(**given: Any) -> list[Frame]:
    return [Frame("", nn.Module(), given=given), Frame("attention", nn.Module())]


def told(
    running: list[Frame], argument: str | None = "input_ids", masks: tuple[Any, ...] = (), **options: Any
) -> AttentionCall:
    x = torch.zeros(2, 3, 5, 4)
    call = AttentionCall(x, x, x, x, masks=masks, **options)
    set_token_masks(call, running, (argument, argument), MaskReader(), None)
    return call


def is_real(mask: Tensor | None, expected: Tensor = REAL) -> bool:
    return mask is not None and mask.expand(2, -1).equal(expected)


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("attention_mask", REAL), ("attention_mask", REAL.long()), ("attention_mask", REAL.float()),
        ("attention_mask", REAL.long() * 7), ("key_padding_mask", ~REAL), ("src_key_padding_mask", ~REAL),
        ("padding_mask", torch.zeros(2, 5).masked_fill(~REAL, -torch.inf)),
        ("key_padding_mask", torch.zeros(2, 5).masked_fill(~REAL, -1000.0)),
    ],
)  # fmt: skip
def test_a_padding_mask_that_the_model_was_given_decides(name: str, mask: Tensor) -> None:
    given = {"input_ids": torch.zeros(2, 5), name: mask}
    assert is_real(told(frames(**given)).query_mask)
    assert is_real(told(frames(**given), masks=(torch.ones(1, 1, 5, 5).bool(),)).key_mask)


@pytest.mark.parametrize("name", ["attention_mask", "padding_mask"])
def test_a_mask_of_the_opposite_meaning_is_found_out_by_what_is_hidden(name: str) -> None:
    mask = REAL if "padding" in name else ~REAL
    assert is_real(told(frames(**{name: mask}), argument="x", masks=HIDING).query_mask)


def test_the_masks_of_the_call_decide_where_nothing_was_told() -> None:
    assert told(frames()).query_mask is None
    assert is_real(told(frames(), masks=HIDING).query_mask)
    assert is_real(told(frames(attention_mask=REAL[:, :4]), masks=HIDING).query_mask)


def test_a_mask_is_about_the_sequence_that_it_was_given_with() -> None:
    running = frames(
        input_ids=torch.zeros(2, 5), attention_mask=OTHER, pixel_values=torch.zeros(2, 3, 4, 4),
        visual_feats=torch.zeros(2, 5, 4), visual_attention_mask=REAL,
    )  # fmt: skip
    assert is_real(told(running).query_mask, OTHER)
    assert told(running, argument="pixel_values").query_mask is None
    assert is_real(told(running, argument="visual_feats").query_mask)
    assert is_real(told(running, argument=None, masks=HIDING).query_mask)


def test_encoder_and_decoder_have_masks_of_their_own() -> None:
    whole = frames(
        input_ids=torch.zeros(2, 5), attention_mask=REAL, decoder_input_ids=torch.zeros(2, 5),
        decoder_attention_mask=OTHER,
    )  # fmt: skip
    assert is_real(told(whole).query_mask)
    assert is_real(told(whole, argument="decoder_input_ids").query_mask, OTHER)
    inside = [*whole[:1], Frame("decoder", nn.Module(), given={"attention_mask": OTHER}), whole[1]]
    assert is_real(told(inside, argument="decoder_input_ids").query_mask, OTHER)
    x = torch.zeros(2, 3, 5, 4)
    call = AttentionCall(x, x, x, x, cross=True, offset=None)
    set_token_masks(call, inside, ("decoder_input_ids", "input_ids"), MaskReader(), None)
    assert is_real(call.query_mask, OTHER)
    assert is_real(call.key_mask)


def test_the_memorys_padding_is_not_the_queries() -> None:
    running = frames(x=torch.zeros(2, 5, 4), memory=torch.zeros(2, 5, 4))
    running[1].given["key_padding_mask"] = ~OTHER
    x = torch.zeros(2, 3, 5, 4)
    call = AttentionCall(x, x, x, x, masks=(OTHER[:, None, None, :],), cross=True, offset=None)
    set_token_masks(call, running, ("x", "memory"), MaskReader(), REAL)
    assert is_real(call.query_mask)
    assert is_real(call.key_mask, OTHER)


def test_keys_in_front_are_tokens_unless_hidden() -> None:
    query, key = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 7, 4)
    call = AttentionCall(query, key, key, query, offset=2)
    set_token_masks(call, frames(attention_mask=REAL), ("x", "x"), MaskReader(), None)
    assert is_real(call.query_mask)
    assert is_real(call.key_mask, torch.cat([torch.ones(2, 2).bool(), REAL], 1))
