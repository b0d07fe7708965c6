"""The lines of a run, from plain values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_geo.monitor.status_lines import StatusLines
from lightning_geo.storage.record import GeometryRecord
from support.records import make_record


def lines_of(*costs: float, max_overhead: float | None = None, pause: float = 10.0) -> list[str]:
    """The lines after each of several samples, recorded every ten seconds."""
    ticks = itertools.count()
    status = StatusLines("every 50 steps", max_overhead, lambda: pause * next(ticks))
    status.inputs = "16 sequences with 1,536 tokens, the first of the validation batches"
    found, cost = [], 0.0
    for number, spent in enumerate(costs):
        cost += spent
        record = make_record(50 * number, layers=6, heads=12)
        found += status.sampled(record, cost=cost, directory="runs/a b", places="W&B: url", final=False)
    return found


def test_a_run_begins_with_what_was_found_on_which_inputs_how_often_and_where_to_look() -> None:
    assert lines_of(5.0, 0.5) == [
        "GeometryMonitor: found Tiny (encoder: 6 layers × 12 heads). Measured on 16 sequences with 1,536 "
        "tokens, the first of the validation batches.",
        "GeometryMonitor: samples are taken every 50 steps. Where to look: lightning-geo tail 'runs/a b'; "
        "W&B: url",
    ]


@pytest.mark.parametrize(
    ("costs", "max_overhead", "line"),
    [
        # two samples of half a second in ten seconds; the first one, slow, does not count
        ((5.0, 0.5, 0.5, 0.5), None, "a sample takes 0.50 s, about 10 % of the run's time at this interval; "
         "`max_overhead=0.01` would keep it at 1 %."),
        ((5.0, 0.02, 0.02), None, "a sample takes 0.020 s, about 0.40 % of the run's time at this interval; "
         "`max_overhead=` would cap it."),
        ((5.0, 0.5, 0.5), 0.05, "a sample takes 0.50 s; they are spaced to take at most 5 % of the run's "
         "time."),
    ],
)  # fmt: skip
def test_after_three_samples_a_line_says_what_they_cost(
    costs: tuple[float, ...], max_overhead: float | None, line: str
) -> None:
    assert lines_of(*costs, max_overhead=max_overhead)[2:] == [f"GeometryMonitor: {line}"]


def ended(first: GeometryRecord, last: GeometryRecord, **facts: object) -> list[str]:
    status = StatusLines("every step")
    for record in (first, last):
        status.sampled(record, cost=1.0, directory="runs", places="", final=record is last)
    known: dict[str, object] = {"samples": 16, "cost": 14.7, "seconds": 148.0, "verdict": "Nothing unusual."}
    known |= {"directory": "runs", "places": "TensorBoard: tensorboard --logdir runs"}
    return status.ended(**{**known, **facts})  # type: ignore[arg-type]


def changed(step: int, **heads: float) -> GeometryRecord:
    """A record whose metrics begin at 0 to 1 in each layer; layer 1 of some is moved."""
    record = make_record(step, layers=3, heads=2, metrics=["redundancy", "kurtosis", "entropy", "key_norm"])
    for name, values in record.stacks["encoder"].items():
        values[:] = np.linspace(0, 1, values.size).reshape(values.shape)
        values[1] += heads.get(name, 0.0)
    return record


def test_a_run_ends_with_cost_verdict_two_largest_changes_and_a_command() -> None:
    last = changed(50, redundancy=0.3, kurtosis=-3.0, entropy=0.1, key_norm=9.0)
    assert ended(changed(0), last) == [
        "GeometryMonitor: 16 samples in 14.7 s (9.9 % of the run).",
        "GeometryMonitor: Nothing unusual.",
        "GeometryMonitor: largest changes: kurtosis 0.500 → −0.500 (layer 1: 0.500 → −2.50), "
        "redundancy 0.500 → 0.600 (layer 1: 0.500 → 0.800).",
        "GeometryMonitor: look closer: lightning-geo show runs (or report); "
        "TensorBoard: tensorboard --logdir runs",
    ]


def test_a_resumed_run_says_since_when_and_one_sample_has_no_changes() -> None:
    assert "largest changes since step 20: entropy" in ended(changed(20), changed(50, entropy=1.0))[2]
    only = changed(0)
    assert ended(only, only, samples=1)[0] == "GeometryMonitor: 1 sample in 14.7 s (9.9 % of the run)."
    assert ended(only, only)[2] == "GeometryMonitor: largest changes: unknown after one sample."


def test_what_is_not_there_is_said() -> None:
    lines = ended(changed(0), changed(50), verdict=None, directory="", places="")
    assert lines[1:] == [
        "GeometryMonitor: no verdict: nothing was looked for (`alerts=False`).",
        "GeometryMonitor: largest changes: none.",
        "GeometryMonitor: look closer: nowhere, there is no logger and no record",
    ]


def test_a_monitor_with_a_name_of_its_own_says_it() -> None:
    status = StatusLines("every step", name="batch")
    lines = status.sampled(make_record(0), cost=1.0, directory="runs", places="", final=False)
    lines += status.anew().ended(samples=1, cost=1.0, seconds=2.0, verdict=None, directory="runs", places="")
    assert len(lines) == 6
    assert all(line.startswith("GeometryMonitor (batch): ") for line in lines)
