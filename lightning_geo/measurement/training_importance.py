"""Head importance from the training backward pass, with loss scaling removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_geo.functional import head_importance
from lightning_geo.measurement.importance import loss_of
from lightning_geo.observe import AttentionCall, CallKey, HeadGradientHook
from lightning_geo.observe.replay.undisturbed_run import Call
from lightning_geo.probe.call import rows_of
from lightning_geo.probe.probe import LOSS_DIVISOR
from lightning_geo.utils._torch import of_mean, without_function_modes
from lightning_geo.utils.errors import call_all

__all__ = ["TrainingGradients"]

#: Why the factor of a loss is unknown.
_ANOTHER_LOSS = (
    "the training backward pass did not begin from the `loss` that the model returns, so that the scale of "
    "the loss is unknown"
)
_DIVIDED = f"how its loss uses `{LOSS_DIVISOR}` is unknown"


@dataclass
class _Forward:
    """One call of the observed model, and what multiplied its loss before the backward pass."""

    sequences: int
    #: whether the model was asked to divide its loss by the labels of all batches of the step
    divides: bool
    #: ``None`` until a backward pass reached the loss that the model returned
    factor: Tensor | None = None
    #: why it is unknown, as long as it is
    absence: str = _ANOTHER_LOSS

    def read_factor(self, loss: Tensor) -> Callable[[], None]:
        """Wait for the gradient that a backward pass brings to the loss; returns what undoes it.

        That gradient is what everything outside the model multiplied the loss with: accumulation, the loss
        scale, the number of processes. What the model itself divided a mean by counts too.
        """
        share: float | Tensor | None = 1.0
        if self.divides:
            with torch.no_grad(), without_function_modes():
                share = of_mean(loss)
        if share is None:
            self.absence = _DIVIDED
            return lambda: None

        def read(gradient: Tensor) -> None:
            with torch.no_grad(), without_function_modes():
                self.factor = gradient.detach().float() * share

        handle: Any = loss.register_hook(read)
        return handle.remove  # type: ignore[no-any-return]


@dataclass
class _CallGradient:
    """One attention call of the training forward pass, and its heads' gradients from the backward pass."""

    key: CallKey
    sequences: int
    hook: HeadGradientHook
    #: [sequence, head]; ``None`` until a backward pass reached the call
    values: Tensor | None = None


class TrainingGradients:
    """Collects the gradients of the heads' outputs of one observed model in a training step.

    The backward pass starts from the loss as the trainer scaled it; the scale is divided out. Lightning tells
    it; of other loops it is the gradient that reaches the loss which the model returns. The loss of a batch
    is the mean over its B sequences, so that each gradient is multiplied by B to be that of the sequence's
    own loss. Where the model averages over all tokens instead, a sequence with more tokens than the others
    comes out larger by that ratio. A call that cannot be divided into sequences counts as one.
    """

    def __init__(self) -> None:
        #: factor by which Lightning multiplied the loss of the running backward pass; None while unknown
        self.factor: float | Tensor | None = None
        #: the call of the observed model that began last
        self._forward: _Forward | None = None
        self._losses: list[Callable[[], None]] = []
        self._gradients: list[_CallGradient] = []

    def begins(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the sequences of a call of the observed model that is about to begin."""
        self._forward = None
        with contextlib.suppress(Exception):  # raised here, it would abort the user's training step
            rows, divisible = rows_of(Call(args, kwargs))
            divides = kwargs.get(LOSS_DIVISOR) is not None
            self._forward = _Forward(rows if divisible else 1, divides)

    def ends(self, output: Any) -> None:
        """Look for the loss that a call of the observed model has returned.

        Args:
            output: What it returned.
        """
        with contextlib.suppress(Exception):  # as above; without a loss its scale stays unknown
            loss = loss_of(output, Call((), {}), None)
            if self._forward is not None and loss.requires_grad:
                self._losses.append(self._forward.read_factor(loss))

    def hook(self, key: CallKey, call: AttentionCall) -> HeadGradientHook:
        """Return the hook for the gradient of one attention call."""
        forward = self._forward

        def on_gradient(values: Tensor) -> None:
            factor = self.factor
            if factor is None and forward is not None:
                factor = forward.factor
            if call.documents is not None:
                hook.absence = (
                    "its rows hold several documents, whose gradients the training loss adds up; "
                    'with `source="probe"` each document runs alone'
                )
            elif factor is None:
                hook.absence = _ANOTHER_LOSS if forward is None else forward.absence
            elif values.shape[0] % gradient.sequences:
                hook.absence = (
                    f"its batch of {values.shape[0]} is no multiple of {gradient.sequences} sequences"
                )
            else:
                # Windowed attention splits a sequence into several consecutive rows: add them up.
                values = values.unflatten(0, (gradient.sequences, -1)).sum(1)
                gradient.values = values * gradient.sequences / factor

        hook = HeadGradientHook(on_gradient)
        gradient = _CallGradient(key, 1 if forward is None else forward.sequences, hook)
        if forward is None:
            hook.absence = "the observed model itself was not called, so that its sequences are unknown"
        self._gradients.append(gradient)
        return hook

    def importances(self) -> Iterator[dict[CallKey, Tensor]]:
        """Yield the importance of the heads, [sequence, head] by attention call, as far as it is known."""
        for gradient in self._gradients:
            if gradient.values is not None and gradient.hook.absence is None:
                yield {gradient.key: head_importance(gradient.values)}

    @property
    def absences(self) -> dict[str, str]:
        """Attention modules whose importance is unknown, with the reason."""
        reasons = ((gradient.key.module, self._absence(gradient)) for gradient in self._gradients)
        return {module: reason for module, reason in reasons if reason is not None}

    @staticmethod
    def _absence(gradient: _CallGradient) -> str | None:
        unreached = "the training backward pass did not reach it" if gradient.values is None else None
        return gradient.hook.absence or unreached

    def close(self) -> None:
        """Remove every hook; a second call does nothing."""
        call_all(*self._losses)
        self._losses.clear()
        for gradient in self._gradients:
            gradient.hook.remove()
        self._gradients.clear()
