"""Which run of a layer an attention call belongs to, and which of several attentions in it the call is."""

from __future__ import annotations

from lightning_geo.taps.call import CallKey

__all__ = ["RunCounter"]


class RunCounter:
    """Counts how often layers ran since the module that owns them started, and the attentions of each run.

    Args:
        layers: Module path -> path of the innermost list item around it, or its own path outside of lists.
        owners: Paths of the modules that own a list of layers: as one starts, its layers are counted anew.
    """

    def __init__(self, layers: dict[str, str], owners: set[str]) -> None:
        self._layers = layers
        self._owners = owners
        self._runs: dict[str, int] = {}
        self._parts: dict[tuple[str, int, bool], int] = {}

    def starts(self, name: str) -> None:
        """A module starts."""
        if name in self._owners:
            prefix = f"{name}." if name else ""
            self._runs = {k: n for k, n in self._runs.items() if not k.startswith(prefix)}
            self._parts = {k: n for k, n in self._parts.items() if not k[0].startswith(prefix)}
        self._runs[name] = self._runs.get(name, -1) + 1

    def key(self, name: str, *, cross: bool) -> CallKey:
        """Return the key of the attention that the module ``name`` computes now."""
        # a layer run by `layer.forward(x)` never starts: then the module's own runs are counted
        repeat = self._runs.get(self._layers.get(name, name), self._runs.get(name, 0))
        part = self._parts[name, repeat, cross] = self._parts.get((name, repeat, cross), -1) + 1
        return CallKey(name, repeat, cross, part)
