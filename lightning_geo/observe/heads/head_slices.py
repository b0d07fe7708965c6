"""Which of a layer's heads this process has, where tensor parallelism splits layers over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_geo.observe.call import AttentionCall, HeadSlice
from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.utils._torch import SplitGroup, output_widths

__all__ = ["HeadSlices"]

_UNKNOWN = (
    "tensor parallelism splits it, and which of its heads are here is unknown: queries, keys and values need "
    "a linear layer each, split in equal parts of whole heads (so at least as many key heads as ranks)"
)


class HeadSlices:
    """Finds the slice of a layer's heads that a call shows, from the split linear layers of its module."""

    def __init__(self) -> None:
        self._groups: Sequence[SplitGroup] = ()

    def begin(self, groups: Sequence[SplitGroup]) -> None:
        """Begin a sample.

        Args:
            groups: Processes that have parts of the model's layers.
        """
        self._groups = groups

    def slice_of(self, call: AttentionCall, path: str, modules: Mapping[str, nn.Module]) -> HeadSlice:
        """Return which heads a call shows.

        Args:
            call: The call.
            path: Of the module that computes it.
            modules: Those of the model by path.

        Raises:
            LeftOutError: If that cannot be known.
        """
        if not self._groups:
            return HeadSlice()
        module = modules.get(path)
        if module is None or not _matrices(module):  # a core whose projections are its parent's
            module = modules.get(path.rpartition(".")[0])
        if len(self._groups) > 1 or module is None or not _matrices(module):
            raise LeftOutError(_UNKNOWN)
        widths = output_widths(module)
        query = call.output if call.query is None else call.query
        if not widths:
            return HeadSlice()
        if query is None:
            raise LeftOutError(_UNKNOWN)
        (group,) = self._groups
        parts = len(group.ranks)
        width, (whole, own) = call.heads * query.shape[-1], max(widths)
        if width == whole:  # its layers gather what they compute
            return HeadSlice()
        equal = {part for full, part in widths if full == part * parts}
        shared = [x.shape[1] * x.shape[3] for x in (call.key, call.value) if x is not None]
        if width != own or own not in equal or not (equal - {full for full, _ in widths}).issuperset(shared):
            raise LeftOutError(_UNKNOWN)
        return HeadSlice(group.index, parts)


def _matrices(module: nn.Module) -> bool:
    return any(parameter.dim() == 2 for parameter in module.parameters())
