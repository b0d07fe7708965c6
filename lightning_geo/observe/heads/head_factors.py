"""Scale single heads while a model runs: silence them, or differentiate by them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Tap
from lightning_geo.utils.errors import ArgumentError

__all__ = ["HeadFactors", "scaled_heads"]

_Factor = Callable[[CallKey, AttentionCall], Tensor | None]


class _Scaling:
    """An observer that measures nothing and multiplies heads' outputs."""

    def __init__(self, factor: _Factor) -> None:
        self._factor = factor

    def attention(self, key: CallKey, call: AttentionCall) -> Tensor | None:
        return self._factor(key, call)

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None: ...

    def block(self, block: BlockCall) -> None: ...


@contextlib.contextmanager
def scaled_heads(tap: Tap, factor: _Factor, *, replays: bool = False) -> Iterator[None]:
    """Multiply the heads' outputs of the tapped model while the context is open.

    Args:
        tap: The model's tap.
        factor: Returns the factors of one attention call's heads, [B or 1, H]; ``None`` to leave them alone.
        replays: Whether to scale in replays that begin inside the context, rather than between them.

    Raises:
        Exception: At the end, if an attention could not be scaled: the model's results are invalid then.
    """
    with tap.open(_Scaling(factor), replays=replays):
        yield
    if tap.failures:
        raise tap.failures[0]


class HeadFactors:
    """A factor of 1 on every head of every attention, for differentiating an objective by them.

    The derivative by a head's factor is ⟨o, ∂objective/∂o⟩ with the head's output o; neither o nor its
    gradient is stored. Nothing else needs to require a gradient: the graph begins at the factors.

    Args:
        rows: Number of sequences. A call with as many has a factor for each sequence, any other call one
            factor for all; ``None`` for one factor in every call.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows
        self._complete = False
        #: factors by attention call, in the order of the calls
        self._by_call: dict[CallKey, Tensor] = {}

    def __call__(self, key: CallKey, call: AttentionCall) -> Tensor:
        """Return the factor of a call, [1 or B, H]."""
        assert call.output is not None
        batch, heads = call.output.shape[:2]
        wide = torch.promote_types(call.output.dtype, torch.float32)
        rows = batch if batch == self._rows else 1
        if self._complete or key not in self._by_call:
            # A tensor made under inference mode cannot have a gradient: leave the mode.
            with torch.inference_mode(False):
                fresh = torch.ones(rows, heads, dtype=wide, device=call.device, requires_grad=True)
            if self._complete:  # activation checkpointing recomputes the call in backward: no new graph
                return fresh
            self._by_call[key] = fresh
        return self._by_call[key]

    def gradients(self, objective: Tensor) -> dict[CallKey, Tensor]:
        """Return the objective's derivative by every factor, [1 or B, H]; NaN if it does not depend on one.

        No parameter's gradient is computed or touched.

        Raises:
            ValueError: If the objective depends on no head.
        """
        self._complete = True
        if not self._by_call or not objective.requires_grad:
            raise ArgumentError(
                "Expected the objective to depend on the heads' outputs but it is a constant to autograd: "
                "the model returned it without a graph."
            )
        # Scaled up, float16 gradients do not underflow; dividing by a power of two afterwards is exact.
        scale = torch.full_like(objective, 1024.0)
        scaled = torch.autograd.grad(objective, list(self._by_call.values()), scale, allow_unused=True)
        return {
            key: torch.full_like(factor, torch.nan).detach() if gradient is None else gradient / 1024.0
            for (key, factor), gradient in zip(self._by_call.items(), scaled, strict=True)
        }
