"""A prediction traced to the heads that pushed it: attribution to first order, with its error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_geo.analysis.gate_changes import head_gates
from lightning_geo.analysis.pruning import Head
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.measurement.call_statistics import call_statistics
from lightning_geo.measurement.sample import Measurement, special_tokens
from lightning_geo.metrics.gates import KINDS
from lightning_geo.metrics.selection import select
from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.heads.head_factors import HeadFactors, scaled_heads
from lightning_geo.observe.replay.undisturbed import Call, device_of, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.arguments import check_token_ids

__all__ = ["Explanation", "explain"]

#: What a single sequence's head is compared in: defined for one sequence, whatever its length.
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
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """Why one example's margin is what it is, head by head.

    Args:
        target: The class that it should be.
        contrast: The class that it is compared with.
        predicted: The class with the largest logit.
        margin: Logit of ``target`` minus that of ``contrast``; negative where the prediction is wrong.
        contributions: ``stack -> [layer, head]``: ⟨o, ∂margin/∂o⟩ of a head's output o. Negative: it pushed
            away from ``target``.
        errors: ``stack -> [layer]``: the margin lost by silencing all heads of the layer, minus the sum of
            their contributions. Where it is large beside them, first order says little about that layer.
        gates: ``stack -> [layer, head]``: what kind of thing the head does on this example, one of ``open``,
            ``closed``, ``instance``, ``backward``, ``forward``, ``directional``, ``cluster``, ``mixed`` (see
            :mod:`lightning_geo.functional.gates`); empty where that is not defined, as in cross-attention.
        gate_margins: ``stack -> [layer, head]``: how far the head is inside its gate; of a mixed one how far
            from the nearest, negative.
        attended: ``stack -> [layer, head, key]``: share of the head's attention that each key receives.
        unusual: ``stack -> metric -> [layer, head]``: the head's geometry here as a z-score against correctly
            predicted examples; empty without any.
        references: How many of those there were.
        input_ids: The example's tokens, where the model takes ids.
    """

    target: int
    contrast: int
    predicted: int
    margin: float
    contributions: dict[str, Array]
    errors: dict[str, Array]
    gates: dict[str, NDArray[np.str_]]
    gate_margins: dict[str, Array]
    attended: dict[str, Array]
    unusual: dict[str, dict[str, Array]] = field(default_factory=dict)
    references: int = 0
    input_ids: tuple[int, ...] = ()

    def blamed(self, count: int = 10) -> list[tuple[Head, float]]:
        """Return the heads that pushed the margin down most, with their contributions; the worst first."""
        found = [
            (Head(stack, int(layer), int(head)), float(values[layer, head]))
            for stack, values in self.contributions.items()
            for layer, head in np.argwhere(np.isfinite(values))
        ]
        return sorted((item for item in found if item[1] < 0), key=lambda item: item[1])[:count]


def explain(
    model: nn.Module,
    batch: Any,
    target: int | Sequence[int] | Tensor,
    contrast: int | Sequence[int] | Tensor | None = None,
    *,
    reference: Iterable[Mapping[str, Any]] | None = None,
    special_token_ids: Iterable[int] | None = None,
) -> list[Explanation]:
    """Trace the margin between two classes to single heads, example by example.

    A head's contribution is ⟨o, ∂margin/∂o⟩ with its output o: what the margin would lose, to first order,
    if the head were silenced. It attributes the margin; it does not prove that the head causes the error,
    nor that the model without it would be better. The model is left as it was.

    Args:
        model: A classifier: it returns ``logits`` [B, classes] (as an attribute, a key, or alone).
        batch: What it takes: a mapping is keyword arguments, a tuple positional ones.
        target: The right class of each example, or of all.
        contrast: The class to compare with; ``None`` for the one with the largest logit besides ``target``,
            which for a wrong prediction is the predicted one.
        reference: Batches with ``labels``: the correctly predicted of them are what the geometry of the
            example's heads is compared with.
        special_token_ids: Input ids that count as special tokens, on which ``closed`` heads park; default
            those of ``model.config``, which BERT's does not name.

    Returns:
        One explanation for each example.

    Raises:
        ValueError: If the model returns no such logits, a class is none of them, or the examples cannot be
            told apart.
        TypeError: If ``special_token_ids`` are no integers.
        LookupError: If the outputs of some heads cannot be told.
    """
    check_token_ids(special_token_ids)
    call = Call.from_batch(batch).to(device_of(model))
    recorded = ProbeCall.of("", call)
    if not recorded.divisible:
        raise ValueError(
            "Expected every tensor of `batch` to have the examples on its first axis but their sizes differ: "
            f"{[list(x.shape) for x in call.tensors()]}."
        )
    silencer = Silencer(model, call)
    rows = recorded.rows
    targets, contrasts = _classes("target", target, rows), _classes("contrast", contrast, rows)
    usual = _usual(model, reference) if reference is not None else None
    special = special_tokens(model, special_token_ids)
    return [
        _explain(
            model,
            recorded.take(slice(row, row + 1)).call,
            silencer,
            targets[row],
            contrasts[row],
            usual,
            special,
        )
        for row in range(rows)
    ]


def logits_of(output: Any) -> Tensor:
    """Return a classifier's logits [B, classes].

    Raises:
        ValueError: If it returned none.
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.dim() != 2:
        got = (
            f"of shape {list(found.shape)}"
            if isinstance(found, Tensor)
            else f"no tensor but {type(found).__name__}"
        )
        raise ValueError(f"Expected `model` to return logits [batch, classes] but they are {got}.")
    return found


def _classes(name: str, given: Any, rows: int) -> list[int | None]:
    if given is None or isinstance(given, int):
        return [given] * rows
    values = [int(value) for value in given]
    if len(values) != rows:
        raise ValueError(
            f"Expected `{name}` to be one class, or one for each of {rows} examples, but got {len(values)}."
        )
    return list(values)


def _explain(
    model: nn.Module, call: Call, silencer: Silencer, target: int | None, contrast: int | None,
    usual: _Usual | None, special: tuple[int, ...],
) -> Explanation:  # fmt: skip
    factors = HeadFactors()
    attended: dict[CallKey, Tensor] = {}

    def look(key: CallKey, attention: AttentionCall) -> Tensor:
        received = call_statistics(attention, {"received"}, None).received
        assert received is not None
        attended[key] = received.sum(0) / received.sum((0, -1))[:, None]
        return factors(key, attention)

    with undisturbed(model, gradient=True), scaled_heads(Tap(model), look):
        logits = logits_of(call.run(model))[0]
        predicted = int(logits.argmax())
        assert target is not None
        if contrast is None:
            others = logits.detach().clone()
            others[_known(target, logits, "target")] = -torch.inf
            contrast = int(others.argmax())
        for name, value in (("target", target), ("contrast", contrast)):
            _known(value, logits, name)
        if target == contrast:
            raise ValueError(f"Expected `contrast` to be another class than `target` but both are {target}.")
        margin = logits[target] - logits[contrast]
        slopes = factors.slopes(margin)
        margin, logits = margin.detach(), logits.detach()
    structure = silencer.structure
    contributions = {s: np.full((len(c), max(c)), np.nan) for s, c in structure.items()}
    shares: dict[str, Array] = {}
    for key, slope in slopes.items():
        stack, layer = silencer.places[key]
        contributions[stack][layer, : slope.shape[1]] = slope[0].double().cpu()
        keys = attended[key].double().cpu().numpy()
        if stack not in shares:
            longest = max(a.shape[1] for k, a in attended.items() if silencer.places[k][0] == stack)
            shares[stack] = np.full((*contributions[stack].shape, longest), np.nan)
        shares[stack][layer, : keys.shape[0], : keys.shape[1]] = keys
    errors = {s: np.full(len(c), np.nan) for s, c in structure.items()}
    for stack, layer in silencer.places.values():
        heads = [Head(stack, layer, head) for head in range(structure[stack][layer])]
        with undisturbed(model), silencer.silenced(heads):
            silent = logits_of(call.run(model))[0]
        lost = float(margin) - float(silent[target] - silent[contrast])
        errors[stack][layer] = lost - np.nansum(contributions[stack][layer])
    ids = call.kwargs.get("input_ids", call.args[0] if call.args else None)
    tokens = tuple(map(int, ids[0])) if isinstance(ids, Tensor) and not ids.is_floating_point() else ()
    geometry = _geometry(model, call, (*GEOMETRY, *_MARGINS), special)
    gates, margins = _gates(geometry, structure)
    unusual = {} if usual is None else usual.compare(geometry)
    references = 0 if usual is None else usual.count
    return Explanation(target, contrast, predicted, float(margin), contributions, errors, gates, margins,
                       shares, unusual, references, tokens)  # fmt: skip


def _known(value: int, logits: Tensor, name: str) -> int:
    if not 0 <= value < len(logits):
        raise ValueError(f"Expected `{name}` to be a class from 0 to {len(logits) - 1} but got {value}.")
    return value


# -- how unusual a head's geometry is


Geometry = dict[str, dict[str, NDArray[Any]]]


def _geometry(
    model: nn.Module, call: Call, metrics: tuple[str, ...] = GEOMETRY, special: tuple[int, ...] = ()
) -> Geometry:
    """``stack -> metric -> [layer, head]`` of one example."""
    measurement = Measurement({"": Tap(model, special)}, metrics)
    with undisturbed(model), measurement.observe():
        call.run(model)
    if measurement.failures:
        raise measurement.failures[0]
    return measurement.compute().stacks


def _gates(
    geometry: Geometry, structure: Mapping[str, Sequence[int]]
) -> tuple[dict[str, NDArray[np.str_]], dict[str, Array]]:
    """Name and margin of each head's gate, by stack."""
    shapes = {stack: (len(heads), max(heads)) for stack, heads in structure.items()}
    names = {stack: np.full(shape, "", f"<U{max(map(len, KINDS))}") for stack, shape in shapes.items()}
    margins = {stack: np.full(shape, np.nan) for stack, shape in shapes.items()}
    for found in head_gates(GeometryHistory([GeometryRecord(geometry)])):
        for layer, head in np.argwhere(found.labels[0] >= 0):
            names[found.stack][layer, head] = KINDS[found.labels[0, layer, head]]
            margins[found.stack][layer, head] = found.margin(0, layer, head)
    return names, margins


@dataclass
class _Usual:
    """Sums over examples of each number and its square."""

    count: int = 0
    sums: dict[tuple[str, str], tuple[Array, Array]] = field(default_factory=dict)

    def add(self, geometry: Geometry) -> None:
        self.count += 1
        for stack, arrays in geometry.items():
            for name, values in arrays.items():
                total, squares = self.sums.get(
                    (stack, name), (np.zeros(values.shape), np.zeros(values.shape))
                )
                self.sums[stack, name] = total + values, squares + values.astype(np.float64) ** 2

    def compare(self, geometry: Geometry) -> dict[str, dict[str, Array]]:
        """Z-scores with the sample standard deviation; NaN for fewer than two examples, or without spread."""
        result: dict[str, dict[str, Array]] = {}
        for (stack, name), (total, squares) in self.sums.items():
            if self.count < 2 or name not in geometry.get(stack, {}):
                continue
            mean = total / self.count
            variance = np.maximum(squares - self.count * mean**2, 0.0) / (self.count - 1)
            # rounding is no spread
            spread = np.where(variance > 1e-10 * mean**2 + 1e-20, np.sqrt(variance), np.nan)
            result.setdefault(stack, {})[name] = (geometry[stack][name] - mean) / spread
        return result


def _usual(model: nn.Module, reference: Iterable[Mapping[str, Any]]) -> _Usual:
    usual = _Usual()
    for call, label in _examples(model, reference):
        with undisturbed(model):
            predicted = int(logits_of(call.run(model))[0].argmax())
        if predicted == label:
            usual.add(_geometry(model, call))
    return usual


def _examples(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Call, int]]:
    for batch in batches:
        if not isinstance(batch, Mapping) or "labels" not in batch:
            raise ValueError("Expected the batches of `reference` to be mappings with `labels`.")
        recorded = ProbeCall.of("", Call.from_batch(batch).to(device_of(model)))
        for row, label in enumerate(batch["labels"]):
            yield recorded.take(slice(row, row + 1)).call, int(label)
