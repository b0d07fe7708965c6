"""Another run's subspaces, to measure drift against."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_geo.storage.history import read_history
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.errors import SettingError
from lightning_geo.utils.ranks import rank, world_size

__all__ = ["bases_of", "check_bases"]

_PREFIX = "basis."


def bases_of(run: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    """Read the bases of a run's first sample: ``stack -> role -> [layer, head, feature, component]``.

    Rank 0 reads, and the others get its bases: every rank calls this.

    Args:
        run: Directory of the run.

    Raises:
        SettingError: If the run cannot be read or kept no bases.
    """
    box: list[Any] = [None]
    if rank() == 0:
        try:
            box = [_read(run)]
        except Exception as error:
            box = [error]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    if isinstance(box[0], Exception):
        raise box[0]
    bases: dict[str, dict[str, Tensor]] = box[0]
    return bases


def _bases_alone(record: GeometryRecord) -> GeometryRecord:
    """What there is to keep of a record: a run of thousands of samples has bases in the fewest."""
    matrices = {
        stack: {name: array for name, array in arrays.items() if name.startswith(_PREFIX)}
        for stack, arrays in record.matrices.items()
    }
    return GeometryRecord({}, {}, matrices, step=record.step)


def _read(run: str | os.PathLike[str]) -> dict[str, dict[str, Tensor]]:
    try:
        history = read_history(run, None, _bases_alone)
    except (OSError, ValueError) as error:
        raise SettingError(f"Expected `baseline` to be the directory of a run but {error}") from error
    for index in range(len(history)):
        bases = {
            stack: {name.removeprefix(_PREFIX): torch.from_numpy(array.copy())
                    for name, array in arrays.items()}
            for stack, arrays in history.record(index).matrices.items()
        }  # fmt: skip
        if any(bases.values()):
            return bases
    raise SettingError(
        f"Expected `baseline` to be a run that measured `drift` but {os.fspath(run)!r} kept no bases: "
        "it was recorded without the subspace family."
    )


def check_bases(
    baseline: Mapping[str, Mapping[str, Tensor]] | None,
    bases: Mapping[str, Mapping[str, Tensor]],
    run: str | os.PathLike[str],
) -> None:
    """Check that a baseline is of the same architecture and rank.

    Raises:
        SettingError: If any stack or shape differs.
    """
    theirs, ours = (
        {f"{stack}/{role}": tuple(u.shape) for stack, roles in b.items() for role, u in roles.items()}
        for b in (baseline or {}, bases)
    )
    if any(theirs.get(name) != shape for name, shape in ours.items()):
        raise SettingError(
            f"Expected `baseline` to be a run of the same model and `rank` but {os.fspath(run)!r} has bases "
            f"{theirs} where this run has {ours}."
        )
