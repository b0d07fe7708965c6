"""Forward passes that several processes make together, because each of them has a part of the layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist

from lightning_geo.utils._torch import BeforeCollectives, SplitGroup
from lightning_geo.utils.errors import OtherRankError

__all__ = ["Lockstep"]


class Lockstep:
    """Ends a forward pass on all processes of a group where one of them fails.

    In tensor parallelism each layer adds up or gathers what the processes computed. One that fails would
    leave the others waiting there. So all of them agree before each of these collectives, and at the end of
    the pass, that each is still there; one that fails says so instead, and the others leave the pass, too.

    Args:
        split: The group.
        device: Where its backend communicates.
    """

    def __init__(self, split: SplitGroup, device: torch.device) -> None:
        self._split = split
        self._device = device
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
            with BeforeCollectives(self._split, self._agree):
                yield
        except BaseException:
            self.fail()
            raise
        self._agree()

    def fail(self) -> None:
        """Let the others know that this process makes no pass, or does not complete it; harmless twice."""
        if not self.broken:
            self.broken = True
            self._all_there(here=False)

    def _agree(self) -> None:
        if not self._all_there(here=True):
            self.broken = True
            raise OtherRankError("a rank with other heads of the same layers failed")

    def _all_there(self, *, here: bool) -> bool:
        flag = torch.tensor(int(here), dtype=torch.int32, device=self._device)
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self._split.group)
        return bool(flag)
