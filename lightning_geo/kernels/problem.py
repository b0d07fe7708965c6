"""One attention call in the form that every backend takes, and what every backend returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, fields, replace

from torch import Tensor

from lightning_geo.kernels.blocks import BlockRule
from lightning_geo.kernels.checks import (
    Mask,
    check_finite,
    check_flags,
    check_query_key,
    check_sinks,
    positive_softcap,
    read_masks,
    window_sides,
)
from lightning_geo.utils.shapes import Bool, Float, Int64, Shaped

__all__ = ["STATISTICS", "AttentionProblem", "AttentionStatistics"]

#: Names of all statistics: the fields of :class:`AttentionStatistics` except ``live``.
STATISTICS = (
    "visible_keys", "logsumexp", "entropy", "concentration", "max_probability", "max_logit",
    "self_mass", "previous_mass", "next_mass", "first_mass", "backward_mass", "forward_mass",
    "attention_distance", "received", "special_mass", "learned_sink_mass",
)  # fmt: skip


@dataclass(frozen=True)
class AttentionProblem:
    """One attention call; its tensors are checked when it is made, whoever makes it.

    The key position of query row i is p = i + ``offset``. Key j is visible to it where
    p - ``left`` <= j <= p + ``right`` and every mask agrees.

    Args:
        query: ``[B, H, Nq, D]``, any floating point type, any strides.
        key: ``[B, Hk, Nk, D]``, H a multiple of Hk; query head h reads key head h // (H / Hk).
        scale: Factor of the dot products.
        softcap: Scores become ``softcap * tanh(score / softcap)`` before masks; None for none.
        masks: Each bool (True = attend) or additive float ``[B or 1, H or 1, Nq or 1, Nk or 1]``, or
            the rule of a ``BlockMask``. All of them apply.
        offset: Key position of query row 0.
        left: Keys visible before a row's position; None for all.
        right: Keys visible after a row's position; None for all, 0 for causal.
        query_mask: ``[B, Nq]`` bool, True = real token; None if all are.
        sinks: ``[H]``, logit of the key-less column; None for none.
        special: ``[B, Nk]`` bool, True = special token; None for none.
        rows: ``[B, R]`` int64, the query rows to measure, in any order; None for all of them.
        requested: Which of ``STATISTICS`` to compute; the others cost nothing.

    Raises:
        TypeError: If an argument is no tensor, or none of the expected type.
        ValueError: If shapes or devices do not fit.
    """

    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch key_heads keys dim"]
    scale: float
    softcap: float | None = None
    masks: tuple[Shaped[Tensor, "#batch #heads #queries #keys"] | BlockRule, ...] = ()
    offset: int = 0
    left: int | None = None
    right: int | None = None
    query_mask: Bool[Tensor, "batch queries"] | None = None
    sinks: Float[Tensor, " heads"] | None = None
    special: Bool[Tensor, "batch keys"] | None = None
    rows: Int64[Tensor, "batch measured"] | None = None
    requested: frozenset[str] = frozenset(STATISTICS)
    _checked: InitVar[bool] = False  # that query and key fit

    @classmethod
    def of(
        cls,
        query: Float[Tensor, "batch heads queries dim"],
        key: Float[Tensor, "batch key_heads keys dim"],
        *,
        scale: float | None,
        softcap: float | None,
        masks: Mask | Sequence[Mask] | None,
        offset: int | None,
        window: int | tuple[int, int] | None,
        is_causal: bool,
        query_mask: Bool[Tensor, "batch queries"] | None,
        sinks: Float[Tensor, " heads"] | None,
        special: Bool[Tensor, "batch keys"] | None,
        rows: Int64[Tensor, "batch measured"] | None,
        requested: frozenset[str],
    ) -> AttentionProblem:
        """Make the problem of a call from what describes it elsewhere, and check all but that its rows exist.

        ``scale`` is None for 1/sqrt(D), ``offset`` for Nk - Nq: the last query stands at the last key.
        ``window`` is as in :func:`~lightning_geo.functional.attention_statistics`.
        """
        check_query_key(query, key)
        left, right = window_sides(window)
        return cls(
            query=query,
            key=key,
            scale=query.shape[3] ** -0.5 if scale is None else check_finite("scale", scale),
            softcap=positive_softcap(softcap),
            masks=read_masks(masks, query, key),
            offset=key.shape[2] - query.shape[2] if offset is None else offset,
            left=left,
            right=0 if is_causal else right,
            query_mask=query_mask,
            sinks=sinks,
            special=special,
            rows=rows,
            requested=requested,
            _checked=True,
        )

    def __post_init__(self, _checked: bool) -> None:
        if not _checked:
            check_query_key(self.query, self.key)
        batch, heads, queries, _ = self.query.shape
        device = self.query.device
        check_flags("query_mask", self.query_mask, (batch, queries), "a real token", device)
        check_flags("special", self.special, (batch, self.key.shape[2]), "a special token", device)
        check_sinks(self.sinks, heads, device)

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """B, H, and how many rows are measured: the shape of all planes."""
        batch, heads, queries = self.query.shape[:3]
        return batch, heads, queries if self.rows is None else self.rows.shape[1]

    def first_sequences(self, count: int) -> AttentionProblem:
        """Return the call of the first sequences alone."""

        def first(x: Shaped[Tensor, "_ columns"] | None) -> Shaped[Tensor, "_ columns"] | None:
            return x if x is None or x.shape[0] == 1 else x[:count]

        return replace(
            self,
            query=self.query[:count],
            key=self.key[:count],
            # a rule is evaluated where it is needed
            masks=tuple(m if isinstance(m, BlockRule) or m.shape[0] == 1 else m[:count] for m in self.masks),
            query_mask=first(self.query_mask),
            special=first(self.special),
            rows=first(self.rows),
        )

    @property
    def keys(self) -> int:
        """Nk."""
        return self.key.shape[2]

    @property
    def group_size(self) -> int:
        """Query heads that share one key head."""
        return self.query.shape[1] // self.key.shape[1]


@dataclass(frozen=True)
class AttentionStatistics:
    r"""Statistics of each query's attention, computed without the attention matrix.

    :math:`p_{ij}` is the softmax of the scores over visible keys, before dropout and without the sink;
    i is a query row, :math:`\pi_i` its key position (i, or i + Nk - Nq with bottom-right alignment).
    Float planes are float32 ``[B, H, Nq]``, or ``[B, H, R]`` where R rows were chosen. Rows that are not
    ``live`` hold NaN in all of them but ``visible_keys``; so do live rows in which a visible score is NaN
    or infinite. Statistics that were not requested are None.

    Args:
        live: Bool ``[B, H, Nq]``: at least one key is visible and ``query_mask`` is True.
        visible_keys: How many keys the row may attend to, whether it is live or not.
        logsumexp: :math:`\ln \sum_j e^{s_{ij}}`, natural, without the sink.
        entropy: :math:`-\sum_j p_{ij} \ln p_{ij}` in nats.
        concentration: :math:`\sum_j p_{ij}^2`.
        max_probability: :math:`\max_j p_{ij}`.
        max_logit: :math:`\max_j s_{ij}`, after scale, softcap and additive masks.
        self_mass: :math:`p_{i,\pi_i}`, 0 where that key is hidden or does not exist.
        previous_mass: :math:`p_{i,\pi_i-1}`, likewise.
        next_mass: :math:`p_{i,\pi_i+1}`, likewise.
        first_mass: :math:`p_{i,f}`, f being the sequence's first key that any of its live rows, in any
            head, may attend to; where Nq = Nk, ``query_mask`` must not mark f as padding either.
            0 where f is hidden from the row or there is none.
        backward_mass: :math:`\sum_{j<\pi_i} p_{ij}`.
        forward_mass: :math:`\sum_{j>\pi_i} p_{ij}`.
        attention_distance: :math:`\sum_j p_{ij} |j-\pi_i|` in tokens.
        received: ``[B, H, Nk]``, :math:`\sum_i p_{ij}` over live rows, of those chosen; NaN for a head with
            a NaN row.
        special_mass: Sum of :math:`p_{ij}` over special tokens; None unless these were given.
        learned_sink_mass: Probability of the sink column in the full softmax; None unless sinks were given.
    """

    live: Bool[Tensor, "batch heads rows"]
    visible_keys: Float[Tensor, "batch heads rows"] | None = None
    logsumexp: Float[Tensor, "batch heads rows"] | None = None
    entropy: Float[Tensor, "batch heads rows"] | None = None
    concentration: Float[Tensor, "batch heads rows"] | None = None
    max_probability: Float[Tensor, "batch heads rows"] | None = None
    max_logit: Float[Tensor, "batch heads rows"] | None = None
    self_mass: Float[Tensor, "batch heads rows"] | None = None
    previous_mass: Float[Tensor, "batch heads rows"] | None = None
    next_mass: Float[Tensor, "batch heads rows"] | None = None
    first_mass: Float[Tensor, "batch heads rows"] | None = None
    backward_mass: Float[Tensor, "batch heads rows"] | None = None
    forward_mass: Float[Tensor, "batch heads rows"] | None = None
    attention_distance: Float[Tensor, "batch heads rows"] | None = None
    received: Float[Tensor, "batch heads keys"] | None = None
    special_mass: Float[Tensor, "batch heads rows"] | None = None
    learned_sink_mass: Float[Tensor, "batch heads rows"] | None = None

    def only(self, requested: frozenset[str]) -> AttentionStatistics:
        """Drop the statistics that were not requested."""
        kept = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name in requested or f.name == "live"
        }
        return AttentionStatistics(**kept)
