"""A sample between its last operation on the device and its record.

The training thread derives a sample's metrics, starts their copy to the host, and goes on. Another thread
waits for the copy, decomposes matrices and makes arrays. The training thread then writes the record:
loggers and a Trainer's metrics are its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_geo.measurement.assemble import Computed
from lightning_geo.monitor.host import Host
from lightning_geo.monitor.sampler import Concluded
from lightning_geo.observe import Coverage
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.background import Background
from lightning_geo.utils.ranks import world_size

__all__ = ["Facts", "PendingSample"]

#: Steps after which several ranks take a sample over, if nothing asks for it before.
_STEPS_LATER = 10


def _outside(device: torch.device) -> bool:
    """Whether the samples of models on a device are finished outside the training thread.

    Not on a CPU: eigenvalues are 17 of the 360 ms that a sample of a BERT of 6 layers adds there (see
    tests/benchmarks/README.md), and the thread would take the cores that training computes with.
    """
    return device.type != "cpu"


@dataclass(frozen=True)
class Facts:
    """The metadata of a record: when its sample was taken, and on what.

    Args:
        step: Optimizer step that the measured weights enter.
        epoch: Of the Trainer.
        batches: Batches whose forward and backward were done.
        model: Classes of the observed models.
        fingerprint: Of the probe.
        due: Stored names of the metrics that were measured.
        replayed: Whether it was taken on the probe.
        final: Whether it is the run's last.
    """

    step: int
    epoch: int
    batches: int
    model: str
    fingerprint: str
    due: tuple[str, ...]
    replayed: bool
    final: bool
    wall_time: float = field(default_factory=time.time)

    def record(
        self, computed: Computed, coverage: Coverage, cost: float, *, matrices: bool, **options: Any
    ) -> GeometryRecord:
        """Return the sample's record; ``options`` are the record's own."""
        return GeometryRecord(
            computed.stacks,
            {"class": self.model, "stacks": computed.structure},
            computed.matrices() if matrices else {},
            step=self.step,
            epoch=self.epoch,
            batches_seen=self.batches,
            wall_time=self.wall_time,
            cost_seconds=cost,
            probe_fingerprint=self.fingerprint,
            coverage=coverage.as_dict() | _not_finite(computed),
            patterns=computed.patterns,
            **options,
        )


def _not_finite(computed: Computed) -> dict[str, dict[str, list[int]]]:
    """Return the layers with activations that are not finite, by stack, as the record's coverage has them."""
    layers: dict[str, set[int]] = {}
    for place in computed.broken.values():
        stack, _, layer = place.rpartition("/")
        layers.setdefault(stack, set()).add(int(layer))
    return {"not_finite": {stack: sorted(of) for stack, of in layers.items()}} if layers else {}


class PendingSample:
    """A sample whose metrics are derived, and whose record is to be made.

    Args:
        host: Whose run it is.
        facts: Of its moment.
        concluded: Finishes the metrics, and reports what they lack.
        device: That of the models.
        seconds: Seconds that it cost so far; waits for the device.
    """

    def __init__(
        self,
        host: Host,
        facts: Facts,
        concluded: Concluded,
        device: torch.device,
        seconds: Callable[[], float],
    ) -> None:
        self.facts = facts
        self.host = host
        self._concluded = concluded
        self._seconds = seconds
        self._work: Background[Computed] | None = None
        # foreign functions may draw random numbers, or write to tensors that training reads
        if _outside(device) and not concluded.derivation.calls_others:
            self._work = Background(concluded.derivation.finish)

    def is_due(self, step: int) -> bool:
        """Whether its record is to be made now, at a later step.

        One process asks whether it would wait. Several ranks go by steps: what is among a Trainer's metrics
        must be so on all of them, or one that stops by it would leave the others waiting.
        """
        if self._work is None:
            return True
        return self._work.done if world_size() == 1 else step >= self.facts.step + _STEPS_LATER

    def wait(self) -> float:
        """Wait for the metrics; return the seconds that the sample has cost until then.

        That is what the device took for it, and the larger of what this call waits and what the sample's own
        thread computed. That thread holds the interpreter's lock while it runs, which the training thread
        then waits for, so that its seconds count in full. LAPACK's threads hold no lock, and compute on cores
        that training on a device leaves idle: they do not count, nor does the copy, which nobody waits for.
        """
        seconds = self._seconds()
        if self._work is None:
            return seconds
        started = time.perf_counter()
        self._work.wait()
        return seconds + max(self._work.seconds, time.perf_counter() - started)

    def finish(self) -> tuple[Computed, Coverage]:
        """Return the metrics and their coverage, and warn of what they lack.

        Raises:
            Exception: What failed in the making.
        """
        work = self._work
        computed = self._concluded.derivation.finish() if work is None else work.result()
        return computed, self._concluded.report(computed)
