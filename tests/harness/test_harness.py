"""Every drawn model: its numbers right to 2e-4 in their rows, or absent with a reason where that is allowed."""

from __future__ import annotations

from hypothesis import given

from harness import drawing
from harness.checking import check
from harness.description import Description
from harness.profiles import examples


@examples(70)
@given(drawing.sdpa())
def test_scaled_dot_product_attention(description: Description) -> None:
    check(description)


@examples(90)
@given(drawing.by_hand())
def test_attention_by_hand(description: Description) -> None:
    check(description)


@examples(30)
@given(drawing.flex())
def test_flex_attention(description: Description) -> None:
    check(description)


@examples(60)
@given(drawing.modules())
def test_modules_of_torch(description: Description) -> None:
    check(description)
