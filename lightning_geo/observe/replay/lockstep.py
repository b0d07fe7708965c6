"""Forward passes that several processes make together, because each of them has a part of the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from lightning_geo.utils.errors import OtherRankError

__all__ = ["Lockstep"]

#: Where a pass is when a process has left it, and when it has ended; other places are not negative.
_LEFT, _ENDED = -2, -1


class Lockstep:
    """Ends a forward pass on all processes of a group where one of them fails.

    One that fails would leave the others waiting in the next operation that they make together. So all of
    them agree before each of these operations, and at the end of the pass, that each is there, at the same
    place. A process that fails reports that instead, and the others leave the pass, too.

    Args:
        device: Where the group's backend communicates.
        group: The group; None for all processes.
    """

    def __init__(self, device: torch.device, group: Any = None) -> None:
        self._device = device
        self._group = group
        #: whether the processes know of a failure since :meth:`begin`
        self.broken = False

    def begin(self) -> None:
        """Forget failures; all processes have agreed that each is there."""
        self.broken = False

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Make a forward pass inside.

        Raises:
            OtherRankError: If another process failed in it.
        """
        try:
            yield
        except BaseException:
            self.fail()
            raise
        self.agree(_ENDED)

    def agree(self, place: int = 0) -> None:
        """Agree that all processes are there.

        Args:
            place: Where this one is: what it is about to do with the others.

        Raises:
            OtherRankError: If another one failed, or is elsewhere; again at each call, because a model may
                catch it and go on.
        """
        if self.broken or not self._all_at(place):
            self.broken = True
            raise OtherRankError("another rank failed in its forward pass")

    def fail(self) -> None:
        """Let the others know that this process makes no pass, or does not complete it; harmless twice."""
        if not self.broken:
            self.broken = True
            self._all_at(_LEFT)

    def _all_at(self, place: int) -> bool:
        places = torch.tensor([place, -place], dtype=torch.int32, device=self._device)
        dist.all_reduce(places, dist.ReduceOp.MIN, group=self._group)
        return places.tolist() == [place, -place] and place != _LEFT
