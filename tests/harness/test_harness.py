"""Every drawn model: numbers right to 2e-4 in their rows, or absent with a reason where that is allowed."""

from __future__ import annotations

import pytest
from hypothesis import given

from harness import strategies
from harness.checking import check
from harness.description import Description
from harness.families import FamilyDescription, check_family, families
from harness.profiles import examples


@examples(60)
@given(strategies.sdpa())
def test_scaled_dot_product_attention(description: Description) -> None:
    check(description)


@examples(50)
@given(strategies.sdpa_axes())
def test_scaled_dot_product_attention_on_other_axes(description: Description) -> None:
    check(description)


@examples(80)
@given(strategies.by_hand())
def test_attention_by_hand(description: Description) -> None:
    check(description)


@examples(20)
@pytest.mark.compiles
@given(strategies.flex())
def test_flex_attention(description: Description) -> None:
    check(description)


@examples(50)
@given(strategies.modules())
def test_modules_of_torch(description: Description) -> None:
    check(description)


@examples(50)
@given(families())
def test_families_of_transformers(description: FamilyDescription) -> None:
    check_family(description)
