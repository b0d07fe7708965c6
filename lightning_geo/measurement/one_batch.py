"""One batch measured by hand, as the monitor measures its probe."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_geo.measurement.importance import LossFunction, importances
from lightning_geo.measurement.sample import LayerChoice, Measurement
from lightning_geo.measurement.special_tokens import special_tokens
from lightning_geo.metrics.foreign import foreign_specs
from lightning_geo.metrics.selection import compares_samples, is_of_batch, select
from lightning_geo.observe import CallKey, Tap
from lightning_geo.observe.module_selection import check_layers
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.arguments import check_positive, check_token_ids, check_type
from lightning_geo.utils.errors import ArgumentError, MetricError

__all__ = ["measure"]


def measure(
    model: nn.Module,
    batch: Any,
    *,
    metrics: Iterable[str] | str | None = None,
    layers: LayerChoice = None,
    rank: int = 8,
    special_token_ids: Iterable[int] | None = None,
    loss_fn: LossFunction | None = None,
) -> GeometryRecord:
    """Measure the geometry of a model's attention on one batch, as the monitor does on its probe.

    The model runs once, in eval mode and without gradient; its flags, buffers and the random number
    generators are as before when it returns. Metrics that compare samples are absent (``drift``,
    ``velocity``, ``weight_drift``, and of ``updates`` all but ``weight_similarity``). All query rows are
    measured, however long the sequences.

    Args:
        model: Any module that computes attention.
        batch: A mapping is keyword arguments, a tuple positional ones, a tensor the one argument.
        metrics: Families or single names; ``None`` for the families entropy, pattern, cone, subspace, stream,
            head, updates and masks. ``importance`` needs a loss. Those of
            :func:`lightning_geo.register_metric` are named like any other.
        layers: Layer indices, or a regular expression on module paths; default all.
        rank: Dimensions of the subspaces that are compared, at most half a head.
        special_token_ids: Input ids that count as special tokens; default those of ``model.config``.
        loss_fn: ``loss_fn(output, *args, **kwargs)`` for ``importance``; default the ``loss`` that the model
            itself returns.

    Returns:
        A record; ``record["entropy"]`` is a float32 array [layer, head]. Its ``matrices`` hold the bases and
        the similarities of heads, as a run's first and last record do.

    Raises:
        ValueError: If a metric is unknown, nothing matches ``layers``, or no attention was seen.
        MetricError: If the function or the collector of a metric from outside fails.
        LookupError: If ``importance`` is asked for and there is no loss, or one that compares sequences.

    Example:
        >>> import torch
        >>> model = torch.nn.TransformerEncoder(
        ...     torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True), num_layers=3)
        >>> measure(model, torch.randn(4, 10, 16))["entropy"].shape
        (3, 2)
    """
    started = time.perf_counter()
    check_type("model", model, nn.Module, "a torch.nn.Module")
    check_positive("rank", rank)
    check_token_ids(special_token_ids)
    check_layers(layers, model)
    requested = (name for name in select(metrics) if not compares_samples(name))
    names = tuple(name for name in requested if not is_of_batch(name))  # it is the probe
    if not names:
        raise ArgumentError(
            f"Expected `metrics` to name more than what compares samples but got {metrics!r}: this is one "
            "sample."
        )
    taps, known = {"": Tap(model, special_tokens(model, special_token_ids))}, {"": dict[CallKey, bool]()}
    call = Call.from_batch(batch)
    call = call.to(device_of(model, call))
    complete = False
    while not complete:  # once more, where the numbers of layers were others than their places in lists
        measurement = Measurement(taps, names, layers, rank, known=known)
        with undisturbed(model), measurement.observe():
            call.run(model)
        if measurement.failures:
            raise measurement.failures[0]
        _check_observed(measurement, model)
        measurement.check_layers()
        complete = measurement.learn_layers()
    if "importance" in names:
        calls = [ProbeCall.of("", call)]
        by_sequence = importances(model, calls, loss_fn, asked=measurement.asks(""))
        measurement.add_importance(by_sequence, device_of(model, call))
    computed = measurement.compute()
    for name, error in computed.failures.items():
        raise MetricError(f"The metric {name!r} failed: {type(error).__name__}: {error}") from error
    about = {"class": type(model).__name__, "stacks": computed.structure}
    cost = time.perf_counter() - started
    return GeometryRecord(
        computed.stacks, about, computed.matrices(), wall_time=time.time(), cost_seconds=cost,
        coverage=measurement.coverage.as_dict(), specs=foreign_specs(names),
    )  # fmt: skip


def _check_observed(measurement: Measurement, model: nn.Module) -> None:
    """Raise unless the model showed attention that can be measured."""
    kind = type(model).__name__
    if measurement.observed:
        return
    if measurement.reasons:
        raise ArgumentError(
            f"Expected attention in `model` that can be measured but all that {kind} "
            f"showed was left out, {measurement.reasons}"
        )
    raise ArgumentError(
        f"Expected `model` to compute attention but {kind} showed none. {measurement.why_nothing()}"
    )
