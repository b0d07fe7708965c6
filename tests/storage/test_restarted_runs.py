"""Runs that were restarted: each step once, from the session that reached it last."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from lightning_geo import load_history
from lightning_geo.storage.events import file_version, record_event, session_event
from lightning_geo.storage.tfrecord import frame
from support.record_sessions import SMALL, seeds, write_session
from support.records import make_record


def test_killed_at_160_resumed_at_100_stopped_at_120(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [100, 120], resumed_at=100, seed=2)
    history = load_history(tmp_path)
    assert history.steps.tolist() == [0, 20, 40, 60, 80, 100, 120]
    assert seeds(history) == [1] * 5 + [2] * 2


def test_a_session_that_starts_between_samples_drops_what_comes_after_it(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [140], resumed_at=110, seed=2)
    history = load_history(tmp_path)
    assert history.steps.tolist() == [0, 20, 40, 60, 80, 100, 140]
    assert seeds(history) == [1] * 6 + [2]


def test_a_fresh_run_in_a_used_directory_replaces_the_old_one(tmp_path: Path) -> None:
    write_session(tmp_path, range(0, 161, 20), seed=1)
    write_session(tmp_path, [0, 20], seed=2)
    history = load_history(tmp_path)
    assert (history.steps.tolist(), seeds(history)) == ([0, 20], [2, 2])


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 8)), min_size=1, max_size=4))
def test_any_history_of_restarts_has_each_step_once_from_the_session_that_reached_it_last(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[tuple[int, int]]
) -> None:
    directory = tmp_path_factory.mktemp("run")
    expected: dict[int, int] = {}
    for seed, (start, samples) in enumerate(sessions):
        start = min(start, len(expected))  # a checkpoint of what there was
        steps = [20 * (start + n) for n in range(samples)]
        write_session(directory, steps, resumed_at=20 * start if seed else None, seed=seed)
        expected = {step: session for step, session in expected.items() if step < 20 * start}
        expected.update(dict.fromkeys(steps, seed))
    history = load_history(directory)
    assert dict(zip(history.steps.tolist(), seeds(history), strict=True)) == expected


def test_a_session_of_one_monitor_voids_no_sample_of_another(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50, 100])
    write_session(tmp_path, [0, 50, 100], name="other")
    write_session(tmp_path, [100], resumed_at=50, seed=1)
    assert load_history(tmp_path, "geometry").steps.tolist() == [0, 100]
    assert load_history(tmp_path, "other").steps.tolist() == [0, 50, 100]


def test_tensorboards_purge_voids_samples_too(tmp_path: Path) -> None:
    write_session(tmp_path, [0, 50, 100])
    writer = SummaryWriter(str(tmp_path), purge_step=60)
    writer.close()
    assert load_history(tmp_path).steps.tolist() == [0, 50]


def test_sessions_of_one_second_are_read_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    # file names hold whole seconds, then host and process, which may sort the other way
    for host, seed, resumed_at in (("zebra", 1, None), ("ant", 2, 100)):
        events = [file_version(), record_event(make_record(100, metrics=SMALL, seed=seed), "geometry")]
        if resumed_at is not None:
            events.insert(1, session_event(resumed_at, "geometry"))
        content = b"".join(frame(event.SerializeToString()) for event in events)
        (tmp_path / f"events.out.tfevents.1700000000.{host}.1.0").write_bytes(content)
    assert seeds(load_history(tmp_path)) == [2]


def test_a_run_that_was_wholly_replaced_by_a_start_is_no_run(tmp_path: Path) -> None:
    write_session(tmp_path, [20])
    content = b"".join(
        frame(event.SerializeToString()) for event in (file_version(), session_event(0, "geometry"))
    )
    (tmp_path / "events.out.tfevents.9999999999.z").write_bytes(content)
    with pytest.raises(ValueError, match="GeometryMonitor"):
        load_history(tmp_path)
