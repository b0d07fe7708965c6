"""Merges statistics over ranks, by the same collectives on every rank, whatever happened to it."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_geo.measurement.sample_statistics import SampleStatistics
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.observe import Coverage
from lightning_geo.utils.ranks import world_size

__all__ = ["Merged", "reduce_over_ranks"]

#: Bytes from which a sum is reduced by itself.
_LARGE = 1 << 22


class Merged(NamedTuple):
    """Whether a sample was merged over ranks; the same on every rank.

    Args:
        valid: Whether it is whole on all ranks, and of the same layers.
        pending: Whether any rank has a warning that rank 0 does not know; False where it is not valid.
    """

    valid: bool
    pending: bool


def reduce_over_ranks(
    samples: list[SampleStatistics],
    ok: bool,
    device: torch.device,
    coverage: Coverage | None = None,
    pending: int = 0,
) -> Merged:
    """Merge the statistics of all ranks, in place: every rank makes the same collectives.

    A small one agrees on whether every rank has a sample and all have the same layout; then one
    sum and one maximum over flat buffers and one for each large sum; and the same for the sums of others'
    collectors, if there are any. Where only these differ in their layout, as after an error on one rank, only
    these are dropped.

    Args:
        samples: This rank's statistics.
        ok: Whether this rank's sample is whole.
        device: Where the process group's backend communicates.
        coverage: Of this rank; counts are added up, reasons stay this rank's own.
        pending: How many warnings rank 0 does not know.
    """
    if world_size() == 1:
        return Merged(ok, False)
    failure = None
    packed, foreign = _Packed(0, []), _Packed(0, [])
    try:
        if ok:
            for sample in samples:
                sample.place_heads()
            packed = _pack([sample.named() for sample in samples], device)
            foreign = _pack([sample.named_foreign() for sample in samples], device)
    except Exception as error:  # out of memory, for instance: the other ranks wait for this one all the same
        ok, failure = False, error
    counts = (0, 0) if coverage is None else (coverage.seen, coverage.measured)
    numbers = [int(ok), packed.digest, foreign.digest, *counts, pending]
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(everyone, own)
    if failure is not None:
        raise failure
    answers = torch.stack(everyone).tolist()
    if not all(valid and layout == packed.digest for valid, layout, *_ in answers):
        return Merged(False, False)
    _, _, others, seen, measured, waiting = (list(numbers) for numbers in zip(*answers, strict=True))
    if coverage is not None:
        coverage.seen, coverage.measured = sum(seen), sum(measured)
    buffers = packed.buffers
    if len(set(others)) == 1:
        buffers = [*buffers, *foreign.buffers]
    else:
        for sample in samples:
            sample.drop_foreign(RuntimeError("it failed, or saw other layers, on another rank"))
    for operation, slots, flat in buffers:
        dist.all_reduce(flat, operation)
        pieces = torch.split(flat, [store[name].numel() for store, name in slots])
        for (store, name), piece in zip(slots, pieces, strict=True):
            store[name] = piece.view(store[name].shape)
    return Merged(True, any(waiting))


class _Packed(NamedTuple):
    """A digest of a layout; of each reduction its operation, places in the sums and buffer."""

    digest: int
    buffers: list[tuple[Any, list[tuple[dict[str, Tensor], str]], Tensor]]


def _pack(named: list[list[tuple[tuple[Any, ...], LayerSums]]], device: torch.device) -> _Packed:
    """Pack the sums of several models, each with its key."""
    layers = [(i, key, layer) for i, entries in enumerate(named) for key, layer in entries]
    # names too: other layers of the same shapes (layer drop) must not be added up
    layout: list[Any] = [(i, tuple(key), sorted(layer.names.items())) for i, key, layer in layers]
    buffers = []
    for kind, operation in (("sums", dist.ReduceOp.SUM), ("maxima", dist.ReduceOp.MAX)):
        stores: list[dict[str, Tensor]] = [getattr(layer, kind) for *_, layer in layers]
        slots = [(store, name) for store in stores for name in sorted(store)]
        layout.append([(name, tuple(store[name].shape)) for store, name in slots])
        large = [(store, name) for store, name in slots if store[name].nbytes >= _LARGE]
        # reduced where they lie: copies of them all would double the memory that a sample takes
        buffers += [(operation, [slot], slot[0][slot[1]].flatten().to(device)) for slot in large]
        small = [(store, name) for store, name in slots if store[name].nbytes < _LARGE]
        if small:
            flat = torch.cat([store[name].flatten() for store, name in small]).to(device)
            buffers.append((operation, small, flat))
    digest = int.from_bytes(hashlib.sha256(repr(layout).encode()).digest()[:7], "big")
    return _Packed(digest, buffers)
