"""Equal tensors of several layers, gathered until one operation serves them all.

On a GPU each operation is a launch of several microseconds, and on small inputs a sample is nothing but
launches. Tensors that are large by themselves are not gathered: copying them would cost more than it saves.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_geo.kernels.workspace import kept_of
from lightning_geo.utils._torch import copy_all, version_of

__all__ = ["BatchEntry", "LayerBatches", "limit_of"]

#: Bytes to gather before they are computed: on a CPU, what stays in its caches.
_LIMIT = {"cpu": 1 << 21}
_LIMIT_ELSEWHERE = 1 << 24

#: A GPU copies fast and launches slowly: it gathers this share of its memory.
_SHARE_OF_CUDA = 512

#: Devices on which each tensor lies as it did, so that one operation copies several; kernels there read any
#: strides. Elsewhere the layer axis lies where it is put, and is flattened with its neighbour without a copy.
_APART = ("cuda",)

#: Most owners of one batch, however small their tensors are.
_OWNERS = 64

#: ``compute(owners, tensors, shared)``; tensors have a layer axis, one entry for each owner.
_Compute = Callable[[list[Any], dict[str, Tensor], dict[str, Tensor | None]], None]


class BatchEntry(NamedTuple):
    """Tensors of one owner.

    Args:
        owner: What the results belong to.
        tensors: By name.
        shared: Tensors that only owners with these very tensors have in common, such as masks.
        tag: What else must be equal.
        times: How many owners with equal tensors one call has.
    """

    owner: Any
    tensors: Mapping[str, Tensor]
    shared: Mapping[str, Tensor | None]
    tag: Any = None
    times: int = 1


class LayerBatches:
    """Calls ``compute`` for several layers at once where their tensors are small and of equal shape.

    Args:
        compute: A method, called with the owners of the gathered tensors, the tensors, and what they share.
        axis: Where the layer axis is put.
        calls: How many calls are expected, so that no memory is taken for more; None where nobody knows.
        owned: Whether nobody else writes to the tensors: where one operation copies several, they then wait
            for those of other calls.
    """

    def __init__(
        self, compute: _Compute, axis: int = 0, calls: int | None = None, owned: bool = False
    ) -> None:
        # A cycle with the method's object would hold the memory of a sample that is given up until the
        # garbage collector runs.
        self._compute = weakref.WeakMethod(compute)
        self._axis = axis
        self._calls = calls
        self._owned = owned
        self._open: dict[tuple[Any, ...], _Batch] = {}

    def add(self, *gathered: BatchEntry) -> None:
        """Gather tensors, which are copied, or compute them where they are large."""
        copies = _Copies()
        with _no_grad():
            for one in gathered:
                self._add(one, copies)
            copies.run()
            for batch in [batch for batch in self._open.values() if batch.is_full]:
                self._flush(batch)

    def _add(self, one: BatchEntry, copies: _Copies) -> None:
        owner, tensors, shared, tag, times = one
        size = sum(x.numel() * _kept(x).itemsize for x in tensors.values())
        device = next(iter(tensors.values())).device
        waits = self._owned and device.type in _APART
        capacity = limit_of(device) // max(size * (1 + waits), 1)  # they wait beside the memory for them
        if capacity < 2:
            single = {name: x.unsqueeze(self._axis) for name, x in tensors.items()}
            self._run([owner], single, _kept_copies(shared))
            return
        layout = tuple((name, x.shape, x.dtype, x.device) for name, x in tensors.items())
        signature = (tag, layout, tuple((name, id(x), _version(x)) for name, x in shared.items()))
        batch = self._open.get(signature)
        if batch is None:
            capacity = min(capacity, _OWNERS if self._calls is None else self._calls * times)
            batch = self._open[signature] = _Batch(tensors, dict(shared), max(capacity, 1), self._axis)
        if batch.is_full:
            copies.run()
            self._flush(batch)
        batch.add(owner, tensors, batch.copies if waits else copies)

    def _run(self, owners: list[Any], tensors: dict[str, Tensor], shared: dict[str, Tensor | None]) -> None:
        compute = self._compute()
        assert compute is not None
        compute(owners, tensors, shared)

    def flush(self) -> None:
        """Compute everything that was gathered, and let go of it."""
        batches, self._open = list(self._open.values()), {}
        with torch.no_grad():
            for batch in batches:
                self._flush(batch)

    def _flush(self, batch: _Batch) -> None:
        batch.copies.run()
        owners, batch.owners = batch.owners, []
        if owners:
            tensors = {n: x.narrow(self._axis, 0, len(owners)) for n, x in batch.tensors.items()}
            self._run(owners, tensors, batch.shared)


class _Copies:
    """Copies that one operation makes where their tensors lie alike, as few launches as possible."""

    def __init__(self) -> None:
        self._alike: dict[object, list[tuple[Tensor, Tensor]]] = {}

    def add(self, target: Tensor, source: Tensor) -> None:
        """Copy a tensor when :meth:`run` is called."""
        # those that lie otherwise would have the others copied one by one, too
        alike = target.dtype, source.dtype if target.stride() == source.stride() else None
        self._alike.setdefault(alike, []).append((target, source))

    def run(self) -> None:
        """Make the copies."""
        alike, self._alike = self._alike, {}
        for pairs in alike.values():
            copy_all(*map(list, zip(*pairs, strict=True)))


class _Batch:
    """Memory for the tensors of several owners, in half precision on CUDA alone."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shared: dict[str, Tensor | None], capacity: int, axis: int
    ) -> None:
        # kept while the batch is open: other tensors would otherwise get their identity
        self._originals = shared
        #: as they were: the model, or whoever gave it the tensors, may write to them before they are used
        self.shared = _kept_copies(shared)
        self.capacity = capacity
        self.owners: list[Any] = []
        #: those that wait
        self.copies = _Copies()
        self._axis = axis
        with torch.inference_mode(False):  # memory made in inference mode could not be written outside of it
            self.tensors = {name: _memory_for(x, axis, capacity) for name, x in tensors.items()}

    @property
    def is_full(self) -> bool:
        return len(self.owners) == self.capacity

    def add(self, owner: Any, tensors: Mapping[str, Tensor], copies: _Copies) -> None:
        for name, x in tensors.items():
            copies.add(self.tensors[name].select(self._axis, len(self.owners)), x)
        self.owners.append(owner)


def _kept_copies(shared: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    """Copies of tensors that calls share, made once a sample: what is computed of them waits for others'."""
    return {name: None if x is None else kept_of(_copied, (x,)) for name, x in shared.items()}


def _copied(tensors: tuple[Tensor]) -> Tensor:
    return tensors[0].clone()


@functools.cache
def _memory(device: torch.device) -> int:
    """Bytes that a CUDA device has."""
    return torch.cuda.get_device_properties(device).total_memory


def limit_of(device: torch.device) -> int:
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


def _memory_for(x: Tensor, axis: int, size: int) -> Tensor:
    """Memory for so many tensors like one, along an axis."""
    if x.device.type in _APART:
        lying = torch.empty_like(x, device="meta").stride()
        return x.new_empty_strided((size, *x.shape), (x.numel(), *lying), dtype=_kept(x)).movedim(0, axis)
    return x.new_empty((*x.shape[:axis], size, *x.shape[axis:]), dtype=_kept(x))
