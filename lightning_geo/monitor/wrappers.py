"""The module that is trained, inside of what strategies wrap around it."""

from __future__ import annotations

from torch import nn

from lightning_geo.utils._deepspeed import inside_of_engine
from lightning_geo.utils._lightning import is_fabric_module
from lightning_geo.utils._torch import inside_of_unit, is_unit

__all__ = ["without_wrappers"]

_REPLICATING = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return what Fabric, DistributedDataParallel, FSDP1 and DeepSpeed wrapped; a compiled model stays so."""
    while (inside := _inside(model)) is not None:
        model = inside
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if is_fabric_module(model) or isinstance(model, _REPLICATING):
        inside: nn.Module = model.module  # type: ignore[assignment]
        return inside
    return inside_of_unit(model) if is_unit(model) else inside_of_engine(model)
