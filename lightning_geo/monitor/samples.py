"""One run's samples: taken, and merged over ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.metrics.selection import is_of_batch, is_of_probe, needs_probe
from lightning_geo.monitor.baseline import bases_of
from lightning_geo.monitor.delivery import Delivery
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.pending_sample import Facts, PendingSample
from lightning_geo.monitor.sampler import Sampler
from lightning_geo.monitor.settings import Settings
from lightning_geo.monitor.state import RunState
from lightning_geo.observe.replay.dependence import NoDataError
from lightning_geo.probe.source import ProbeSource
from lightning_geo.utils._torch import class_name
from lightning_geo.utils.device_time import Stopwatch
from lightning_geo.utils.errors import call_all
from lightning_geo.utils.garbage import uncollected
from lightning_geo.utils.ranks import everyones, from_rank_zero, rank
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Samples"]

#: The warning of a run whose state in the checkpoint cannot be used, and what the run does instead.
_UNUSABLE = "the checkpoint's state of the monitor cannot be used"
_ANEW = "Probe, baseline and costs start anew"

#: Samples without any attention after which sampling stops.
_IN_VAIN = 3


class Samples:
    """Takes the samples of a run, and passes them on for their records.

    Args:
        settings: The monitor's.
        warn_once: Where failures go.
        sinks: Where records go.
    """

    def __init__(self, settings: Settings, warn_once: WarnOnce, sinks: LoggerSinks) -> None:
        self._settings = settings
        self._warn_once = warn_once
        #: makes the samples' records
        self.delivery = Delivery(settings, warn_once, sinks)
        self.inputs = ProbeSource(settings.probe, settings.probe_size, settings.probe_tokens, warn_once)
        self.sampler: Sampler | None = None
        #: whether samples are taken on the probe, rather than on the training batch
        self.replays = settings.source == "probe"
        #: whether each rank has all heads of a layer, as attention patterns need
        self.whole_heads = True
        self.step, self.epoch, self.batches = -1, 0, 0
        #: whether a sample was lost because there is nothing to replay: the next step makes up for it
        self.overdue = False
        #: samples that saw no attention, before the first that did
        self._vain = 0

    def copied(self, loggers: Iterable[Any]) -> Samples:
        """Return the samples of a copy of the monitor: without a model, in a directory of their own.

        Args:
            loggers: Of the run, whose directories belong to it.
        """
        samples = copy.copy(self)
        samples.sampler = None
        samples.delivery = self.delivery.copied(loggers)
        return samples

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.delivery.state

    @state.setter
    def state(self, state: RunState) -> None:
        self.delivery.state = state

    @property
    def sinks(self) -> LoggerSinks:
        """Where records go."""
        return self.delivery.sinks

    def stop(self) -> None:
        """Leave nothing behind in the models."""
        call_all(self.inputs.stop, *(() if self.sampler is None else (self.sampler.stop,)))

    @uncollected()
    def replay(self, host: Host, step: int, *, final: bool = False) -> None:
        """Take a sample of the models as they are, on the probe.

        Args:
            host: Whose run it is.
            step: Optimizer step that the weights enter.
            final: Whether it is the run's last.
        """
        assert self.sampler is not None
        self.delivery.flush()
        watch = Stopwatch()
        share, error, due = None, None, tuple[str, ...]()
        with watch.running():
            try:
                share = self.inputs.share(self.sampler.observed.device)
                due = self.due_metrics(final=final)
                # rank 0 keeps the pattern: its share begins with the first sequence
                kept = self._settings.patterns and rank() == 0 and self.whole_heads
                self.sampler.sample.patterns = kept and self.sinks.keeps_pictures(step, final=final)
            except Exception as failure:  # the other ranks wait all the same
                error = failure
            try:
                error = self.sampler.on_probe.replay(share, due, self.inputs.unrecorded, error)
            except Exception as failure:
                error = failure
        self.conclude(host, step, error, lambda: watch.seconds, final=final)
        if self.sampler is not None:
            self.sampler.sample.patterns = False
            self.sampler.on_probe.forget()

    def watch_masks(self, host: Host, samples: int) -> None:
        """Look at masks in the forward pass of the step that begins, which is sampled on the probe.

        A compiled step is not looked at: the compiler would trace what observes the models into its graph.

        Args:
            host: Whose run it is.
            samples: How many samples the run has taken, this step's included.
        """
        if self.sampler is not None and not host.sealed and any(map(is_of_batch, self._settings.metrics)):
            self.sampler.training_masks.watch(samples)

    def due_metrics(self, *, final: bool = False) -> tuple[str, ...]:
        """Return the metrics that the next sample measures."""
        # two batches of the same weights differ as much as 60 steps of training do
        possible = (
            name for name in self._settings.metrics
            if self.replays or not (needs_probe(name) or is_of_probe(name))
        )  # fmt: skip
        return self._settings.clocks.due(possible, self.state.samples, final=final)

    @uncollected()
    def conclude(
        self,
        host: Host,
        step: int,
        error: Exception | None,
        seconds: Callable[[], float],
        *,
        final: bool = False,
    ) -> None:
        """Merge the sample over ranks, derive its metrics, and let its record be made.

        Args:
            host: Whose run it is.
            step: Optimizer step that the measured weights enter.
            error: An error on this rank, if there was one.
            seconds: Returns the seconds that observing it cost; waits for the device.
            final: Whether it is the run's last.
        """
        assert self.sampler is not None
        state, sampler, watch, delivery = self.state, self.sampler, Stopwatch(), self.delivery
        state.step = step

        def cost() -> float:
            return seconds() + watch.seconds

        pending = None
        about = self._warn_once.about("a sample was dropped", f"first at step {step}")
        with about, delivery.noting(host, step):
            try:
                with watch.running():
                    concluded = sampler.conclude(error, state.baseline, state.previous)
            except NoDataError as reason:
                self.observe_batches(reason)
                return
            state.models = list(sampler.observed.models)
            self.inputs.keep(state.models)
            model = ", ".join(map(class_name, sampler.observed.models.values()))
            facts = Facts(
                step, self.epoch, self.batches, model, self.inputs.fingerprint, sampler.sample.due,
                self.replays, final,
            )  # fmt: skip
            pending = PendingSample(host, facts, concluded, sampler.observed.device, cost)
        if pending is None:
            state.cost += cost()
            delivery.count_elsewhere(merged=sampler.merged)
        else:
            delivery.status.inputs = self.inputs.described
            delivery.expect(pending)
            if final or (state.samples == 0 and self._settings.baseline is not None):
                delivery.flush()  # a wrong `baseline` ends the run before its first update
            delivery.deliver(step)
        delivery.alerting.act(host, sampler.observed.device)
        if pending is None and state.samples == 0:
            self._give_up_in_vain()

    def _give_up_in_vain(self) -> None:
        """Stop sampling after a few samples that saw no attention; the same on every rank."""
        assert self.sampler is not None
        self._vain += self.sampler.saw_nothing
        if from_rank_zero(int(self._vain >= _IN_VAIN), self.sampler.observed.device):
            self._warn_once.warn(f"no attention was seen in {_IN_VAIN} samples; no further samples are taken")
            self.stop()
            self.inputs.probe = self.sampler = None

    def observe_batches(self, reason: LookupError) -> None:
        """Observe training itself from now on: there is nothing to replay."""
        self._warn_once.warn('there is nothing to replay, so `source="batch"` is used', str(reason))
        self.replays, self.overdue = False, True
        self.inputs.stop()
        self.inputs.probe = None

    def start_bases_anew(self) -> None:
        """Drop the checkpoint's bases: the probe is another one, so subspaces do not compare."""
        self.state.previous = None
        self.state.baseline = None if self._settings.baseline is None else bases_of(self._settings.baseline)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in containers that a weights-only load accepts."""
        self.delivery.flush()
        state = self.state.state_dict() | {"findings": self.delivery.alerting.state_dict()}
        return state | self.inputs.state_dict(inputs=self._settings.probe_in_checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written, or start anew from one that another version wrote."""
        try:
            state = RunState.from_state_dict(state_dict)
            self.inputs.load_state_dict(state_dict)
            self.delivery.alerting.load_state_dict(state_dict["findings"])
        except Exception as error:
            self._start_inputs_anew()
            self.delivery.look_anew()
            self._warn_once.warn(_UNUSABLE, f"{type(error).__name__}: {error}. {_ANEW}")
        else:
            self.state = state

    def agree(self) -> None:
        """Start anew on every rank if the ranks' states differ: samples are taken by all ranks together.

        One of them may have been unable to load its state, or to derive a sample's metrics.
        """
        own = self.state.step, self.state.samples, self.state.models, self.inputs.fingerprint
        if any(other != own for other in everyones(own)):
            self.state = RunState(version=self.state.version)
            self.delivery.look_anew()
            self._start_inputs_anew()
            self._warn_once.warn("ranks have different states of the run", _ANEW)

    def _start_inputs_anew(self) -> None:
        settings = self._settings
        limits = settings.probe_size, settings.probe_tokens
        self.inputs = ProbeSource(settings.probe, *limits, self._warn_once)
