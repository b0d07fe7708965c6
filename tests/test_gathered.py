"""The helper of tests that assert much: nothing is left out, and nothing else is caught."""

from __future__ import annotations

import pytest

from support.gathered import gathered


def test_every_failure_is_listed_under_its_name() -> None:
    def wrong() -> None:
        with gathered("bert, sdpa") as named:
            for metric, value in (("entropy", 1), ("attention_distance", 2), ("first_mass", 3)):
                with named(metric):
                    assert value == 2, f"got {value}"

    with pytest.raises(AssertionError) as failure:
        wrong()
    lines = str(failure.value).splitlines()
    assert lines[0] == "bert, sdpa: 2 wrong"
    assert [line for line in lines if line.startswith(("entropy: got 1", "first_mass: got 3"))] == lines[1::2]


def test_what_is_no_assertion_ends_the_test() -> None:
    with pytest.raises(KeyError, match="absent"), gathered("bert") as named, named("entropy"):
        raise KeyError("absent")


def test_nothing_is_raised_where_everything_holds() -> None:
    with gathered("bert") as named, named("entropy"):
        assert True
