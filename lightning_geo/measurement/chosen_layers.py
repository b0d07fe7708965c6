"""Which attention calls ``layers=`` names: known while the model runs, as far as it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from lightning_geo.observe import CallKey, LayerNumbering
from lightning_geo.utils.formatting import some

__all__ = ["ChosenLayers", "LayerChoice"]

LayerChoice = int | str | Sequence[int] | None


class ChosenLayers:
    """The attention calls of one model that are measured and reported.

    Args:
        layers: Layer indices, or a regular expression on the paths of attention modules; None for all.
        name: The model's.
        unasked: Calls that earlier samples have shown to be others, filled in. Numbers of layers are known at
            the end of a sample only, so the first one measures every call where ``layers`` are numbers.
    """

    def __init__(self, layers: LayerChoice, name: str, unasked: set[CallKey]) -> None:
        self._layers = layers
        self._name = name
        self._unasked = unasked
        self._passed_over = frozenset(unasked)

    def asks(self) -> Callable[[CallKey], bool]:
        """Return whether a call is to be measured, as far as it is known while the model runs."""
        if isinstance(self._layers, str):
            return self._matches(self._layers)
        passed_over = self._passed_over
        return lambda key: key not in passed_over

    def reports(self, numbering: LayerNumbering) -> Callable[[CallKey], bool]:
        """Return whether a call is reported."""
        layers = self._layers
        if layers is None:
            return lambda key: True
        if isinstance(layers, str):
            return self._matches(layers)
        numbers = {layers} if isinstance(layers, int) else set(layers)
        return lambda key: numbering.layers[key][1] in numbers

    def learn(self, others: Iterable[CallKey], seen: Iterable[CallKey]) -> None:
        """Measure other calls no more, from the next sample on.

        Args:
            others: Calls of this sample that are not reported.
            seen: All calls of this sample.

        Raises:
            LookupError: If this sample passed over a call that is reported.
        """
        self._unasked.clear()
        others = set(others)
        if isinstance(self._layers, str):
            return
        moved = self._passed_over & set(seen) - others
        if moved:
            raise LookupError(
                "layers are numbered otherwise than in the sample before, so that "
                f"{some(sorted({key.module for key in moved}))} was not measured; the next sample measures it"
            )
        self._unasked |= others

    def _matches(self, pattern: str) -> Callable[[CallKey], bool]:
        # with and without the observed model's own name in front
        return lambda key: any(
            re.search(pattern, path) for path in (key.module, f"{self._name}.{key.module}")
        )
