"""Which parameters make an attention's queries, keys and values, and which take up what its heads give.

Names say little: nearly every model family has its own, and fused layers lay heads out in their own
way. So what ran is compared with what attention was given: the values are a projection's output as it
is; queries and keys too, or have its lengths where they were rotated. Where neither holds (a norm
of each head's queries) a name or the layout of the values decides. What cannot be told is absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.layers.linear_run import Run

__all__ = [
    "Projections",
    "Source",
    "drop_inner",
    "effective_weight",
    "find_sources",
    "given_sources",
    "output_source",
]

#: What separate projections are called, where nothing else tells queries from keys.
_NAMES = {"query": r"^(to_)?q(uery)?(_proj|_lin)?$", "key": r"^(to_)?k(ey)?(_proj|_lin)?$"}

#: Relative differences that rounding explains, in float32 and in half precision.
_CLOSE, _CLOSE_HALF = 2e-3, 3e-2


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


class _Candidate(NamedTuple):
    """Heads of one run's output that may be a role."""

    run: Run
    role: str  # what its layout says, "" for a whole output
    source: Source
    layout: str


def find_sources(runs: Sequence[Run], call: AttentionCall) -> dict[str, Source]:
    """Find which of the linear modules that ran made an attention's queries, keys and values.

    Args:
        runs: What ran in the attention module before the attention.
        call: The attention.

    Returns:
        By role, for those that could be told.
    """
    found: dict[str, _Candidate] = {}
    observed = {"value": call.value, "query": call.query, "key": call.key}
    for role, x in observed.items():
        if x is None:
            continue
        heads = call.scores.shape[1] if call.scores is not None else x.shape[1]
        if call.query is not None:
            heads = call.query.shape[1]
        candidates = [c for run in runs for c in _candidates(run, x, heads, role)]
        # by identity: a module that ran twice has two runs, and tensors in them have no truth value
        taken = [(id(one.run), one.source.chosen) for one in found.values()]
        free = [c for c in candidates if (id(c.run), c.source.chosen) not in taken]
        match = next((c for c in candidates if _same(c, x)), None)
        if match is None and role != "value":
            match = next((c for c in free if _same_lengths(c, x)), None)
            value = found.get("value")
            if match is None and value is not None:
                match = next((c for c in free if _by_convention(c, role, value)), None)
        if match is not None:
            found[role] = match
    return {role: candidate.source for role, candidate in found.items()}


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


def _candidates(run: Run, observed: Tensor, heads: int, role: str) -> Iterator[_Candidate]:
    """Whole outputs that have the right size, and the parts of fused ones."""
    if effective_weight(run.module) is None:
        return
    features, size = run.y.shape[-1], observed.shape[3]
    if features % size:
        return
    units = features // size
    for layout, chosen in _layouts(units, heads):
        if not chosen:
            if heads % units == 0 and (role != "query" or units == heads):
                yield _Candidate(run, "", Source(run.module, units), layout)
            continue
        for name, places in chosen.items():
            if (len(places) == heads) if role == "query" else (heads % len(places) == 0):
                yield _Candidate(run, name, Source(run.module, len(places), tuple(places), units), layout)


def _layouts(units: int, heads: int) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """How an output of so many heads may hold roles: role -> places."""
    yield "whole", {}
    every = list(range(units))
    shared, rest = divmod(units - heads, 2)
    if shared > 0 and rest == 0 and heads % shared == 0:
        group = heads // shared + 2
        yield "blocks", {"query": every[:heads], "key": every[heads : heads + shared],
                         "value": every[heads + shared :]}  # fmt: skip
        yield (
            "groups",
            {
                "query": [u for u in every if u % group < group - 2],
                "key": every[group - 2 :: group],
                "value": every[group - 1 :: group],
            },
        )
    if units % 2 == 0 and heads % (units // 2) == 0:
        yield "halves", {"key": every[: units // 2], "value": every[units // 2 :]}
        yield "pairs", {"key": every[::2], "value": every[1::2]}


def _heads_of(candidate: _Candidate, observed: Tensor) -> Tensor | None:
    """``[n, h, D]`` of the first sequence, heads as many as attention was given."""
    batch, heads, tokens, size = observed.shape
    y, source = candidate.run.y, candidate.source
    if y.numel() != batch * tokens * y.shape[-1] or heads % source.heads:
        return None
    y = source.of_heads(y.reshape(batch, tokens, -1, size)[0], 1)
    return y.repeat_interleave(heads // source.heads, dim=1)


def _same(candidate: _Candidate, observed: Tensor) -> bool:
    y = _heads_of(candidate, observed)
    x = observed[0].transpose(0, 1)
    return y is not None and torch.allclose(y.to(x.dtype), x, equal_nan=True)


def _same_lengths(candidate: _Candidate, observed: Tensor) -> bool:
    """Rotated, or scaled by one number for all: what lengths a rotation leaves."""
    y = _heads_of(candidate, observed)
    if y is None or y.numel() == 0:
        return False
    ours = torch.linalg.vector_norm(y.float(), dim=-1)
    theirs = torch.linalg.vector_norm(observed[0].transpose(0, 1).float(), dim=-1)
    ratio = theirs / ours
    middle = ratio.median()
    half = torch.finfo(observed.dtype).bits < 32
    close = (ratio - middle).abs() <= (_CLOSE_HALF if half else _CLOSE) * middle
    # as many tokens and heads with one ratio are no chance, but a single number is
    return bool(close.all()) and ratio.numel() > 1


def _by_convention(candidate: _Candidate, role: str, value: _Candidate) -> bool:
    if candidate.layout == "whole":
        return value.layout == "whole" and re.match(_NAMES[role], candidate.run.name) is not None
    return candidate.role == role and candidate.run == value.run and candidate.layout == value.layout
