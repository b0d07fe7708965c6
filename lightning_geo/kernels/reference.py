"""The oracle: all statistics in float64 from materialised matrices, one definition per line."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.masks import HIDDEN_BELOW
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics
from lightning_geo.kernels.vectors import HeadMoments, StreamStatistics
from lightning_geo.utils.shapes import Bool, Float, Shaped

__all__ = ["reference", "reference_moments", "reference_sketch", "reference_stream"]


@torch.no_grad()
def reference(problem: AttentionProblem) -> AttentionStatistics:
    """Compute the statistics as they are defined, from [B, H, Nq, Nk] matrices: for tests.

    Args:
        problem: The attention call; its rounded inputs are taken as exact.

    Returns:
        The statistics, float planes in float64.
    """
    visible, scores = _visible_scores(problem)
    live = visible.any(-1)
    if problem.query_mask is not None:
        live = live & problem.query_mask[:, None]
    first = _first_key(problem, visible & live[..., None])
    rows = torch.arange(problem.query.shape[2], device=scores.device).expand(scores.shape[0], -1)
    if problem.rows is not None:
        rows = problem.rows
        matrix = rows[:, None, :, None].expand(*problem.rows_shape, problem.keys)
        visible, scores = visible.gather(2, matrix), scores.gather(2, matrix)
        live = live.gather(2, matrix[..., 0])
    position = rows[:, None, :, None] + problem.offset
    column = torch.arange(problem.keys, device=scores.device)
    finite = (torch.isfinite(scores) | ~visible).all(-1)

    p = torch.softmax(scores.masked_fill(~visible, -torch.inf), -1)
    p = p.masked_fill(~live[..., None], 0.0)
    logsumexp = torch.logsumexp(scores.masked_fill(~visible, -torch.inf), -1)
    special, sinks = problem.special, problem.sinks

    def plane(values: Float[Tensor, "batch heads rows"]) -> Float[Tensor, "batch heads rows"]:
        return values.masked_fill(~(live & finite), torch.nan)

    def mass(where: Shaped[Tensor, "#batch #heads #rows keys"]) -> Float[Tensor, "batch heads rows"]:
        return plane((p * where).sum(-1))

    return AttentionStatistics(
        live=live,
        visible_keys=visible.sum(-1).double(),
        logsumexp=plane(logsumexp),
        entropy=plane(torch.special.entr(p).sum(-1)),
        concentration=plane(p.square().sum(-1)),
        max_probability=plane(p.amax(-1)),
        max_logit=plane(scores.masked_fill(~visible, -torch.inf).amax(-1)),
        self_mass=mass(column == position),
        previous_mass=mass(column == position - 1),
        next_mass=mass(column == position + 1),
        first_mass=mass(first),
        backward_mass=mass(column < position),
        forward_mass=mass(column > position),
        attention_distance=mass((column - position).abs()),
        received=p.sum(-2).masked_fill((live & ~finite).any(-1, keepdim=True), torch.nan),
        special_mass=None if special is None else mass(special[:, None, None]),
        learned_sink_mass=None
        if sinks is None
        else plane(torch.sigmoid(sinks.double()[:, None] - logsumexp)),
    ).only(problem.requested)


def _visible_scores(
    problem: AttentionProblem,
) -> tuple[Bool[Tensor, "batch heads queries keys"], Float[Tensor, "batch heads queries keys"]]:
    """Compute the visible keys and all scores, hidden ones included: ``[B, H, Nq, Nk]`` each."""
    batch, heads, _ = problem.rows_shape
    shape = (batch, heads, problem.query.shape[2], problem.keys)
    key = problem.key.double().repeat_interleave(problem.group_size, dim=1)
    scores = problem.query.double() @ key.transpose(-2, -1) * problem.scale
    if problem.softcap is not None:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    index = torch.meshgrid(*(torch.arange(n, device=scores.device) for n in shape), indexing="ij")
    position = index[2] + problem.offset
    visible = torch.ones(shape, dtype=torch.bool, device=scores.device)
    if problem.left is not None:
        visible &= index[3] >= position - problem.left
    if problem.right is not None:
        visible &= index[3] <= position + problem.right
    for mask in problem.masks:
        if isinstance(mask, BlockRule):
            visible &= mask.visible(*(slice(0, size) for size in shape))
        elif mask.dtype == torch.bool:
            visible &= mask
        else:
            visible &= ~(mask <= HIDDEN_BELOW)
            scores = scores + mask.double()
    return visible, scores


def _first_key(
    problem: AttentionProblem, attended: Bool[Tensor, "batch heads queries keys"]
) -> Bool[Tensor, "batch 1 1 keys"]:
    """Bool ``[B, 1, 1, Nk]``, True at most once per sequence."""
    valid = attended.any(dim=(1, 2))
    if problem.query_mask is not None and problem.query_mask.shape[1] == problem.keys:
        valid = valid & problem.query_mask
    return (valid & (valid.cumsum(-1) == 1))[:, None, None]


@torch.no_grad()
def reference_stream(
    x: Float[Tensor, "batch tokens features"],
    mask: Bool[Tensor, "batch tokens"] | None,
    before: Float[Tensor, "batch tokens features"] | None,
    requested: frozenset[str],
) -> StreamStatistics:
    """Compute ``StreamStatistics`` as they are defined, token by token: for tests."""
    x = x.double()
    valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    norm = x.norm(dim=-1)
    z = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    planes = {"norm": norm, "skewness": (z**3).mean(-1), "kurtosis": (z**4).mean(-1) - 3}
    finite = x.isfinite().all(-1)
    if before is not None:
        before = before.double()
        planes["update_ratio"] = ((x - before).norm(dim=-1) / before.norm(dim=-1)).nan_to_num(
            torch.nan, torch.nan
        )
        finite = finite & before.isfinite().all(-1)
    planes = {
        n: plane.masked_fill(~(valid & finite), torch.nan) for n, plane in planes.items() if n in requested
    }
    if "directions" not in requested:
        return StreamStatistics(valid, finite, **planes)
    return StreamStatistics(valid, finite, **planes, **_directions(x, valid))


@torch.no_grad()
def reference_moments(
    x: Float[Tensor, "batch *heads tokens dim"],
    mask: Bool[Tensor, "batch tokens"] | None,
    requested: frozenset[str],
) -> HeadMoments:
    """Compute ``HeadMoments`` as they are defined, from the real tokens alone: for tests."""
    x = x.double().flatten(1, -3)
    valid = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device) if mask is None else mask
    fields = {}
    if "norm" in requested:
        fields["norm"] = x.norm(dim=-1).masked_fill(~valid[:, None], torch.nan)
    if "directions" in requested:
        fields |= _directions(x, valid[:, None].expand(x.shape[:-1]))
    if "scatter" in requested:
        tokens = x.transpose(1, 2)[valid]  # [tokens, H, D]
        centred = tokens - tokens.mean(0)
        fields |= {"count": valid.sum(), "mean": tokens.mean(0)}
        fields["scatter"] = torch.einsum("thi,thj->hij", centred, centred)
    return HeadMoments(valid, **fields)


@torch.no_grad()
def reference_sketch(
    x: Float[Tensor, "tokens layers features"],
    real: Bool[Tensor, " tokens"] | None,
    draws: Float[Tensor, "layers rows tokens"],
    before: Float[Tensor, "layers rows features"] | None,
) -> tuple[Float[Tensor, "layers rows features"], Float[Tensor, "layers rows"]]:
    """Compute sums of the real tokens with random signs as they are defined: for tests."""
    signs, tokens = 2 * draws.double() - 1, x.double().transpose(0, 1)
    if real is not None:
        signs, tokens = signs[..., real], tokens[:, real]
    sketches = signs @ tokens
    return sketches if before is None else sketches + before, signs.sum(-1)


def _directions(
    x: Float[Tensor, "*batch n d"], valid: Bool[Tensor, "*batch n"]
) -> dict[str, Float[Tensor, " ..."]]:
    unit = torch.nn.functional.normalize(x, dim=-1, eps=0).nan_to_num(0.0)  # 0/0 has no direction
    unit = torch.where(valid[..., None], unit, 0.0)
    return {"directions": unit.sum(-2), "directed": (valid & (x != 0).any(-1)).double().sum(-1)}
