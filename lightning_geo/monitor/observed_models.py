"""The models that a run observes: which of the candidates, and what the sample in the making saw of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_geo.kernels import retry_failed
from lightning_geo.measurement.importance import LossFunction
from lightning_geo.measurement.sample import LayerChoice, Measurement, special_tokens
from lightning_geo.metrics.registry import reads_of
from lightning_geo.observe import CallKey, Coverage, Tap, looks_like_attention, name_of
from lightning_geo.observe.module_selection import ITSELF, choose
from lightning_geo.observe.replay.dependence import Dependence, NoDataError
from lightning_geo.observe.replay.replica import Replica
from lightning_geo.observe.replay.undisturbed import device_of
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Context", "ObservedModels"]

Context = Callable[[], AbstractContextManager[object]]


class ObservedModels:
    """Knows the candidates, the models among them that are observed, and the sample in the making.

    Args:
        candidates: Modules that may be observed by name; the first sample shows which do attend.
        layers: See :class:`~lightning_geo.measurement.sample.Measurement`.
        rank: Dimensions of the subspaces.
        special_token_ids: Input ids that count as special.
        max_queries: Query rows to measure per sequence; None for all.
        loss_fn: What ``importance`` is importance to; None for the model's own loss.
        forward_context: The trainer's precision.
        warn_once: Where failures go.
        root: The LightningModule that they are in; None if it does not matter.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module],
        layers: LayerChoice,
        rank: int,
        special_token_ids: Iterable[int] | None,
        max_queries: int | None,
        loss_fn: LossFunction | None,
        forward_context: Context,
        warn_once: WarnOnce,
        root: nn.Module | None = None,
    ) -> None:
        retry_failed()
        self._candidates = dict(candidates)
        self.root = root
        #: tells calls whose inputs come from the data from calls whose inputs depend on parameters
        self.dependence = None if root is None else Dependence(root, candidates)
        #: the candidates that are observed
        self.models = dict(candidates)
        self._taps = {
            n: Tap(model, special_tokens(model, special_token_ids)) for n, model in self.models.items()
        }
        self._replicas = {n: Replica(model, n, warn_once) for n, model in self.models.items()}
        #: of the LightningModule, whose own calls are replayed where a model's do not begin at the data
        self._outside: Replica | None = None
        self._paths: dict[str, str] = {}
        if root is not None:
            own = next((r for n, r in self._replicas.items() if self.models[n] is root), None)
            self._outside = Replica(root, "", warn_once) if own is None else own
            paths = {id(module): path for path, module in root.named_modules()}
            self._paths = {name: paths.get(id(model), "") for name, model in self.models.items()}
        #: models of which the probe holds calls of their own
        self._called: set[str] = set()
        self._settings = (layers, rank, max_queries)
        #: stored names of what the sample in the making measures
        self._due: tuple[str, ...] = ()
        #: weights at the run's start by model: filled in by the first sample that measures their drift
        self.start: dict[str, dict[str, dict[str, Tensor]]] = {}
        #: calls by model that are none of ``layers``: filled in by samples, which number them
        self._unasked: dict[str, set[CallKey]] = {}
        self._loss_fn = loss_fn
        self._forward_context = forward_context
        self._warn_once = warn_once
        self._chosen = False
        #: whether the last sample showed no attention at all
        self.saw_nothing = False
        #: whether the last sample was whole on all ranks; what failed after that, failed on this rank alone
        self.merged = False
        self._replaying = False
        self._measurement: Measurement | None = None
        self._failure: Exception | None = None
        #: stacks of the last sample, see Computed
        self._structure: dict[str, Any] = {}
        #: why a model's importance could not be measured, by name
        self._importance_failures: dict[str, Exception] = {}
        #: models of which the probe has no call -> why
        self._unrecorded: dict[str, str] = {}
        #: the same, before it is known whether a call of the LightningModule shows them
        self._lacking: dict[str, str] = {}
        #: attention calls of the last sample that were seen and measured, over all ranks
        self.coverage = Coverage()

    def prefer(self, names: Iterable[str]) -> None:
        """Observe these alone, if they are there: an earlier session chose them."""
        names = list(names)
        if names and set(names) <= set(self.models):
            self.models = {name: self.models[name] for name in names}

    @property
    def due(self) -> tuple[str, ...]:
        """Stored names of what the last sample was to measure."""
        return self._due

    @property
    def names(self) -> list[str]:
        """Names of the models for a person: the LightningModule itself, or ``module=``, goes by its class."""
        return [name_of(name, model) for name, model in self.models.items()]

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return device_of(next(iter(self.models.values())))

    def _begin(self) -> Measurement:
        taps = {name: self._taps[name] for name in self.models}
        return Measurement(taps, self._due, *self._settings, start=self.start, unasked=self._unasked)

    def _choose(self, measurement: Measurement) -> list[str]:
        """The models that are observed from now on.

        Raises:
            NoDataError: If one that attends is given what depends on parameters, and nothing around it could
                be replayed.
        """
        observed = measurement.observed
        found = set() if self.dependence is None else self.dependence.dependent & self.models.keys()
        fed = sorted(found - {ITSELF}) if self.models.get(ITSELF) is self.root else []
        if any(self._attends(measurement, name) for name in fed):
            if ITSELF in observed:
                return [ITSELF]
            if self._replaying:
                reason = self._unrecorded.get(ITSELF, "no call of the LightningModule was recorded")
                reasons = dict.fromkeys(fed, "what it is given depends on parameters") | {ITSELF: reason}
                raise NoDataError(self.because(reasons))
        # the root encloses its children, but is observed itself only where it was called
        return choose(n for n in observed if n != ITSELF or measurement.called(n)) or observed

    def _attends(self, measurement: Measurement, name: str) -> bool:
        if ITSELF in measurement.observed:
            return measurement.attends(ITSELF, name)
        return name in measurement.observed or any(
            looks_like_attention(m) for m in self._candidates[name].modules()
        )

    @property
    def _weighs_heads(self) -> bool:
        return any("slope" in reads_of(name) for name in self._due)

    def _first_failure(self, measurement: Measurement) -> Exception | None:
        if measurement.failures:
            return measurement.failures[0]
        if not measurement.observed:
            names = ", ".join(self.names)
            if ITSELF in self._unrecorded and self._replaying:
                return NoDataError(self.because({ITSELF: self._unrecorded[ITSELF]}))
            if self._unrecorded:
                because = self.because(self._unrecorded)
                return LookupError(f"what was recorded shows no attention, and the rest was not. {because}")
            if measurement.reasons:
                return LookupError(f"all attention seen in {names} was left out, {measurement.reasons}")
            return LookupError(
                f"no attention was seen in {names}. {measurement.why_nothing()} Name the model with `module=`"
            )
        return None

    def because(self, reasons: Mapping[str, str]) -> str:
        """Name models and the reason of each, for a person."""
        named = ((name_of(name, self._candidates[name]), reason) for name, reason in reasons.items())
        return "; ".join(f"{name}: {reason}" for name, reason in named)

    def _report_unrecorded(self, names: Iterable[str]) -> None:
        """Say which models the record lacks because their calls could not be kept."""
        names = list(names)
        lacking = {}
        for name, reason in self._unrecorded.items():
            # a LightningModule that only passes on to its one child is no loss, nor is a loss function
            lost = len(names) > 1 if name == ITSELF else ITSELF not in names
            if lost and any(looks_like_attention(m) for m in self._candidates[name].modules()):
                lacking[name] = reason
        if lacking:
            said = "its calls could not be recorded, so that the record lacks it, or measures its parts alone"
            self._warn_once.say(f"{said}. {self.because(lacking)}")
