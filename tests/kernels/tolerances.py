"""How far a backend may be from the oracle, by statistic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How far a backend may be from the oracle: ``absolute + relative * |expected|``."""

    absolute: float
    relative: float


#: Probabilities and entropies are good to 1e-5; lengths and logits in proportion to their size.
TOLERANCES = {
    "logsumexp": Tolerance(1e-5, 1e-6),
    "max_logit": Tolerance(1e-5, 1e-6),
    "attention_distance": Tolerance(1e-5, 3e-6),
    "received": Tolerance(1e-5, 1e-5),
    "visible_keys": Tolerance(0.0, 0.0),
}
DEFAULT_TOLERANCE = Tolerance(1e-5, 0.0)
