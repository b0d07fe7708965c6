"""Attention modules of the harness."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.axes import arrange, restore
from harness.description import BY_HAND, Description
from harness.log import Seen, last_seen, note
from harness.visibility import Plan, arrange_mask

__all__ = ["Attention", "HeadList"]


def declare(module: nn.Module, d: Description, heads: int) -> None:
    """Let the module say how many heads it has."""
    if d.declared == "config":
        module.config = SimpleNamespace(num_attention_heads=heads, hidden_size=d.width)
    elif d.declared != "none":
        setattr(module, d.declared, heads)


class Attention(nn.Module):
    """Multi-head attention as the description says.

    Args:
        d: The description.
        plan: What is visible.
        layer: Which layer it is in.
        cross: Whether keys come from the memory.
        owner: The module whose head this is, in a list of one.
    """

    def __init__(
        self,
        d: Description,
        plan: Plan,
        layer: int,
        cross: bool = False,
        owner: list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.d, self.plan, self.cross, self.owner = d, plan, cross, owner
        self.channels = d.is_channels(layer) and not cross
        self.heads_, self.groups_ = (1, 1) if owner else (d.heads, d.kv_heads)
        width, sizes = d.width, (self.heads_ * d.head_size, self.groups_ * d.head_size)
        self.twice = d.parts in ("differential", "joint") and not cross
        if owner is None:
            declare(self, d, d.heads)
        if d.projection == "fused" and not cross and d.source != "normed":
            self.qkv = nn.Linear(width, sizes[0] + 2 * sizes[1])
        else:
            self.q, self.k, self.v = (
                nn.Linear(width, sizes[0]),
                nn.Linear(width, sizes[1]),
                nn.Linear(width, sizes[1]),
            )
        if self.twice:
            self.q2, self.k2 = nn.Linear(width, sizes[0]), nn.Linear(width, sizes[1])
        if owner is None:
            self.out = nn.Linear(sizes[0], width)
        if d.between == "sequential":
            self.position_bias = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, self.heads_))
        if d.softmax == "module":
            self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.1)
        elif d.softmax == "sequential":
            self.softmax = nn.Sequential(nn.Softmax(dim=-1), nn.Dropout(0.1))
        if d.keys == "prefix" and not cross:
            self.prefix = nn.Parameter(torch.randn(2, 1, d.extra, self.groups_, d.head_size))

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Any = None, past: Any = None) -> Tensor:
        """Attend from ``x`` [B, N, d] to ``other``, or to itself."""
        d = self.d
        q, k, v = (self._heads(t) for t in self._project(x, x if other is None else other))
        if past is not None:
            k, v = (torch.cat([old.transpose(1, 2), new], 1) for old, new in zip(past, (k, v), strict=True))
        if d.keys == "prefix" and not self.cross:
            k, v = (
                torch.cat([p.expand(len(x), -1, -1, -1), t], 1)
                for p, t in zip(self.prefix, (k, v), strict=True)
            )
        k, v = self._repeated(k), self._repeated(v)
        q, k, v = (arrange(t, d) for t in (q, k, v))
        if self.channels:
            return self._close(self._channels(q, k, v))
        if d.parts == "discarded":
            (k @ q.transpose(-1, -2) / math.sqrt(d.head_size)).softmax(-1)
        if not self.twice:
            return self._close(self._attended(q, k, v, mask))
        q2, k2 = (arrange(t, d) for t in (self._heads(self.q2(x)), self._repeated(self._heads(self.k2(x)))))
        if d.parts == "joint":
            p = self._probabilities(q, k, mask) - 0.5 * self._probabilities(q2, k2, mask)
            return self._close(self._weigh(p, v))
        return self._close(self._attended(q, k, v, mask) - 0.5 * self._attended(q2, k2, v, mask))

    def _project(self, x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        if hasattr(self, "qkv"):
            sizes = [self.heads_ * self.d.head_size, *[self.groups_ * self.d.head_size] * 2]
            return tuple(self.qkv(x).split(sizes, -1))
        return self.q(x), self.k(other), self.v(other)

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, H·D] to [B, N, H, D], or [B, W, n, H, D]."""
        x = x.unflatten(-1, (-1, self.d.head_size))
        return x.unflatten(1, (self.d.windows, -1)) if self.d.windows > 1 else x

    def _repeated(self, x: Tensor) -> Tensor:
        """As many heads as queries have, on the axis before the last."""
        count = self.heads_ // self.groups_
        if self.d.grouping == "repeat":
            return x.repeat_interleave(count, -2)
        if self.d.grouping == "expand":
            return x[..., None, :].expand(*x.shape[:-1], count, x.shape[-1]).flatten(-3, -2)
        return x

    def _close(self, x: Tensor) -> Tensor:
        x = restore(x, self.d)
        return x if self.owner else self.out(x)

    # -- computing

    @property
    def _scale(self) -> float:
        return self.d.head_size**-0.5

    def _plain(self, x: Tensor) -> Tensor:
        """[B, H, N, D], repeated where heads share them."""
        x = restore(x, self.d, flat=False).transpose(1, 2)
        return x.repeat_interleave(self.heads_ // x.shape[1], 1)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        output = self._attend(q, k, v, mask)
        seen = last_seen()
        if seen is not None:
            seen.value, seen.output = self._plain(v).double(), self._plain(output).double()
        return output

    def _note(self, q: Tensor, k: Tensor, bias: Tensor | None) -> None:
        q, k = self._plain(q), self._plain(k)
        owner = self if self.owner is None else self.owner[0]
        note(Seen(owner, q, k, self._scale, self.cross, bias, self.owner is not None))

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.cross or self.plan.bias is None else self.plan.bias.to(dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        d = self.d
        if d.how in BY_HAND:
            return self._weigh(self._probabilities(q, k, mask), v)
        self._note(q, k, self._bias(q.dtype))
        options: dict[str, Any] = {"enable_gqa": True} if d.grouping == "enable_gqa" else {}
        if d.scale == "given":
            options["scale"] = self._scale
        if d.how == "flex":
            return self._flex(q, k, v, mask, options)
        mask = arrange_mask(mask, d) if isinstance(mask, Tensor) else mask
        if not self.cross:
            if d.values == "is_causal":
                options["is_causal"] = True
            elif d.values in ("upper_left", "lower_right"):
                from torch.nn.attention import bias

                make = bias.causal_upper_left if d.values == "upper_left" else bias.causal_lower_right
                mask = make(q.shape[-2], k.shape[-2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        if mask is not None:
            whole = mask.expand(len(q), q.shape[1], q.shape[2], k.shape[2])

            def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
                return whole[b, h, i, j]

            options["block_mask"] = create_block_mask(visible, *whole.shape, device="cpu")
        bias = self._bias(q.dtype)
        if bias is not None:
            options["score_mod"] = lambda score, b, h, i, j: score + bias[0, h, i, j]
        return flex_attention(q, k, v, **options)

    def _probabilities(self, q: Tensor, k: Tensor, mask: Any) -> Tensor:
        """[.., Nq, Nk] on the description's axes; for bnhd [B, H, Nq, Nk]."""
        d = self.d
        bias = self._bias(q.dtype)
        if d.between == "sequential":
            steps = (torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])).to(q.dtype)
            bias = self.position_bias(steps[..., None] / 4).permute(2, 0, 1)[None]
        self._note(q, k, bias)
        if d.scale == "query":
            q = q * self._scale
        factor = 1.0 if d.scale == "query" else self._scale
        if d.how == "baddbmm":
            start = q.new_zeros(1, 1, 1) if bias is None else arrange_mask(bias, d)
            scores = torch.baddbmm(
                start.expand(len(q), q.shape[1], k.shape[1]), q, k.transpose(1, 2), alpha=factor
            )
        else:
            scores = _product(q, k, d)
            scores = scores / math.sqrt(d.head_size) if d.scale == "given" else scores * factor
            if bias is not None and (
                d.between == "sequential" or d.values in ("none", "masked_fill", "where", "eye")
            ):
                scores = scores + arrange_mask(bias, d)
        if isinstance(mask, Tensor):
            mask = arrange_mask(mask, d)
            if mask.dtype != torch.bool:
                scores = scores + mask
            elif d.values == "where":
                scores = torch.where(mask, scores, float("-inf"))
            else:
                scores = scores.masked_fill(~mask, float("-inf"))
        p = self._softmax(scores)
        return torch.nan_to_num(p) if d.blind else p

    def _softmax(self, scores: Tensor) -> Tensor:
        name = self.d.softmax
        if name in ("module", "sequential"):
            p = self.softmax(scores)
            return self.dropout(p) if name == "module" else p
        if name == "method":
            return scores.softmax(-1)
        if name == "torch":
            return torch.softmax(scores, dim=-1)
        if name == "float32" and scores.dtype != torch.float64:
            return F.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
        return F.softmax(scores, dim=-1)

    def _weigh(self, p: Tensor, v: Tensor) -> Tensor:
        if self.d.axes == "bnhd":
            return torch.einsum("bhij,bjhd->bihd", p, v)
        return torch.bmm(p, v) if self.d.how == "baddbmm" else p @ v

    def _channels(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """From channel to channel, as XCiT: [B, H, D, D]."""
        q, k, v = (t.transpose(-1, -2) for t in (q, k, v))
        if self.d.how in BY_HAND:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            return (self._softmax(q @ k.transpose(-1, -2)) @ v).transpose(-1, -2)
        return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)


def _product(q: Tensor, k: Tensor, d: Description) -> Tensor:
    if d.axes == "bnhd":
        return torch.einsum("bihd,bjhd->bhij", q, k)
    if d.how == "einsum":
        return torch.einsum({3: "bid,bjd->bij", 4: "bhid,bhjd->bhij", 5: "awhid,awhjd->awhij"}[q.dim()], q, k)
    return torch.matmul(q, k.transpose(-1, -2))


class HeadList(nn.Module):
    """One module a head, each on [B, N, D], as tutorials write it."""

    def __init__(self, d: Description, plan: Plan, layer: int, cross: bool = False) -> None:
        super().__init__()
        self.d = d
        declare(self, d, d.heads)
        owner: list[nn.Module] = [self]
        self.heads = nn.ModuleList([Attention(d, plan, layer, cross, owner) for _ in range(d.heads)])
        self.out = nn.Linear(d.width, d.width)

    def forward(self, x: Tensor, other: Tensor | None = None, mask: Any = None, past: Any = None) -> Tensor:
        return self.out(torch.cat([head(x, other, mask) for head in self.heads], -1))
