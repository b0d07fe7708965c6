"""The geometry of one example's heads: their gates, and how unusual they are against correct examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_geo.analysis.gate_changes import head_gates
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.gates import KINDS
from lightning_geo.metrics.selection import select
from lightning_geo.observe import Tap
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.errors import ArgumentError

__all__ = ["GEOMETRY", "GateTable", "UsualGeometry", "example_geometry", "gate_table", "logits_of"]

#: Metrics in which one example's heads are compared: defined for a single sequence of any length.
GEOMETRY = select(
    [
        "metric:normalized_entropy",
        "max_probability",
        "self_mass",
        "first_mass",
        "attention_distance",
        "cone.head",
    ]
)
_MARGINS = select("metric:gate")

_Geometry = dict[str, dict[str, NDArray[Any]]]
GateTable = tuple[dict[str, NDArray[np.str_]], dict[str, Array]]


def logits_of(output: Any) -> Tensor:
    """Return a classifier's logits [B, classes].

    Raises:
        ValueError: If it returned none.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = f"of shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ArgumentError(f"Expected `model` to return logits [batch, classes], but got {got}.")
    return logits


def example_geometry(
    model: nn.Module, call: Call, *, gates: bool = False, special: tuple[int, ...] = ()
) -> _Geometry:
    """Return ``stack -> metric -> [layer, head]`` of one example.

    Args:
        model: The model, left as it was.
        call: What it is called with.
        gates: Whether to measure the gates' margins too.
        special: Input ids that count as special tokens.
    """
    metrics = (*GEOMETRY, *_MARGINS) if gates else GEOMETRY
    measurement = Measurement({"": Tap(model, special)}, metrics)
    with undisturbed(model), measurement.observe():
        call.run(model)
    if measurement.failures:
        raise measurement.failures[0]
    return measurement.compute().stacks


def gate_table(geometry: _Geometry, heads: Mapping[str, Sequence[int]]) -> GateTable:
    """Return the name and the margin of each head's gate, both ``stack -> [layer, head]``.

    Args:
        geometry: From :func:`example_geometry`, with gates.
        heads: Number of heads of each layer, by stack.
    """
    shapes = {stack: (len(counts), max(counts)) for stack, counts in heads.items()}
    names = {stack: np.full(shape, "", f"<U{max(map(len, KINDS))}") for stack, shape in shapes.items()}
    margins = {stack: np.full(shape, np.nan) for stack, shape in shapes.items()}
    for gates in head_gates(GeometryHistory([GeometryRecord(geometry)])):
        for layer, head in np.argwhere(gates.labels[0] >= 0):
            names[gates.stack][layer, head] = KINDS[gates.labels[0, layer, head]]
            margins[gates.stack][layer, head] = gates.margin(0, layer, head)
    return names, margins


@dataclass
class UsualGeometry:
    """Mean and spread of correctly predicted examples, kept as the sums of numbers and of their squares.

    Args:
        count: How many examples.
        sums: ``(stack, metric) -> (sum, sum of squares)``, each [layer, head].
    """

    count: int = 0
    sums: dict[tuple[str, str], tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def measured(cls, model: nn.Module, reference: Iterable[Mapping[str, Any]]) -> UsualGeometry:
        """Measure the correctly predicted examples of some batches with ``labels``.

        Raises:
            ValueError: If a batch is no mapping with ``labels``.
        """
        usual = cls()
        for call, label in _examples(model, reference):
            with undisturbed(model):
                predicted = int(logits_of(call.run(model))[0].argmax())
            if predicted == label:
                usual.add(example_geometry(model, call))
        return usual

    def add(self, geometry: _Geometry) -> None:
        """Count one example."""
        self.count += 1
        for stack, arrays in geometry.items():
            for name, values in arrays.items():
                total, squares = self.sums.get(
                    (stack, name), (np.zeros(values.shape), np.zeros(values.shape))
                )
                self.sums[stack, name] = total + values, squares + values.astype(np.float64) ** 2

    def z_scores(self, geometry: _Geometry) -> dict[str, dict[str, Array]]:
        """Return how unusual an example is: ``stack -> metric -> [layer, head]``.

        In units of the sample standard deviation; NaN with fewer than two examples, or without spread.
        """
        result: dict[str, dict[str, Array]] = {}
        for (stack, name), (total, squares) in self.sums.items():
            if self.count < 2 or name not in geometry.get(stack, {}):
                continue
            mean = total / self.count
            variance = np.maximum(squares - self.count * mean**2, 0.0) / (self.count - 1)
            # equal values leave a variance of rounding errors, which would make any deviation huge
            spread = np.where(variance > 1e-10 * mean**2 + 1e-20, np.sqrt(variance), np.nan)
            result.setdefault(stack, {})[name] = (geometry[stack][name] - mean) / spread
        return result


def _examples(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Call, int]]:
    for batch in batches:
        if not isinstance(batch, Mapping) or "labels" not in batch:
            raise ArgumentError("Expected the batches of `reference` to be mappings with `labels`.")
        recorded = ProbeCall.of("", Call.from_batch(batch).to(device_of(model)))
        for row, label in enumerate(batch["labels"]):
            yield recorded.take(slice(row, row + 1)).call, int(label)
