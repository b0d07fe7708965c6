"""Importance of heads: a small forward of each sequence, and a backward to the heads' outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.functional import head_importance
from lightning_geo.heads import HeadFactors, scaled_heads
from lightning_geo.probe import ProbeCall
from lightning_geo.replay import Call, undisturbed
from lightning_geo.taps import CallKey, Tap

__all__ = ["ComparingLossError", "LossFunction", "NoImportanceError", "NoLossError", "importances", "loss_of"]

#: ``(output, *args, **kwargs)`` of one call of the observed model -> its loss.
LossFunction = Callable[..., Any]


#: How far the loss of a batch may be off those of its sequences: rounding and random masks are no comparison.
_SLACK = 0.1


class NoImportanceError(LookupError):
    """There is no importance to be had here, for a reason that is nobody's failure."""


class NoLossError(NoImportanceError):
    """The model's call gives no loss, and nobody said how to compute one."""


class ComparingLossError(NoImportanceError):
    """The loss is one of several sequences together, and has no part for each."""


def loss_of(output: Any, call: Call, loss_fn: LossFunction | None) -> Tensor:
    """Return the loss of one call: what ``loss_fn`` makes of it, or the model's own.

    Args:
        output: What the model returned.
        call: What it was given.
        loss_fn: Called as ``loss_fn(output, *args, **kwargs)``.

    Raises:
        NoLossError: If there is no loss.
        TypeError: If it is not a tensor of one number.
    """
    loss: Any
    if loss_fn is not None:
        loss = loss_fn(output, *call.args, **call.kwargs)
    elif call.method and isinstance(output, Tensor):
        loss = output  # what a step returns is its loss
    else:
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise NoLossError(
            "the observed model's recorded call returns no `loss` (transformers models return one where they "
            "are given `labels`); pass them, or give `loss_fn=`"
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"one of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise TypeError(f"Expected the loss to be a tensor of one number but got {got}.")
    return loss


def importances(
    model: nn.Module,
    recorded: ProbeCall,
    loss_fn: LossFunction | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    observed: nn.Module | None = None,
) -> list[dict[CallKey, Tensor]]:
    """Return the importance of every head, [1, H] by attention call, for one sequence after the other.

    Each runs alone, so that its loss is its own however the model averages over a batch; a call that
    cannot be divided counts as one sequence. The model is left as it was, its gradients included.

    Args:
        model: What is called.
        recorded: With what.
        loss_fn: See :func:`loss_of`.
        context: The precision.
        observed: The module in it whose heads are looked at; None for all of it.

    Raises:
        NoLossError: If there is no loss.
        NoImportanceError: If documents of one row cannot run alone.
        ComparingLossError: If the loss of the sequences together does not come of those of each.
        Exception: Whatever the model's forward or backward raises.
    """
    tap = Tap(model if observed is None else observed)
    sequences = _one_by_one(recorded)
    found, losses = [], []
    for call in sequences:
        factors = HeadFactors()
        with undisturbed(model, gradient=True), scaled_heads(tap, factors):
            with context():
                loss = loss_of(call.run(model), call, loss_fn)
            slopes = factors.slopes(loss)
        losses.append(loss.detach())
        found.append({key: head_importance(slope) for key, slope in slopes.items()})
    if len(sequences) > 1:
        call = recorded.call
        # observed too, since that may change how the model computes: torch's encoder has a fast path
        with undisturbed(model), scaled_heads(tap, lambda key, attention: None), context():
            together = loss_of(call.run(model), call, loss_fn)
        _check_divisible(float(together), torch.stack(losses).flatten().tolist())
    return found


def _one_by_one(recorded: ProbeCall) -> list[Call]:
    """A call for each sequence, or document.

    Raises:
        NoImportanceError: If documents of one row cannot run alone: their losses would be added up.
    """
    parts = (
        [recorded.take(slice(i, i + 1)) for i in range(recorded.rows)] if recorded.divisible else [recorded]
    )
    calls = []
    for part in parts:
        if part.sequences.documents is not None:
            calls += [part.take(slice(i, i + 1)).call for i in range(part.rows)]
        elif part.sequences.packed:
            raise NoImportanceError(
                "its rows hold several documents, and an argument that is not divided by token keeps each of "
                "them from running alone"
            )
        else:
            calls.append(part.call)
    return calls


def _check_divisible(together: float, alone: Sequence[float]) -> None:
    """Raise unless the loss of a batch is a mean, however weighted, or the sum of those of its sequences.

    In-batch negatives, or a variance over the batch, are not there when a sequence runs alone: what its loss
    then says is about something else. (One that is not finite says nothing, and spoils no number.)
    """
    slack = _SLACK * max(map(abs, (together, *alone)))
    mean = min(alone) - slack <= together <= max(alone) + slack
    if together - together == 0 and not mean and abs(together - sum(alone)) > slack:
        raise ComparingLossError(
            f"the loss of {len(alone)} sequences together is {together:.4g}, no mean of those of each alone "
            f"({min(alone):.4g} to {max(alone):.4g}): it compares sequences, as contrastive losses do, and "
            'has no part for each. In a run, `source="batch"` takes training\'s own backward'
        )
