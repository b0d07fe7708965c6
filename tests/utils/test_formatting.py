"""Numbers in text."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_geo.utils.formatting import apart

sizes = st.floats(1e-6, 1e5)


@given(sizes, st.floats(1e-5, 0.5), st.booleans(), st.booleans())
def test_a_change_is_never_shown_as_none(first: float, share: float, rises: bool, negative: bool) -> None:
    last = first * (1 + share if rises else 1 - share)
    assume(first != last)
    ends = (-first, -last) if negative else (first, last)
    shown = [float(text.replace(",", "").replace("−", "-")) for text in apart(*ends)]
    assert (shown[0] < shown[1]) == (ends[0] < ends[1])
    assert shown[0] != shown[1]
