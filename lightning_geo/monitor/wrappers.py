"""The module that is trained, inside of what strategies wrap around it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_geo.utils._lightning import is_fabric_module

__all__ = ["without_wrappers"]

_REPLICATING = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return what Fabric, DistributedDataParallel and DataParallel wrapped; a compiled model stays so."""
    inner: Any = model
    while is_fabric_module(inner) or isinstance(inner, _REPLICATING):
        inner = inner.module
    trained: nn.Module = inner
    return trained
