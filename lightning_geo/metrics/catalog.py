"""The table of metrics. A new one is an entry in ``families``, a function in ``functional``, a test."""

from __future__ import annotations

from lightning_geo.metrics.families.cone import CONE
from lightning_geo.metrics.families.entropy import ENTROPY
from lightning_geo.metrics.families.gates import GATES_OF_HEADS
from lightning_geo.metrics.families.head import HEADS
from lightning_geo.metrics.families.importance import IMPORTANCE
from lightning_geo.metrics.families.masks import MASKS
from lightning_geo.metrics.families.pattern import PATTERN
from lightning_geo.metrics.families.projection import PROJECTION
from lightning_geo.metrics.families.score_spectra import SCORE_SPECTRA
from lightning_geo.metrics.families.stream import STREAM
from lightning_geo.metrics.families.subspace import SUBSPACE
from lightning_geo.metrics.families.updates import UPDATES
from lightning_geo.metrics.families.weights import WEIGHTS
from lightning_geo.metrics.spec import MetricSpec

__all__ = ["CATALOG"]

#: Every metric by name, in the order in which records list them.
CATALOG: dict[str, MetricSpec] = {
    spec.name: spec
    for spec in (
        *ENTROPY,
        *PATTERN,
        *CONE,
        *SUBSPACE,
        *STREAM,
        *HEADS,
        *UPDATES,
        *MASKS,
        *WEIGHTS,
        *PROJECTION,
        *GATES_OF_HEADS,
        *IMPORTANCE,
        *SCORE_SPECTRA,
    )
}
