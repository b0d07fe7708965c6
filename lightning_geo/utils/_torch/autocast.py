"""Autocast's cache of weights, which all threads share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["keep_autocast_cache"]


@contextlib.contextmanager
def keep_autocast_cache() -> Iterator[None]:
    """Leave autocast's cache alone in a thread beside training.

    A thread that leaves its outermost ``torch.autocast`` clears the weights that a forward pass in another
    thread has cast: used again, they would be cast anew, and their gradients be added up in other precision.
    Relies on ``torch.autocast_increment_nesting``, which counts by thread; checked on torch 2.13.0.
    """
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
