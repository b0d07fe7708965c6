"""The requested metrics by what they are computed from, resolved once for all calls of a sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning_geo.metrics.gates import GATES
from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import ROLES

__all__ = ["RequestedMetrics"]


@dataclass(frozen=True)
class RequestedMetrics:
    """Stored names by kind, see :mod:`lightning_geo.metrics.registry`.

    Args:
        rows: Of kind ``row``, averaged over rows.
        maxima: Of kind ``row``, the largest over rows.
        sequences: Of kind ``sequence``.
        tokens: Of kind ``tokens``.
        directions: Of kind ``directions``.
        roles: Roles whose second moments are needed.
        gram: Whether the joint second moment of all heads' outputs is needed.
        scores: Of kind ``scores``; all margins of gates where heads' gates are counted.
        reads: Of kind ``reads``.
        weights: Of kind ``weights``.
    """

    rows: list[str]
    maxima: list[str]
    sequences: list[str]
    tokens: list[str]
    directions: list[str]
    roles: list[str]
    gram: bool
    scores: list[str]
    reads: list[str]
    weights: list[str]

    @classmethod
    def of(cls, metrics: Iterable[str]) -> RequestedMetrics:
        """Sort stored names by what they are computed from."""
        kinds: dict[str, list[str]] = {}
        for name in metrics:
            kinds.setdefault(spec_of(name).kind, []).append(name)
        rows = kinds.get("row", [])
        spectral = [*kinds.get("moments", ()), *kinds.get("bases", ())]
        roles = [role for role in ROLES if any(name.endswith(f".{role}") for name in spectral)]
        if "qk_alignment" in spectral:
            roles = [role for role in ROLES if role in {*roles, "query", "key"}]
        scores = kinds.get("scores", [])
        if kinds.get("counts"):  # of what heads' margins say
            margins = [f"gate.{gate}" for gate in GATES]
            scores = [*margins, *(name for name in scores if name not in margins)]
        return cls(
            rows=[name for name in rows if spec_of(name).summary == "mean"],
            maxima=[name for name in rows if spec_of(name).summary == "max"],
            sequences=kinds.get("sequence", []),
            tokens=kinds.get("tokens", []),
            directions=kinds.get("directions", []),
            roles=roles,
            gram=bool(kinds.get("heads")),
            scores=scores,
            reads=kinds.get("reads", []),
            weights=kinds.get("weights", []),
        )
