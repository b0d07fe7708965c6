"""TensorBoard's custom-scalars layout: lowest, mean and highest layer of each key metric in one chart.

Where layers have scalars of their own, all layers of a headline metric share a chart as well.

TensorBoard reads one layout per run, the last one written. A monitor therefore keeps the categories of an
earlier layout: another monitor's, the user's own, or its own from before a restart.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Collection
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Chart,
    Layout,
    MarginChartContent,
    MultilineChartContent,
)
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata

from lightning_geo.loggers.tags import Level, group, headlines, model_tag
from lightning_geo.metrics.key_metrics import key_metrics_by_stack
from lightning_geo.metrics.selection import compares_samples, spec_of
from lightning_geo.storage.places import Place, Remote, place
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.tfrecord import Damage, read_frames

__all__ = ["add_layout", "charts", "written_layout"]

_TAG = CONFIG_SUMMARY_TAG.encode()


def charts(
    record: GeometryRecord, name: str, level: Level = "model", measured: Collection[str] | None = None
) -> Any:
    """Return the ``Layout`` of a monitor.

    Args:
        record: Its first sample.
        name: Its name.
        level: Finest scalars.
        measured: Stored names that the run measures; ``None`` where that is not known.
    """
    layout = Layout()
    margins = _margins(record, name, measured)
    if margins:
        layout.category.add(title=f"{name}: lowest, mean and highest layer", chart=margins)
    if level == "model":
        return layout
    categories: dict[str, Any] = {}
    for stack, metric, spec, _ in headlines(record):
        prefix = group(record, name, spec.family, stack, metric)
        title, _, chart_title = prefix.partition("/")
        if title not in categories:
            categories[title] = layout.category.add(title=title)
        lines = MultilineChartContent(tag=[rf"^{re.escape(prefix)}/layer_\d+$"])
        categories[title].chart.append(Chart(title=chart_title, multiline=lines))
    return layout


def _margins(record: GeometryRecord, name: str, measured: Collection[str] | None) -> list[Any]:
    """A chart per key metric and stack, by the tags of ``layer_range``."""
    result = []
    for stack, metric in key_metrics_by_stack(list(record.stacks), measured, record.specs):
        arrays = record.stacks[stack]
        # metrics that compare samples have their first value at the second sample
        if metric not in arrays and not compares_samples(metric):
            continue
        if max(map(len, arrays.values()), default=0) < 2:
            continue
        spec, prefix = spec_of(metric, record.specs), group(record, name, "layers", stack, metric)
        mean = f"{prefix}/mean" if spec.summary == "max" else model_tag(record, name, stack, metric)
        series = MarginChartContent.Series(value=mean, lower=f"{prefix}/min", upper=f"{prefix}/max")
        title = prefix.partition("/")[2]
        title = f"{spec.title} ({title})" if spec.title else title
        result.append(Chart(title=title, margin=MarginChartContent(series=[series])))
    # TensorBoard shows the margin charts of a category from the last to the first; checked on 2.21
    return result[::-1]


def add_layout(summary: Any, layout: Any, earlier: Any | None) -> None:
    """Add a layout to an event's summary, with the other categories of an earlier one."""
    titles = {category.title for category in layout.category}
    merged = Layout(category=layout.category)
    merged.category.extend(c for c in (earlier.category if earlier else ()) if c.title not in titles)
    tensor = TensorProto(dtype=DT_STRING, string_val=[merged.SerializeToString()])
    summary.value.add(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=create_summary_metadata())


def written_layout(directory: str | os.PathLike[str]) -> Any | None:
    """Return the layout that TensorBoard currently shows for a run, or None.

    Args:
        directory: Directory of the run's event files.
    """
    layout = None
    files: list[Place] = [*place(directory).glob("*tfevents*")]
    for path in sorted(files, key=str):
        left = _count(path)
        for data in read_frames(path) if left else ():
            if isinstance(data, Damage) or _TAG not in data:
                continue
            for value in Event.FromString(data).summary.value:
                if value.tag == CONFIG_SUMMARY_TAG:
                    layout = Layout.FromString(value.tensor.string_val[0])
            left -= data.count(_TAG)
            if left <= 0:
                break  # no layout follows: the rest of a long run is not read
    return layout


def _count(path: Place) -> int:
    if isinstance(path, Remote):
        with path.open() as remote:
            return remote.read().count(_TAG)
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return len(re.findall(_TAG, content))
