"""The samples of a run as they arrive. No torch."""

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
    """What arrived: a sample, or something to be said.

    Args:
        monitor: Name of the monitor; empty if it is no sample.
        record: The sample.
        text: For a person.
    """

    monitor: str = ""
    record: GeometryRecord | None = None
    text: str = ""


class Follower:
    """Reads the event files of a run from where it stopped the last time.

    Args:
        path: Directory of the run, or one event file; it may have none yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = place(path)
        self._offsets: dict[Place, int] = {}

    def poll(self) -> Iterator[News]:
        """Yield what arrived since the last call; an event that is not wholly written waits for the next."""
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
            if damage is not None:  # something follows it: it is no event that is being written
                self._offsets[file] = damage.offset + damage.length
                yield News(text=str(damage))
                damage = None
            if isinstance(data, Damage):
                damage = data
                continue
            self._offsets[file] = self._offsets.get(file, 0) + len(data) + _OVERHEAD
            try:
                event = Event.FromString(data)
                sample = parse_record(event)
                dropped = parse_dropped(event)
            except (DecodeError, ValueError) as error:
                yield News(text=f"{file}: skipped an event ({error or 'no TensorBoard event'})")
                continue
            if sample:
                yield News(*sample)
            elif dropped is not None:
                yield News(text=str(dropped))
            elif (start := started_at(event)) is not None:
                yield News(text=f"resumed at step {start[0]}: later samples of before are void")
