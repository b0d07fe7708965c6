"""The key metrics: the few whose model numbers loggers get, so that they do not bury the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.selection import select
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["SCALARS", "key_metrics", "key_metrics_by_stack"]

#: Model numbers of a run that loggers get, at most. The share of measured attention calls is one of them.
SCALARS = 16


def key_metrics(
    measured: Iterable[str] | None = None, specs: Mapping[str, MetricSpec] | None = None
) -> list[str]:
    """Return the stored names of key metrics, one of each family before a second one of any.

    Metrics that somebody named follow them: those that are not measured by default, and all where the
    defaults were narrowed down.

    Args:
        measured: Stored names that a run measures; ``None`` where that is not known.
        specs: Of the metrics that are not built in.

    Example:
        >>> key_metrics()[:4], key_metrics(["entropy", "key_entropy"])
        (['entropy', 'first_mass', 'cone.output', 'effective_rank.output'], ['entropy', 'key_entropy'])
    """
    key = [name for spec in (*CATALOG.values(), *(specs or {}).values()) for name in spec.key]
    named: list[str] = []
    if measured is not None:
        measured, default = list(dict.fromkeys(measured)), set(select())
        key = [name for name in key if name in measured]
        narrowed = not default <= set(measured)
        named = [name for name in measured if name not in key and (narrowed or name not in default)]
    families = {name: spec.family for spec in CATALOG.values() for name in spec.stored_names}
    turns: Counter[str] = Counter()
    turn = {}
    for name in key:
        family = families.get(name, "")
        turn[name] = turns[family]
        turns[family] += 1
    return sorted(key, key=turn.__getitem__) + named


def key_metrics_by_stack(
    stacks: Sequence[str],
    measured: Iterable[str] | None = None,
    specs: Mapping[str, MetricSpec] | None = None,
) -> list[tuple[str, str]]:
    """Return stack and stored name of the metrics whose model numbers loggers get: the same for every stack.

    Args:
        stacks: All stacks of the model.
        measured: See :func:`key_metrics`.
        specs: See :func:`key_metrics`.

    Example:
        >>> [len(key_metrics_by_stack(["decoder", *map(str, range(more))])) for more in (0, 1, 2, 99)]
        [15, 14, 15, 15]
    """
    room = SCALARS - 1  # for the coverage
    names = key_metrics(measured, specs)[: max(1, room // max(len(stacks), 1))]
    return [(stack, name) for name in names for stack in stacks][:room]
