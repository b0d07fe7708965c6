"""Traces a prediction to single heads: first-order attribution, with its error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_geo.analysis.pruning import Head
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.interventions.head_geometry import (
    UsualGeometry,
    example_geometry,
    gate_table,
    logits_of,
)
from lightning_geo.measurement.call_statistics import call_statistics
from lightning_geo.measurement.special_tokens import special_tokens
from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.heads.head_factors import HeadFactors, scaled_heads
from lightning_geo.observe.replay.undisturbed import Call, device_of, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.utils.arguments import check_token_ids

__all__ = ["Explanation", "explain"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Explanation:
    """One example's margin between two classes, attributed to heads.

    Args:
        target: The correct class.
        contrast: The class that it is compared with.
        predicted: The class with the largest logit.
        margin: Logit of ``target`` minus that of ``contrast``; negative where the prediction is wrong.
        contributions: ``stack -> [layer, head]``: ⟨o, ∂margin/∂o⟩ of a head's output o. Negative: it pushed
            away from ``target``.
        errors: ``stack -> [layer]``: the margin lost by silencing all heads of the layer, minus the sum of
            their contributions. Where it is large beside them, that layer's contributions are unreliable.
        gates: ``stack -> [layer, head]``: the gate that describes the head on this example, one of ``open``,
            ``closed``, ``instance``, ``backward``, ``forward``, ``directional``, ``cluster``, ``mixed`` (see
            :mod:`lightning_geo.functional.gates`); empty where gates are undefined, as in cross-attention.
        gate_margins: ``stack -> [layer, head]``: how far the head is inside its gate; for a mixed head,
            minus its distance from the nearest.
        attended: ``stack -> [layer, head, key]``: share of the head's attention that each key receives.
        unusual: ``stack -> metric -> [layer, head]``: the head's geometry here as a z-score against correctly
            predicted examples; empty without any.
        references: Number of those examples.
        input_ids: The example's token ids, if the model takes ids.
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
        """Return the heads that lowered the margin most, with their contributions, worst first."""
        heads = [
            (Head(stack, int(layer), int(head)), float(values[layer, head]))
            for stack, values in self.contributions.items()
            for layer, head in np.argwhere(np.isfinite(values))
        ]
        return sorted((item for item in heads if item[1] < 0), key=lambda item: item[1])[:count]


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

    A head's contribution is ⟨o, ∂margin/∂o⟩ with its output o: the margin that would be lost, to first order,
    if the head were silenced. It attributes the margin; it does not prove that the head causes the error, nor
    that the model would be better without it. The model is left unchanged.

    Args:
        model: A classifier: it returns ``logits`` [B, classes] (as an attribute, a key, or alone).
        batch: What it takes: a mapping is keyword arguments, a tuple positional ones.
        target: The correct class of each example, or of all.
        contrast: The class to compare with; ``None`` for the one with the largest logit besides ``target``,
            which for a wrong prediction is the predicted one.
        reference: Batches with ``labels``; the examples' heads are compared with those of its correctly
            predicted examples.
        special_token_ids: Input ids that count as special tokens, on which ``closed`` heads park; default
            those of ``model.config``, which BERT's does not name.

    Returns:
        One explanation for each example.

    Raises:
        ValueError: If the model returns no such logits, a class is none of them, or the examples cannot be
            told apart.
        TypeError: If ``special_token_ids`` are no integers.
        LookupError: If the outputs of some heads are unknown.
    """
    check_token_ids(special_token_ids)
    call = Call.from_batch(batch).to(device_of(model))
    recorded = ProbeCall.of("", call)
    if not recorded.divisible:
        raise ValueError(
            "Expected every tensor of `batch` to have the examples on its first axis, but their sizes "
            f"differ: {[list(x.shape) for x in call.tensors()]}."
        )
    silencer = Silencer(model, call)
    rows = recorded.rows
    targets, contrasts = _classes("target", target, rows), _classes("contrast", contrast, rows)
    usual = UsualGeometry.measured(model, reference) if reference is not None else None
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
    usual: UsualGeometry | None, special: tuple[int, ...],
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
        pair = _pair(logits.detach(), target, contrast)
        margin = logits[pair[0]] - logits[pair[1]]
        slopes = factors.slopes(margin)
        margin, logits = margin.detach(), logits.detach()
    contributions = _contributions(slopes, silencer)
    geometry = example_geometry(model, call, gates=True, special=special)
    gates, margins = gate_table(geometry, silencer.structure)
    return Explanation(
        *pair,
        int(logits.argmax()),
        float(margin),
        contributions,
        _errors(model, call, silencer, pair, float(margin), contributions),
        gates,
        margins,
        _shares(attended, contributions, silencer),
        {} if usual is None else usual.z_scores(geometry),
        0 if usual is None else usual.count,
        _input_ids(call),
    )


def _pair(logits: Tensor, target: int | None, contrast: int | None) -> tuple[int, int]:
    """The two classes whose margin is explained."""
    assert target is not None
    if contrast is None:
        others = logits.clone()
        others[_checked_class(target, logits, "target")] = -torch.inf
        contrast = int(others.argmax())
    for name, value in (("target", target), ("contrast", contrast)):
        _checked_class(value, logits, name)
    if target == contrast:
        raise ValueError(f"Expected `contrast` to be another class than `target`, but both are {target}.")
    return target, contrast


def _checked_class(value: int, logits: Tensor, name: str) -> int:
    if not 0 <= value < len(logits):
        raise ValueError(f"Expected `{name}` to be a class from 0 to {len(logits) - 1}, but got {value}.")
    return value


def _contributions(slopes: Mapping[CallKey, Tensor], silencer: Silencer) -> dict[str, Array]:
    """``stack -> [layer, head]``; NaN where a narrower layer has no such head."""
    result = {stack: np.full((len(n), max(n)), np.nan) for stack, n in silencer.structure.items()}
    for key, slope in slopes.items():
        stack, layer = silencer.places[key]
        result[stack][layer, : slope.shape[1]] = slope[0].double().cpu()
    return result


def _shares(
    attended: Mapping[CallKey, Tensor], contributions: Mapping[str, Array], silencer: Silencer
) -> dict[str, Array]:
    """``stack -> [layer, head, key]``; as many keys as the longest of the stack's calls has."""
    longest: dict[str, int] = {}
    for key, shares in attended.items():
        stack, _ = silencer.places[key]
        longest[stack] = max(longest.get(stack, 0), shares.shape[1])
    result = {stack: np.full((*contributions[stack].shape, n), np.nan) for stack, n in longest.items()}
    for key, shares in attended.items():
        stack, layer = silencer.places[key]
        result[stack][layer, : shares.shape[0], : shares.shape[1]] = shares.double().cpu().numpy()
    return result


def _errors(
    model: nn.Module, call: Call, silencer: Silencer, pair: tuple[int, int], margin: float,
    contributions: Mapping[str, Array],
) -> dict[str, Array]:  # fmt: skip
    """``stack -> [layer]``: the margin that silencing the whole layer costs, minus its contributions."""
    errors = {stack: np.full(len(heads), np.nan) for stack, heads in silencer.structure.items()}
    for stack, layer in silencer.places.values():
        heads = [Head(stack, layer, head) for head in range(silencer.structure[stack][layer])]
        with undisturbed(model), silencer.silenced(heads):
            silent = logits_of(call.run(model))[0]
        lost = margin - float(silent[pair[0]] - silent[pair[1]])
        errors[stack][layer] = lost - np.nansum(contributions[stack][layer])
    return errors


def _input_ids(call: Call) -> tuple[int, ...]:
    ids = call.kwargs.get("input_ids", call.args[0] if call.args else None)
    return tuple(map(int, ids[0])) if isinstance(ids, Tensor) and not ids.is_floating_point() else ()
