"""Metrics that are not built in: those registered in this process, and where others come from.

Registered metrics are looked up by name. Packages offer metrics through the entry point group
``lightning_geo.metrics``: each entry point names a module (or anything in it) that registers metrics when it
is imported. They are imported when a name is asked for that nothing else explains, so that a run of built-in
metrics neither pays for them nor depends on them.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from lightning_geo.metrics.spec import MetricSpec

__all__ = ["FOREIGN", "GROUP", "ForeignMetric", "foreign_specs", "load_entry_points"]

#: The entry point group.
GROUP = "lightning_geo.metrics"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForeignMetric:
    """A metric that is not built in.

    Args:
        spec: Its spec.
        function: Computes it.
        reads: The quantities that ``function`` is called with.
        roles: Roles whose weights must be known, for functions that read ``weights``.
        collector: The class of the collector that offers what it reads; None for a built-in one.
    """

    spec: MetricSpec
    function: Callable[..., Any]
    reads: tuple[str, ...]
    roles: tuple[str, ...] = ()
    collector: type[Any] | None = None

    @property
    def defined_in(self) -> tuple[str, str]:
        """Module and qualified name of the function."""
        return self.function.__module__, self.function.__qualname__

    def __reduce__(self) -> tuple[Any, ...]:
        # a spawned rank unpickles its monitor: importing the module there registers the metric there
        return _registered_again, (self.function.__module__, self.spec.name)


#: The metrics registered in this process, by name.
FOREIGN: dict[str, ForeignMetric] = {}

_loaded = False


def _registered_again(module: str, name: str) -> ForeignMetric | None:
    if name not in FOREIGN:
        try:
            importlib.import_module(module)
        except Exception as error:  # the metric is unknown here, and its first sample says so
            _warn(f"{module!r}, which defines the metric {name!r}, cannot be imported: {error!r}")
    return FOREIGN.get(name)


def foreign_specs(stored_names: Iterable[str]) -> dict[str, MetricSpec]:
    """Return the specs of the foreign metrics among stored names, by name.

    Example:
        >>> foreign_specs(["entropy", "drift.query"])
        {}
    """
    names = dict.fromkeys(name.partition(".")[0] for name in stored_names)
    return {name: FOREIGN[name].spec for name in names if name in FOREIGN}


def load_entry_points() -> None:
    """Import what the entry points name, once in a process; one that fails is warned about and left out."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for entry_point in entry_points(group=GROUP):
        _load(entry_point)


def _load(entry_point: EntryPoint) -> None:
    try:
        entry_point.load()
    except Exception as error:
        _warn(
            f"the entry point {entry_point.name!r} ({entry_point.value}) of the group {GROUP!r} failed, so "
            f"that its metrics are unknown: {type(error).__name__}: {error}"
        )


def _warn(message: str) -> None:
    try:
        warnings.warn(f"lightning_geo: {message}", stacklevel=5)
    except Warning:  # Python was told to raise warnings: one raised from here would stop the run
        _log.warning(message)
