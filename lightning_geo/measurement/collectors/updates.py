"""What training does to weights: a fixed draw of each layer's parameters, compared with the sample before."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_geo.kernels.precision import exactly
from lightning_geo.measurement.collectors.collector import Collector
from lightning_geo.measurement.derived_stack import DerivedStack
from lightning_geo.measurement.sums import LayerSums
from lightning_geo.metrics.selection import compares_samples
from lightning_geo.observe import AttentionCall, BlockCall, CallKey
from lightning_geo.observe.layers.numbering import elements_of
from lightning_geo.utils._torch import is_plain
from lightning_geo.utils.device_copy import without_waiting

__all__ = ["Draw", "Updates", "spread"]

#: Most elements drawn from one parameter, and from one layer.
_OF_PARAMETER, _OF_LAYER = 1 << 12, 1 << 17

_SIMILARITY = "weight_similarity"

_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Draw:
    """A fixed draw of a module's parameters.

    Those of float32 and float64 stand first, then narrower ones; matrices stand in the middle.

    Args:
        values: ``[n]``.
        wide: How many of them are of float32 or float64.
        matrices: Which of the parameters are matrices.
        counts: How many are of each parameter.
        shapes: Of the parameters.
        parameters: The parameters, not kept alive.
    """

    values: Tensor
    wide: int
    matrices: slice
    counts: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    parameters: tuple[weakref.ref[Tensor], ...]

    @classmethod
    def of(cls, parameters: Sequence[Tensor]) -> Draw | None:
        """Draw from parameters; None if there are none."""
        limit = max(min(_OF_PARAMETER, _OF_LAYER // max(len(parameters), 1)), 1)
        parts = [(p, x) for p in parameters if (x := spread(p, limit)) is not None]
        if not parts:
            return None
        parts.sort(key=lambda part: _place(*part))
        vectors = sum(p.dtype in _WIDE and p.dim() < 2 for p, _ in parts)
        return cls(
            torch.cat([x for _, x in parts]),
            sum(len(x) for p, x in parts if p.dtype in _WIDE),
            slice(vectors, vectors + sum(p.dim() > 1 for p, _ in parts)),
            tuple(len(x) for _, x in parts),
            tuple(p.shape for p, _ in parts),
            tuple(weakref.ref(p) for p, _ in parts),
        )

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for draws that can be stacked and compared."""
        return self.shapes, self.counts, self.wide, self.values.dtype, self.values.device

    def continues(self, before: Draw | None) -> bool:
        """Whether another one is an earlier draw of the same parameters."""
        return (
            before is not None
            and before.layout == self.layout
            and all(a() is b() for a, b in zip(self.parameters, before.parameters, strict=True))
        )

    @property
    def each(self) -> Tensor:
        """How many of its parameter's elements each one stands for, ``[n]``."""
        shares = [shape.numel() / count for shape, count in zip(self.shapes, self.counts, strict=True)]
        by_parameter = without_waiting(torch.tensor(shares), self.values.device)
        return torch.cat([x.expand(n) for x, n in zip(by_parameter, self.counts, strict=True)])

    @property
    def module(self) -> tuple[int, ...]:
        """Equal for draws of the same parameters."""
        return tuple(id(reference()) for reference in self.parameters)


class _Layer(NamedTuple):
    """A layer's draw now, and at the sample before if it is of the same parameters."""

    number: int
    now: Draw
    before: Draw | None


class Updates(Collector):
    """Weights now, those of the sample before, and those of other layers.

    Weights are drawn where a layer's block ends, or where the attention runs if it is in no block: before
    the optimizer changes them, also where training's own forward is observed.

    Args:
        metrics: Stored names of the metrics to measure.
        modules: Returns the model's own modules by path.
        kept: Draws of the sample before by path; replaced by those of this sample once it is derived.
    """

    offers = frozenset(
        {"drawn", "drawn.before", "drawn.each", "drawn.wide", "drawn.wide.before", "drawn.products"}
        | {"drawn.module"}
    )

    def __init__(
        self,
        metrics: tuple[str, ...],
        modules: Callable[[], dict[str, nn.Module]],
        kept: dict[str, Draw],
    ) -> None:
        super().__init__(metrics)
        self._modules = modules
        self._kept = kept
        self._before = dict(kept)
        #: parameters that are whole outside of a forward pass: FSDP gathers copies of its own in between
        self._plain: set[int] = set()
        self._drawn: dict[str, Draw | None] = {}
        self._blocks: set[tuple[str, CallKey]] = set()
        root = modules().get("") if metrics else None
        if root is not None:
            self._plain = {id(p) for p in root.parameters() if is_plain(p)}

    def attention(self, layer: LayerSums, key: CallKey, call: AttentionCall) -> None:
        if not elements_of(key.module, self._modules()):
            self._draw(key.module)

    def block(self, layer: LayerSums, block: BlockCall) -> None:
        owner = next((key for key in block.keys if not key.cross), block.keys[0])
        self._blocks.add((block.name, owner))
        self._draw(block.name)

    def _draw(self, path: str) -> None:
        module = self._modules().get(path)
        if path in self._drawn or module is None:
            return
        every = list(module.parameters())
        trained = [p for p in every if p.requires_grad]
        self._drawn[path] = Draw.of([p for p in trained or every if id(p) in self._plain])

    def derive(self, stack: DerivedStack) -> None:
        alike: dict[tuple[object, ...], list[_Layer]] = {}
        for index, block in stack.blocks.items():
            path = block[0] if block in self._blocks else stack.keys[index].module
            now = self._drawn.get(path)
            if now is None:
                continue
            self._kept[path], before = now, self._before.get(path)
            layer = _Layer(index, now, before if now.continues(before) else None)
            alike.setdefault(now.layout, []).append(layer)
        for layers in alike.values():
            self._compare_samples(stack, layers)
            self._compare_layers(stack, layers)

    def _compare_samples(self, stack: DerivedStack, layers: list[_Layer]) -> None:
        names = [name for name in self.metrics if compares_samples(name)]
        indices = [layer.number for layer in layers if layer.before is not None]
        if not names or not indices:
            return
        now = torch.stack([layer.now.values for layer in layers if layer.before is not None])
        before = torch.stack([layer.before.values for layer in layers if layer.before is not None])
        wide = layers[0].now.wide
        quantities = {
            "drawn": now, "drawn.before": before, "drawn.each": layers[0].now.each,
            "drawn.wide": now[:, :wide], "drawn.wide.before": before[:, :wide],
        }  # fmt: skip
        for name in names:
            stack.add(name, indices, self.value(name, quantities, (len(indices),)))

    def _compare_layers(self, stack: DerivedStack, layers: list[_Layer]) -> None:
        if _SIMILARITY not in self.metrics:
            return
        numbers: dict[tuple[int, ...], int] = {}
        modules = [numbers.setdefault(layer.now.module, len(numbers)) for layer in layers]
        indices, draw = [layer.number for layer in layers], layers[0].now
        counts = draw.counts[draw.matrices]
        if len(numbers) < 2 or not counts:
            stack.add(_SIMILARITY, indices, draw.values.new_full((len(indices),), torch.nan))
            return
        start = sum(draw.counts[: draw.matrices.start])
        matrices = torch.stack([layer.now.values[start : start + sum(counts)] for layer in layers])
        quantities = {
            "drawn.products": _products(matrices, counts),
            "drawn.module": without_waiting(torch.tensor(modules), matrices.device),
        }
        stack.add(_SIMILARITY, indices, self.value(_SIMILARITY, quantities, (len(indices),)))


def _place(parameter: Tensor, drawn: Tensor) -> tuple[int, int]:
    """Sort wide vectors, wide matrices, narrow matrices, narrow vectors; matrices of one count together."""
    wide, matrix = parameter.dtype in _WIDE, parameter.dim() > 1
    return (1 if wide else 2) if matrix else (0 if wide else 3), len(drawn)


def spread(parameter: Tensor, limit: int) -> Tensor | None:
    """A view of at most so many elements, spread over all of a parameter; None if it has no such view."""
    x = parameter.detach()
    if x.is_contiguous() and x.numel():  # one operation for each of a layer's parameters
        step = _step(x.numel(), x.shape[-1] if x.dim() else 1, limit)
        return x.as_strided((-(-x.numel() // step),), (step,))
    x = x.permute(sorted(range(x.dim()), key=lambda axis: -x.stride()[axis]))  # as it lies in memory
    if not x.numel() or not x.is_contiguous():
        return None
    return x.view(-1)[:: _step(x.numel(), x.shape[-1], limit)]


@functools.lru_cache(maxsize=1024)
def _step(size: int, columns: int, limit: int) -> int:
    """How far apart at most so many of ``size`` elements lie."""
    step = math.ceil(size / limit)
    while math.gcd(step, columns) > 1:  # else some columns would never be drawn
        step += 1
    return step


def _products(matrices: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Inner products ``[L, L]`` of layers' matrices, each less its mean."""
    matrices = matrices.to(torch.promote_types(matrices.dtype, torch.float32))
    runs = [(count, len([*run])) for count, run in itertools.groupby(counts)]
    products: Tensor | None = None
    with exactly(matrices.device):
        for part, run in zip(matrices.split([math.prod(run) for run in runs], 1), runs, strict=True):
            x = part.unflatten(1, (-1, run[0]))
            x = (x - x.mean(-1, keepdim=True)).flatten(1)
            products = x @ x.mT if products is None else torch.addmm(products, x, x.mT)
    assert products is not None
    return products
