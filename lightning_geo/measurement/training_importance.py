"""Head importance from the training backward pass, with loss scaling removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_geo.functional import head_importance
from lightning_geo.observe import AttentionCall, CallKey, HeadGradientHook
from lightning_geo.observe.replay.undisturbed import Call
from lightning_geo.probe.call import rows_of

__all__ = ["TrainingGradients"]


@dataclass
class _CallGradient:
    """One attention call of the training forward pass, and its heads' gradients from the backward pass."""

    key: CallKey
    sequences: int
    hook: HeadGradientHook
    #: [sequence, head]; ``None`` until a backward pass reached the call
    slopes: Tensor | None = None


class TrainingGradients:
    """Collects the gradients of the heads' outputs of one observed model in a training step.

    The backward pass starts from the loss as Lightning scaled it; the scale is divided out. The loss of a
    batch is the mean over its B sequences, so that each slope is multiplied by B to be the slope of that
    sequence's own loss. Where the model averages over all tokens instead, a sequence with more tokens than
    the others comes out larger by that ratio. A call that cannot be divided into sequences counts as one.
    """

    def __init__(self) -> None:
        #: factor by which Lightning multiplied the loss of the running backward pass; None while unknown
        self.factor: float | Tensor | None = None
        self._sequences: int | None = None
        self._gradients: list[_CallGradient] = []

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the sequences of a call of the observed model that is about to begin."""
        self._sequences = None
        with contextlib.suppress(Exception):  # raised here, it would abort the user's training step
            rows, divisible = rows_of(Call(args, kwargs))
            self._sequences = rows if divisible else 1

    def hook(self, key: CallKey, call: AttentionCall) -> HeadGradientHook:
        """Return the hook for the gradient of one attention call."""

        def on_gradient(slopes: Tensor) -> None:
            if call.documents is not None:
                hook.absence = (
                    "its rows hold several documents, whose gradients the training loss adds up; "
                    'with `source="probe"` each document runs alone'
                )
            elif self.factor is None:
                hook.absence = "its backward pass was not run by Lightning, so that the loss scale is unknown"
            elif slopes.shape[0] % gradient.sequences:
                hook.absence = (
                    f"its batch of {slopes.shape[0]} is no multiple of {gradient.sequences} sequences"
                )
            else:
                # Windowed attention splits a sequence into several consecutive rows: add them up.
                slopes = slopes.unflatten(0, (gradient.sequences, -1)).sum(1)
                gradient.slopes = slopes * gradient.sequences / self.factor

        hook = HeadGradientHook(on_gradient)
        gradient = _CallGradient(key, self._sequences or 1, hook)
        if self._sequences is None:
            hook.absence = "the observed model itself was not called, so that its sequences are unknown"
        self._gradients.append(gradient)
        return hook

    def importances(self) -> Iterator[dict[CallKey, Tensor]]:
        """Yield the importance of the heads, [sequence, head] by attention call, as far as it is known."""
        for gradient in self._gradients:
            if gradient.slopes is not None and gradient.hook.absence is None:
                yield {gradient.key: head_importance(gradient.slopes)}

    @property
    def absences(self) -> dict[str, str]:
        """Attention modules whose importance is unknown, with the reason."""
        reasons = ((gradient.key.module, self._absence(gradient)) for gradient in self._gradients)
        return {module: reason for module, reason in reasons if reason is not None}

    @staticmethod
    def _absence(gradient: _CallGradient) -> str | None:
        unreached = "the training backward pass did not reach it" if gradient.slopes is None else None
        return gradient.hook.absence or unreached

    def close(self) -> None:
        """Remove every hook; a second call does nothing."""
        for gradient in self._gradients:
            gradient.hook.remove()
        self._gradients.clear()
