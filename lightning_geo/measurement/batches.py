"""Equal tensors of several layers, gathered until one operation serves them all.

On a GPU each operation is a launch of several microseconds, and on small inputs a sample is nothing but
launches. Tensors that are large by themselves are not gathered: copying them would cost more than it saves.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_geo.utils._torch import version_of

__all__ = ["LayerBatches"]

#: Bytes to gather before they are computed: on a CPU, what stays in its caches.
_LIMIT = {"cpu": 1 << 21}
_LIMIT_ELSEWHERE = 1 << 24

#: A GPU copies fast and launches slowly: it gathers this share of its memory.
_SHARE_OF_CUDA = 512

#: Most owners of one batch, however small their tensors are.
_OWNERS = 64

#: ``compute(owners, tensors, shared)``; tensors have a layer axis, one entry for each owner.
Compute = Callable[[list[Any], dict[str, Tensor], dict[str, Tensor | None]], None]


class LayerBatches:
    """Calls ``compute`` for several layers at once where their tensors are small and of equal shape.

    Args:
        compute: Called with the owners of the gathered tensors, the tensors, and what they share.
        axis: Where the layer axis is put.
    """

    def __init__(self, compute: Compute, axis: int = 0) -> None:
        self._compute = compute
        self._axis = axis
        self._open: dict[tuple[Any, ...], _Batch] = {}

    def add(
        self, owner: Any, tensors: Mapping[str, Tensor], shared: Mapping[str, Tensor | None], tag: Any = None
    ) -> None:
        """Gather an owner's tensors, which are copied, or compute them where they are large.

        Args:
            owner: What the results belong to.
            tensors: By name.
            shared: Tensors that only owners with these very tensors have in common, such as masks.
            tag: What else must be equal.
        """
        size = sum(x.numel() * _kept(x).itemsize for x in tensors.values())
        device = next(iter(tensors.values())).device
        capacity = _limit(device) // max(size, 1)
        with _no_grad():
            if capacity < 2:
                single = {name: x.unsqueeze(self._axis) for name, x in tensors.items()}
                self._compute([owner], single, dict(shared))
                return
            layout = tuple((name, x.shape, x.dtype, x.device) for name, x in tensors.items())
            signature = (tag, layout, tuple((name, id(x), _version(x)) for name, x in shared.items()))
            batch = self._open.get(signature)
            if batch is None:
                batch = self._open[signature] = _Batch(tensors, dict(shared), capacity, self._axis)
            batch.add(owner, tensors)
            if len(batch.owners) == batch.capacity:
                self._flush(batch)

    def flush(self) -> None:
        """Compute everything that was gathered, and let go of it."""
        batches, self._open = list(self._open.values()), {}
        with torch.no_grad():
            for batch in batches:
                self._flush(batch)

    def _flush(self, batch: _Batch) -> None:
        owners, batch.owners = batch.owners, []
        if owners:
            tensors = {n: x.narrow(self._axis, 0, len(owners)) for n, x in batch.tensors.items()}
            self._compute(owners, tensors, batch.shared)


class _Batch:
    """Memory for the tensors of several owners, in half precision on CUDA alone."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shared: dict[str, Tensor | None], capacity: int, axis: int
    ) -> None:
        # kept while the batch is open: other tensors would otherwise get their identity
        self._originals = shared
        #: as they were: the model, or whoever gave it the tensors, may write to them before they are used
        self.shared = {name: None if x is None else x.clone() for name, x in shared.items()}
        self.capacity = min(capacity, _OWNERS)
        self.owners: list[Any] = []
        self._axis = axis
        with torch.inference_mode(False):  # memory made in inference mode could not be written outside of it
            self.tensors = {
                name: x.new_empty(_with_axis(x.shape, axis, self.capacity), dtype=_kept(x))
                for name, x in tensors.items()
            }

    def add(self, owner: Any, tensors: Mapping[str, Tensor]) -> None:
        for name, x in tensors.items():
            self.tensors[name].select(self._axis, len(self.owners)).copy_(x)
        self.owners.append(owner)


@functools.cache
def _memory(device: torch.device) -> int:
    """Bytes that a CUDA device has."""
    return torch.cuda.get_device_properties(device).total_memory


def _limit(device: torch.device) -> int:
    """Bytes to gather on a device before they are computed."""
    if device.type == "cuda":
        return _memory(device) // _SHARE_OF_CUDA
    return _LIMIT.get(device.type, _LIMIT_ELSEWHERE)


def _no_grad() -> contextlib.AbstractContextManager[None]:
    # at hundreds of calls a sample, entering what is already so would cost several per cent of its time
    return torch.no_grad() if torch.is_grad_enabled() else contextlib.nullcontext()


def _version(x: Tensor | None) -> int:
    return 0 if x is None or x.is_inference() else version_of(x)


def _kept(x: Tensor) -> torch.dtype:
    # kernels on CUDA read half precision, so that half as much is copied; elsewhere it is widened anyway
    if x.is_cuda or not x.dtype.is_floating_point:
        return x.dtype
    return torch.promote_types(x.dtype, torch.float32)


def _with_axis(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis:])
