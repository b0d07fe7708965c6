"""What the family ``weights`` is, from full d×d matrices in float64, weights read by each model's own paths.

Nothing here imports lightning_geo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
#: role -> [h, D, d]
Heads = dict[str, Array]


def _rows(weight: Tensor, heads: int) -> Array:
    """[H*D, d] to [H, D, d]."""
    return weight.detach().double().unflatten(0, (heads, -1)).numpy()


def _output(weight: Tensor, heads: int) -> Array:
    """[d, H*D] to [H, D, d]."""
    return _rows(weight.T, heads)


def separate(query: str, key: str, value: str, output: str, heads: int = 4, shared: int = 4) -> Any:
    """Four linear layers below the block."""

    def read(block: nn.Module) -> Heads:
        weights = [block.get_submodule(path).weight for path in (query, key, value, output)]
        return {
            "query": _rows(weights[0], heads),
            "key": _rows(weights[1], shared),
            "value": _rows(weights[2], shared),
            "output": _output(weights[3], heads),
        }

    return read


def gpt2(block: Any) -> Heads:
    """Conv1D: [in, out], thirds side by side."""
    query, key, value = block.attn.c_attn.weight.T.chunk(3)
    roles = {"query": query, "key": key, "value": value}
    return {
        **{role: _rows(weight, 4) for role, weight in roles.items()},
        "output": _rows(block.attn.c_proj.weight, 4),
    }


def gpt_neox(block: Any) -> Heads:
    """Head by head: its query, its key, its value."""
    fused = block.attention.query_key_value.weight.detach().double().view(4, 3, 8, 32).numpy()
    output = _output(block.attention.dense.weight, 4)
    return {"query": fused[:, 0], "key": fused[:, 1], "value": fused[:, 2], "output": output}


def falcon(block: Any) -> Heads:
    """All queries, then one key and one value."""
    fused = block.self_attention.query_key_value.weight.detach().double().view(6, 8, 32).numpy()
    output = _output(block.self_attention.dense.weight, 4)
    return {"query": fused[:4], "key": fused[4:5], "value": fused[5:], "output": output}


def multi_head(block: Any) -> Heads:
    """``nn.MultiheadAttention``."""
    query, key, value = block.self_attn.in_proj_weight.chunk(3)
    roles = {"query": query, "key": key, "value": value}
    output = _output(block.self_attn.out_proj.weight, 4)
    return {**{role: _rows(weight, 4) for role, weight in roles.items()}, "output": output}


_BERT = "attention.self"
_T5, _CROSS = "layer.0.SelfAttention", "layer.1.EncDecAttention"
#: family -> stack -> path of its blocks, and how to read one's weights
READERS: dict[str, dict[str, tuple[str, Callable[[Any], Heads]]]] = {
    "bert": {"encoder": ("encoder.layer", separate(
        f"{_BERT}.query", f"{_BERT}.key", f"{_BERT}.value", "attention.output.dense"))},
    "packaged_bert": {"encoder": ("encoder.layer", separate(
        f"{_BERT}.query", f"{_BERT}.key", f"{_BERT}.value", "attention.output.dense", heads=12, shared=12))},
    "gpt2": {"h": ("h", gpt2)},
    "gpt_neox": {"layers": ("layers", gpt_neox)},
    "falcon": {"h": ("h", falcon)},
    "llama": {"layers": ("layers", separate(
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", shared=2))},
    "t5": {
        "encoder": ("encoder.block", separate(f"{_T5}.q", f"{_T5}.k", f"{_T5}.v", f"{_T5}.o")),
        "decoder": ("decoder.block", separate(f"{_T5}.q", f"{_T5}.k", f"{_T5}.v", f"{_T5}.o")),
        "decoder.cross": ("decoder.block", separate(
            f"{_CROSS}.q", f"{_CROSS}.k", f"{_CROSS}.v", f"{_CROSS}.o")),
    },
    "vit": {"layers": ("layers", separate(
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"))},
    "whisper": {"encoder": ("encoder.layers", separate(
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"))},
    "transformer_encoder": {"encoder": ("encoder.layers", multi_head)},
}  # fmt: skip


def _each(x: Array, heads: int) -> Array:
    return np.repeat(x, heads // len(x), axis=0)


def _symmetry(m: Array) -> float:
    return float(np.trace(m @ m) / np.linalg.norm(m) ** 2)


def _directionality(m: Array) -> float:
    over = []
    for axis in (0, 1):  # columns, then rows
        norms = np.linalg.norm(m, axis=axis)
        over.append(np.maximum(norms - norms.mean() - 2 * norms.std(ddof=1), 0).sum())
    return 0.0 if sum(over) == 0 else float((over[0] - over[1]) / sum(over))


def _ranks(m: Array) -> tuple[float, float, float]:
    sigma = np.linalg.svd(m, compute_uv=False)
    share = sigma / sigma.sum()
    share = share[share > 0]
    return (
        float(np.exp(-(share * np.log(share)).sum())),
        float((sigma**2).sum() / sigma[0] ** 2),
        float(np.linalg.norm(m)),
    )


def rv(a: Array, b: Array) -> float:
    """RV coefficient of two d×d matrices."""
    products = [np.sum(one * other.T) for one, other in ((a, b), (a, a), (b, b))]  # traces
    return float(products[0] / np.sqrt(products[1] * products[2]))


def in_stream(w: Array) -> Array:
    """[h, d, d], WᵀW of each head."""
    return w.swapaxes(-1, -2) @ w


def overlaps(w: Array) -> Array:
    """[h, h], RV coefficients of all pairs of heads."""
    a = in_stream(w)
    return np.array([[rv(one, other) for other in a] for one in a])


def _largest(w: Array) -> Array:
    values = overlaps(w)
    np.fill_diagonal(values, np.nan)
    return np.array([np.nan if len(row) == 1 else np.nanmax(row) for row in values])


def expected(heads: Heads, *, cross: bool = False) -> dict[str, Any]:
    """All metrics of one layer: [head] or a number."""
    count = len(heads["query"])
    w = {role: _each(weight, count) for role, weight in heads.items()}
    scored = w["query"].swapaxes(-1, -2) @ w["key"]
    moved = w["value"].swapaxes(-1, -2) @ w["output"]
    result: dict[str, Any] = {}
    for pair, matrices in (("qk", scored), ("ov", moved)):
        columns = np.array([_ranks(m) for m in matrices]).T
        result |= {
            f"{pair}_{n}": c for n, c in zip(("effective_rank", "stable_rank", "norm"), columns, strict=True)
        }
    if not cross:
        result["symmetry"] = np.array([_symmetry(m) for m in scored])
        result["directionality"] = np.array([_directionality(m) for m in scored])
        result["layer_symmetry"] = _symmetry(scored.sum(0))
        result["layer_directionality"] = _directionality(scored.sum(0))
    for role in ("query", "key", "value"):
        result[f"read_overlap.{role}"] = _each(_largest(heads[role]), count)
    result["write_overlap"] = _largest(heads["output"])
    return result


def drift(now: Array, start: Array, heads: int) -> Array:
    """``weight_drift`` [head]."""
    pairs = zip(in_stream(now), in_stream(start), strict=True)
    return _each(np.array([1 - rv(a, b) for a, b in pairs]), heads)
