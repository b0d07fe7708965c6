"""Fingerprints that are equal for equal inputs in any order, with any padding, on any number of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_geo.observe.replay.undisturbed_run import Call

__all__ = ["digest"]


def digest(named: Mapping[str, Any], row: int | slice, mask: Tensor | None) -> bytes:
    """Return a digest of one sequence's entries in every tensor.

    Args:
        named: Arguments by name.
        row: Index of the sequence, or a slice of sequences.
        mask: ``[B, N]``, nonzero for real tokens, whose entries alone count; None for all tokens.
    """
    state = hashlib.sha256()
    for name, value in sorted(named.items()):
        tensors: list[Tensor] = []
        Call((value,)).map(lambda x, into=tensors: into.append(x) or x)
        for x in tensors:
            part = x[row] if x.dim() else x
            if mask is not None and isinstance(row, int) and x.shape[:2] == mask.shape:
                part = part[mask[row].bool()]
            part = part.contiguous()
            content = part.reshape(-1).view(torch.uint8) if part.numel() else part
            state.update(f"{name} {x.dtype} {tuple(part.shape)} ".encode())
            state.update(content.numpy().tobytes())
    return state.digest()
