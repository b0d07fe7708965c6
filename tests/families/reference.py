"""What a model really does, in float64: the eager twin of each family, run with everything it will tell.

Probabilities come from ``output_attentions``, hidden states from hooks on the blocks, queries, keys and
values from hooks on their projections (rotated ones from the model file's own rotation). Nothing here imports
lightning_geo.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from families.family import Batch, Family, Stack
from families.packaged import EVERY

Array = NDArray[Any]


@dataclass
class Layer:
    """One attention call and its block, float64.

    Args:
        probabilities: [B, H, Nq, Nk], before renormalising: with sinks, rows sum to less than 1.
        visible: [B, Nq, Nk] bool, from the padding, causal and window structure (Swin's: from its mask).
        queries: [B, Nq] bool, real tokens. ``keys``: [B, Nk] bool.
        block_input: [B', N, d], what the layer is given; ``block_output`` what it returns.
        tokens: [B', N] bool, the real tokens among those.
        attended: [B, Nq, d], what the attention module returns.
        query, key, value: [B, H, N, head size]; ``None`` where the reference cannot tell.
        scores: [B, H, Nq, Nk] before the mask; ``None`` likewise.
    """

    probabilities: Array
    visible: Array
    queries: Array
    keys: Array
    block_input: Array
    block_output: Array
    tokens: Array
    attended: Array
    cross: bool
    query: Array | None = None
    key: Array | None = None
    value: Array | None = None
    scores: Array | None = None


@dataclass
class _Seen:
    """What hooks saw of one attention call."""

    result: tuple[Any, ...] = ()
    block: tuple[Tensor, Tensor] | None = None
    projected: dict[str, Tensor] = field(default_factory=dict)
    rotated: tuple[Tensor, Tensor] | None = None


@functools.cache
def layers_of(name: str, padding: str) -> dict[str, list[Layer]]:
    """Run the family's eager twin in float64: ``stack -> layers``."""
    family = EVERY[name]
    model = family.build("eager").double()
    batch = {k: v.double() if v.is_floating_point() else v for k, v in family.batch(padding).items()}
    wanted = {"output_attentions": True} if isinstance(model, PreTrainedModel) else {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_StayDouble())
        seen = {s.name: stack.enter_context(_watch(model, s)) for s in family.stacks}
        output = model(**batch, **wanted)
    return {s.name: _layers(family, s, batch, output, seen[s.name]) for s in family.stacks}


class _StayDouble(TorchFunctionMode):
    """Undo the casts to float32 that model files write out around softmax, norms and rotations.

    Not only for exactness: a row that sees nothing is finfo(float64).min everywhere, -inf in float32,
    and its NaN would reach every token of the next layer.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float or (func is Tensor.to and torch.float32 in (*args, *kwargs.values())):
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
        if func is Tensor.matmul:  # transformers 5.17 casts positions to float32 for RoPE
            args = tuple(x.double() for x in args)
        return func(*args, **kwargs)


@contextlib.contextmanager
def _watch(model: nn.Module, stack: Stack) -> Iterator[list[_Seen]]:
    """Collect what the attention modules of a stack and their blocks do."""
    seen: list[_Seen] = []
    current: list[_Seen] = []  # the calls running now, at most one

    def start(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(_Seen())
        current.append(seen[-1])
        if type(module).__name__ == "SwinAttention" and args[1] is not None:
            # -100 between what a shift brought together, by window; the batch is made of windows
            windows = args[1].repeat(len(args[0]) // len(args[1]), 1, 1)
            seen[-1].projected["w"] = windows[:, None]
        if isinstance(module, nn.MultiheadAttention):
            weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
            for role, x, weight, bias in zip("qkv", args, weights, biases, strict=False):
                seen[-1].projected[role] = F.linear(x, weight, bias)

    def end(module: nn.Module, args: Any, result: Any) -> None:
        current.pop().result = result if isinstance(result, tuple) else (result,)

    def block(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        entered = args[0] if args else kwargs["hidden_states"]
        seen[-1].block = (entered, result[0] if isinstance(result, tuple) else result)

    def project(role: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Tensor) -> None:
            current[-1].projected.setdefault(role, result)  # deberta projects positions afterwards

        return hook

    def rotate(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if current:
            current[-1].rotated = result
        return result

    handles: list[Any] = []
    file = sys.modules[type(model).__module__]
    rotation = getattr(file, "apply_rotary_pos_emb", None)
    try:
        for layer in blocks_of(model, stack):
            attention = layer.get_submodule(stack.attention)
            handles.append(attention.register_forward_pre_hook(start, with_kwargs=True))
            handles.append(attention.register_forward_hook(end))
            handles.append(layer.register_forward_hook(block, with_kwargs=True))
            for path, role in zip(stack.projections, "qkvb", strict=False):
                if path:
                    handles.append(attention.get_submodule(path).register_forward_hook(project(role)))
        if rotation is not None:
            file.apply_rotary_pos_emb = functools.partial(rotate, rotation)
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        if rotation is not None:
            file.apply_rotary_pos_emb = rotation


def blocks_of(model: nn.Module, stack: Stack) -> list[nn.Module]:
    """The layers of a stack in order; ``*`` in its path stands for every item of a list."""
    outer, star, inner = stack.blocks.partition(".*.")
    holders = list(model.get_submodule(outer)) if star else [model]
    return [layer for holder in holders for layer in holder.get_submodule(inner if star else outer)]


def _layers(family: Family, stack: Stack, batch: Batch, output: Any, seen: list[_Seen]) -> list[Layer]:
    assert len(seen) == stack.layers, f"{family.name}: {len(seen)} attention calls in {stack.name}"
    if stack.attentions:
        attentions = operator.attrgetter(stack.attentions)(output)
    else:
        attentions = [one.result[-1] for one in seen]
    layers = []
    for index, (probabilities, one) in enumerate(zip(attentions, seen, strict=True)):
        sequences, _, queries, keys = probabilities.shape
        valid = _valid(batch, stack.tokens, sequences, queries)
        valid_keys = _valid(batch, stack.keys, sequences, keys)
        visible = valid_keys[:, None, :] & _pattern(stack, index, queries, keys)
        if "w" in one.projected:  # -100 between windows that a shift brought together
            visible = visible & (_numpy(one.projected["w"])[:, 0] > -50)
        assert one.block is not None
        entered, left = one.block
        attended = one.result[0]
        if stack.sequence_first:
            entered, left, attended = (x.transpose(0, 1) for x in (entered, left, attended))
        query, key, value = (_heads(one, role, stack) for role in "qkv")
        if query is not None and key is not None:
            query, key = (x * factor for x, factor in zip((query, key), stack.prescaled, strict=True))
        scores = None
        if stack.scale is not None and query is not None and key is not None:
            scores = stack.scale * (query @ _repeat(key, query.shape[1]).swapaxes(-1, -2))
            if stack.biased:  # T5 returns its position bias next to the probabilities
                scores = scores + _numpy(one.result[-2])
            for term in "bw":
                if term in one.projected:
                    scores = scores + _numpy(one.projected[term])
            if stack.softcap:
                scores = stack.softcap * np.tanh(scores / stack.softcap)
        layers.append(
            Layer(
                probabilities=_numpy(probabilities),
                visible=visible,
                queries=valid,
                keys=valid_keys,
                block_input=_numpy(entered),
                block_output=_numpy(left),
                tokens=_valid(batch, stack.tokens, left.shape[0], left.shape[1]),
                attended=_numpy(attended),
                cross=stack.is_cross,
                query=query,
                key=None if key is None else _repeat(key, probabilities.shape[1]),
                value=None if value is None else _repeat(value, probabilities.shape[1]),
                scores=scores,
            )
        )
    return layers


def _valid(batch: Batch, entry: str, sequences: int, length: int) -> Array:
    """[B, N] bool from the batch's own mask; everything where there is none."""
    if entry in batch:
        return batch[entry].bool().numpy()
    return np.ones((sequences, length), dtype=bool)


def _pattern(stack: Stack, layer: int, queries: int, keys: int) -> Array:
    """[1, Nq, Nk] bool: what causality and windows leave."""
    i, j = np.arange(queries)[:, None], np.arange(keys)[None, :]
    allowed = np.ones((queries, keys), dtype=bool)
    if stack.causal:
        allowed &= j <= i
    if stack.windowed and stack.windowed[layer]:
        assert stack.window is not None
        allowed &= np.abs(i - j) < stack.window
    return allowed[None]


def _heads(seen: _Seen, role: str, stack: Stack) -> Array | None:
    """[B, h, N, 8] of one role, rotated where the model rotates."""
    plain = _projected(seen, role, stack)
    if role == "v" or seen.rotated is None:
        return plain
    if not isinstance(seen.rotated, tuple):
        return None  # gptj rotates in another layout
    turned = _numpy(seen.rotated["qk".index(role)])
    if turned.shape[-1] < stack.head_size:  # phi rotates a part of each head
        assert plain is not None
        turned = np.concatenate([turned, plain[..., turned.shape[-1] :]], axis=-1)
    return turned


def _projected(seen: _Seen, role: str, stack: Stack) -> Array | None:
    """[B, h, N, 8] of one role, as the projection gives it."""
    index = "qkv".index(role)
    flat = seen.projected.get("q" if len(stack.projections) == 1 else role)
    if flat is None:
        return None
    if len(stack.projections) == 1 and stack.fused == "thirds":
        flat = flat.chunk(3, dim=-1)[index]
    if stack.sequence_first:
        flat = flat.transpose(0, 1)
    heads = flat.unflatten(-1, (-1, stack.head_size))
    if len(stack.projections) == 1 and stack.fused == "interleaved":
        heads = heads[..., index::3, :]
    if len(stack.projections) == 1 and stack.fused == "multi-query":
        heads = (heads[..., :-2, :], heads[..., -2:-1, :], heads[..., -1:, :])[index]
    return _numpy(heads.transpose(1, 2))


def _repeat(x: Array, heads: int) -> Array:
    """A key/value head for each query head that it serves."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def _numpy(x: Tensor) -> Array:
    return x.detach().double().numpy()
