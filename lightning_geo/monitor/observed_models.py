"""The models that a run observes, chosen among the candidates by its first sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lightning_geo.measurement.special_tokens import special_tokens
from lightning_geo.observe import Tap, looks_like_attention, name_of
from lightning_geo.observe.replay.dependence import Dependence
from lightning_geo.observe.replay.undisturbed_run import device_of

__all__ = ["ObservedModels"]


class ObservedModels:
    """Knows the candidates, and the models among them that are observed.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        special_token_ids: Input ids that count as special.
        root: The LightningModule that they are in; None if it does not matter.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        special_token_ids: Iterable[int] | None,
        root: nn.Module | None = None,
    ) -> None:
        self.candidates = dict(candidates)
        self.root = root
        #: tells calls whose inputs come from the data from calls whose inputs depend on parameters
        self.dependence = None if root is None else Dependence(root, candidates)
        #: the candidates that are observed
        self.models = dict(candidates)
        #: whether a sample has shown which of the candidates attend
        self.settled = False
        #: the model whose device is known, and where its first parameter was then
        self._identity: tuple[int, torch.device | None] | None = None
        self._device = torch.device("cpu")
        self._taps = {
            n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()
        }

    def prefer(self, names: Iterable[str]) -> None:
        """Observe these alone, if they are there: an earlier session chose them."""
        names = list(names)
        if names and set(names) <= set(self.models):
            self.models = {name: self.models[name] for name in names}

    def settle(self, names: Iterable[str]) -> None:
        """Observe these alone from now on: a sample chose them."""
        self.prefer(names)
        self.settled = True

    @property
    def taps(self) -> dict[str, Tap]:
        """Taps of the observed models, by name."""
        return {name: self._taps[name] for name in self.models}

    @property
    def names(self) -> list[str]:
        """Names of the models for a person: the LightningModule itself, or ``module=``, goes by its class."""
        return [name_of(name, model) for name, model in self.models.items()]

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        model = next(iter(self.models.values()))
        first = next(model.parameters(), None)
        # asked for at each step: looking through all modules would take a millisecond of it
        identity = id(model), None if first is None else first.device
        if self._identity != identity:
            self._identity, self._device = identity, device_of(model)
        return self._device

    def may_attend(self, name: str) -> bool:
        """Whether a candidate contains a module that looks like attention."""
        return any(looks_like_attention(module) for module in self.candidates[name].modules())

    def dependent(self) -> set[str]:
        """Names of observed models whose inputs depend on parameters."""
        return set() if self.dependence is None else self.dependence.dependent & self.models.keys()

    def because(self, reasons: Mapping[str, str]) -> str:
        """Name models and the reason of each, for a person."""
        named = ((name_of(name, self.candidates[name]), reason) for name, reason in reasons.items())
        return "; ".join(f"{name}: {reason}" for name, reason in named)
