"""Registers metrics that are not built in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from torch import Tensor

from lightning_geo.kernels import STATISTICS, STREAM
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.metrics.foreign import FOREIGN, ForeignMetric
from lightning_geo.metrics.foreign_specs import check_spec
from lightning_geo.metrics.spec import ROLES, STAGES, MetricSpec
from lightning_geo.utils.errors import ArgumentError, ArgumentTypeError

__all__ = ["register_metric"]

_Function = TypeVar("_Function", bound=Callable[..., Tensor])

_HEAD, _LAYER = ("layer", "head"), ("layer",)
_ANY = ("any",)


class _Source(NamedTuple):
    """Quantities that come together, and what a metric of them can be.

    Args:
        quantities: Those that a metric may read.
        anchor: The one that it has to read; empty for none.
        axes: That it may have.
        parts: That it must have some of; none if empty, what it likes for ``_ANY``.
        maximum: Whether sequences can merge by maximum.
        self_attention: Whether it can be limited to self-attention.
    """

    quantities: frozenset[str]
    anchor: str = ""
    axes: tuple[tuple[str, ...], ...] = (_HEAD,)
    parts: tuple[str, ...] = ()
    maximum: bool = False
    self_attention: bool = False


_SOURCES = (
    _Source(frozenset(STATISTICS) - {"received"}, maximum=True, self_attention=True),
    _Source(frozenset({"received", "key_mask"}), "received", self_attention=True),
    _Source(frozenset(STREAM) - {"directions"}, axes=(_LAYER,)),
    _Source(frozenset({"directions", "tokens", "directed"}), "directions", (_LAYER,), STAGES),
    _Source(frozenset({"output.directions", "output.tokens", "output.directed"}), "output.directions"),
    _Source(
        frozenset({"query.directions", "query.tokens", "key.directions", "key.tokens"}), "query.directions"
    ),
    _Source(frozenset({"query.length"})),
    _Source(frozenset({"key.length"})),
    _Source(frozenset({"eigenvalues"}), "eigenvalues", parts=ROLES, maximum=True),
    _Source(frozenset({"block_norms", "traces"}), "block_norms", (_HEAD, _LAYER), maximum=True),
    _Source(frozenset({"weights"}), "weights", (_HEAD, _LAYER), _ANY, maximum=True, self_attention=True),
    _Source(frozenset({"inputs"}), "inputs", parts=("query", "key", "value")),
    _Source(frozenset({"scores"}), "scores", parts=_ANY, self_attention=True),
    _Source(frozenset({"attended"}), "attended", parts=_ANY, self_attention=True),
)


def register_metric(
    spec: MetricSpec,
    reads: tuple[str, ...] | str,
    *,
    roles: tuple[str, ...] = (),
    collector: type[Collector] | None = None,
) -> Callable[[_Function], _Function]:
    """Register the decorated function as a metric of your own, which ``metrics=`` then takes by name.

    Monitor, record, commands, report and dashboard treat it like a built-in one. Its spec is written into the
    record, so that a process that reads the run needs neither the function nor its package. It is measured
    where ``metrics=`` names it or its family, never by default.

    The function gets copies of what it reads, without gradient, and what it draws from the random generators
    is put back, so that it cannot change other metrics or the training. What it raises, or a result of
    another shape or of integers, costs this metric alone: it is absent, and a warning says why, once
    (``measure`` and ``strict=True`` raise instead). An operation whose result the host waits for
    (``.item()``, ``if tensor:``) costs a synchronisation with the device each time. NaN says that a value is
    not defined.

    A package offers metrics to whoever installs it by an entry point in the group ``lightning_geo.metrics``
    that names the module with this call. Registering a function of the same module and name again, as when a
    notebook cell is run again, replaces it.

    Args:
        spec: Name, axes, unit, range and meaning. ``name`` and ``family`` are of ASCII letters, digits and
            ``_``, since they become tags.
        reads: The quantities that the function is called with, in that order; they come from one source.
            :mod:`lightning_geo.metrics.registry` lists them, with the shapes of arguments and result: one
            number per query row, or one per sequence. Open to metrics of others are all but ``basis``,
            ``drawn``, ``margins``, ``head_gradient`` and pairs (``future.visible`` and so on).
        roles: Roles whose weights must be known, for functions that read ``weights``.
        collector: A new source of data, see :class:`lightning_geo.Collector`; None for the built-in ones.

    Returns:
        A decorator that returns its function unchanged.

    Raises:
        ArgumentError: If the name is taken by a built-in metric or by another function, if no source offers
            what the function reads, or if it offers no metric of this kind.

    Example:
        >>> from lightning_geo import MetricSpec, measure, register_metric
        >>> spec = MetricSpec(
        ...     name="keys_in_use", family="mine", axes=("layer", "head"), unit="keys", range=(1.0, None),
        ...     formula="exp(entropy)", meaning="How many keys a row spreads over.", source="here")
        >>> @register_metric(spec, reads=("entropy",))
        ... def keys_in_use(entropy):
        ...     return entropy.exp()
        >>> import torch
        >>> model = torch.nn.TransformerEncoder(
        ...     torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True), num_layers=3)
        >>> measure(model, torch.randn(4, 10, 16), metrics=["keys_in_use"]).keys()
        ['keys_in_use']
    """
    reads = (reads,) if isinstance(reads, str) else tuple(reads)
    _check(spec, reads, collector)

    def register(function: _Function) -> _Function:
        metric = ForeignMetric(replace(spec, default=False), function, reads, tuple(roles), collector)
        known = FOREIGN.get(spec.name)
        if known is not None and known.defined_in != metric.defined_in:
            raise ArgumentError(
                f"Expected one function per metric but {spec.name!r} is already computed by "
                f"{'.'.join(known.defined_in)}. Give one of the two another name."
            )
        FOREIGN[spec.name] = metric
        return function

    return register


def _check(spec: MetricSpec, reads: tuple[str, ...], collector: object) -> None:
    """Raise unless a metric can be registered."""
    if not isinstance(spec, MetricSpec):
        raise ArgumentTypeError(
            f"Expected `spec` to be a MetricSpec but got {type(spec).__name__}. "
            "The decorator is @register_metric(MetricSpec(...), reads=...)."
        )
    try:
        check_spec(spec)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    if collector is None:
        _check_source(spec, reads)
    elif not (isinstance(collector, type) and issubclass(collector, Collector)):
        raise ArgumentError(f"Expected `collector` to be a subclass of Collector but got {collector!r}.")
    elif not reads or not set(reads) <= collector.offers:
        raise ArgumentError(
            f"Expected `reads` to be quantities that {collector.__name__} offers, "
            f"{sorted(collector.offers)}, but got {reads}."
        )


def _check_source(spec: MetricSpec, reads: tuple[str, ...]) -> None:
    """Raise unless a built-in collector offers what a metric reads, and can keep such a metric."""
    source = next((s for s in _SOURCES if set(reads) <= s.quantities), None)
    if not reads or source is None:
        groups = "; ".join(", ".join(sorted(s.quantities)) for s in _SOURCES)
        raise ArgumentError(
            f"Expected `reads` to be quantities of one source but got {reads}. The sources: {groups}. For "
            "others give `collector=`."
        )
    if source.anchor and source.anchor not in reads:
        raise ArgumentError(f"Expected `reads` to include {source.anchor!r} but got {reads}.")
    if spec.axes not in source.axes:
        raise ArgumentError(f"Expected `axes` to be one of {source.axes} for {reads} but got {spec.axes}.")
    fits = set(spec.parts) <= set(source.parts) and bool(spec.parts) == bool(source.parts)
    if source.parts != _ANY and not fits:
        expected = f"some of {source.parts}" if source.parts else "empty"
        raise ArgumentError(f"Expected `parts` to be {expected} for {reads} but got {spec.parts}.")
    if reads == ("weights",) and not set(spec.parts) <= set(ROLES):
        raise ArgumentError(f"Expected `parts` to be some of {ROLES} for {reads} but got {spec.parts}.")
    if spec.summary == "max" and not source.maximum:
        raise ArgumentError(f'Expected `summary` to be "mean" for {reads}: sequences merge by their mean.')
    if spec.self_attention and not source.self_attention:
        raise ArgumentError(
            f"Expected `self_attention` to be False for {reads}, which does not tell what attends to what."
        )
