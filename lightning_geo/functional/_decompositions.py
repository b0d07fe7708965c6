"""Decompositions of many small matrices, by LAPACK on the host.

CUDA decomposes matrix by matrix and waits after each. On an H200, ``eigh`` of 576 matrices of 64 x 64 took
472 ms, where eight threads of its host took 27, and ``eigvals`` of 1,152 matrices ten seconds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from lightning_geo.utils.shapes import Float

__all__ = ["by_lapack", "dividing_among_threads", "in_threads"]

#: Most threads that decompose: more would take cores that load the next batches.
_THREADS = 8

#: Fewest matrices that are worth a thread.
_FEWEST = 4

_local = threading.local()


@contextlib.contextmanager
def dividing_among_threads(divides: bool = True) -> Iterator[None]:
    """Let :func:`by_lapack` decompose in several threads here, also matrices that already lie on the host.

    Training on a device leaves these cores idle. Training on a CPU computes with them.

    Args:
        divides: Whether to.
    """
    before = getattr(_local, "divides", False)
    _local.divides = divides
    try:
        yield
    finally:
        _local.divides = before


def by_lapack(decompose: Callable[..., Any], *matrices: Float[Tensor, "*batch _ _"]) -> Any:
    """Decompose matrices on the host, wherever they lie, and return the results to where they came from.

    Matrices on another device are waited for.

    Args:
        decompose: Takes the matrices and returns a tensor or a tuple of them, with their leading axes.
        matrices: ``[..., n, m]`` each, with the same leading axes.
    """
    device = matrices[0].device
    if device.type == "cpu" and not getattr(_local, "divides", False):
        return decompose(*matrices)
    lead = matrices[0].shape[:-2]
    host = [x.reshape(-1, *x.shape[-2:]).cpu() for x in matrices]
    results = in_threads(decompose, *host)
    if isinstance(results, Tensor):
        return results.unflatten(0, lead).to(device) if lead else results[0].to(device)
    return tuple(x.unflatten(0, lead).to(device) if lead else x[0].to(device) for x in results)


def in_threads(decompose: Callable[..., Any], *matrices: Float[Tensor, "n ..."]) -> Any:
    """Decompose matrices that lie on the host in several threads.

    Args:
        decompose: See :func:`by_lapack`.
        matrices: ``[n, ...]`` each.
    """
    count = len(matrices[0])
    threads = max(1, min(_THREADS, os.cpu_count() or 1, count // _FEWEST))
    _openmp()  # once, rather than in each thread
    with ThreadPoolExecutor(threads, "lightning_geo", _alone) as pool:
        parts = list(pool.map(decompose, *(x.chunk(threads) for x in matrices)))
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


@functools.cache
def _openmp() -> ThreadpoolController:
    """The thread pools that torch computes with."""
    return ThreadpoolController().select(user_api="openmp")


def _alone() -> None:
    """Let the calling thread compute without helpers, which spin while they wait and slow each other down.

    OpenMP keeps this number by thread: training's own, in whichever thread, stays. The number of NumPy's
    BLAS is one of the whole process, and training may compute with it meanwhile.
    """
    torch.get_num_threads()  # torch sets a thread's number when it first asks for it: before, not after
    _openmp().limit(limits=1)
