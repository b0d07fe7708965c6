"""Act on single heads while a model runs: silence them, or ask what depends on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Tap

__all__ = ["HeadFactors", "scaled_heads"]

Factor = Callable[[CallKey, AttentionCall], Tensor | None]


class _Scaling:
    """An observer that looks at nothing and multiplies heads' outputs."""

    def __init__(self, factor: Factor) -> None:
        self._factor = factor

    def attention(self, key: CallKey, call: AttentionCall) -> Tensor | None:
        return self._factor(key, call)

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None: ...

    def block(self, block: BlockCall) -> None: ...


@contextlib.contextmanager
def scaled_heads(tap: Tap, factor: Factor, *, replays: bool = False) -> Iterator[None]:
    """Inside, whatever the tapped model computes has its heads' outputs multiplied.

    Args:
        tap: Of the model.
        factor: What to multiply the outputs of one attention call with, [B or 1, H]; ``None`` for nothing.
        replays: Whether this is done in replays that begin inside, rather than between them.

    Raises:
        Exception: Afterwards, if an attention could not be changed: what the model returned is void then.
    """
    with tap.open(_Scaling(factor), replays=replays):
        yield
    if tap.failures:
        raise tap.failures[0]


class HeadFactors:
    """A factor 1 on every head of every attention, by which an objective can be differentiated.

    The derivative by a head's factor is ⟨o, ∂objective/∂o⟩ with its output o, without keeping o or its
    gradient. Nothing else needs to require a gradient: the graph begins at the factors.

    Args:
        rows: Sequences that get a factor each, where a call has just as many; ``None`` for one in all.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._rows = rows
        self._complete = False
        #: by attention call, in the order in which they were made
        self.of: dict[CallKey, Tensor] = {}

    def __call__(self, key: CallKey, call: AttentionCall) -> Tensor:
        """Return the factor of a call, [1 or B, H]."""
        assert call.output is not None
        batch, heads = call.output.shape[:2]
        wide = torch.promote_types(call.output.dtype, torch.float32)
        rows = batch if batch == self._rows else 1
        if self._complete or key not in self.of:
            # under inference mode a tensor could have no gradient
            with torch.inference_mode(False):
                fresh = torch.ones(rows, heads, dtype=wide, device=call.device, requires_grad=True)
            if self._complete:  # recomputed in backward by activation checkpointing: part of no new graph
                return fresh
            self.of[key] = fresh
        return self.of[key]

    def slopes(self, objective: Tensor) -> dict[CallKey, Tensor]:
        """Return the objective's derivative by every factor, [1 or B, H]; NaN where it has none.

        No parameter's gradient is computed or touched.

        Raises:
            ValueError: If the objective depends on no head.
        """
        self._complete = True
        if not self.of or not objective.requires_grad:
            raise ValueError(
                "Expected the objective to depend on the heads' outputs but it is a constant to autograd: "
                "the model returned it without a graph."
            )
        # a power of two changes no digit, and float16 gradients do not vanish
        scale = torch.full_like(objective, 1024.0)
        found = torch.autograd.grad(objective, list(self.of.values()), scale, allow_unused=True)
        return {
            key: torch.full_like(factor, torch.nan).detach() if slope is None else slope / 1024.0
            for (key, factor), slope in zip(self.of.items(), found, strict=True)
        }
