"""What an explanation holds, and how far its numbers can be trusted. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_geo.analysis.pruning import Head
from lightning_geo.utils.arrays import Array
from lightning_geo.utils.views import view

__all__ = ["Explanation", "first_order_fails"]


#: Share of the margin really lost with a layer by which the sum of its contributions may miss it.
_TRUSTED = 0.5


@dataclass(frozen=True, repr=False)
class Explanation:
    """One example's margin between two classes, attributed to heads. A notebook shows it as the page does.

    Args:
        target: The correct class.
        contrast: The class that it is compared with.
        predicted: The class with the largest logit.
        margin: Logit of ``target`` minus that of ``contrast``; negative where the prediction is wrong.
        contributions: ``stack -> [layer, head]``: ⟨o, ∂margin/∂o⟩ of a head's output o. Negative: it pushed
            away from ``target``.
        errors: ``stack -> [layer]``: the margin lost by silencing all heads of the layer, minus the sum of
            their contributions.
        silenced: ``stack -> [layer, head]``: the margin really lost by silencing the head alone, in layers
            where first order fails: where ``errors`` is more than half of what the layer really loses. NaN
            elsewhere.
        gates: ``stack -> [layer, head]``: the gate that describes the head on this example, one of ``open``,
            ``closed``, ``instance``, ``backward``, ``forward``, ``directional``, ``cluster``, ``mixed`` (see
            :mod:`lightning_geo.functional.gates`); empty where gates are undefined, as in cross-attention.
        gate_margins: ``stack -> [layer, head]``: how far the head is inside its gate; for a mixed head,
            minus its distance from the nearest.
        attended: ``stack -> [layer, head, key]``: share of the head's attention that each key receives.
        unusual: ``stack -> metric -> [layer, head]``: the head's geometry here as a z-score against correctly
            predicted examples; empty without any.
        references: Number of those examples.
        input_ids: The example's token ids, if the model takes ids.
        tokens: The same as text; empty for padding, and altogether without a tokenizer.
        classes: Names of the classes; empty where the model's config has none.
    """

    target: int
    contrast: int
    predicted: int
    margin: float
    contributions: dict[str, Array]
    errors: dict[str, Array]
    silenced: dict[str, Array]
    gates: dict[str, NDArray[np.str_]]
    gate_margins: dict[str, Array]
    attended: dict[str, Array]
    unusual: dict[str, dict[str, Array]] = field(default_factory=dict)
    references: int = 0
    input_ids: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        margin = f"margin {self.margin:+.2f} over {self.name(self.contrast)}"
        return f"Explanation({self.name(self.target)}: {margin}, predicted {self.name(self.predicted)})"

    def _repr_html_(self) -> str:
        return str(view(self, "html"))

    @property
    def effects(self) -> dict[str, Array]:
        """``stack -> [layer, head]``: the margin lost without the head, really where that was measured."""
        return {
            stack: np.where(np.isfinite(self.silenced[stack]), self.silenced[stack], values)
            for stack, values in self.contributions.items()
        }

    def blamed(self, count: int = 10) -> list[tuple[Head, float]]:
        """Return the heads that lowered the margin most, with their effects, worst first."""
        return sorted((item for item in self._ranked() if item[1] < 0), key=lambda item: item[1])[:count]

    def supporting(self, count: int = 10) -> list[tuple[Head, float]]:
        """Return the heads that raised the margin most, with their effects, strongest first."""
        return sorted((item for item in self._ranked() if item[1] > 0), key=lambda item: -item[1])[:count]

    def was_silenced(self, head: Head) -> bool:
        """Whether a head's effect was measured by silencing it."""
        return bool(np.isfinite(self.silenced[head.stack][head.layer, head.head]))

    def name(self, index: int) -> str:
        """Return the name of a class, or ``class 3`` where it has none."""
        return self.classes[index] if index < len(self.classes) else f"class {index}"

    def _ranked(self) -> list[tuple[Head, float]]:
        return [
            (Head(stack, int(layer), int(head)), float(values[layer, head]))
            for stack, values in self.effects.items()
            for layer, head in np.argwhere(np.isfinite(values))
        ]


def first_order_fails(contributed: float, error: float) -> bool:
    """Return whether the contributions of a layer's heads say too little of what the layer does.

    Args:
        contributed: Their sum.
        error: What silencing the whole layer really costs, minus that.

    Example:
        >>> first_order_fails(-0.144, -2.1), first_order_fails(-0.9, 0.1)  # 6 % explained, 112 %
        (True, False)
    """
    return bool(abs(error) > _TRUSTED * abs(contributed + error))
