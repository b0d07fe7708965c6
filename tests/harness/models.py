"""From a description to a model, its inputs and its attentions: where modules hang, how they are called."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.attention import Attention, HeadList
from harness.description import MODULES, Description
from harness.log import Seen, recording
from harness.modules import MultiHead, TorchStack, watch
from harness.visibility import Plan, encode, plan_of

__all__ = ["Built", "Layer", "Model", "build", "run"]


@dataclass
class Layer:
    """One attention of the built model: where it is to be found, and what it computed."""

    path: str
    repeat: int
    index: int | None
    seen: Seen


@dataclass
class Built:
    """A model, what it is called with, and what is visible in it."""

    model: nn.Module
    batch: Any
    plan: Plan
    description: Description


class Block(nn.Module):
    """Pre-norm: attention to itself, to the memory, and an MLP."""

    def __init__(self, d: Description, plan: Plan, layer: int, shared: SimpleNamespace) -> None:
        super().__init__()
        kind = HeadList if d.axes == "list" else MultiHead if d.how in MODULES else Attention
        self.d, self.shared = d, shared
        self.norm = nn.LayerNorm(d.width)
        if d.self_too:
            self.attn = kind(d, plan, layer)
        if d.crosses:
            self.reader_norm, self.reader = nn.LayerNorm(d.width), kind(d, plan, layer, True)
        mlp = nn.Sequential(nn.Linear(d.width, 2 * d.width), nn.GELU(), nn.Linear(2 * d.width, d.width))
        self.mlp = torch.jit.script(mlp) if d.tree == "scripted" else mlp

    def forward(
        self, x: Tensor, mask: Any = None, memory: Any = None, memory_mask: Any = None, past: Any = None
    ) -> Tensor:
        if self.d.tree == "sequential":  # its items are called with x alone
            mask, memory, memory_mask = self.shared.mask, self.shared.memory, self.shared.memory_mask
        if self.d.self_too:
            h = self.norm(x)
            x = x + self.attn(h, x if self.d.source == "normed" else None, mask, past)
        if self.d.source == "memory_position":
            x = x + self.reader(self.reader_norm(x), memory, memory_mask)
        elif self.d.source == "memory_keyword":
            x = x + self.reader(self.reader_norm(x), other=memory, mask=memory_mask)
        return x + self.mlp(x)


class Stage(nn.Module):
    """Some blocks, and one more attention of its own."""

    def __init__(self, d: Description, plan: Plan, first: int, count: int, shared: SimpleNamespace) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(d, plan, first + i, shared) for i in range(count)])
        self.pool = Block(d, plan, first + count, shared)

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, *rest)
        return self.pool(x, *rest)


class Model(nn.Module):
    """Embeds, makes masks from what it is told, and runs its layers."""

    def __init__(self, d: Description, plan: Plan) -> None:
        super().__init__()
        self.d, self.plan, self.shared = d, plan, SimpleNamespace()
        if d.inputs == "ids":
            self.embed, self.positions = nn.Embedding(20, d.width), nn.Embedding(d.length, d.width)

        def make(layer: int) -> Block:
            return Block(d, plan, layer, self.shared)

        if d.how in ("encoder", "decoder"):
            self.layers = TorchStack(d)
        elif d.tree == "stages":
            self.stages = nn.ModuleList([Stage(d, plan, 3 * i, 2, self.shared) for i in range(d.layers)])
        elif d.tree == "nested":
            groups = [[make(2 * i), make(2 * i + 1)] for i in range(d.layers)]
            self.layers = nn.ModuleList([nn.ModuleList(group) for group in groups])
        elif d.tree == "sequential":
            self.layers = nn.Sequential(*map(make, range(d.layers)))
        elif d.tree == "attributes":
            for i in range(d.layers):
                setattr(self, "abcd"[i], make(i))
        elif d.tree == "repeated":
            self.layers = nn.ModuleList([make(0)])
        else:
            self.layers = nn.ModuleList(map(make, range(d.layers)))
        self.norm = nn.LayerNorm(d.width)

    def forward(
        self, x: Tensor | None = None, memory: Tensor | None = None, attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None, encoder_hidden_states: Tensor | None = None,
        key_padding_mask: Tensor | None = None, lengths: Tensor | None = None,
        position_ids: Tensor | None = None, past_key_values: Any = None,
    ) -> Tensor:  # fmt: skip
        memory = encoder_hidden_states if memory is None else memory
        if input_ids is not None:
            x = self.embed(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        keep = self._keep(attention_mask, key_padding_mask, lengths)
        if self.d.how in ("encoder", "decoder"):
            return self.norm(self.layers(x, self.plan, keep, memory))
        mask = self._mask(keep, attention_mask, position_ids, x.dtype)
        memory_mask = None
        if self.d.memory_lengths:
            memory_mask = self.plan.memory_real
            memory_mask = memory_mask if self.d.how in MODULES else memory_mask[:, None, None]
        self.shared.mask, self.shared.memory, self.shared.memory_mask = mask, memory, memory_mask
        x = self._run(x, (mask, memory, memory_mask), past_key_values)
        self.shared.__dict__.clear()
        return self.norm(x)

    def _keep(self, told: Tensor | None, padding: Tensor | None, lengths: Tensor | None) -> Tensor | None:
        """[B, N] bool, real tokens; from what the model is called with, if that says it."""
        if self.d.padding == "none" or self.d.packed != "none":
            return None
        if told is not None:
            return told[:, -self.d.length :].bool()
        if padding is not None:
            return ~padding
        if lengths is not None:
            position = torch.arange(self.d.length)
            right = self.d.padding == "right"
            return position < lengths[:, None] if right else position >= self.d.length - lengths[:, None]
        return self.plan.real

    def _mask(self, keep: Tensor | None, told: Tensor | None, positions: Tensor | None, dtype: Any) -> Any:
        d = self.d
        visible = self.plan.structure
        if d.packed != "none":  # the block mask is made from what the model was told
            document = told if d.packed == "documents" else (positions == 0).cumsum(-1)
            visible = (document[:, :, None] == document[:, None])[:, None]
            if d.structure == "causal":
                visible = visible & torch.ones(d.length, d.length, dtype=torch.bool).tril()
        if d.how in MODULES:
            return visible, keep
        if keep is not None and d.values != "is_causal":
            front = keep.new_ones(len(keep), d.extra)
            visible = visible & torch.cat([front, keep], 1)[:, None, None]
        if d.shape == "b11k":
            visible = visible[:, :, :1]
        return encode(visible, None if d.how in ("baddbmm", "flex") else self.plan.bias, d, dtype)

    def _run(self, x: Tensor, rest: tuple[Any, ...], past: Any) -> Tensor:
        tree = self.d.tree
        if tree == "sequential":
            return self.layers(x)
        if tree == "stages":
            for stage in self.stages:
                x = stage(x, *rest)
            return x
        if tree == "nested":
            blocks = [block for group in self.layers for block in group]
        elif tree == "attributes":
            blocks = [getattr(self, "abcd"[i]) for i in range(self.d.layers)]
        else:
            blocks = list(self.layers) * (self.d.layers if tree == "repeated" else 1)
        for i, block in enumerate(blocks):
            call = block.forward if tree in ("forward", "checkpoint_forward") else block
            given = (x, *rest) if past is None else (x, *rest, past[i])
            if tree.startswith("checkpoint"):
                x = checkpoint(call, *given, use_reentrant=tree == "checkpoint_reentrant")
            else:
                x = call(*given)
        return x


def build(d: Description) -> Built:
    """Make the model and its inputs."""
    plan = plan_of(d)
    with torch.random.fork_rng():
        torch.manual_seed(d.seed)
        dtype = getattr(torch, d.dtype)
        model = Model(d, plan)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and any(
                    part in ("q", "k", "q2", "k2", "qkv", "in_proj_weight") for part in name.split(".")
                ):
                    parameter.mul_(2)  # heads that differ, and scores far from those that hide
        model = model.to(dtype).eval()
        batch = _batch(d, plan, dtype)
    if d.tree == "compiled":
        model = torch.compile(model, backend="eager")  # type: ignore[assignment]
    return Built(model, batch, plan, d)


def _batch(d: Description, plan: Plan, dtype: torch.dtype) -> Any:
    x = torch.randn(d.batch, d.length, d.width).to(dtype)
    batch: dict[str, Any] = {"x": x}
    if d.inputs == "ids":
        batch = {"input_ids": torch.randint(0, 20, (d.batch, d.length))}
    if d.crosses:
        memory = torch.randn(d.batch, d.memory_length, d.width).to(dtype)
        batch["memory" if d.source == "memory_position" else "encoder_hidden_states"] = memory
    if d.packed == "documents":
        batch["attention_mask"] = plan.documents
    elif d.packed == "positions":
        rows = [torch.cat([torch.arange(n) for n in lengths]) for lengths in d.documents]
        batch["position_ids"] = torch.stack(rows)
    elif d.told in ("int", "bool"):
        keep = torch.cat([plan.real.new_ones(d.batch, d.extra * (d.keys == "cache")), plan.real], 1)
        batch["attention_mask"] = keep if d.told == "bool" else keep.long()
    elif d.told == "key_padding_mask":
        batch["key_padding_mask"] = ~plan.real
    elif d.told == "lengths":
        batch["lengths"] = plan.real.sum(-1)
    if d.keys == "cache":
        shape = (2, d.batch, d.kv_heads, d.extra, d.head_size)
        batch["past_key_values"] = [tuple(torch.randn(shape).to(dtype)) for _ in range(d.layers)]
    if d.source == "memory_position" and set(batch) <= {"x", "memory", "attention_mask"}:
        return tuple(batch.values())
    return batch


@torch.no_grad()
def run(built: Built) -> list[Layer]:
    """Run the model by itself and collect its attentions, in the order in which they were computed."""
    model, d = getattr(built.model, "_orig_mod", built.model), built.description
    args, kwargs = (built.batch, {}) if isinstance(built.batch, tuple) else ((), built.batch)
    with recording() as log, watch(model, d):
        model(*args, **kwargs)
    paths = {module: path for path, module in model.named_modules()}
    layers: list[Layer] = []
    repeats: dict[str, int] = {}
    for seen in _joined(log, d):
        path = paths[seen.module]
        seen.cross = seen.cross or "multihead_attn" in path or ".reader." in f"{path}."
        repeat = repeats[path] = repeats.get(path, -1) + 1
        layers.append(Layer(path, repeat, _index(d, path, repeat), seen))
    return layers


def _joined(log: list[Seen], d: Description) -> list[Seen]:
    """Heads that are modules of their own become one attention."""
    joined: list[Seen] = []
    for seen in log:
        last = joined[-1] if joined else None
        same = seen.part and last is not None and last.module is seen.module
        if same and last.query.shape[1] < d.heads:
            for name in ("query", "key", "bias", "value", "output"):
                pair = getattr(last, name), getattr(seen, name)
                if all(x is not None for x in pair):
                    setattr(last, name, torch.cat(pair, 1))
        else:
            joined.append(seen)
    return joined


def _index(d: Description, path: str, repeat: int) -> int | None:
    """The layer's number, where the tree leaves no doubt about it."""
    if d.tree == "repeated" and d.parts == "one":
        return repeat
    if d.tree == "attributes":
        # without a list, the attentions that are measured are numbered: channels between them have no number
        return None if d.crosses or d.parts == "channels" else "abcd".index(path[0])
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    if d.tree == "nested":
        return 2 * numbers[0] + numbers[1]
    return None if d.tree in ("stages", "repeated") else numbers[0]
