"""From names to metrics: families, stored names, and the standard errors of estimates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.foreign import FOREIGN, load_entry_points
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError, UnknownKeyError
from lightning_geo.utils.formatting import did_you_mean

__all__ = [
    "compares_samples",
    "is_of_batch",
    "is_of_probe",
    "is_standard_error",
    "needs_probe",
    "select",
    "spec_of",
    "standard_error",
]


_ERROR = ".stderr"

#: Metrics that compare the weights of two samples.
_OF_WEIGHTS = ("weight_drift", "update_size", "unchanged_share", "bf16_share")


def spec_of(stored_name: str, specs: Mapping[str, MetricSpec] | None = None) -> MetricSpec:
    """Return the spec behind a stored name such as ``cone.head`` or ``drift.query``.

    Args:
        stored_name: As in a record.
        specs: Of metrics that are not built in, by name, as the record carries them; None for those that are
            registered in this process. None of them stands for a built-in metric.

    Raises:
        KeyError: If no metric has that name.

    Example:
        >>> spec_of("effective_rank.query").name
        'effective_rank'
    """
    if stored_name in CATALOG:
        return CATALOG[stored_name]
    if stored_name.endswith(_ERROR):
        return _error_of(spec_of(stored_name.removesuffix(_ERROR), specs))
    base = stored_name.rpartition(".")[0] or stored_name
    if base in CATALOG:
        spec = CATALOG[base]
    elif specs is not None:
        spec = specs[base]
    else:
        spec = FOREIGN[base].spec
    if stored_name not in spec.stored_names:
        raise UnknownKeyError(f"Expected the stored name of a metric but got {stored_name!r}.")
    return spec


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
        key=(),
        log_from=None,
        title="",
        question="",
        higher="",
        lower="",
        usual="",
        worry="",
    )


def compares_samples(stored_name: str) -> bool:
    """Whether a metric needs another sample (``drift``, ``weight_drift``, ``update_size``, …)."""
    return needs_probe(stored_name) or stored_name.partition(".")[0] in _OF_WEIGHTS


def needs_probe(stored_name: str) -> bool:
    """Whether a metric needs another sample of the same inputs (``drift``, ``velocity``)."""
    return stored_name.partition(".")[0] in ("drift", "velocity")


def is_of_probe(stored_name: str) -> bool:
    """Whether a metric describes masks on the probe (``future_visible.probe``)."""
    return stored_name.endswith(".probe")


def is_of_batch(stored_name: str) -> bool:
    """Whether a metric describes masks in the training forward (``future_visible.batch``)."""
    return stored_name.endswith(".batch")


def select(
    metrics: Iterable[str] | str | None = None, specs: Mapping[str, MetricSpec] | None = None
) -> tuple[str, ...]:
    """Resolve families and metric names to stored names, in catalog order; foreign metrics follow by name.

    A name that is both a family and a metric means the family; ``metric:entropy`` means the one. A built-in
    family means its built-in metrics alone: what is installed must not change what a run measures.

    Args:
        metrics: Families, metric names, stored names; ``None`` for everything that is measured by default,
            which no foreign metric is.
        specs: Of metrics that are not built in, as records carry them; None for those that are registered in
            this process, or that an entry point registers.

    Raises:
        ValueError: If a name is unknown (the nearest one is suggested) or nothing is selected.

    Example:
        >>> select(["metric:entropy", "drift.query"])
        ('entropy', 'drift.query')
    """
    if metrics is None:
        return tuple(name for spec in CATALOG.values() if spec.default for name in spec.stored_names)
    check_type("metrics", metrics, Iterable, "a name or a list of names of metrics and families")
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    known = _known(specs)
    if specs is None and not all(_meant(str(name), known) for name in metrics):
        load_entry_points()
        known = _known(specs)
    requested: set[str] = set()
    for name in metrics:
        meant = _meant(str(name), known)
        if not meant:
            raise ArgumentError(_unknown(str(name), known))
        requested.update(meant)
    if not requested:
        raise ArgumentError(
            "Expected `metrics` to name at least one metric or family, but got none. "
            "Leave it out to measure what is measured by default."
        )
    return tuple(name for spec in known for name in spec.stored_names if name in requested)


def _known(specs: Mapping[str, MetricSpec] | None) -> list[MetricSpec]:
    """All specs in the order of stored names: ranks may have registered theirs in other orders."""
    foreign = {name: metric.spec for name, metric in FOREIGN.items()} if specs is None else specs
    return [*CATALOG.values(), *(foreign[name] for name in sorted(foreign))]


def _meant(name: str, known: Iterable[MetricSpec]) -> list[str]:
    """The stored names that a family or a metric means."""
    bare = name.removeprefix("metric:")
    families = {spec.family for spec in CATALOG.values()}
    if bare == name and (
        family := [
            stored
            for spec in known
            if spec.family == bare and (spec.name in CATALOG or bare not in families)
            for stored in spec.stored_names
        ]
    ):
        return family
    # `metric:cone` also means `cone.head`: one metric, whatever its axes
    return [
        stored
        for spec in known
        for stored in spec.stored_names
        if stored == bare or stored.startswith(f"{bare}.")
    ]


def _unknown(name: str, known: Iterable[MetricSpec]) -> str:
    names = sorted({n for spec in known for n in (spec.name, spec.family, *spec.stored_names)})
    return (
        f"Expected every entry of `metrics` to be a metric or family, but got {name!r}. "
        f"{did_you_mean(name.removeprefix('metric:'), names)} All built-in names are in METRICS.md."
    )
