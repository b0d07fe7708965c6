"""Prepares a run before its first step: the models, the state of an earlier session, and the probe."""

from __future__ import annotations

import contextlib
import copy

import torch

from lightning_geo.metrics.registry import reads_of
from lightning_geo.monitor.baseline import bases_of
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.monitor.samples import Samples
from lightning_geo.monitor.settings import Settings
from lightning_geo.observe.module_selection import ITSELF, candidates, check_layers
from lightning_geo.observe.replay.gathering import leaves_parts, unreplayable
from lightning_geo.utils._torch import (
    choose_sharding_roots,
    leader_of,
    split_groups,
    untried_sharding,
)
from lightning_geo.utils.errors import SettingError, call_all
from lightning_geo.utils.formatting import some
from lightning_geo.utils.ranks import Replicas, everyones, failure_of_any_rank, on_all_ranks
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Preparation"]

#: Why there are no samples where layers are split over ranks along several dimensions of a mesh.
_HEADS_SPLIT = (
    "tensor parallelism splits layers along several dimensions of a mesh, where it is unknown which heads a "
    "rank has. Monitor a run without it, or measure a checkpoint on one device with `measure`"
)
#: Why what takes all heads of a layer is absent under tensor parallelism.
_SOME_HEADS = "each rank has some heads only"


class Preparation:
    """Makes the sampler of a run, and obtains its probe.

    Args:
        settings: The monitor's.
        warn_once: Where failures go.
        samples: The run's.
    """

    def __init__(self, settings: Settings, warn_once: WarnOnce, samples: Samples) -> None:
        self._settings = settings
        self._warn_once = warn_once
        self._samples = samples
        #: reason and remedy if a compiled step hides the models
        self._sealed = ""
        self._eagerly = contextlib.ExitStack()

    def copied(self, samples: Samples) -> Preparation:
        """Return that of a copy of the run, which has other samples."""
        preparation = copy.copy(self)
        preparation._samples, preparation._eagerly = samples, contextlib.ExitStack()
        return preparation

    def stop(self) -> None:
        """Let compiled code run compiled again."""
        self._eagerly.close()

    def make_sampler(self, host: Host) -> None:
        """Check what can be checked before anything runs; from here on the module is complete."""
        samples, settings = self._samples, self._settings
        root = host.module
        named = host.has_steps or settings.module is not None
        models = candidates(root, settings.module) if named else {ITSELF: root}
        sharded = unreplayable(host.wrapped, models.values())
        samples.replays = settings.source == "probe" and not sharded
        groups = split_groups(root)
        samples.inputs.replicas = Replicas.led_by(leader_of(root))
        samples.whole_heads = not groups
        if settings.source == "probe" and sharded:
            self._warn_once.warn(f'no model can be replayed under {sharded}: `source="batch"` is used')
        if groups or leaves_parts(host.wrapped):
            self._warn_of_absent("drawn", "each rank has a part of the parameters only")
        if groups:
            self._warn_of_absent("block_norms", _SOME_HEADS, " in layers of at most 1,024 features")
            if settings.patterns and settings.source == "probe":
                self._warn_once.warn(f"attention patterns: absent, since {_SOME_HEADS}")
        check_layers(settings.layers, root, *models.values())
        sampler, failure = None, None
        try:
            sampler = Sampler(
                models, settings.layers, settings.rank, settings.special_token_ids, settings.max_queries,
                settings.loss_fn, host.forward_context, self._warn_once, root if host.has_steps else None,
                host.wrapped,
            )  # fmt: skip
        except Exception as error:
            sampler, failure = None, error
        if not on_all_ranks(failure is None, host.device):
            sampler = None  # on every rank: samples are merged over all of them
            self._warn_once.report("the models cannot be observed", failure_of_any_rank(failure))
        samples.sampler = sampler
        self.take_state()
        untried = untried_sharding(root) if groups else ""
        if untried or len(groups) > 1:
            self._warn_once.report("nothing is measured", LookupError(untried or _HEADS_SPLIT))
            samples.sampler = None
        self._sealed = host.sealed
        if self._sealed and not samples.replays:
            self._warn_once.report("nothing can be observed", LookupError(self._sealed))
            samples.sampler = None

    def _warn_of_absent(self, quantity: str, reason: str, where: str = "") -> None:
        reading = [n for n in self._settings.metrics if any(quantity in part for part in reads_of(n))]
        if reading:
            self._warn_once.warn(f"{some(reading)}: absent{where}, since {reason}")

    def take_state(self) -> None:
        """Use what an earlier session knew, if every rank knows the same."""
        samples, baseline = self._samples, self._settings.baseline
        samples.agree()
        if samples.sampler is not None:
            samples.sampler.sample.start = samples.state.start
            samples.sampler.observed.prefer(samples.state.models)
        if samples.state.baseline is None and baseline is not None:
            samples.state.baseline = bases_of(baseline)

    # -- the probe

    def sanity_check_starts(self) -> None:
        """Record the probe from the validation data: runs over the same data then share it."""
        if self._sealed:  # compiled as a whole, its models' calls show only where nothing is compiled
            self._eagerly.enter_context(torch.compiler.set_stance("force_eager"))
        self._start_recording()

    def sanity_check_ended(self) -> None:
        """Use what was recorded."""
        self.stop()
        self.use_recorded()

    def training_starts(self, host: Host, step: int) -> None:
        """Try the given probe, or record one.

        Args:
            host: Whose run it is.
            step: Optimizer steps taken so far.
        """
        samples = self._samples
        if samples.replays:
            choose_sharding_roots(host.module)
        self._take_given()
        self.try_layers()
        if not self._sealed:
            self._start_recording()
        elif samples.sampler is None:
            samples.delivery.note_dropped(host, step, LookupError(self._sealed))
        elif samples.replays and samples.inputs.probe is None:
            call_all(samples.stop, self.stop)
            samples.delivery.note_dropped(host, step, LookupError(self._sealed))
            self._warn_once.report("there is no probe", LookupError(self._sealed))
            samples.sampler = None

    def _take_given(self) -> None:
        """Try the given probe, if there is one; it is every rank's or nobody's."""
        samples, failure = self._samples, None
        if self._settings.probe is None or not samples.replays or samples.sampler is None:
            return
        try:
            if samples.inputs.take_given(samples.sampler.on_probe):
                samples.start_bases_anew()
        except Exception as error:
            failure = error
        if not on_all_ranks(failure is None, samples.sampler.observed.device):
            samples.inputs.probe = None
            failure = failure_of_any_rank(failure)
            if not all(everyones(isinstance(failure, SettingError))):
                # an argument's error ends the run: on all ranks or on none
                failure = RuntimeError(f"{type(failure).__name__}: {failure}")
            self._warn_once.report("the given probe cannot be used", failure)

    def _start_recording(self) -> None:
        samples = self._samples
        if samples.replays and samples.sampler is not None:
            samples.inputs.start(samples.sampler.on_probe)

    def use_recorded(self) -> None:
        """Make a probe of what was recorded, if anything was."""
        if self._samples.inputs.finish():
            self._samples.start_bases_anew()

    def try_layers(self) -> None:
        """Find a wrong `layers` as soon as there is a probe: the first sample may be dropped, or far off."""
        samples = self._samples
        if self._settings.layers is None or samples.sampler is None or self._warn_once.late:
            return
        if samples.replays and samples.inputs.probe is not None:
            samples.sampler.try_layers(samples.inputs.share(samples.sampler.observed.device))
