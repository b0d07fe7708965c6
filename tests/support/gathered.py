"""Many assertions of one test: all of them are made, and those that fail are listed together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Named = Callable[[str], AbstractContextManager[None]]


@contextmanager
def gathered(subject: str) -> Iterator[Named]:
    """Yield a function that names what is asserted inside of its ``with``.

    Raises:
        AssertionError: At the end, if an assertion failed: the subject, then every failure under its name.
    """
    failures: list[str] = []

    @contextmanager
    def named(name: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as failure:
            failures.append(f"{name}: {failure}")

    yield named
    if failures:
        raise AssertionError("\n".join([f"{subject}: {len(failures)} wrong", *failures]))
