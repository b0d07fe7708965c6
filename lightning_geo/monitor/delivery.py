"""The records of one run, made in the order of steps when their metrics are there, and sent everywhere."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from lightning_geo.loggers.logger_sinks import LoggerSinks
from lightning_geo.measurement.assemble import Computed
from lightning_geo.metrics.foreign import foreign_specs
from lightning_geo.metrics.selection import is_of_batch
from lightning_geo.monitor.alerting import Alerting
from lightning_geo.monitor.baseline import check_bases
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.pending_sample import PendingSample
from lightning_geo.monitor.settings import Settings
from lightning_geo.monitor.state import RunState
from lightning_geo.monitor.status_lines import StatusLines
from lightning_geo.monitor.token_names import with_words
from lightning_geo.storage.events import Dropped
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.formatting import some
from lightning_geo.utils.ranks import world_size
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["Delivery"]


class Delivery:
    """Holds the sample whose record is not made yet, and the run's state, which that sample changes.

    There is one such sample at most: the next one's drift and velocity are against it, and what the next one
    measures depends on their number. It is delivered by the training thread, to which loggers and a Trainer's
    metrics belong: as soon as it is there (:meth:`deliver`), and before anything reads what it changes
    (:meth:`flush`).

    Args:
        settings: The monitor's.
        warn_once: Where failures go.
        sinks: Where records go.
    """

    def __init__(self, settings: Settings, warn_once: WarnOnce, sinks: LoggerSinks) -> None:
        self._settings = settings
        self._warn_once = warn_once
        self.sinks = sinks
        self.state = RunState()
        self.alerting = Alerting(settings.alerts, warn_once)
        self.status = StatusLines(settings.how_often, settings.max_overhead, name=settings.name)
        #: the last one
        self.record: GeometryRecord | None = None
        self._pending: PendingSample | None = None
        #: step from which an earlier session's samples are void
        self.resumed_at: int | None = None

    def copied(self, loggers: Iterable[Any]) -> Delivery:
        """Return that of a copy of the monitor: in a directory of its own.

        Args:
            loggers: Of the run, whose directories belong to it.
        """
        self.flush()
        delivery = copy.copy(self)
        delivery.sinks = self.sinks.copied(loggers)
        scales = dict(self.state.picture_scales)
        delivery.state = replace(self.state, version=None, picture_scales=scales)
        delivery.alerting, delivery.status = self.alerting.copied(), self.status.anew()
        return delivery

    def look_anew(self) -> None:
        """Forget all findings."""
        self.alerting = Alerting(self._settings.alerts, self._warn_once)

    def open(self, host: Host) -> None:
        """Open the loggers; without one, all monitors of a run share the directory of its record."""
        states = (self.state, *host.neighbours())
        versions = [state.version for state in states if state.version is not None]
        version = next(iter(versions), None)
        self.sinks.open(host, self.resumed_at, version, self.state.picture_scales)
        self.state.version = self.sinks.version or self.state.version

    # -- samples

    def expect(self, pending: PendingSample) -> None:
        """Take a sample over, after all earlier ones."""
        self.flush()
        self._pending = pending

    @property
    def waits(self) -> bool:
        """Whether there is a sample whose record is not made yet."""
        return self._pending is not None

    def deliver(self, step: int) -> None:
        """Write the record of the sample that waits for it, if it is due at a step."""
        if self._pending is not None and self._pending.is_due(step):
            self.flush()

    def flush(self) -> None:
        """Write the record of the sample that waits for it, if there is one."""
        pending = self._pending
        if pending is None or not pending.host.alive:
            self._pending = None
            return
        host = pending.host
        state, before, step = self.state, self.state.samples, pending.facts.step
        spent, started = 0.0, time.perf_counter()
        about = self._warn_once.about("a sample was dropped", f"first at step {step}")
        # no gradient, and tensors that outlive the hook: it may be one of a validation
        with torch.inference_mode(mode=False), torch.no_grad(), about, self.noting(host, step):
            try:
                spent = pending.wait()
            except Exception:
                self._pending = None
                raise
            # Ctrl-C until here lets the sample wait for the next call, and from here on costs it
            self._pending, started = None, time.perf_counter()
            self._write(host, pending, spent)
        state.cost += spent + time.perf_counter() - started
        if state.samples == before:
            self.count_elsewhere(merged=True)
        elif host.is_rank_zero and self.record is not None:
            with self._warn_once.about("the lines on the run could not be written"):
                final = pending.facts.final
                for line in self.status.sampled(self.record, cost=state.cost, final=final, **self._where):
                    host.log.info(line)

    @property
    def _where(self) -> dict[str, str]:
        return {"directory": self.sinks.directory, "places": self.sinks.places}

    def run_lines(self, seconds: float) -> Iterable[str]:
        """Return the lines that sum a run up that took so long."""
        samples, cost, verdict = self.state.samples, self.state.cost, self.alerting.verdict
        return self.status.ended(samples=samples, cost=cost, seconds=seconds, verdict=verdict, **self._where)

    def count_elsewhere(self, *, merged: bool) -> None:
        """Count a sample that failed on this rank alone: what is due next depends on the number.

        Args:
            merged: Whether it was whole on all ranks before.
        """
        self.state.samples += merged and world_size() > 1

    def _write(self, host: Host, pending: PendingSample, spent: float) -> None:
        """Make the record of a sample, and send it everywhere."""
        state, facts, started = self.state, pending.facts, time.perf_counter()
        computed, coverage = pending.finish()
        if computed.broken:
            self._warn_once.report(
                "activations are not finite",
                FloatingPointError(
                    f"NaN or infinity in {some(computed.broken)}; what it spoils has no value"
                ),
                f"first at step {facts.step}",
            )
        if state.samples == 0 and self._settings.baseline is not None:
            check_bases(state.baseline, computed.bases, self._settings.baseline)
        self._move_bases(computed, facts.replayed)
        in_checkpoint = self._settings.probe_in_checkpoint
        computed.patterns = with_words(
            computed.patterns, host.tokenizer_owners, in_checkpoint, self._warn_once
        )
        self.record = record = facts.record(
            computed,
            coverage,
            spent + time.perf_counter() - started,
            matrices=state.samples == 0 or facts.final,
            # once a key, always a key: a chart that ends where all is well again would mislead
            coverage_shown=f"{self._settings.name}/coverage" in state.summaries,
            specs=foreign_specs(self._settings.metrics),
        )
        state.samples += 1
        state.summaries = self._summaries(record, facts.due, facts.replayed)
        host.show(state.summaries)
        if host.is_rank_zero:
            self.open(host)
            self.alerting.add(record)
            self.sinks.write(record, final=facts.final)
            self.alerting.report(host, record)

    def _summaries(self, record: GeometryRecord, due: tuple[str, ...], replayed: bool) -> dict[str, float]:
        """Model summaries by tag: the sample's, NaN for one that was due and has no value any more.

        Those of metrics on a slower clock stay: a resumed run's EarlyStopping needs them.
        """
        due = tuple(name for name in due if not (replayed and is_of_batch(name)))  # a clock of its own
        lost = {tag for tag in self.state.summaries if tag.rpartition("/")[2] in due}
        values = {f"{self._settings.name}/{key}": value for key, value in record.summaries().items()}
        return {**self.state.summaries, **dict.fromkeys(lost, math.nan), **values}

    def _move_bases(self, computed: Computed, replayed: bool) -> None:
        """The next sample's velocity is against this sample, and drift against the first."""
        if replayed:
            self.state.previous = computed.bases
        if self.state.baseline is None:
            self.state.baseline = self.state.previous

    # -- samples that were dropped

    @contextlib.contextmanager
    def noting(self, host: Host, step: int) -> Iterator[None]:
        """Let a run without samples say that the monitor was there, and why it has none."""
        try:
            yield
        except Exception as error:
            self.note_dropped(host, step, error)
            raise

    def note_dropped(self, host: Host, step: int, error: Exception) -> None:
        """Leave in the record of a run without samples that one was dropped, and why."""
        if self.state.samples == 0:
            self.state.dropped += 1
            if host.is_rank_zero:
                self.open(host)
                reason = f"{type(error).__name__}: {error}"
                self.sinks.note(Dropped(self._settings.name, self.state.dropped, reason), step)
