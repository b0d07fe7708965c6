"""How tags of the record are read, and what the page is told about a metric."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lightning_geo.metrics.spec import MetricSpec

__all__ = ["PLUGIN", "TagAddress", "describe", "natural", "parse_tag", "tag_of"]

#: As in the stored records; repeated here since the loader may import nothing that could fail.
PLUGIN = "lightning_geo"


class TagAddress(NamedTuple):
    """A metric of a stack, sampled by a monitor."""

    monitor: str
    stack: str
    metric: str  # as stored, ``effective_rank.query``


def tag_of(address: TagAddress) -> str:
    """Return the tag under which a metric is stored."""
    return "/".join((PLUGIN, *address))


def parse_tag(tag: str) -> TagAddress | None:
    """Return the address stored under a tag, or None for metadata, matrices and tags of others.

    Example:
        >>> parse_tag("lightning_geo/geometry/encoder/effective_rank.query")
        TagAddress(monitor='geometry', stack='encoder', metric='effective_rank.query')
        >>> parse_tag("lightning_geo/geometry/record") is parse_tag("loss") is None
        True
    """
    plugin, *parts = tag.split("/")
    return TagAddress(*parts) if plugin == PLUGIN and len(parts) == len(TagAddress._fields) else None


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Return a key that sorts ``version_2`` before ``version_10``, and is no other text's.

    Example:
        >>> sorted(["version_10", "version_2", "rate_0.01", "rate_0.001"], key=natural)
        ['rate_0.001', 'rate_0.01', 'version_2', 'version_10']
    """
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], text


def describe(metric: str, specs: Mapping[str, MetricSpec] | None = None) -> dict[str, Any]:
    """Return what the page shows about a stored metric; of an unknown one, its name.

    Args:
        metric: As stored.
        specs: Of the metrics that are not built in, by name, as runs carry them.

    Example:
        >>> describe("drift.query")["unit"], describe("drift.query")["range"]
        ('1', (0.0, 1.0))
        >>> describe("entropy_of_a_newer_version")["family"]
        'other'
    """
    from lightning_geo.metrics.selection import spec_of
    from lightning_geo.metrics.spec import WORDS

    base, _, part = metric.partition(".")
    described: dict[str, Any] = {"name": metric, "base": base, "part": part, "family": "other"}
    try:
        spec = spec_of(metric, specs or {})
    except KeyError:  # written by a newer version, or its spec is damaged
        return described | {"axes": (), "unit": "1", "formula": "", "meaning": "", "source": "",
                            "signed": False, "range": (None, None), "summary": "mean",
                            "headline": False, "log_from": None, **dict.fromkeys(WORDS, "")}  # fmt: skip
    names = ("family", "axes", "unit", "formula", "meaning", "source", "range", "summary", "signed",
             "log_from", *WORDS)  # fmt: skip
    return described | {name: getattr(spec, name) for name in names} | {"headline": metric in spec.headline}
