"""Covariances of a stack's heads, and their eigenvalues on the host."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_geo.functional import principal_subspace
from lightning_geo.functional._decompositions import in_threads
from lightning_geo.measurement.derived_stack import DerivedStack, layers_by_shape
from lightning_geo.measurement.sums import covariances

__all__ = ["Covariances", "head_covariances", "principal_subspaces"]

#: Roles and layers, and the covariances [L, h, D, D] of their heads.
Covariances = tuple[list[tuple[str, list[int]]], Tensor]


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
    values, bases = in_threads(functools.partial(principal_subspace, rank=rank), covariance)
    return values, bases
