"""Importance of heads: a small forward of each sequence, and a backward to the heads' outputs alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.functional import head_importance
from lightning_geo.observe import AttentionCall, CallKey, Tap
from lightning_geo.observe.heads.head_factors import HeadFactors, scaled_heads
from lightning_geo.observe.replay.undisturbed_run import Call, undisturbed
from lightning_geo.probe.call import ProbeCall
from lightning_geo.utils.errors import ArgumentTypeError, GeometryError

__all__ = ["ComparingLossError", "LossFunction", "NoImportanceError", "NoLossError", "importances", "loss_of"]

#: ``(output, *args, **kwargs)`` of one call of the observed model -> its loss.
LossFunction = Callable[..., Any]

#: ``(model, gradient=...)``: what a model runs in, see :func:`undisturbed`.
_Replay = Callable[..., AbstractContextManager[None]]


#: How far the loss of a batch may be off those of its sequences: rounding and random masks are no comparison.
_SLACK = 0.1


class NoImportanceError(GeometryError, LookupError):
    """Importance is undefined for this model or loss; not an error."""


class NoLossError(NoImportanceError):
    """The model's call gives no loss, and no `loss_fn` was given."""


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
        raise ArgumentTypeError(f"Expected the loss to be a tensor of one number but got {got}.")
    return loss


def importances(
    model: nn.Module,
    calls: Sequence[ProbeCall],
    loss_fn: LossFunction | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    observed: nn.Module | None = None,
    replay: _Replay = undisturbed,
    asked: Callable[[CallKey], bool] = lambda key: True,
) -> list[dict[CallKey, Tensor]]:
    """Return the importance of every head, [1, H] by attention call, for one sequence after the other.

    Each runs alone, so that its loss is its own however the model averages over a batch; a call that
    cannot be divided counts as one sequence. The model is left as it was, its gradients included.

    Args:
        model: What is called.
        calls: With what, call after call.
        loss_fn: See :func:`loss_of`.
        context: The precision.
        observed: The module in it whose heads are looked at; None for all of it.
        replay: What it is run in.
        asked: Whose heads: the backward pass ends at the first of these calls.

    Raises:
        NoLossError: If there is no loss.
        NoImportanceError: If documents of one row cannot run alone.
        ComparingLossError: If the loss of the sequences together does not come of those of each.
        Exception: Whatever the model's forward or backward raises.
    """
    if not calls:
        return []
    observed = model if observed is None else observed
    differentiated = _Differentiated(model, loss_fn, context, observed, replay, asked)
    with differentiated.tapped():
        return [by_call for recorded in calls for by_call in differentiated.sequences(recorded)]


class _Differentiated:
    """One model whose losses are differentiated by its heads' outputs.

    Args:
        model: The model.
        loss_fn: See :func:`loss_of`.
        context: The trainer's precision.
        observed: The module in it whose heads are looked at.
        replay: What the model is run in.
        asked: Whose heads.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction | None,
        context: Callable[[], AbstractContextManager[object]],
        observed: nn.Module,
        replay: _Replay,
        asked: Callable[[CallKey], bool],
    ) -> None:
        self._model = model
        self._loss_fn = loss_fn
        self._context = context
        self._replay = replay
        self._asked = asked
        self._tap = Tap(observed)
        #: of the sequence that runs; None where all run together
        self._factors: HeadFactors | None = None

    def tapped(self) -> AbstractContextManager[None]:
        """Inside, its heads' outputs are multiplied with factors: hooks are installed once for all calls."""
        return scaled_heads(self._tap, self._factor, replays=True)

    def _factor(self, key: CallKey, call: AttentionCall) -> Tensor | None:
        return self._factors(key, call) if self._factors is not None and self._asked(key) else None

    def sequences(self, recorded: ProbeCall) -> list[dict[CallKey, Tensor]]:
        """Importance to the loss of each sequence of a call."""
        by_sequence, losses = [], []
        alone = _one_by_one(recorded)
        for call in alone:
            factors = self._factors = HeadFactors()
            with self._replay(self._model, gradient=True):
                loss = self._loss(call)
                gradients = factors.gradients(loss)
            losses.append(loss.detach())
            by_sequence.append({key: head_importance(gradient) for key, gradient in gradients.items()})
        if len(alone) > 1:
            self._factors = None
            # observed too, since that may change how the model computes: torch's encoder has a fast path
            with self._replay(self._model):
                together = self._loss(recorded.call)
            _check_divisible(float(together), torch.stack(losses).flatten().tolist())
        return by_sequence

    def _loss(self, call: Call) -> Tensor:
        """The loss of one call.

        Raises:
            Exception: If a head could not be multiplied: the loss is void then.
        """
        with self._context():
            loss = loss_of(call.run(self._model), call, self._loss_fn)
        if self._tap.failures:
            raise self._tap.failures[0]
        return loss


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
