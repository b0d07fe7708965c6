"""Covariances of a stack's heads, and their eigenvalues on the host, by LAPACK in several threads.

CUDA decomposes matrix by matrix and waits after each: 576 matrices of 64 x 64, as BERT-base has, took 472 ms
on an H200, and 27 ms in eight threads of its host.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from lightning_geo.functional import principal_subspace
from lightning_geo.measurement.derived import DerivedStack, layers_by_shape
from lightning_geo.measurement.sums import covariances

__all__ = ["Covariances", "head_covariances", "principal_subspaces"]

#: Roles and layers, and the covariances [L, h, D, D] of their heads.
Covariances = tuple[list[tuple[str, list[int]]], Tensor]

#: Most threads that decompose: more would take cores that load the next batches.
_THREADS = 8

#: Fewest matrices that are worth a thread.
_FEWEST = 16


@functools.cache
def _openmp() -> ThreadpoolController:
    """The thread pools that torch computes with."""
    return ThreadpoolController().select(user_api="openmp")


def head_covariances(stack: DerivedStack, roles: Iterable[str]) -> list[Covariances]:
    """Derive the covariances of some roles' vectors, equal layers and roles together.

    Args:
        stack: Its layers' sums are read, and layers in which something is not finite are noted.
        roles: Whose vectors.
    """
    alike: dict[torch.Size, list[tuple[str, list[int]]]] = {}
    for role in roles:
        for indices in layers_by_shape(stack.layers, f"{role}.second"):
            shape = stack.layers[indices[0]].sums[f"{role}.second"].shape
            alike.setdefault(shape, []).append((role, indices))
    groups: list[Covariances] = []
    for entries in alike.values():
        flat = [(role, index) for role, indices in entries for index in indices]
        layers = [stack.layers[index] for _, index in flat]
        covariance, broken = covariances(layers, [role for role, _ in flat])
        stack.add_broken([index for _, index in flat], broken)
        groups.append((entries, covariance.float()))
    return groups


def principal_subspaces(covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Compute :func:`lightning_geo.functional.principal_subspace` of many matrices that lie on the host.

    Args:
        covariance: float32 ``[n, d, d]``.
        rank: Dimensions of the subspaces, 1 to d.

    Returns:
        Eigenvalues ``[n, d]``, descending, and bases ``[n, d, rank]``.
    """
    _openmp()  # once, rather than in each thread
    threads = max(1, min(_THREADS, os.cpu_count() or 1, len(covariance) // _FEWEST))
    with ThreadPoolExecutor(threads, "lightning_geo", _alone) as pool:
        parts = list(pool.map(lambda part: principal_subspace(part, rank), covariance.chunk(threads)))
    values, bases = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    return values, bases


def _alone() -> None:
    """Let the calling thread compute without helpers, which spin while they wait and slow each other down.

    OpenMP keeps this number by thread: training's own, in whichever thread, stays. The number of NumPy's
    BLAS is one of the whole process, and training may compute with it meanwhile.
    """
    torch.get_num_threads()  # torch sets a thread's number when it first asks for it: before, not after
    _openmp().limit(limits=1)
