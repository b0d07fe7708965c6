"""Which parameters make an attention's queries, keys and values, and which take up what its heads give.

Names say little: nearly every model family has its own, and fused layers lay heads out in their own
way. So what ran is compared with what attention was given: the values are a projection's output as it
is; queries and keys too, or have its lengths where they were rotated. Where neither holds (a norm
of each head's queries) a name or the layout of the values decides. What cannot be told is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.layers.linear_run import Run

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
    """Which rows of a linear module's weight make one role's heads.

    Args:
        weight: The linear module, or the parameter itself where there is none.
        heads: How many there are.
        chosen: Their places among the heads in the weight, ``None`` for all in order.
        units: How many heads the weight has in all.
        transposed: Whether heads lie along the weight's columns: what takes up heads' outputs.
    """

    weight: nn.Module | Tensor
    heads: int
    chosen: tuple[int, ...] | None = None
    units: int = 0
    transposed: bool = False

    def read(self) -> Tensor | None:
        """``[h, D, d]`` as it is now, a view where possible; ``None`` where parameters are out of reach."""
        weight = self.weight if isinstance(self.weight, Tensor) else effective_weight(self.weight)
        if weight is None:
            return None
        weight = weight.detach()
        found: Tensor
        units = self.units or self.heads
        if weight.shape[self.transposed] % units:
            return None
        if self.transposed:
            found = weight.unflatten(1, (units, -1)).permute(1, 2, 0)
        else:
            found = self.of_heads(weight.unflatten(0, (units, -1)), 0)
        return found

    def of_heads(self, x: Tensor, dim: int) -> Tensor:
        """Pick this role's heads along an axis of all of them."""
        if self.chosen is None:
            return x
        return x.index_select(dim, torch.tensor(self.chosen, device=x.device))


@dataclass
class Projections:
    """Where an attention's roles come from, as far as that could be told.

    Args:
        sources: By role.
        runs: The linear modules that ran before the attention.
        call: The attention.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    runs: Sequence[Run] = ()
    call: AttentionCall | None = None

    def weights(self) -> dict[str, Tensor]:
        """``role -> [h, D, d]``, read now."""
        found = {role: source.read() for role, source in self.sources.items()}
        return {role: weight for role, weight in found.items() if weight is not None}

    def read(self, role: str) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """What a role's projection was given ``[B, N, d]``, its result ``[B, N, h, D]`` and bias ``[h, D]``.

        Returns:
            ``None`` where that was not seen; the second is ``None`` where it is to be computed.
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
        tokens = observed.shape[0], observed.shape[2]
        if run.x.numel() != tokens[0] * tokens[1] * run.x.shape[-1]:
            return None
        units = source.units or source.heads
        y = source.of_heads(run.y.detach().reshape(*tokens, units, -1), 2)
        bias = getattr(getattr(run.module, "base_layer", run.module), "bias", None)
        added = source.of_heads(bias.detach().view(units, -1), 0) if isinstance(bias, Tensor) else None
        return run.x.detach().reshape(*tokens, -1), y, added


def effective_weight(module: nn.Module) -> Tensor | None:
    """``[out, in]``, what the module multiplies with: base and LoRA adapters together.

    Returns:
        ``None`` for quantised, sharded or offloaded weights, and adapters that are more than an addition.
    """
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return _adapted(module, base)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if weight.is_meta:
        return None
    if type(module).__name__ == "Conv1D":
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
    """The same where the call itself was given its parameters."""
    assert call.query is not None
    heads, parameters = call.query.shape[1], call.parameters or {}
    return {role: Source(weight, heads, transposed=role == "output") for role, weight in parameters.items()}


def drop_inner(found: dict[str, Source], *, cross: bool) -> None:
    """Forget what does not read the stream itself but something compressed, as in latent attention.

    Args:
        found: By role; changed in place.
        cross: Whether keys and values are of another stream, of any width.
    """
    written = found["output"].read() if "output" in found else None
    for role in ("query",) if cross else ("query", "key", "value"):
        read = found[role].read() if role in found else None
        if written is not None and read is not None and read.shape[2] != written.shape[2]:
            del found[role]


def output_source(module: nn.Module, x: Tensor, heads: Tensor) -> Source | None:
    """What takes up the heads' outputs, if it is this module.

    Args:
        module: A linear module.
        x: What it is given.
        heads: The heads' outputs ``[B, H, N, D]``.
    """
    merged = heads[:1].transpose(1, 2).flatten(2)
    if x.shape[-1] != merged.shape[-1] or x.numel() != heads.numel():
        return None
    x = x.reshape(heads.shape[0], heads.shape[2], -1)[:1]
    if not torch.allclose(x.to(merged.dtype), merged, equal_nan=True) or effective_weight(module) is None:
        return None
    return Source(module, heads.shape[1], transposed=True)
