"""Checks of arguments. What they raise names the argument, what was expected and what came."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError
from lightning_geo.utils.formatting import did_you_mean

__all__ = [
    "check_name",
    "check_one_of",
    "check_positive",
    "check_statistics",
    "check_token_ids",
    "check_type",
]


def check_type(name: str, value: object, expected: type | tuple[type, ...], meaning: str) -> None:
    """Raise ``TypeError`` unless ``value`` is of a class.

    Args:
        name: The argument's.
        value: What came.
        expected: The class, or several.
        meaning: What that is, with an article, and where it comes from.
    """
    if not isinstance(value, expected):
        raise ArgumentTypeError(f"Expected `{name}` to be {meaning} but got {type(value).__name__}.")


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ArgumentError(f"Expected `{name}` to be one of {tuple(allowed)} but got {value!r}.")


def check_positive(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArgumentError(f"Expected `{name}` to be an integer of at least 1 but got {value!r}.")


def check_name(name: object) -> None:
    """Raise ``ValueError`` unless ``name`` can begin a tag."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise ArgumentError(
            f"Expected `name` to be made of letters, digits, '_', '.' and '-' but got {name!r}."
        )


def check_token_ids(ids: object) -> None:
    """Raise ``TypeError`` unless ``special_token_ids`` is ``None`` or integers."""
    if ids is None:
        return
    if isinstance(ids, str) or not isinstance(ids, Iterable) or not all(isinstance(i, int) for i in ids):
        raise ArgumentTypeError(f"Expected `special_token_ids` to be a list of token ids but got {ids!r}.")


def check_statistics(statistics: Iterable[str] | None, known: Sequence[str]) -> frozenset[str]:
    """Check the names of the statistics that are requested; None requests all of them.

    Raises:
        ValueError: If a name is unknown.
    """
    statistics = (statistics,) if isinstance(statistics, str) else statistics
    requested = frozenset(known if statistics is None else statistics)
    for name in sorted(requested.difference(known)):
        raise ArgumentError(
            f"Expected `statistics` to name some of {', '.join(known)}, but got {name!r}. "
            f"{did_you_mean(name, known)}"
        )
    return requested
