"""Reads the tags of the record, and describes metrics for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lightning_geo.metrics.spec import MetricSpec

__all__ = ["PLUGIN", "TagAddress", "describe", "parse_tag", "tag_of"]

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
    """Return the address stored under a tag, or None for metadata, matrices and other tags.

    Example:
        >>> parse_tag("lightning_geo/geometry/encoder/effective_rank.query")
        TagAddress(monitor='geometry', stack='encoder', metric='effective_rank.query')
        >>> parse_tag("lightning_geo/geometry/record") is parse_tag("loss") is None
        True
    """
    plugin, *parts = tag.split("/")
    return TagAddress(*parts) if plugin == PLUGIN and len(parts) == len(TagAddress._fields) else None


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
