"""The table of the tester: every public function of ``functional``, and every metric of the catalogue.

A new metric is one row in :mod:`functional.rows`: how its function is called, the arguments drawn for
it, and its definition. Definitions share no line with the package: they are in :mod:`functional.definitions`,
and in ``families`` where they need full matrices.
"""

from __future__ import annotations

from functional.row import Row
from functional.rows import attention, scores, spectra, tokens, updates, weights

TABLE: dict[str, Row] = (
    tokens.TABLE | attention.TABLE | spectra.TABLE | weights.TABLE | scores.TABLE | updates.TABLE
)

#: Metrics whose function is that of a row under another name.
SERVED = {
    "drift": "subspace_distance",
    "velocity": "subspace_distance",
    "qk_alignment": "projection_similarity",
    "importance": "head_importance",
    "future_visible": "visible_share",
    "padding_visible": "visible_share",
}
