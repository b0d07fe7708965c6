"""Parameters that a forward pass has written, or may have through ``.data``, which raises no version."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_geo.utils._torch import version_of

__all__ = ["DataReads", "changed_since", "differing_parameters", "equal_values", "places_of"]


class DataReads(TorchFunctionMode):
    """Records which parameters are accessed through ``.data``.

    A write through ``.data`` does not raise the version, and may leave the values equal this time, as a clamp
    or a normalisation does. So every access counts as a write.

    Args:
        model: The model that owns the parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in model.named_parameters()}
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__get__ and id(args[0]) in self._names:  # type: ignore[attr-defined]
            self.names.add(self._names[id(args[0])])
        return func(*args, **(kwargs or {}))


def differing_parameters(twin: nn.Module, model: nn.Module) -> set[str]:
    """Return the names of parameters whose values differ: a write through ``.data`` raises no version."""
    originals = dict(model.named_parameters())
    return {
        n
        for n, p in twin.named_parameters()
        if n in originals and not equal_values(p.data, originals[n].data)
    }


def equal_values(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors have equal values, NaN equal to NaN; two on ``meta`` count as equal."""
    if x.device.type == "meta" or y.device.type == "meta":
        return x.device == y.device
    return x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())


def places_of(twin: nn.Module) -> dict[str, tuple[nn.Parameter, int, int]]:
    """Parameters by name, with version and address."""
    return {name: (p, version_of(p), p.data_ptr()) for name, p in twin.named_parameters()}


def changed_since(twin: nn.Module, before: dict[str, tuple[nn.Parameter, int, int]]) -> set[str]:
    """Return the names of parameters written since ``before``."""
    now = dict(twin.named_parameters())
    return {
        name for name, (p, version, place) in before.items()
        if now.get(name) is not p or version_of(p) != version or p.data_ptr() != place
    }  # fmt: skip
