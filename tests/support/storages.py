"""Which tensors' memory is still held."""

from __future__ import annotations

import time

from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["alive"]


def alive(gathered: list[tuple[StorageWeakRef, int]], enough: int) -> int:
    """Add up the sizes of those whose memory is held.

    Threads of gloo hold the tensors of a collective for a moment after its end: they get a second to let go,
    unless the sum is small enough before.

    Args:
        gathered: Memory, and how many numbers it holds.
        enough: The sum that is small enough.
    """
    for _ in range(20):
        held = sum(numbers for storage, numbers in gathered if not storage.expired())
        if held <= enough:
            break
        time.sleep(0.05)
    return held
