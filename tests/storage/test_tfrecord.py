"""Framing of event files, against TensorBoard's own reader and writer."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as slow_crc
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_geo.storage.tfrecord import Damage, frame, masked_crc32c, read_frames

EVENTS = [bytes([65 + n]) * (20 + 37 * n) for n in range(5)]
FRAMES = [frame(event) for event in EVENTS]
WHOLE = b"".join(FRAMES)
BORDERS = [sum(map(len, FRAMES[:n])) for n in range(len(FRAMES) + 1)]


def read(path: Path, content: bytes) -> tuple[list[bytes], list[Damage]]:
    path.write_bytes(content)
    found = list(read_frames(path))
    return [f for f in found if isinstance(f, bytes)], [f for f in found if isinstance(f, Damage)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frames") / "events.out.tfevents.1"


@given(st.binary(min_size=4, max_size=300))
def test_crc_is_tensorboards(data: bytes) -> None:
    assert masked_crc32c(data) == slow_crc(data)


# below, at and above one part (64 bytes), and so many parts that they pair up evenly and not
@pytest.mark.parametrize("size", [8, 63, 64, 65, 128, 129, 64 * 7, 64 * 8, 64 * 8 + 1, 20_011])
def test_crc_of_many_parts_is_tensorboards(size: int) -> None:
    data = bytes(n * n % 251 for n in range(size))
    assert masked_crc32c(data) == slow_crc(data)


def test_a_frame_is_what_tensorboards_writer_writes() -> None:
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in EVENTS:
        writer.write(event)
    assert file.getvalue() == WHOLE


def test_tensorboard_reads_our_frames(path: Path) -> None:
    path.write_bytes(WHOLE)
    assert list(RawEventFileLoader(str(path)).Load()) == EVENTS


@given(st.integers(0, len(WHOLE)))
def test_a_file_cut_anywhere_gives_what_was_complete(path: Path, cut: int) -> None:
    events, damages = read(path, WHOLE[:cut])
    complete = sum(border <= cut for border in BORDERS[1:])
    assert events == EVENTS[:complete]
    rest = cut - BORDERS[complete]
    assert [(d.offset, d.length) for d in damages] == ([(BORDERS[complete], rest)] if rest else [])
    assert all(d.reason == "half-written last event" for d in damages)


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_wrong_byte_anywhere_costs_its_event_alone(path: Path, place: int, change: int) -> None:
    content = bytearray(WHOLE)
    content[place] ^= change
    events, damages = read(path, bytes(content))
    hit = next(n for n in range(len(EVENTS)) if place < BORDERS[n + 1])
    assert events == EVENTS[:hit] + EVENTS[hit + 1 :]
    assert [(d.offset, d.length) for d in damages] == [(BORDERS[hit], len(FRAMES[hit]))]
    assert str(path) in str(damages[0])
    assert str(BORDERS[hit]) in str(damages[0])


@given(st.integers(1, len(FRAMES[1]) - 1))
def test_a_half_written_event_that_others_follow_costs_itself_alone(path: Path, cut: int) -> None:
    # a full disk that was cleared while the run went on
    events, damages = read(path, FRAMES[0] + FRAMES[1][:cut] + FRAMES[2] + FRAMES[3])
    assert events == [EVENTS[0], EVENTS[2], EVENTS[3]]
    assert [(d.offset, d.length, d.reason) for d in damages] == [(BORDERS[1], cut, "damaged event")]


def test_zeros_behind_the_last_event_are_skipped(path: Path) -> None:
    # what some file systems leave after power is lost
    events, damages = read(path, WHOLE + bytes(5000))
    assert events == EVENTS
    assert [(d.offset, d.length) for d in damages] == [(len(WHOLE), 5000)]


def test_the_next_header_is_found_beyond_what_is_searched_at_a_time(path: Path) -> None:
    events, damages = read(path, b"\xff" * (3 << 20) + WHOLE)
    assert events == EVENTS
    assert [(d.offset, d.length) for d in damages] == [(0, 3 << 20)]


def test_an_empty_file_holds_nothing(path: Path) -> None:
    assert read(path, b"") == ([], [])
