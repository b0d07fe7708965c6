"""Importance from training's own backward: what its gradient says of every head, undone of what scaled it."""

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
class _Heard:
    """One attention call of training's forward, and what its backward said of it."""

    key: CallKey
    sequences: int
    hook: HeadGradientHook
    #: [sequence, head], once there was a backward
    slopes: Tensor | None = None


class TrainingGradients:
    """Hears what the heads of one observed model are worth to the loss of a training step.

    Backward starts from the loss as Lightning scaled it, which is undone. In the loss of B sequences each
    counts for a B-th, as in a mean: its slope is multiplied by B, to be that of its own loss. Where the model
    averages over all tokens instead, a sequence with more of them than the others have comes out larger by
    that ratio. A call that cannot be divided into sequences counts as one.
    """

    def __init__(self) -> None:
        #: what Lightning multiplied the loss with before the backward that runs; None while nobody knows
        self.factor: float | Tensor | None = None
        self._sequences: int | None = None
        self._heard: list[_Heard] = []

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The observed model is about to be called with these."""
        self._sequences = None
        with contextlib.suppress(Exception):  # the model is running: it is not to see this
            rows, divisible = rows_of(Call(args, kwargs))
            self._sequences = rows if divisible else 1

    def listen(self, key: CallKey, call: AttentionCall) -> HeadGradientHook:
        """Return what is to listen at one attention call."""

        def tell(slopes: Tensor) -> None:
            if call.documents is not None:
                hook.absence = (
                    "its rows hold several documents, whose gradients the training loss adds up; "
                    'with `source="probe"` each document runs alone'
                )
            elif self.factor is None:
                hook.absence = "its backward was not Lightning's, so that nobody knows what scaled the loss"
            elif slopes.shape[0] % heard.sequences:
                hook.absence = f"its batch of {slopes.shape[0]} is no multiple of {heard.sequences} sequences"
            else:
                # attention in windows has several rows of one sequence, one after the other
                slopes = slopes.unflatten(0, (heard.sequences, -1)).sum(1)
                heard.slopes = slopes * heard.sequences / self.factor

        hook = HeadGradientHook(tell)
        heard = _Heard(key, self._sequences or 1, hook)
        if self._sequences is None:
            hook.absence = "the observed model itself was not called, so that its sequences cannot be told"
        self._heard.append(heard)
        return hook

    def importances(self) -> Iterator[dict[CallKey, Tensor]]:
        """Yield the importance of the heads, [sequence, head] by attention call, as far as it is known."""
        for heard in self._heard:
            if heard.slopes is not None and heard.hook.absence is None:
                yield {heard.key: head_importance(heard.slopes)}

    @property
    def absences(self) -> dict[str, str]:
        """Attention modules of which it is not known, and why."""
        found = ((heard.key.module, self._absence(heard)) for heard in self._heard)
        return {module: reason for module, reason in found if reason is not None}

    @staticmethod
    def _absence(heard: _Heard) -> str | None:
        silent = "training's backward did not come through it" if heard.slopes is None else None
        return heard.hook.absence or silent

    def close(self) -> None:
        """Remove every hook; harmless when done twice."""
        for heard in self._heard:
            heard.hook.remove()
        self._heard.clear()
