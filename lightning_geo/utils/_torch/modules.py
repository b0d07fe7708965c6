"""Private names of modules and tensors: wrappers, parameters, buffers, versions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = [
    "WRAPPERS",
    "buffers_of",
    "class_name",
    "identity_of",
    "parameters_of",
    "unwrapped",
    "version_of",
]

#: Components that torch's wrappers add to the path of a module: compile, FSDP, checkpointing, DDP. Checked on
#: torch 2.13.0.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"})


def unwrapped(module: nn.Module) -> Any:
    """The module that ``torch.compile`` wrapped, or the module itself.

    Relies on ``OptimizedModule._orig_mod``; checked on torch 2.13.0.
    """
    return getattr(module, "_orig_mod", module)


def class_name(module: nn.Module) -> str:
    """The class of a module as the user knows it: ``torch.compile`` and ``fully_shard`` put their own on top.

    Relies on ``fully_shard`` naming its classes ``FSDP…``; checked on torch 2.13.0.
    """
    classes = type(unwrapped(module)).__mro__
    return next(c.__name__ for c in classes if not c.__name__.startswith("FSDP"))


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The dictionary in which a module keeps its own parameters, those registered as ``None`` included.

    Relies on ``Module._parameters``; checked on torch 2.13.0.
    """
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The dictionary in which a module keeps its own buffers.

    Relies on ``Module._buffers``; checked on torch 2.13.0.
    """
    return module._buffers


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place.

    Relies on ``Tensor._version``; checked on torch 2.13.0.

    Raises:
        RuntimeError: For a tensor made in inference mode, whose changes torch does not count.
    """
    return tensor._version


def identity_of(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal for tensors over the same memory, as long as they live and nobody writes to it.

    Torch does not count what is written to tensors made in inference mode. Relies on ``Tensor._version``;
    checked on torch 2.13.0.
    """
    version = 0 if tensor.is_inference() else version_of(tensor)
    place = tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
    return *place, tensor.dtype, tensor.device, version
