"""Read the gradient of every head's output in a later backward pass, without changing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.attention.sdpa import MULTI_HEAD
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.heads.head_scaling import FixedHeadsError, HeadView
from lightning_geo.utils._torch import version_of, without_function_modes

__all__ = ["HeadGradientHook"]

#: Positional and keyword arguments of a function.
_Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class HeadGradientHook:
    """Reports ⟨o, ∂L/∂o⟩ of every head of one attention call when a backward pass reaches it.

    The hook sits on the tensor that the attention function returned. It reads the gradient and returns
    nothing, so that forward and backward stay the same to the last bit. It keeps o alive until the backward
    pass, as autograd mostly does anyway.

    Args:
        on_gradient: Called with [B, H] in the first backward pass; L is the tensor that is differentiated.
    """

    def __init__(self, on_gradient: Callable[[Tensor], None]) -> None:
        self._on_gradient = on_gradient
        self._handle: Any = None
        #: why there is no gradient to report; ``None`` as long as there may be one
        self.absence: str | None = None

    def attach(self, result: Any, call: AttentionCall, multi_head: _Arguments | None = None) -> None:
        """Hook the result of the function that computed the attention.

        Args:
            result: The function's result: a tensor, or a tuple that begins with it.
            call: The same call, translated; its head outputs are known.
            multi_head: The function's arguments, if it is ``F.multi_head_attention_forward``.
        """
        result = result[0] if isinstance(result, tuple) else result
        if not result.requires_grad:
            self.absence = (
                "the training gradient does not reach it: everything it depends on is frozen, or reentrant "
                "checkpointing recomputes it"
            )
            return
        assert call.output is not None
        output = call.output.detach()  # undetached, the output's graph would keep this hook alive
        try:
            if multi_head is None:
                per_head = _viewed_by_head(result, output)
            else:
                per_head = _back_through_projection(output.shape[1], *multi_head)
        except LookupError as error:
            self.absence = str(error)
            return
        held, version = [output], version_of(output)

        def read_gradient(gradient: Tensor) -> None:
            try:
                if not held:
                    self.absence = "several losses were differentiated through one forward"
                    return
                output = held.pop()
                if version_of(output) != version:
                    self.absence = "the model changes its heads' outputs in place"
                    return
                with torch.no_grad(), without_function_modes():
                    self._on_gradient(_inner(output, per_head(gradient.detach())))
            except Exception as error:  # an error in a hook would abort the user's backward
                self.absence = f"{type(error).__name__}: {error}"

        self._handle = result.register_hook(read_gradient)

    def remove(self) -> None:
        """Remove the hook; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _viewed_by_head(result: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
    """Map the result's gradient to the gradient of head outputs that are a view of the result.

    Raises:
        LookupError: If they are no view of it.
    """
    view = HeadView.of(result, output)
    return lambda gradient: view(gradient.new_empty_strided(gradient.shape, view.stride).copy_(gradient))


def _back_through_projection(
    heads: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Map the gradient of ``F.multi_head_attention_forward``'s result to its heads' outputs.

    Raises:
        LookupError: In training with dropout, whose mask is lost: the outputs cannot be computed again.
    """
    bound = MULTI_HEAD.bind(*args, **kwargs)
    bound.apply_defaults()
    if bound.arguments["training"] and bound.arguments["dropout_p"] > 0:
        raise FixedHeadsError(
            "nn.MultiheadAttention hides its heads' outputs, and dropout cannot be repeated"
        )
    weight: Tensor = bound.arguments["out_proj_weight"].detach()

    def per_head(gradient: Tensor) -> Tensor:
        gradient = gradient if gradient.dim() == 3 else gradient.unsqueeze(1)  # an unbatched sequence
        back: Tensor = (gradient.to(weight.dtype) @ weight).unflatten(-1, (heads, -1))
        return back.permute(1, 2, 0, 3)

    return per_head


def _inner(output: Tensor, gradient: Tensor) -> Tensor:
    """Return ⟨output, gradient⟩ of every head, [B, H], in float32 or wider."""
    wide = torch.promote_types(output.dtype, torch.float32)
    return (output.to(wide) * gradient.to(wide)).sum((-2, -1))
