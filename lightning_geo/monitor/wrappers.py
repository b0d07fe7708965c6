"""The module that is trained, inside of what strategies wrap around it."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_geo.utils._lightning import is_fabric_module
from lightning_geo.utils._torch import is_distributed_tensor

__all__ = ["sharding_of", "without_wrappers"]

_REPLICATING = (nn.parallel.DistributedDataParallel, nn.DataParallel)
#: Classes of which a model's parameters are split over ranks, by name: DeepSpeed may not be installed.
_SHARDING = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return what Fabric, DistributedDataParallel and DataParallel wrapped; a compiled model stays so."""
    inner: Any = model
    while is_fabric_module(inner) or isinstance(inner, _REPLICATING):
        inner = inner.module
    trained: nn.Module = inner
    return trained


def sharding_of(model: nn.Module) -> str:
    """Return the name of what splits a model's parameters over ranks; empty where nothing does."""
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _SHARDING:
                return kind.__name__
    return "DTensor" if any(map(is_distributed_tensor, model.parameters())) else ""
