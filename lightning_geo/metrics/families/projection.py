"""The family ``projection``: whether tokens lie in what a head reads."""

from __future__ import annotations

from lightning_geo.metrics.families.entry import HEAD, PAPER, entry
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["PROJECTION"]


def _angle(role: str, verb: str, usual: str) -> MetricSpec:
    return entry(
        f"{role}_value_angle", "projection", HEAD, "radians",
        f"mean principal angle between the row spaces of W_{role[0]} and W_v", "Björck & Golub 1973",
        title=f"Angle between what {'queries' if role == 'query' else 'keys'} and values read",
        question=f"Does the head copy the directions that {verb}?",
        higher=f"the head copies other directions than those that {verb}.",
        lower=f"the head copies the directions that {verb}.",
        usual=usual, worry="Nothing by itself: it says what kind of head this is.",
        range=(0.0, 1.5709), self_attention=role == "query", default=False,
    )  # fmt: skip


PROJECTION = [
    entry(
        "projection_strength", "projection", HEAD, "1",
        "mean ‖P x‖²/‖x‖², P onto the rows of W, x what W is given; chance level head_dim/width", PAPER,
        title="Share of tokens that a head reads",
        question="How much of a token lies in the directions that a head reads?",
        higher="tokens lie more in what the head reads.",
        lower="tokens lie outside what the head reads; the chance level is head_dim/width.",
        usual="0.05 to 0.20 in BERT, 0.07 to 0.10 in an untrained decoder; the chance level there is 0.08",
        worry="Far below the chance level: the head hardly sees its tokens.",
        parts=("query", "key", "value"), range=(0.0, 1.0),
        headline=tuple(f"projection_strength.{role}" for role in ("query", "key", "value")), default=False,
    ),
    _angle("query", "its queries read", "1.10 to 1.36 in BERT, 1.31 to 1.33 in an untrained decoder"),
    _angle("key", "it is matched on", "0.94 to 1.36 in BERT, 1.31 to 1.33 in an untrained decoder"),
    entry(
        "score_norm_share", "projection", HEAD, "1",
        "Cov(t, ln|q·k|) / Var(ln|q·k|) over visible pairs, t = ln‖q‖, ln‖k‖ or ln|cos|",
        "covariance shares of a sum",
        title="What scores vary by",
        question="Do scores vary by the length of queries, the length of keys, or their direction?",
        higher="this part decides more of how scores vary; the three add to 1.",
        lower="this part decides less; below 0 it works against the others.",
        usual="direction 0.75 to 0.99 in BERT, key 0.00 to 0.20, query −0.01 to 0.07; direction 0.97 to 0.98 "
        "in an untrained decoder",
        worry="A rise of a length's share: long vectors decide, wherever they point.",
        parts=("query", "key", "direction"), default=False, signed=True,
    ),
]  # fmt: skip
