"""The order in which runs and metrics are listed."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lightning_geo.metrics.catalog import CATALOG

__all__ = ["BUILT_IN", "natural", "ordered"]

#: Stored names of built-in metrics, each with its place.
BUILT_IN = {
    name: place for place, name in enumerate(name for spec in CATALOG.values() for name in spec.stored_names)
}


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts ``version_2`` before ``version_10``, and differs between texts.

    Example:
        >>> sorted(["version_10", "version_2", "rate_0.01", "rate_0.001"], key=natural)
        ['rate_0.001', 'rate_0.01', 'version_2', 'version_10']
    """
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], text


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names by the catalog; other names come after."""
    return sorted(names, key=lambda name: (BUILT_IN.get(name, len(BUILT_IN)), name))
