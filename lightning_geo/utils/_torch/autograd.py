"""Private names of autograd."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["in_backward", "of_mean"]

#: Numbers by which torch's loss functions know their ``reduction``.
_MEAN, _SUM = 1, 2


def in_backward() -> bool:
    """Whether this thread runs a backward pass, in which checkpointing calls modules again.

    Relies on ``torch._C._current_graph_task_id``; checked on torch 2.13.0.
    """
    return torch._C._current_graph_task_id() != -1


def of_mean(loss: Tensor) -> float | Tensor | None:
    """Return a loss divided by the mean over its own targets.

    The graph shows which operations made the loss. 1 if the last one is a mean; n / d if it is the sum of the
    cross-entropies of n targets, divided by d. Relies on the names of nodes and on ``_saved_…``, what they
    keep for the backward pass; checked on torch 2.6.0 and 2.13.0.

    Args:
        loss: One number, with a graph.

    Returns:
        ``None`` for any other loss.
    """
    last = loss.grad_fn
    if getattr(last, "_saved_reduction", None) == _MEAN:
        return 1.0
    if last is None or last.name() != "DivBackward0":
        return None
    divided = last.next_functions[0][0]
    targets = getattr(divided, "_saved_total_weight", None)
    if not isinstance(targets, Tensor) or getattr(divided, "_saved_reduction", None) != _SUM:
        return None
    if targets.dtype not in (torch.float32, torch.float64):
        return None  # a half-precision count is rounded from 257 (bfloat16) on
    share: Tensor = targets.detach() / last._saved_other  # type: ignore[attr-defined]
    return share
