"""Traces a prediction to single heads: to first order, and by silencing them where that fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_geo.analysis.pruning import Head
from lightning_geo.interventions.ablation import Silencer
from lightning_geo.interventions.attribution import Explanation, first_order_fails
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
from lightning_geo.observe.replay.undisturbed_run import Call, device_of, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.utils.arguments import check_token_ids, check_type
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.errors import ArgumentError

__all__ = ["explain"]


def explain(
    model: nn.Module,
    batch: Any,
    target: int | Sequence[int] | Tensor,
    contrast: int | Sequence[int] | Tensor | None = None,
    *,
    reference: Iterable[Mapping[str, Any]] | None = None,
    special_token_ids: Iterable[int] | None = None,
    tokenizer: Any = None,
) -> list[Explanation]:
    """Trace the margin between two classes to single heads, example by example.

    A head's contribution is ⟨o, ∂margin/∂o⟩ with its output o: the margin that would be lost, to first order,
    if the head were silenced. In layers where that fails (silencing the whole layer costs something else than
    the sum of its contributions) each head is really silenced instead, which takes a forward each. This
    attributes the margin; it does not prove that the head causes the error, nor that the model is better
    without it. The model is left unchanged.

    Args:
        model: A classifier: it returns ``logits`` [B, classes] (as an attribute, a key, or alone).
        batch: What it takes: a mapping is keyword arguments, a tuple positional ones.
        target: The correct class of each example, or of all.
        contrast: The class to compare with; ``None`` for the one with the largest logit besides ``target``,
            which for a wrong prediction is the predicted one.
        reference: Batches with ``labels``; the examples' heads are compared with those of its correctly
            predicted examples.
        special_token_ids: Input ids that count as special tokens, on which ``closed`` heads park; default
            those of ``tokenizer`` that begin, end and separate texts, and without one those of
            ``model.config``, which BERT's does not name.
        tokenizer: Of transformers; names the tokens, so that pages show text.

    Returns:
        One explanation for each example.

    Raises:
        ValueError: If the model returns no such logits, a class is none of them, or the examples cannot be
            told apart.
        TypeError: If ``special_token_ids`` are no integers.
        LookupError: If the outputs of some heads are unknown.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    check_token_ids(special_token_ids)
    call = Call.from_batch(batch).to(device_of(model))
    recorded = ProbeCall.of("", call)
    if not recorded.divisible:
        raise ArgumentError(
            "Expected every tensor of `batch` to have the examples on its first axis, but their sizes "
            f"differ: {[list(x.shape) for x in call.tensors()]}."
        )
    silencer = Silencer(model, call)
    rows = recorded.rows
    targets, contrasts = _classes("target", target, rows), _classes("contrast", contrast, rows)
    usual = UsualGeometry.measured(model, reference) if reference is not None else None
    if special_token_ids is None and tokenizer is not None:
        special_token_ids = _marks(tokenizer)
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
            tokenizer,
        )
        for row in range(rows)
    ]


def _classes(name: str, given: Any, rows: int) -> list[int | None]:
    if given is None or isinstance(given, int):
        return [given] * rows
    values = [int(value) for value in given]
    if len(values) != rows:
        raise ArgumentError(
            f"Expected `{name}` to be one class, or one for each of {rows} examples, but got {len(values)}."
        )
    return list(values)


def _explain(
    model: nn.Module, call: Call, silencer: Silencer, target: int | None, contrast: int | None,
    usual: UsualGeometry | None, special: tuple[int, ...], tokenizer: Any,
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
        gradients = factors.gradients(margin)
        margin, logits = margin.detach(), logits.detach()
    contributions = _contributions(gradients, silencer)
    geometry = example_geometry(model, call, gates=True, special=special)
    gates, margins = gate_table(geometry, silencer.structure)
    errors = _errors(model, call, silencer, pair, float(margin), contributions)
    ids = _input_ids(call)
    return Explanation(
        *pair,
        int(logits.argmax()),
        float(margin),
        contributions,
        errors,
        _silenced(model, call, silencer, pair, float(margin), contributions, errors),
        gates,
        margins,
        _shares(attended, contributions, silencer),
        {} if usual is None else usual.z_scores(geometry),
        0 if usual is None else usual.count,
        ids,
        _tokens(call, ids, tokenizer),
        _classes_of(model, len(logits)),
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
        raise ArgumentError(f"Expected `contrast` to be another class than `target`, but both are {target}.")
    return target, contrast


def _checked_class(value: int, logits: Tensor, name: str) -> int:
    if not 0 <= value < len(logits):
        raise ArgumentError(f"Expected `{name}` to be a class from 0 to {len(logits) - 1}, but got {value}.")
    return value


def _contributions(gradients: Mapping[CallKey, Tensor], silencer: Silencer) -> dict[str, Array]:
    """``stack -> [layer, head]``; NaN where a narrower layer has no such head."""
    result = {stack: np.full((len(n), max(n)), np.nan) for stack, n in silencer.structure.items()}
    for key, gradient in gradients.items():
        stack, layer = silencer.places[key]
        result[stack][layer, : gradient.shape[1]] = gradient[0].double().cpu()
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
        lost = margin - _margin_without(model, call, silencer, pair, heads)
        errors[stack][layer] = lost - np.nansum(contributions[stack][layer])
    return errors


def _silenced(
    model: nn.Module, call: Call, silencer: Silencer, pair: tuple[int, int], margin: float,
    contributions: Mapping[str, Array], errors: Mapping[str, Array],
) -> dict[str, Array]:  # fmt: skip
    """``stack -> [layer, head]``: the margin that silencing a head alone costs, where first order fails."""
    lost = {stack: np.full(values.shape, np.nan) for stack, values in contributions.items()}
    for stack, layer in dict.fromkeys(silencer.places.values()):
        if not first_order_fails(float(np.nansum(contributions[stack][layer])), float(errors[stack][layer])):
            continue
        for head in range(silencer.structure[stack][layer]):
            without = _margin_without(model, call, silencer, pair, [Head(stack, layer, head)])
            lost[stack][layer, head] = margin - without
    return lost


def _margin_without(
    model: nn.Module, call: Call, silencer: Silencer, pair: tuple[int, int], heads: Sequence[Head]
) -> float:
    with undisturbed(model), silencer.silenced(heads):
        silent = logits_of(call.run(model))[0]
    return float(silent[pair[0]] - silent[pair[1]])


def _marks(tokenizer: Any) -> list[int]:
    """Ids of the tokens that begin, end and separate texts: heads park their attention on them."""
    marks = (getattr(tokenizer, f"{name}_token_id", None) for name in ("cls", "sep", "bos", "eos"))
    return sorted({mark for mark in marks if mark is not None})


def _tokens(call: Call, ids: Sequence[int], tokenizer: Any) -> tuple[str, ...]:
    """The tokens as text, padding as nothing."""
    if tokenizer is None or not ids:
        return ()
    mask = call.kwargs.get("attention_mask")
    real = mask[0].bool().tolist() if isinstance(mask, Tensor) and mask.dim() == 2 else [True] * len(ids)
    texts = tokenizer.convert_ids_to_tokens(list(ids))
    return tuple(text if shown else "" for text, shown in zip(texts, real, strict=True))


def _classes_of(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names of the classes in the model's config; transformers' placeholders are none."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, dict) or all(names.get(i) == f"LABEL_{i}" for i in range(count)):
        return ()
    return tuple(str(names.get(i, f"class {i}")) for i in range(count))


def _input_ids(call: Call) -> tuple[int, ...]:
    ids = call.kwargs.get("input_ids", call.args[0] if call.args else None)
    return tuple(map(int, ids[0])) if isinstance(ids, Tensor) and not ids.is_floating_point() else ()
