"""Attention statistics in portable torch: tiles of whole rows in two reused buffers.

A tile holds the scores of some heads' rows with all the keys that these rows may see, so the softmax
needs no second tile and nothing is rescaled. On a CPU every pass over a tile costs about a tenth of the
matrix product that fills it, hence the shape of this code: passes are few, in place, and of the kinds
that run vectorised (``exp2`` rather than ``exp``, adding a bias rather than ``masked_fill``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_geo.kernels.masks import HIDDEN_SCORE, bias_of, count_hidden, is_hidden
from lightning_geo.kernels.precision import exactly, is_finite
from lightning_geo.kernels.problem import AttentionProblem, AttentionStatistics
from lightning_geo.kernels.tiles import Plan, Rows, Tile
from lightning_geo.kernels.visibility import count_visible, first_keys
from lightning_geo.kernels.workspace import kept, scratch
from lightning_geo.utils.shapes import Bool, Float, Int64

__all__ = ["TILE_SCORES", "chunked"]

#: Scores per tile, 4 MiB in float32: smaller ones pay for dispatch, larger ones leave the caches.
TILE_SCORES = 1 << 20

_LOG2E = math.log2(math.e)

# above it, adding HIDDEN_SCORE to a score would not hide it
_TAME_SCORE = 1e20


def chunked(problem: AttentionProblem, tile_scores: int = TILE_SCORES) -> AttentionStatistics:
    """Compute the statistics of one attention call on any device, in float32.

    Args:
        problem: The attention call.
        tile_scores: Scores per tile; at least one row of one key head's queries is taken.

    Returns:
        The statistics. Beside them and two tiles, only some heads' q and k are held in float32.
    """
    with torch.no_grad(), exactly(problem.query.device):
        plan = Plan.of(problem, tile_scores)
        sums = _RowSums(problem, plan)
        for batch, key_heads in plan.groups(problem):
            sums.add(batch, key_heads)
        return sums.statistics()


#: Sums over a row's keys of e = exp(score - peak): of all, of those before the row's position, of those
#: after, of all times their distance; of e (score - peak); √Σe²; of single keys; and of special tokens.
_SUMS = ("total", "backward_mass", "forward_mass", "attention_distance", "moment", "norm", "previous_mass",
        "self_mass", "next_mass", "first_mass", "special_mass")  # fmt: skip
_TOTAL, _LINEAR, _MOMENT, _NORM = 0, slice(0, 4), 4, 5
_SINGLE, _SPECIAL = slice(6, 10), 10


class _RowSums:
    """Sums over the keys of each row, tile by tile."""

    def __init__(self, problem: AttentionProblem, plan: Plan) -> None:
        self.problem, self.plan, self.rows = problem, plan, Rows(problem)
        self.requested = problem.requested.__contains__
        shape = problem.rows_shape
        new = problem.query.new_zeros
        self.tiles = scratch("tiles", (2, plan.scores(problem)), problem.query, torch.float32)
        self.peak = new(shape, dtype=torch.float32)
        self.sums = new(len(_SUMS), *shape, dtype=torch.float32)
        self.received = new(*shape[:2], problem.keys, dtype=torch.float32)
        counts = count_visible(problem)
        self.counted = counts is not None
        if counts is None:  # tile by tile
            self.visible = new(shape, dtype=torch.float32)
        else:
            self.visible = self.rows.take(counts.expand(shape[0], -1, -1), 2).expand(shape)
        self.real = problem.query_mask
        if self.real is not None:
            self.real = self.rows.take(self.real, 1)
        picks = any(map(self.requested, ("previous_mass", "self_mass", "next_mass", "first_mass")))
        self.singles = _single_keys(problem, self.rows) if picks else None
        weighs = any(map(self.requested, ("backward_mass", "forward_mass", "attention_distance")))
        self.weights = _LinearWeights(problem, plan.rows) if weighs else None

    def add(self, batch: slice, key_heads: slice) -> None:
        """Go through all rows of a group of heads."""
        problem = self.problem
        shared = problem.group_size
        heads = slice(key_heads.start * shared, key_heads.stop * shared)
        query = _compact("query", self.rows.take(problem.query[batch, heads], 2, batch=batch))
        key = _compact("key", problem.key[batch, key_heads]).flatten(0, 1)
        # Cauchy-Schwarz; a NaN compares False
        bound = torch.linalg.vector_norm(query) * torch.linalg.vector_norm(key)
        tame = float(bound) * abs(problem.scale) < _TAME_SCORE
        for start in range(0, query.shape[2], self.plan.rows):
            rows = slice(start, min(start + self.plan.rows, query.shape[2]))
            tile = Tile(batch, heads, rows, self.rows.band(rows))
            if tile.shape[3]:
                part = query[:, :, rows].reshape(key.shape[0], -1, key.shape[2])
                scores = self._scores(tile, part, key[:, tile.columns])
                self._hide(tile, scores, tame)
                self._reduce(tile, scores)

    def _scores(
        self, tile: Tile, query: Float[Tensor, "group rows dim"], key: Float[Tensor, "group columns dim"]
    ) -> Float[Tensor, "b h r columns"]:
        """Scores of a tile before masks, ``[b, h, rows, columns]``, in the first buffer."""
        softcap = self.problem.softcap
        scores = _view(self.tiles[0], (key.shape[0], query.shape[1], key.shape[1]))
        # the scale after the dot product: it costs nothing there and keeps exact products exact
        scale = self.problem.scale / (softcap or 1.0)
        torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scale, out=scores)
        if softcap is not None:
            scores.tanh_().mul_(softcap)
        return scores.view(tile.shape)

    def _hide(self, tile: Tile, scores: Float[Tensor, "b h rows columns"], tame: bool) -> None:
        """Add masks to a tile's scores, in place, and count the keys that they leave."""
        problem = self.problem
        if tame and not problem.masks:
            for edge in self.rows.edges(tile):
                inside = slice(edge.start - tile.columns.start, edge.stop - tile.columns.start)
                scores[..., inside] += bias_of(problem, self.rows, tile._replace(columns=edge))
            return
        bias = bias_of(problem, self.rows, tile)
        scores += bias
        if not self.counted:
            self.visible[tile[:3]] = scores.shape[3] - count_hidden(bias, scores.shape[3])
        if not tame:
            # NaN survives the addition, also in padded rows, so hidden scores are overwritten
            hidden = is_hidden(bias)
            if self.real is not None:
                hidden = hidden | ~self.real[tile.batch, None, tile.rows, None]
            scores.masked_fill_(hidden, HIDDEN_SCORE)

    def _reduce(self, tile: Tile, scores: Float[Tensor, "b h rows columns"]) -> None:
        """Reduce a tile's scores, which are overwritten."""
        batch, heads, rows, columns = tile.shape
        at = tile[:3]
        e = self._exponentials(tile, scores)
        flat = e.view(batch * heads, rows, columns)
        if self.requested("received"):
            share = torch.where(self._live(tile), 1.0 / self.sums[_TOTAL][at], 0.0)
            received = torch.bmm(share.view(batch * heads, 1, rows), flat).view(batch, heads, columns)
            self.received[tile.batch, tile.heads, tile.columns] += received
        if self.singles is not None:
            self._pick(tile, e, self.singles)
        if self.problem.special is not None and self.requested("special_mass"):
            special = self.problem.special[tile.batch, None, None, tile.columns].to(torch.float32)
            special = special.expand(-1, heads, -1, -1).reshape(batch * heads, 1, columns)
            self.sums[_SPECIAL][at] = torch.bmm(special, flat.transpose(1, 2)).view(batch, heads, rows)

    def _exponentials(
        self, tile: Tile, scores: Float[Tensor, "b h rows columns"]
    ) -> Float[Tensor, "b h rows columns"]:
        """Turn scores into e = exp(score - peak), in place, and store the sums over whole rows."""
        at = tile[:3]
        peak = scores.amax(-1, keepdim=True)
        exponent = torch.sub(scores, peak, out=_view(self.tiles[1], scores.shape))
        e = torch.mul(exponent, _LOG2E, out=scores).exp2_()
        self.peak[at] = peak.squeeze(-1)
        if self.requested("concentration"):
            self.sums[_NORM][at] = torch.linalg.vector_norm(e, dim=-1)
        if self.weights is None:
            self.sums[_TOTAL][at] = e.sum(-1)
        else:
            self.weights.add_up(self.rows, tile, e, self.sums[_LINEAR])
        if self.requested("entropy"):
            self.sums[_MOMENT][at] = exponent.mul_(e).sum(-1)
        return e

    def _live(self, tile: Tile) -> Bool[Tensor, "b h rows"]:
        live = self.visible[tile[:3]] > 0
        return live if self.real is None else live & self.real[tile.batch, None, tile.rows]

    def _pick(
        self, tile: Tile, e: Float[Tensor, "b h rows columns"], singles: Int64[Tensor, "#batch 1 all_rows 4"]
    ) -> None:
        """Read single keys of each row."""
        sequences = tile.batch if singles.shape[0] > 1 else slice(None)
        column = singles[sequences, :, tile.rows] - tile.columns.start
        index = column.clamp(0, e.shape[3] - 1)
        inside = (index == column).to(e.dtype)
        masses = e.gather(-1, index.expand(*e.shape[:3], -1)).mul_(inside)
        self.sums[_SINGLE, tile.batch, tile.heads, tile.rows] = masses.permute(3, 0, 1, 2)

    def statistics(self) -> AttentionStatistics:
        """Turn the sums into statistics."""
        problem = self.problem
        live = self._live(Tile(*(slice(None),) * 4))
        total, sinks = self.sums[_TOTAL], problem.sinks
        finite = is_finite(total + self.sums[_MOMENT])
        undefined = ~(live & finite)
        logarithm = total.log()
        # centred at the peak: exact at any offset of the scores
        entropy = (logarithm - self.sums[_MOMENT] / total).clamp_(min=0)
        own = torch.stack([self.peak + logarithm, entropy, 1.0 / total, self.peak])
        planes = [  # in place: on long sequences these planes take most of the memory
            *self.rows.restore(own.masked_fill_(undefined, torch.nan)),
            *self.rows.restore(self.sums.div_(total.clone()).masked_fill_(undefined, torch.nan)),
        ]
        names = ("logsumexp", "entropy", "max_probability", "max_logit", *_SUMS)
        fields = dict(zip(names, planes, strict=True))
        del fields["total"], fields["moment"]
        fields["concentration"] = fields.pop("norm").square()
        if problem.special is None:
            del fields["special_mass"]
        if sinks is not None:
            fields["learned_sink_mass"] = torch.sigmoid(
                sinks.to(torch.float32)[:, None] - fields["logsumexp"]
            )
        if self.requested("received"):
            broken = (live & ~finite).any(-1, keepdim=True)
            fields["received"] = self.received.masked_fill(broken, torch.nan)
        if self.requested("visible_keys"):  # counts that all layers share stay as they are
            visible = self.rows.restore(self.visible.clone(memory_format=torch.contiguous_format))
            fields["visible_keys"] = visible
        return AttentionStatistics(self.rows.restore(live), **fields).only(problem.requested)


def _single_keys(problem: AttentionProblem, rows: Rows) -> Int64[Tensor, "#batch 1 rows 4"]:
    """Keys that rows read alone, ``[B or 1, 1, rows, 4]``: next to their own position, and the first."""
    position = rows.positions
    first = first_keys(problem) if "first_mass" in problem.requested else position.new_zeros(1)
    batch = len(first) if len(position) == 1 else len(position)
    parts = [position - 1, position, position + 1, first[:, None].expand(-1, rows.count)]
    return torch.stack([part.expand(batch, -1) for part in parts], -1)[:, None]


class _LinearWeights:
    """Weights of keys in a row's sums: one, before, after, distance.

    They depend only on how far ahead a key lies, so each row takes a part of one table.
    """

    def __init__(self, problem: AttentionProblem, rows: int) -> None:
        #: how far back the farthest row looks
        self._behind = problem.query.shape[2] + max(problem.offset, 0)
        ahead = problem.keys - min(problem.offset, 0)
        # neighbouring rows: shifted once, every tile takes the same
        shifts = rows if problem.rows is None else None
        self._table = kept(_linear_weights, -self._behind, ahead, shifts, problem.query.device)

    def add_up(
        self,
        rows: Rows,
        tile: Tile,
        e: Float[Tensor, "b h rows columns"],
        sums: Float[Tensor, "4 batch heads all_rows"],
    ) -> None:
        """Enter the weighted sums of a tile into ``sums`` ``[4, B, H, rows]``."""
        _, heads, count, columns = tile.shape
        start = tile.columns.start + self._behind
        if rows.indices is None:
            start -= rows.span(tile.rows)[0]
            # rows as the batch of the product: all heads of all sequences share a row's weights
            shares = [(tile.batch, self._table[:count, :, start : start + columns], e.flatten(0, 1))]
        else:
            windows = self._table.unfold(1, columns, 1).transpose(0, 1)
            where = start - rows.positions[tile.batch, tile.rows]
            shares = [
                (slice(b, b + 1), windows[where[i]], e[i])
                for i, b in enumerate(range(tile.batch.start, tile.batch.stop))
            ]
        for sequences, weights, part in shares:
            linear = torch.bmm(weights, part.permute(1, 2, 0)).permute(1, 2, 0)
            sums[:, sequences, tile.heads, tile.rows] = linear.reshape(4, -1, heads, count)


def _linear_weights(
    start: int, stop: int, shifts: int | None, device: torch.device
) -> Float[Tensor, "*shifts 4 ahead"]:
    """The table of weights, [rows, 4, ahead] for so many shifts, or [4, ahead]."""
    ahead = torch.arange(start, stop, device=device)
    if shifts is not None:
        ahead = ahead - torch.arange(shifts, device=device)[:, None]
    parts = [torch.ones_like(ahead), ahead < 0, ahead > 0, ahead.abs()]
    return torch.stack(parts, dim=-2).to(torch.float32)


def _compact(name: str, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In float32 and in order, for products and for norms: itself if it is that already."""
    if x.dtype == torch.float32 and x.is_contiguous():
        return x
    return scratch(name, tuple(x.shape), x, torch.float32).copy_(x)


def _view(buffer: Float[Tensor, " n"], shape: tuple[int, ...]) -> Float[Tensor, " ..."]:
    return buffer[: math.prod(shape)].view(shape)
