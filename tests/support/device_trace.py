"""What a sample launches on a GPU, traced without one: tensors without memory, kernels only counted.

Tensors say that they lie on a CPU, so that a build of torch without CUDA takes them. Whatever the package
does otherwise on CUDA is switched to that: kernels, memory limits, masks that are not waited for, the copy.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_geo import kernels
from lightning_geo.kernels.triton import launch, plan, sketch_launch, vectors
from lightning_geo.measurement import batches
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import compares_samples, select
from lightning_geo.observe import Tap
from lightning_geo.observe.evidence.mask_structure import Band, MaskStructures
from lightning_geo.observe.packed import documents
from lightning_geo.observe.replay.undisturbed_run import undisturbed

__all__ = ["launches_of"]

#: Operations that launch nothing.
_FREE = {
    "_local_scalar_dense", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "device",
    "diagonal",
    "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty", "new_empty_strided",
    "permute", "promote_types", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unfold", "unsqueeze", "view",
}  # fmt: skip

#: Operations that launch two kernels: a copy or a fill, and what they are for.
_TWICE = {"baddbmm", "constant_pad_nd", "masked_fill"}

#: Bytes of an H200.
_MEMORY = 141_000_000_000


class _Launches(TorchDispatchMode):
    """Counts what is launched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = operation.name().split("::")[1].split(".")[0]
        if name not in _FREE and (not isinstance(result, Tensor) or result.numel()):
            self.names[name] += 1 + (name in _TWICE)
        return result


class _Copy:
    """The transfer, which never arrives."""

    moves, arrived = True, False

    def __init__(self, x: Tensor, count: collections.Counter[str]) -> None:
        count["transfer"] += 1


def _ones_or_places(self: object, tensors: Any) -> list[np.ndarray[Any, Any]]:
    """What the host reads of masks and positions: the first sequence is half as long as the others."""
    numbers = []
    for x in tensors:
        values = np.ones(tuple(x.shape), np.int64)
        if len(values) == 1:
            values[:] = np.arange(values.shape[-1])
        else:
            values[0, values.shape[-1] // 2 :] = 0
        numbers.append(values)
    return numbers


@contextlib.contextmanager
def _device(count: collections.Counter[str]) -> Iterator[None]:
    def run(self: launch.Launch) -> None:
        count[f"kernel {self.kernel.fn.__name__}"] += 1

    def place(self: Tensor) -> int:
        return self.untyped_storage()._cdata * 64 + self.storage_offset() * self.itemsize

    functions = {
        name: {**backends, "chunked": backends["triton"]} for name, backends in kernels._FUNCTIONS.items()
    }
    structure = "lightning_geo.observe.evidence.mask_structure"
    (reader,) = (
        kind for kind in vars(documents).values() if isinstance(kind, type) and "_read" in vars(kind)
    )
    with contextlib.ExitStack() as stack:
        for module in (launch, plan, sketch_launch, vectors):
            stack.enter_context(patch.object(module, "missing", lambda device: None))
        stack.enter_context(patch.object(plan, "_lacking_memory", lambda query, key: None))
        stack.enter_context(patch.object(launch.Launch, "run", run))
        stack.enter_context(patch.dict(kernels._FUNCTIONS, functions))
        stack.enter_context(patch.dict(batches._LIMIT, {"cpu": _MEMORY // batches._SHARE_OF_CUDA}))
        stack.enter_context(patch.object(batches, "_kept", lambda x: x.dtype))
        stack.enter_context(patch.object(batches, "_APART", ("cpu",)))
        stack.enter_context(patch.object(MaskStructures, "knows_at_once", staticmethod(lambda call: False)))
        stack.enter_context(patch.object(reader, "_read", _ones_or_places))
        for name in (structure, "lightning_geo.measurement.derived_stack"):
            stack.enter_context(patch(f"{name}.ToHost", lambda x: _Copy(x, count)))
        stack.enter_context(patch.object(Tensor, "data_ptr", place))
        stack.enter_context(FakeTensorMode())
        yield


def launches_of(
    make: Callable[[], nn.Module], sequences: int, tokens: int, *, padded: bool, causal: bool = False
) -> collections.Counter[str]:
    """Count what a default sample of a model in bfloat16 launches besides the model's own forward.

    Args:
        make: Makes the model.
        sequences: How many it is given.
        tokens: Of each.
        padded: Whether it is given a mask.
        causal: Whether the model is a decoder.

    Returns:
        By operation, those of the second sample: the first has shown how masks lie.
    """
    launched, own = _Launches(), _Launches()
    names = tuple(name for name in select() if not compares_samples(name))
    with _device(launched.names):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = make().eval()
        finally:
            torch.set_default_dtype(torch.float32)
        batch = {"input_ids": torch.empty(sequences, tokens, dtype=torch.long)}
        if padded:
            batch["attention_mask"] = torch.empty(sequences, tokens, dtype=torch.long)
        tap, known, drawn = Tap(model, (1, 2)), {}, {}  # type: ignore[var-annotated]
        made: list[MaskStructures] = []
        init = MaskStructures.simplify

        def simplify(self: MaskStructures, *arguments: Any) -> None:
            if self not in made:
                made.append(self)
            init(self, *arguments)

        with patch.object(MaskStructures, "simplify", simplify):
            for _ in range(2):
                launched.names.clear()
                with launched:
                    measurement = Measurement({"": tap}, names, known=known, drawn=drawn)
                    with undisturbed(model), measurement.observe():
                        model(**batch)
                    if measurement.failures:
                        raise measurement.failures[0]
                    measurement.derive()
                for structures in made:  # the verdicts arrive: these masks are what they seem
                    for use in structures._uses:
                        structures._bands[use.place] = Band(right=0) if causal else Band()
                    structures._uses = []
        with torch.no_grad(), own:
            model(**batch)
    launched.names.subtract(own.names)
    return +launched.names
