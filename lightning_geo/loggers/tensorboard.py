"""Writes records to TensorBoard, through the run's own writer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.text.metadata import create_summary_metadata as text_metadata

from lightning_geo.loggers.alerts import markdown
from lightning_geo.loggers.custom_scalars import add_layout, charts, written_layout
from lightning_geo.loggers.picture_scale import PictureScales
from lightning_geo.loggers.pictures import PictureSchedule, pictures, png
from lightning_geo.loggers.tags import Level, layer_range, scalars
from lightning_geo.storage.events import Dropped, dropped_event, record_event, session_event
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils._tensorboard import as_its_own, file_writer

__all__ = ["TensorBoardSink"]


class TensorBoardSink:
    """Writes scalars, pictures, the layout of charts and the record; on disk when ``write`` returns.

    tensorboardX writes from a thread that cannot be waited for: its samples are on disk with the next one.

    Args:
        experiment: A ``SummaryWriter``, torch's or tensorboardX's.
        name: The monitor's name.
        level: Finest scalars.
        schedule: Which samples get pictures.
        with_record: False if another writer of the run holds the record.
        resumed_at: Step at which this session takes over from an earlier one.
        scales: Of the run's pictures.
        measured: Stored names that the run measures; ``None`` where that is not known.
    """

    def __init__(
        self,
        experiment: Any,
        name: str,
        level: Level,
        schedule: PictureSchedule,
        with_record: bool = True,
        resumed_at: int | None = None,
        scales: PictureScales | None = None,
        measured: Collection[str] | None = None,
    ) -> None:
        self._measured = measured
        self._scales = PictureScales() if scales is None else scales
        self._experiment = experiment
        self._name = name
        self._level = level
        self._schedule = schedule
        self._with_record = with_record
        self._started = False
        if resumed_at is not None:
            # at once, so that the replaced samples end before anything that this session writes
            writer = file_writer(experiment)
            mark = as_its_own(writer, session_event(resumed_at, name))
            writer.add_event(mark, step=resumed_at)
            writer.flush()
        folder = file_writer(experiment).get_logdir()
        self.where = f"TensorBoard: tensorboard --logdir {folder}"
        self.holds: str | None = folder if with_record else None

    def write(self, record: GeometryRecord, *, final: bool = False) -> None:
        """Write one sample."""
        # not cached: the experiment opens a new writer after `close`, as between two fits
        writer = file_writer(self._experiment)
        event = record_event(record, self._name) if self._with_record else Event(step=record.step)
        numbers = scalars(record, self._name, self._level, self._measured)
        # the charts of Custom Scalars can only read scalars
        for tag, number in (numbers | layer_range(record, self._name, self._measured)).items():
            event.summary.value.add(tag=tag, simple_value=number)
        if record.findings:
            text = "\n\n---\n\n".join(map(markdown, record.findings))
            tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=TensorShapeProto())
            tag = f"{self._name}/findings"
            event.summary.value.add(tag=tag, tensor=tensor, metadata=text_metadata(tag, ""))
        first, self._started = not self._started, True
        self._send(writer, event, record)
        # in events of their own, so that the numbers are written even if the layout or a picture fails
        if first:
            event = Event(step=record.step)
            layout = charts(record, self._name, self._level, self._measured)
            add_layout(event.summary, layout, written_layout(writer.get_logdir()))
            self._send(writer, event, record)
        if self._schedule.due(record.step, final=final):
            event = Event(step=record.step)
            for tag, picture in pictures(record, self._name, self._scales):
                image = event.summary.value.add(tag=tag).image
                image.width, image.height = picture.size
                image.colorspace = 3
                image.encoded_image_string = png(picture)
            self._send(writer, event, record)

    def note(self, dropped: Dropped, step: int) -> None:
        """Note a dropped sample in a run that has none yet."""
        if self._with_record:
            writer = file_writer(self._experiment)
            writer.add_event(as_its_own(writer, dropped_event(dropped, step)), step=step)
            writer.flush()

    @staticmethod
    def _send(writer: Any, event: Any, record: GeometryRecord) -> None:
        event = as_its_own(writer, event)
        writer.add_event(event, step=record.step, walltime=record.wall_time or None)
        writer.flush()

    def close(self) -> None:
        """Leave the writer open, because it belongs to the logger."""
