"""Private names of parameters that hold no plain numbers: sharded, flattened, packed, not there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["is_plain"]

#: Marks of parameters that FSDP made one flat parameter of, of that one, and of DeepSpeed's placeholders.
_SHARDED = ("_fsdp_flattened", "_is_flat_param", "ds_id")


def is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is an ordinary tensor of floating point numbers that lies here as a whole.

    DTensors and quantised weights have classes of their own, or codes of eight bits. Relies on
    ``FlatParameter._is_flat_param``, on ``_fsdp_flattened`` and on DeepSpeed's ``ds_id``; checked on
    torch 2.13.0.
    """
    return (
        type(parameter) in (Tensor, nn.Parameter)
        and parameter.layout == torch.strided
        and not parameter.is_meta
        and parameter.is_floating_point()
        and parameter.dtype.itemsize >= 2
        and not any(hasattr(parameter, mark) for mark in _SHARDED)
    )
