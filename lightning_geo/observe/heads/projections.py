"""The parameters that compute an attention's queries, keys and values, and that read its heads' outputs.

Module names do not suffice: nearly every model family has its own, and fused layers have layouts of their
own. So the outputs of linear modules are compared with the attention's inputs (``projection_matching``).
Values equal a projection's output; queries and keys equal it too, or have the same lengths if they were
rotated. If neither holds (each head's queries are normalised), a name or the layout of the values decides. A
projection that none of these identifies is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.layers.linear_run import LinearRun
from lightning_geo.utils._deepspeed import is_whole
from lightning_geo.utils._transformers import is_conv1d

__all__ = [
    "Projections",
    "Source",
    "drop_inner",
    "effective_weight",
    "given_sources",
    "output_source",
]


@dataclass(frozen=True)
class Source:
    """The rows of a linear module's weight that compute one role's heads.

    Args:
        weight: The linear module, or the parameter itself if there is no module.
        heads: Number of the role's heads.
        indices: Their indices among all heads in the weight; ``None`` for all in order.
        units: Number of all heads in the weight.
        transposed: Whether heads lie along the weight's columns, as in the output projection.
    """

    weight: nn.Module | Tensor
    heads: int
    indices: tuple[int, ...] | None = None
    units: int = 0
    transposed: bool = False

    def read(self) -> Tensor | None:
        """Return the current weight ``[h, D, d]``, a view if possible; ``None`` if it is inaccessible."""
        weight = self.weight if isinstance(self.weight, Tensor) else effective_weight(self.weight)
        if weight is None:
            return None
        weight = weight.detach()
        heads: Tensor
        units = self.units or self.heads
        if weight.shape[self.transposed] % units:
            return None
        if self.transposed:
            heads = weight.unflatten(1, (units, -1)).permute(1, 2, 0)
        else:
            heads = self.of_heads(weight.unflatten(0, (units, -1)), 0)
        return heads

    def of_heads(self, x: Tensor, dim: int) -> Tensor:
        """Select this role's heads along an axis of all heads."""
        if self.indices is None:
            return x
        return x.index_select(dim, torch.tensor(self.indices, device=x.device))


@dataclass
class Projections:
    """The known projections of an attention.

    Args:
        sources: Source of each known role.
        runs: Runs of linear modules before the attention.
        call: The attention.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    runs: Sequence[LinearRun] = ()
    call: AttentionCall | None = None

    def weights(self) -> dict[str, Tensor]:
        """Return the current weights, ``role -> [h, D, d]``."""
        weights = {role: source.read() for role, source in self.sources.items()}
        return {role: weight for role, weight in weights.items() if weight is not None}

    def read(self, role: str) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Return the input ``[B, N, d]``, output ``[B, N, h, D]`` and bias ``[h, D]`` of a role's projection.

        Returns:
            ``None`` if they are unknown; the output alone is ``None`` if it has to be computed.
        """
        if self.call is None:
            return None
        if self.call.inputs is not None:
            x = self.call.inputs.get(role)
            return None if x is None else (x.detach(), None, None)
        source, observed = self.sources.get(role), getattr(self.call, role)
        run = next((r for r in reversed(self.runs) if source is not None and r.module is source.weight), None)
        if source is None or run is None or observed is None:
            return None
        if not is_whole(run.module):
            return None
        tokens = observed.shape[0], observed.shape[2]
        if run.x.numel() != tokens[0] * tokens[1] * run.x.shape[-1]:
            return None
        units = source.units or source.heads
        y = source.of_heads(run.y.detach().reshape(*tokens, units, -1), 2)
        bias = getattr(getattr(run.module, "base_layer", run.module), "bias", None)
        added = source.of_heads(bias.detach().view(units, -1), 0) if isinstance(bias, Tensor) else None
        return run.x.detach().reshape(*tokens, -1), y, added


def effective_weight(module: nn.Module) -> Tensor | None:
    """Return the matrix ``[out, in]`` that a module multiplies with: its base and LoRA adapters together.

    Returns:
        ``None`` for quantised, sharded or offloaded weights, and for adapters that do more than add.
    """
    if not is_whole(module):
        return None
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return _adapted(module, base)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if weight.is_meta:
        return None
    if is_conv1d(module):
        return weight.T
    expected = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return weight if tuple(weight.shape) == expected else None


def _adapted(module: nn.Module, base: nn.Module) -> Tensor | None:
    weight = effective_weight(base)
    if getattr(module, "disable_adapters", False) or getattr(module, "merged", False):
        return weight
    adapters = getattr(module, "lora_A", None)
    if weight is None or adapters is None:
        return None
    variants = {**getattr(module, "lora_variant", {}), **getattr(module, "use_dora", {})}
    for name in getattr(module, "active_adapters", ()):
        if name not in adapters:
            continue
        if variants.get(name):
            return None  # DoRA rescales the sum
        delta = module.get_delta_weight(name)  # type: ignore[operator]
        weight = weight + (delta.T if getattr(module, "fan_in_fan_out", False) else delta)
    return weight


def given_sources(call: AttentionCall) -> dict[str, Source]:
    """Return the sources of a call whose function takes the parameters as arguments."""
    assert call.query is not None
    heads, parameters = call.query.shape[1], call.parameters or {}
    return {role: Source(weight, heads, transposed=role == "output") for role, weight in parameters.items()}


def drop_inner(sources: dict[str, Source], *, cross: bool) -> None:
    """Drop projections that do not read the stream but a compressed version of it, as in latent attention.

    Args:
        sources: Sources by role; changed in place.
        cross: Whether keys and values come from another stream, of any width.
    """
    written = sources["output"].read() if "output" in sources else None
    for role in ("query",) if cross else ("query", "key", "value"):
        read = sources[role].read() if role in sources else None
        if written is not None and read is not None and read.shape[2] != written.shape[2]:
            del sources[role]


def output_source(module: nn.Module, x: Tensor, heads: Tensor) -> Source | None:
    """Return a linear module as the output projection, if its input is the heads' outputs.

    Args:
        module: A linear module.
        x: Its input.
        heads: The heads' outputs ``[B, H, N, D]``.
    """
    merged = heads[:1].transpose(1, 2).flatten(2)
    if x.shape[-1] != merged.shape[-1] or x.numel() != heads.numel():
        return None
    x = x.reshape(heads.shape[0], heads.shape[2], -1)[:1]
    if not torch.allclose(x.to(merged.dtype), merged, equal_nan=True) or effective_weight(module) is None:
        return None
    return Source(module, heads.shape[1], transposed=True)
