"""The attention calls that ``layers=`` names: known while the model runs, as far as it can be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import nn

from lightning_geo.observe import CallKey, LayerNumbering, looks_like_attention
from lightning_geo.observe.layers.numbering import elements_of
from lightning_geo.utils.errors import SettingError
from lightning_geo.utils.formatting import some

__all__ = ["ChosenLayers", "LayerChoice", "no_match", "not_measured"]

LayerChoice = int | str | Sequence[int] | None


class ChosenLayers:
    """The attention calls of one model that are measured and reported.

    Numbers of layers are known at the end of a sample only. Until one has shown them, a call in a plain list
    of layers is taken to have the number of its list item, and any other call is measured in any case.

    Args:
        layers: Layer indices, or a regular expression on the paths of attention modules; None for all.
        name: The model's.
        modules: Its modules by cleaned path.
        known: Whether samples have reported a call; filled in. One that any sample has reported is measured.
    """

    def __init__(
        self, layers: LayerChoice, name: str, modules: Mapping[str, nn.Module], known: dict[CallKey, bool]
    ) -> None:
        self._pattern = layers if isinstance(layers, str) else None
        self._requested = None
        if layers is not None and not isinstance(layers, str):
            self._requested = {layers} if isinstance(layers, int) else set(layers)
        self._name = name
        self._modules = dict(modules)
        self._known = known
        #: what earlier samples have shown: a call is measured throughout a sample or not at all
        self._before = dict(known)
        self._lists: dict[str, bool] = {}

    def asks(self, key: CallKey | str) -> bool:
        """Return whether a call is to be measured, as far as it is known while the model runs.

        Args:
            key: The call; or the path of a module, for any call in it.
        """
        if isinstance(key, str):
            return self._asks_in(key)
        if self._pattern is not None:
            return self._matches(key)
        if self._requested is None:
            return True
        if key not in self._before:
            self._before[key] = self._may_be_requested(key, self._requested)
        return self._before[key]

    def _asks_in(self, path: str) -> bool:
        def within(name: str) -> bool:
            return f"{name}.".startswith(f"{path}." * bool(path))

        if self._pattern is not None:
            return any(self._matches(CallKey(name)) for name in self._modules if within(name))
        known = [asked for key, asked in self._before.items() if within(key.module)]
        if known:
            return any(known)
        return self._requested is None or self._may_be_requested(CallKey(path), self._requested)

    def has_reported(self, key: CallKey) -> bool:
        """Return whether any sample has reported a call."""
        return self._matches(key) if self._pattern is not None else self._known.get(key, True)

    def reports(self, numbering: LayerNumbering) -> Callable[[CallKey], bool]:
        """Return whether a call is reported."""
        if self._pattern is not None:
            return self._matches
        numbers = self._requested
        return lambda key: numbers is None or numbering.layers[key][1] in numbers

    def learn(self, numbering: LayerNumbering) -> list[str]:
        """Remember which calls are reported, for the next sample.

        Returns:
            Modules that are reported, and whose calls this sample passed over.
        """
        if self._requested is None:
            return []
        reports = self.reports(numbering)
        for key in numbering.layers:
            self._known[key] = reports(key) or self._known.get(key, False)
        return sorted({key.module for key in numbering.layers if reports(key) and not self.asks(key)})

    def _matches(self, key: CallKey) -> bool:
        # with and without the observed model's own name in front
        paths = (key.module, f"{self._name}.{key.module}")
        return any(re.search(self._pattern or "", path) for path in paths)

    def _may_be_requested(self, key: CallKey, requested: set[int]) -> bool:
        elements = elements_of(key.module, self._modules)
        if key.repeat or len(elements) != 1 or not self._is_plain(elements[0].parent):
            return True
        return elements[0].index in requested

    def _is_plain(self, path: str) -> bool:
        """Whether each item of a list is a layer, rather than a stage with a list of layers in it."""
        if path not in self._lists:
            names = [name for name, _ in self._modules[path].named_children()]
            self._lists[path] = names == [str(i) for i in range(len(names))] and not any(
                name.startswith(f"{path}." * bool(path))
                and looks_like_attention(module)
                and len(elements_of(name, self._modules)) > 1
                for name, module in self._modules.items()
            )
        return self._lists[path]


def not_measured(modules: Sequence[str]) -> LookupError:
    """The error of a sample that lacks what it is to report."""
    return LookupError(
        f"layers are numbered otherwise than expected, so that {some(modules)} was not measured; the next "
        "sample measures it"
    )


def no_match(
    layers: LayerChoice, numberings: Iterable[LayerNumbering], modules: Sequence[str]
) -> SettingError:
    """The error of ``layers`` that match no attention call."""
    sizes = {stack: size for numbering in numberings for stack, size in numbering.sizes.items()}
    return SettingError(
        f"Expected `layers` to match at least one layer but got {layers!r}. "
        f"Layers per stack: {sizes}; attention modules: {modules[:4]}{'...' * (len(modules) > 4)}."
    )
