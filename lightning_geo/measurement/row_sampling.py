"""Draws random query rows to measure long sequences on, and estimates the error of their means."""

from __future__ import annotations

import zlib
from typing import Literal

import torch
from torch import Tensor

from lightning_geo.metrics.registry import reads_of
from lightning_geo.metrics.selection import spec_of
from lightning_geo.utils.device_copy import without_waiting

__all__ = [
    "ESTIMATED",
    "MaxQueries",
    "RowSample",
    "draw_rows",
    "is_mean_over_rows",
    "rows_to_draw",
    "variance_of_mean",
]

#: How many query rows of a sequence to measure; None for all, ``"auto"`` for all unless there are many.
MaxQueries = int | Literal["auto"] | None

_LONG, _ROWS = 2048, 512

#: Reason why long calls lack some metrics without a ``max_queries`` of the user's.
ESTIMATED = (
    f"its sequences have more than {_LONG:,} tokens, so that {_ROWS} random query rows of each are measured: "
    "means over rows are estimates with standard errors (`entropy.stderr`), and `max_logit` and "
    "`key_entropy` are absent. `max_queries=None` measures all rows"
)


def rows_to_draw(max_queries: MaxQueries, queries: int) -> int | None:
    """Return the number of a sequence's query rows to draw; None to measure all.

    Example:
        >>> rows_to_draw("auto", 2048), rows_to_draw("auto", 2049), rows_to_draw(64, 2049)
        (None, 512, 64)
    """
    if max_queries == "auto":
        return _ROWS if queries > _LONG else None
    return max_queries


def is_mean_over_rows(name: str) -> bool:
    """Whether a metric of attention rows, by stored name, can be estimated from some of the rows."""
    return spec_of(name).summary == "mean" and "received" not in reads_of(name)


class RowSample:
    """The rows of each sequence that are measured.

    Args:
        rows: ``[B, R]`` int64, ascending. Where a sequence has fewer real tokens than R, padding fills up.
        fraction: ``[B]``, share of the sequence's real tokens that are among them.
    """

    def __init__(self, rows: Tensor, fraction: Tensor) -> None:
        self.rows = rows
        self.fraction = fraction


def draw_rows(
    batch: int, queries: int, query_mask: Tensor | None, size: int, seed: str, device: torch.device
) -> RowSample | None:
    """Draw ``size`` real rows of each sequence without replacement, all where it has no more.

    The same seed draws the same rows of equally long sequences: on a fixed probe the noise of the draw is
    then the same at every sample, and what moves is the model. The global generator is not touched.

    Args:
        batch: Sequences.
        queries: Rows of each, padding included.
        query_mask: Bool ``[B, Nq]``, True = real token; None if all are.
        size: Rows to draw.
        seed: Any string.
        device: Where the rows are needed.

    Returns:
        The rows; None where no sequence can have more than ``size``.
    """
    if queries <= size:
        return None
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    order = without_waiting(torch.rand(batch, queries, generator=generator), device)
    real = torch.full((batch,), queries, device=device)
    if query_mask is not None:
        order = order + ~query_mask  # padding last
        real = query_mask.sum(-1)
    # in order: a block of rows that lie together skips the keys that causality hides from all of them
    rows = order.topk(size, largest=False, sorted=False).indices.sort(dim=1).values
    return RowSample(rows, (size / real.clamp(min=1)).clamp(max=1.0))


def variance_of_mean(values: Tensor, counted: Tensor, fraction: Tensor) -> Tensor:
    r"""Variance of the mean of sampled rows as an estimate of that of all rows.

    .. math:: (1 - f) \, s^2 / r

    with r rows of sample variance :math:`s^2` (Bessel-corrected) that are a fraction f of all: drawing
    without replacement, the error vanishes as f reaches 1.

    Args:
        values: One per row, ``[..., B, H, R]``.
        counted: Bool, like ``values``: the rows that have a value.
        fraction: ``[..., B]``.

    Returns:
        ``[..., B, H]``; 0 where all rows were taken, NaN where one row of several was.

    Source: Cochran 1977, Sampling Techniques, section 2.5.
    """
    number = counted.sum(-1)
    mean = torch.where(counted, values, 0.0).sum(-1) / number
    squares = torch.where(counted, (values - mean[..., None]).square(), 0.0).sum(-1)
    variance = squares / (number - 1) / number  # 0/0 where there is one row
    rest = (1 - fraction)[..., None]
    return torch.where(rest == 0, torch.where(number > 0, 0.0, torch.nan), rest * variance)
