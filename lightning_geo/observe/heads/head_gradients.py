"""Hear in a backward to come what each head's output is worth to what is differentiated; nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.attention.sdpa import MULTI_HEAD
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.heads.head_scaling import HeadView
from lightning_geo.utils._torch import version_of, without_function_modes

__all__ = ["HeadGradientHook"]

#: Positional and keyword arguments of a function.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class HeadGradientHook:
    """Tells ⟨o, ∂L/∂o⟩ of every head of one attention call when a backward comes through it.

    A hook on the tensor that computing the attention returned: it reads the gradient and returns nothing, so
    that forward and backward are what they were, to the last bit. It keeps o alive until then, as autograd
    mostly does anyway.

    Args:
        tell: Given [B, H] at the first backward, L being what is differentiated.
    """

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        self._tell = tell
        self._handle: Any = None
        #: why nothing can be told, if so
        self.absence: str | None = None

    def attach(self, result: Any, call: AttentionCall, multi_head: Arguments | None = None) -> None:
        """Listen at what computed the attention.

        Args:
            result: What it returned: a tensor, or a tuple that begins with it.
            call: The same call, translated; its head outputs are known.
            multi_head: The arguments, if it was ``F.multi_head_attention_forward``.
        """
        result = result[0] if isinstance(result, tuple) else result
        if not result.requires_grad:
            self.absence = (
                "training's gradient does not reach it: all that it depends on is frozen, or reentrant "
                "checkpointing recomputes it"
            )
            return
        assert call.output is not None
        output = call.output.detach()  # with a graph, it would keep its own hook alive
        try:
            if multi_head is None:
                per_head = _seen_by_head(result, output)
            else:
                per_head = _back_through_projection(output.shape[1], *multi_head)
        except LookupError as error:
            self.absence = str(error)
            return
        held, version = [output], version_of(output)

        def hear(gradient: Tensor) -> None:
            try:
                if not held:
                    self.absence = "several losses were differentiated through one forward"
                    return
                output = held.pop()
                if version_of(output) != version:
                    self.absence = "the model changes its heads' outputs in place"
                    return
                with torch.no_grad(), without_function_modes():
                    self._tell(_inner(output, per_head(gradient.detach())))
            except Exception as error:  # the backward that is running is not to see this
                self.absence = f"{type(error).__name__}: {error}"

        self._handle = result.register_hook(hear)

    def remove(self) -> None:
        """Listen no more; harmless when done twice."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _seen_by_head(result: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
    """From the result's gradient to that of head outputs that are a view of it."""
    view = HeadView.of(result, output)
    return lambda gradient: view(gradient.new_empty_strided(gradient.shape, view.stride).copy_(gradient))


def _back_through_projection(
    heads: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Tensor], Tensor]:
    """From the gradient of what ``F.multi_head_attention_forward`` returns, back to its heads' outputs.

    Raises:
        LookupError: In training with dropout, where the outputs cannot be computed again.
    """
    given = MULTI_HEAD.bind(*args, **kwargs)
    given.apply_defaults()
    if given.arguments["training"] and given.arguments["dropout_p"] > 0:
        raise LookupError("nn.MultiheadAttention hides its heads' outputs, and dropout cannot be repeated")
    weight: Tensor = given.arguments["out_proj_weight"].detach()

    def per_head(gradient: Tensor) -> Tensor:
        gradient = gradient if gradient.dim() == 3 else gradient.unsqueeze(1)  # of one sequence
        back: Tensor = (gradient.to(weight.dtype) @ weight).unflatten(-1, (heads, -1))
        return back.permute(1, 2, 0, 3)

    return per_head


def _inner(output: Tensor, gradient: Tensor) -> Tensor:
    """[B, H], in float32 at least."""
    wide = torch.promote_types(output.dtype, torch.float32)
    return (output.to(wide) * gradient.to(wide)).sum((-2, -1))
