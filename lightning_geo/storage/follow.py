"""Follows a run: its samples as they are recorded. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from lightning_geo.storage.event_files import event_files
from lightning_geo.storage.events import parse_dropped, parse_record, started_at
from lightning_geo.storage.places import Place, place
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.tfrecord import Damage, read_frames

__all__ = ["Follower", "News"]

_OVERHEAD = 16  # bytes of an event's frame


class News(NamedTuple):
    """A new sample, or a message about the run.

    Args:
        monitor: Name of the monitor; empty for a message.
        record: The sample; ``None`` for a message.
        text: The message.
    """

    monitor: str = ""
    record: GeometryRecord | None = None
    text: str = ""


class Follower:
    """Reads the event files of a run from where the last call stopped.

    Args:
        path: Directory of the run, which may hold no event file yet, or one event file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = place(path)
        self._offsets: dict[Place, int] = {}
        self._reported: set[str] = set()

    def poll(self) -> Iterator[News]:
        """Yield what is new since the last call; a half-written event waits for the next one."""
        try:
            files, _ = event_files(self._path)
        except FileNotFoundError:
            return
        for file in files:
            yield from self._new_in(file)

    def _new_in(self, file: Place) -> Iterator[News]:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        damage: Damage | None = None
        for data in read_frames(file, start=self._offsets.get(file, 0)):
            if damage is not None:  # more follows, so this is damage and not an event being written
                self._offsets[file] = damage.offset + damage.length
                yield News(text=str(damage))
                damage = None
            if isinstance(data, Damage):
                damage = data
                continue
            self._offsets[file] = self._offsets.get(file, 0) + len(data) + _OVERHEAD
            try:
                event = Event.FromString(data)
                problems: list[str] = []
                sample = parse_record(event, problems)
                dropped = parse_dropped(event)
            except (DecodeError, ValueError) as error:
                yield News(text=f"{file}: skipped an event ({error or 'not a TensorBoard event'})")
                continue
            for problem in dict.fromkeys(problems):
                if problem not in self._reported:  # a spec comes with every sample
                    self._reported.add(problem)
                    yield News(text=problem)
            if sample:
                yield News(*sample)
            elif dropped is not None:
                yield News(text=str(dropped))
            elif (start := started_at(event)) is not None:
                yield News(text=f"resumed at step {start[0]}; earlier samples from that step on are void")
