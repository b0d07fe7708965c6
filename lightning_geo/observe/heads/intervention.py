"""Scale an attention call's heads, or hook their gradient, at an observer's request."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.held_call import Held
from lightning_geo.observe.heads.head_gradients import HeadGradientHook
from lightning_geo.observe.heads.head_scaling import (
    FixedHeadsError,
    check_scalable,
    scale_multi_head,
    scale_result,
)

__all__ = ["Intervention"]

#: Positional and keyword arguments of ``F.multi_head_attention_forward``.
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Intervention:
    """Holds an observer's request for one attention call until the attention function returns."""

    def __init__(self) -> None:
        self._requested: tuple[AttentionCall, Tensor | HeadGradientHook] | None = None

    @property
    def pending(self) -> bool:
        """Whether there is a request for the function that returns next."""
        return self._requested is not None

    def clear(self) -> None:
        """Forget the request, and the call's tensors with it."""
        self._requested = None

    def request(self, held: Held, answer: Tensor | HeadGradientHook | None, name: str) -> None:
        """Take the observer's request for a call.

        Args:
            held: The call. If it was held until its module ended, the model already used its result.
            answer: Factors of its heads' outputs, a hook on their gradient, or ``None`` for neither.
            name: Name in messages of the module that computes it.

        Raises:
            LookupError: If the heads' outputs are unknown, or the model already used them.
            ValueError: If the factors are of another shape.
        """
        if answer is None:
            return
        if isinstance(answer, Tensor):
            check_scalable(name, held.call, answer)
        elif held.call.output is None:
            answer.absence = "the outputs of its heads are unknown"
            return
        if not held.late:
            self._requested = held.call, answer
        elif isinstance(answer, HeadGradientHook):
            answer.attach(held.result, held.call, held.multi_head)
        else:
            raise FixedHeadsError(
                f"{name!r} computes its attention in several parts, whose heads cannot be scaled"
            )

    def apply(self, result: Any, multi_head: _Arguments | None = None) -> Any:
        """Return the result for the model: as it is, or with scaled heads.

        Args:
            result: The attention function's result.
            multi_head: The function's arguments, if it is ``F.multi_head_attention_forward``.

        Raises:
            LookupError: If the heads' outputs are no view of the result.
        """
        if self._requested is None:
            return result
        (call, answer), self._requested = self._requested, None
        if isinstance(answer, HeadGradientHook):
            answer.attach(result, call, multi_head)
            return result
        if multi_head is not None:
            return scale_multi_head(result, call, answer, *multi_head)
        return scale_result(result, call, answer)
