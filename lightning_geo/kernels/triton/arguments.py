"""Arguments that kernels share, as tuples: a kernel sees their fields, and a launch specialises each of them.

This module loads without Triton.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Counts", "MaskSlots", "Scaling", "Sizes", "Vectors"]


class Vectors(NamedTuple):
    """Queries or keys, with the strides of ``[B, H, N, D]``."""

    pointer: Any
    b: Any
    h: Any
    n: Any
    d: Any


class Counts(NamedTuple):
    """Counts of visible keys, with the strides of ``[B, H, Nq]``."""

    pointer: Any
    b: Any
    h: Any
    q: Any


class MaskSlots(NamedTuple):
    """The row of keys ``[B, H, Nk]`` and two masks ``[B, H, Nq, Nk]``, each with its strides."""

    key_row: Any
    row_b: Any
    row_h: Any
    mask_a: Any
    a_b: Any
    a_h: Any
    a_q: Any
    a_k: Any
    mask_b: Any
    b_b: Any
    b_h: Any
    b_q: Any
    b_k: Any


class Sizes(NamedTuple):
    """How much there is of everything, and where a row lies among the keys.

    ``group`` is how many heads share one of the keys', ``pitch`` Nk in padded rows of keys, ``measured`` the
    rows of the output, ``plane`` all rows of it.
    """

    heads: Any
    group: Any
    queries: Any
    keys: Any
    pitch: Any
    measured: Any
    plane: Any
    offset: Any
    left: Any
    right: Any


class Scaling(NamedTuple):
    """The scale (divided by the cap, if there is one), the cap, and the factor of exponents of 2."""

    scale: Any
    softcap: Any
    factor: Any
