"""What a run says of one limit: the values of the samples and cells that it asks for, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.audit.policy import Limit
from lightning_geo.analysis.comparison import matched_stacks
from lightning_geo.analysis.findings.words import named_layers
from lightning_geo.analysis.runs import heads_per_layer
from lightning_geo.metrics.foreign_specs import differing_fields
from lightning_geo.metrics.selection import spec_of, standard_error
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.errors import RunError
from lightning_geo.utils.formatting import some

__all__ = ["Measured", "measured"]


_MOST = 10_000  # layers or heads: a file may claim any number


@dataclass(frozen=True)
class Measured:
    """The values of one metric in one stack.

    Args:
        steps: [sample] steps of the samples that were asked for.
        values: [sample, layer] or [sample, layer, head], NaN where there is none; of a limit on change, the
            differences.
        before: [layer] or [layer, head] values of the earlier release; NaN without one.
        errors: As ``values``, standard errors of estimates; NaN for exact values.
        existing: [layer] or [layer, head], the cells that the model has.
        missing: How many further values were asked for, of cells that the model does not have.
        lacking: Why values are missing that the record cannot show cell by cell.
        dtype: Precision in which the values are stored.
    """

    steps: NDArray[np.int64]
    values: Array
    before: Array
    errors: Array
    existing: NDArray[np.bool_]
    missing: int
    lacking: tuple[str, ...]
    dtype: np.dtype[Any]

    def beyond(self, limit: Limit) -> Array:
        """Return by how much each value lies beyond the limit: negative within, NaN without a value."""
        if limit.change_at_most is not None:
            return np.abs(self.values) - limit.change_at_most
        beyond = np.full(self.values.shape, -np.inf)
        if limit.at_least is not None:
            beyond = np.maximum(beyond, self._rounded(limit.at_least) - self.values)
        if limit.at_most is not None:
            beyond = np.maximum(beyond, self.values - self._rounded(limit.at_most))
        # an overflow is beyond every limit, also beyond one at the other end
        return np.where(np.isinf(self.values), np.inf, beyond)

    def reasons(self, asked: NDArray[np.bool_]) -> tuple[str, ...]:
        """Say why values are missing.

        Args:
            asked: [layer] or [layer, head], the cells that were asked for.
        """
        absent = np.isnan(self.values) & asked
        cells = tuple(range(1, absent.ndim))
        partly = absent.any(axis=cells) & (~absent & asked).any(axis=cells)
        sentences = list(self.lacking)
        if partly.any():
            layers = np.flatnonzero(absent[partly].any(axis=0).reshape(len(asked), -1).any(axis=1))
            sentences.append(
                f"Missing or NaN in {named_layers(layers.tolist())}, in {_samples(self.steps[partly])}."
            )
        return tuple(sentences)

    def _rounded(self, limit: float) -> float:
        return float(np.asarray(limit, self.dtype))


def measured(
    history: GeometryHistory, limit: Limit, stack: str, name: str, release: GeometryHistory | None
) -> Measured:
    """Return what a run says of one limit, metric and stack.

    Args:
        history: The run.
        limit: The limit.
        stack: The stack.
        name: Stored name of the metric.
        release: An earlier run, for limits on change.
    """
    axes = len(spec_of(name, history.specs).axes)
    array = history.stacks.get(stack, {}).get(name)
    if array is not None and array.ndim != 1 + axes:  # damage
        array = None
    existing = _existing(history, stack, axes, array)
    having = np.array(
        [array is not None and name in history.record(i).stacks.get(stack, {}) for i in range(len(history))]
    )
    counted = _counted(history, limit, having)
    shape = (len(counted), *existing.shape)
    values = np.full(shape, np.nan) if array is None else _fitted(array[counted], shape)
    errors = history.stacks.get(stack, {}).get(standard_error(name))
    lacking = _lacking(history, stack, name, having, counted, limit)
    before = np.full(existing.shape, np.nan)
    if limit.of_change and array is not None:
        values, before, why = _change(history, release, stack, name, counted, values)
        lacking += why
    missing = limit.places.missing(existing) if len(existing) else []
    if missing:
        lacking.append(f"Stack {stack} has no {some(missing)}.")
    return Measured(
        history.steps[counted], values, before,
        np.full(shape, np.nan) if errors is None else _fitted(errors[counted], shape),
        existing, len(missing) * len(counted), tuple(lacking),
        np.dtype(np.float64) if array is None else array.dtype,
    )  # fmt: skip


def _existing(
    history: GeometryHistory, stack: str, axes: int, array: NDArray[Any] | None
) -> NDArray[np.bool_]:
    """The layers, or the heads of each layer, that a stack has: by its description and by its values."""
    described = heads_per_layer(history).get(stack, ()) if stack in history.stacks else ()
    # a layer whose attention was left out has no heads by its description: one cell stands for it, without a
    # value, so that it is not measured rather than passed over
    heads = [min(max(count, 1), _MOST) for count in described[:_MOST]]
    shape = () if array is None else array.shape[1:]
    size = (max(len(heads), *shape[:1], 0), max(*heads, *shape[1:], 0, 0))[:axes]
    existing = np.zeros(size, bool)
    if axes == 1:
        existing[:] = True
        return existing
    for layer in range(size[0]):
        existing[layer, : heads[layer] if layer < len(heads) else size[1]] = True
    if array is not None:  # what has a value exists, whatever the description says
        existing[: shape[0], : shape[1]] |= (~np.isnan(array)).any(axis=0)
    return existing


def _counted(history: GeometryHistory, limit: Limit, having: NDArray[np.bool_]) -> NDArray[np.intp]:
    if limit.samples == "last":
        return np.array([len(history) - 1])
    late = history.steps >= limit.from_step
    return np.flatnonzero(late & having if limit.samples == "measured" else late)


def _fitted(array: NDArray[Any], shape: tuple[int, ...]) -> Array:
    fitted = np.full(shape, np.nan)
    fitted[tuple(slice(size) for size in array.shape)] = array
    return fitted


def _lacking(
    history: GeometryHistory, stack: str, name: str, having: NDArray[np.bool_], counted: NDArray[np.intp],
    limit: Limit,
) -> list[str]:  # fmt: skip
    if stack not in history.stacks:
        return [f"The run has no stack {stack!r}, only {some(history.stacks)}."]
    if not having.any():
        others = [other for other, arrays in history.stacks.items() if name in arrays]
        hint = f" Name the stacks that have it in `stack`: {some(others)}." if others else ""
        return [f"No sample of the run has {name} in stack {stack}.{hint}"]
    if not len(counted):
        return [f"The run has no sample from step {limit.from_step} on that has {name}."]
    asked = counted if limit.samples != "measured" else np.flatnonzero(history.steps >= limit.from_step)
    without = asked[~having[asked]]
    return [f"No {name} in {_samples(history.steps[without])}."] if len(without) else []


def _change(
    history: GeometryHistory, release: GeometryHistory | None, stack: str, name: str,
    counted: NDArray[np.intp], values: Array,
) -> tuple[Array, Array, list[str]]:  # fmt: skip
    """Differences to the last sample of the earlier release, its values, and why there are none."""
    nothing, before = np.full_like(values, np.nan), np.full(values.shape[1:], np.nan)
    if release is None:
        return nothing, before, ["No earlier release was named (--release)."]
    try:
        other = matched_stacks(history, release)[stack]
    except RunError as error:
        return nothing, before, [f"The releases are not comparable. {error}"]
    array = release.stacks.get(other, {}).get(name)
    if array is None:
        return nothing, before, [f"The earlier release has no {name} in stack {other}."]
    specs = [spec_of(name, source.specs) for source in (history, release)]
    if fields := differing_fields(*specs):
        which = ", ".join(fields)
        return nothing, before, [f"{name} means another number in the earlier release: its {which} differs."]
    if array.shape[1:] != history.stacks[stack][name].shape[1:]:
        return nothing, before, [f"The earlier release has another number of values of {name}."]
    before = _fitted(array[-1], values.shape[1:])
    prints = history.metadata["probe_fingerprint"][counted]
    probe = release.metadata["probe_fingerprint"][-1]
    same = (prints == probe) & (prints != "")
    difference = np.where(np.isinf(values), values, values - before)
    difference[~same] = np.nan
    if same.all():
        return difference, before, []
    kind = (
        "another probe"
        if probe and (prints[~same] != "").all()
        else "training batches, not on a common probe"
    )
    return (
        difference,
        before,
        [f"Not comparable with the earlier release: {_samples(history.steps[counted][~same])}, on {kind}."],
    )


def _samples(steps: NDArray[np.int64]) -> str:
    """Return ``the sample at step 50`` or ``7 samples (steps 0 to 300)``.

    Example:
        >>> _samples(np.array([50])), _samples(np.array([0, 50, 300]))
        ('the sample at step 50', '3 samples (steps 0 to 300)')
    """
    if len(steps) == 1:
        return f"the sample at step {steps[0]}"
    return f"{len(steps)} samples (steps {steps[0]} to {steps[-1]})"
