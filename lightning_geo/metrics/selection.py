"""From names to metrics: families, stored names, and the standard errors of estimates."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import replace

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["compares_samples", "is_standard_error", "needs_probe", "select", "spec_of", "standard_error"]


_ERROR = ".stderr"


def spec_of(stored_name: str) -> MetricSpec:
    """Return the spec behind a stored name such as ``cone.head`` or ``drift.query``.

    Raises:
        KeyError: If no metric has that name.

    Example:
        >>> spec_of("effective_rank.query").name
        'effective_rank'
    """
    if stored_name in CATALOG:
        return CATALOG[stored_name]
    if stored_name.endswith(_ERROR):
        return _error_of(spec_of(stored_name.removesuffix(_ERROR)))
    base = stored_name.rpartition(".")[0]
    if base in CATALOG and stored_name in CATALOG[base].stored_names:
        return CATALOG[base]
    raise KeyError(stored_name)


def standard_error(stored_name: str) -> str:
    """Return the name under which the standard error of an estimated metric is stored.

    Example:
        >>> standard_error("entropy")
        'entropy.stderr'
    """
    return f"{stored_name}{_ERROR}"


def is_standard_error(stored_name: str) -> bool:
    """Whether it is one of those: it belongs to the metric before the dot, not into charts of its own."""
    return stored_name.endswith(_ERROR)


def _error_of(spec: MetricSpec) -> MetricSpec:
    return replace(
        spec,
        name=standard_error(spec.name),
        formula=f"standard error of {spec.name}: sqrt(Σ_b (1 − r_b/n_b) s_b²/r_b) / B",
        meaning="How far the sampled rows' mean may be off all rows' (95 % within 1.96 of these).",
        source="Cochran 1977 (stratified sampling without replacement)",
        range=(0.0, None),
        headline=(),
    )


def compares_samples(stored_name: str) -> bool:
    """Whether a metric needs another sample (``drift``, ``velocity``, ``weight_drift``)."""
    return needs_probe(stored_name) or spec_of(stored_name).name == "weight_drift"


def needs_probe(stored_name: str) -> bool:
    """Whether a metric needs another sample of the same inputs (``drift``, ``velocity``)."""
    return spec_of(stored_name).name in ("drift", "velocity")


def select(metrics: Iterable[str] | str | None = None) -> tuple[str, ...]:
    """Resolve families and metric names to stored names, in catalog order.

    A name that is both a family and a metric means the family; ``metric:entropy`` means the one.

    Args:
        metrics: Families, metric names, stored names; ``None`` for everything that is measured by default.

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested) or nothing is selected.

    Example:
        >>> select(["metric:entropy", "drift.query"])
        ('entropy', 'drift.query')
    """
    every = tuple(name for spec in CATALOG.values() for name in spec.stored_names)
    if metrics is None:
        return tuple(name for spec in CATALOG.values() if spec.default for name in spec.stored_names)
    wanted: set[str] = set()
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in metrics:
        bare = str(name).removeprefix("metric:")
        family = [s for spec in CATALOG.values() if spec.family == bare for s in spec.stored_names]
        # `metric:cone` also means `cone.head`: one metric, whatever its axes
        single = [s for s in every if s == bare or s.startswith(f"{bare}.")]
        found = family if family and bare == name else single
        if not found:
            known = sorted({*every, *CATALOG, *(spec.family for spec in CATALOG.values())})
            near = difflib.get_close_matches(bare, known, n=1, cutoff=0.0)
            raise ValueError(
                f"Expected every entry of `metrics` to be a metric or family, but got {name!r}. "
                f"Did you mean {near[0]!r}? All names: {', '.join(known)}."
            )
        wanted.update(found)
    if not wanted:
        raise ValueError(
            "Expected `metrics` to name at least one metric or family, but got none. "
            "Leave it out to measure what is measured by default."
        )
    return tuple(name for name in every if name in wanted)
