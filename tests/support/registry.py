"""Metrics from outside that are registered for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_geo import MetricSpec, register_metric
from lightning_geo.metrics.foreign import FOREIGN


@contextmanager
def nothing_registered() -> Iterator[None]:
    """While open, what was registered before is not; what is registered then is gone afterwards."""
    before = dict(FOREIGN)
    FOREIGN.clear()
    try:
        yield
    finally:
        FOREIGN.clear()
        FOREIGN.update(before)


def spec_named(name: str, **fields: Any) -> MetricSpec:
    """A spec of which only the name matters."""
    texts = {"unit": "1", "formula": f"{name} = …", "meaning": f"A rise: more {name}.", "source": "tests"}
    return MetricSpec(**{"name": name, "family": "mine", "axes": ("layer", "head"), **texts, **fields})  # type: ignore[arg-type]


def register(
    name: str, function: Callable[..., Any], reads: tuple[str, ...] = ("entropy",), **options: Any
) -> None:
    """Register a function under a name; options that are fields of the spec go there."""
    collector, roles = options.pop("collector", None), options.pop("roles", ())
    register_metric(spec_named(name, **options), reads, roles=roles, collector=collector)(function)
