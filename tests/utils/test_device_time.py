"""What samples cost is read where the device has done its work, on machines without one too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_geo import GeometryMonitor, load_history
from lightning_geo.utils import device_time as clock
from lightning_geo.utils.device_time import Stopwatch
from support.lit import Classifier, fit


class Device:
    """A device of which the work that is queued takes time only when somebody waits for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.queued = 0.0, 0.0
        Mark.made = 0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.accelerator, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch, "Event", lambda device, enable_timing: Mark(self))
        monkeypatch.setattr(clock, "is_capturing", lambda: False)

    def wait(self, device: Any = None) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


class Mark:
    """An event: passed when what is queued before it is done."""

    made = 0

    def __init__(self, device: Device) -> None:
        self.device = device
        Mark.made += 1

    def record(self) -> None:
        self.at = self.device.now + self.device.queued

    def synchronize(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, other: Mark) -> float:
        return 1e3 * (other.at - self.at)


def test_a_stopwatch_counts_its_stretches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    device, watch = Device(monkeypatch), Stopwatch()
    for own in (1.0, 2.0):
        device.queued += 5.0  # of training
        started = watch.start()
        device.queued += own
        watch.stop(started)
    assert device.now == 0.0  # nothing has waited yet
    assert watch.seconds == watch.seconds == 3.0


def test_marks_are_used_again_but_not_those_that_are_still_to_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device, watch = Device(monkeypatch), Stopwatch()
    for seconds in (1.0, 2.0):  # the second sample has the marks of the first
        for own in (seconds, 10 * seconds):
            device.queued += 5.0
            started = watch.start()
            device.queued += own
            watch.stop(started)
        assert watch.seconds == 11 * seconds
        watch.reset()
    assert Mark.made == 4


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_a_sample_is_timed_by_marks_and_never_waits_for_the_device(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(range(0, 10**6, 100))
    monkeypatch.setattr(Stopwatch, "_mark", lambda self: Reading(next(readings)))
    monkeypatch.setattr(Stopwatch, "start", lambda self: self._mark())
    monkeypatch.setattr(torch.accelerator, "synchronize", None)
    monitor = GeometryMonitor(1, source=source, metrics="entropy", strict=True)
    fit(tmp_path, Classifier(), monitor, steps=2)
    costs = load_history(tmp_path / "lightning_geo" / "version_0").metadata["cost_seconds"]
    # of the probe two stretches: its replay, with all readings of its taps, and what derives the metrics
    assert (costs >= 200).all()
    assert (costs % 100 < 10).all()
    assert round(monitor._run.samples.state.cost, -2) == costs.sum().round(-2)


class Reading:
    """A mark at a time in seconds, which is passed."""

    def __init__(self, at: float) -> None:
        self.at = at

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: Reading) -> float:
        return 1e3 * (other.at - self.at)
