"""A page on which nothing may go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def page_and_errors(request: pytest.FixtureRequest, address: str) -> Iterator[tuple[Page, list[str]]]:
    """Of one module, as large as its ``VIEWPORT``; closed before its server is: the page asks on and on."""
    from support.tensorboard_page import shared_chromium

    with shared_chromium(*request.module.VIEWPORT) as found:
        yield found
        assert not found[1]


@pytest.fixture
def page(page_and_errors: tuple[Page, list[str]]) -> Iterator[Page]:
    """Fails the test on whatever error is printed."""
    page, errors = page_and_errors
    yield page
    printed = errors.copy()
    errors.clear()  # the next test does not fail for it
    assert not printed
