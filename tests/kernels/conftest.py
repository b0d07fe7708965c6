"""Shapes in signatures are checked in every test of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.shapes import shape_checks


@pytest.fixture(autouse=True)
def _shapes_are_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    # a test of the messages for wrong arguments has to get past the hook
    with shape_checks(on=request.node.get_closest_marker("wrong_arguments") is None):
        yield
