"""Converts records to TensorBoard events and back. No other file knows the stored format.

One event holds one sample of one monitor. Its summary has one tensor per metric, tagged
``lightning_geo/<name>/<stack>/<metric>``, one per basis or head-pair matrix, tagged
``lightning_geo/<name>/matrices/<stack>/<matrix>``, where it has attention patterns those of a stack in
``lightning_geo/<name>/patterns/<stack>/attention``, ``lengths`` and ``tokens``, and the metadata as JSON in
``lightning_geo/<name>/record``; the specs of metrics that are not built in are among it, under ``specs``,
findings that the sample changed, under ``findings``, and the rules that it was checked for, under
``looked_for``.
A resumed run begins with an empty tensor ``lightning_geo/<name>/session``, which voids the samples that the
monitor wrote earlier at or after its step. While a run has no sample, each dropped sample leaves the count
and the reason as JSON in ``lightning_geo/<name>/dropped``, so that readers can tell a monitor that failed
from one that was never added.
"""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_HALF, DT_STRING, DT_UINT8

from lightning_geo.metrics.foreign_specs import read_specs
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.patterns import AttentionPatterns
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.errors import DamagedError

__all__ = [
    "PLUGIN",
    "Dropped",
    "dropped_event",
    "file_version",
    "matrix_tag",
    "metadata_tag",
    "parse_dropped",
    "parse_record",
    "pattern_tag",
    "record_event",
    "session_event",
    "session_tag",
    "started_at",
]

PLUGIN = "lightning_geo"
_FORMAT = 1
_METADATA = "record"
_SESSION = "session"
_MATRICES = "matrices"
_PATTERNS = "patterns"
_DROPPED = "dropped"
_DTYPES = {"<f4": DT_FLOAT, "<f2": DT_HALF, "<f8": DT_DOUBLE, "<u1": DT_UINT8}
_KINDS_OF_METADATA: dict[str, tuple[type, ...]] = {
    "model": (dict,), "step": (int,), "epoch": (int,), "batches_seen": (int,),
    "wall_time": (int, float), "cost_seconds": (int, float), "probe_fingerprint": (str,), "coverage": (dict,),
    "looked_for": (list,),
}  # fmt: skip
_KINDS = {dtype: kind for kind, dtype in _DTYPES.items()}


def metadata_tag(name: str) -> str:
    """Return the tag of the metadata of each sample of a monitor."""
    return f"{PLUGIN}/{name}/{_METADATA}"


def session_tag(name: str) -> str:
    """Return the tag that marks where a resumed session of a monitor takes over."""
    return f"{PLUGIN}/{name}/{_SESSION}"


def pattern_tag(name: str, stack: str, part: str) -> str:
    """Return the tag of a part of a stack's attention patterns, as :class:`.AttentionPatterns` names it."""
    return f"{PLUGIN}/{name}/{_PATTERNS}/{stack}/{part}"


def matrix_tag(name: str, stack: str, matrix: str) -> str:
    """Return the tag of a basis or of a matrix over pairs of heads."""
    return f"{PLUGIN}/{name}/{_MATRICES}/{stack}/{matrix}"


def record_event(record: GeometryRecord, name: str) -> Any:
    """Return the event of one sample.

    Args:
        record: The sample; its arrays keep their dtype where it is a floating one.
        name: The monitor's name.

    Returns:
        An ``Event`` of ``tensorboard.compat.proto``; more summary values may be added to it.
    """
    event = Event(step=record.step, wall_time=record.wall_time or time.time())
    metadata = json.dumps({"format": _FORMAT, "name": name, **record.metadata()}, separators=(",", ":"))
    _add(event, metadata_tag(name), TensorProto(dtype=DT_STRING, string_val=[metadata.encode()]))
    patterns = {stack: own.arrays() for stack, own in record.patterns.items()}
    levels = (("", record.stacks), (f"{_MATRICES}/", record.matrices), (f"{_PATTERNS}/", patterns))
    for level, stacks in levels:
        for stack, arrays in stacks.items():
            for metric, values in arrays.items():
                _add(event, f"{PLUGIN}/{name}/{level}{stack}/{metric}", _to_tensor(values))
    return event


def _add(event: Any, tag: str, tensor: Any) -> None:
    value = event.summary.value.add(tag=tag, tensor=tensor)
    # TensorBoard drops tensors of an unknown plugin unless they have a data class
    value.metadata.data_class = DATA_CLASS_TENSOR
    value.metadata.plugin_data.plugin_name = PLUGIN


def parse_record(event: Any, problems: list[str] | None = None) -> tuple[str, GeometryRecord] | None:
    """Return the monitor's name and the record that an event holds, or None for any other event.

    Args:
        event: An ``Event`` of ``tensorboard.compat.proto``.
        problems: Gets a sentence on each spec of a metric that cannot be used; the record does without it.

    Raises:
        ValueError: If the event claims to hold a record but does not, or one of a newer format.
    """
    values = event.summary.value
    metadata_value = next((v for v in values if _is_metadata(v.tag)), None)
    if metadata_value is None:
        return None
    try:
        return _parsed(values, metadata_value, [] if problems is None else problems)
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedError(f"not a record: {type(error).__name__}: {error}") from error


def _parsed(values: Any, metadata_value: Any, problems: list[str]) -> tuple[str, GeometryRecord]:
    metadata = json.loads(metadata_value.tensor.string_val[0])
    if metadata.pop("format") > _FORMAT:
        raise DamagedError("written by a newer version of lightning_geo; update lightning_geo to read it")
    name = metadata.pop("name")
    for key, kinds in _KINDS_OF_METADATA.items():
        if key in metadata and (not isinstance(metadata[key], kinds) or isinstance(metadata[key], bool)):
            raise DamagedError(f"not a record: its {key} is {str(metadata[key])[:40]!r}")
    if not isinstance(name, str) or not -(2**62) < metadata.get("step", 0) < 2**62:
        raise DamagedError("not a record: its name is not text, or its step is out of range")
    prefix = f"{PLUGIN}/{name}/"
    specs, damaged = read_specs(metadata.pop("specs", {}))
    problems += damaged
    findings = [Finding.from_dict(values) for values in metadata.pop("findings", ())]
    record = GeometryRecord({}, **metadata, specs=specs, findings=findings)
    patterns: dict[str, dict[str, NDArray[Any]]] = {}
    for value in values:
        # scalars and the layout of charts may share the event
        parts = value.tag.removeprefix(prefix).split("/") if value.tag.startswith(prefix) else []
        if len(parts) > 1:
            stacks = record.matrices if len(parts) > 2 else record.stacks
            stacks = patterns if len(parts) > 2 and parts[0] == _PATTERNS else stacks
            words = stacks is patterns and value.tensor.dtype == DT_STRING
            array = _to_words(value.tensor) if words else _to_array(value.tensor)
            stacks.setdefault(parts[-2], {})[parts[-1]] = array
    for stack, arrays in patterns.items():
        try:
            record.patterns[stack] = AttentionPatterns.of(arrays)
        except (KeyError, ValueError) as error:
            problems.append(f"the attention patterns of {stack!r} at step {record.step} ({error})")
    return name, record


def _is_metadata(tag: str) -> bool:
    return tag.startswith(f"{PLUGIN}/") and tag.endswith(f"/{_METADATA}")


def _to_tensor(values: NDArray[Any]) -> Any:
    if values.dtype.kind == "U":
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in values.shape])
        words = [str(word).encode() for word in values.ravel()]
        return TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=words)
    kind = f"<{values.dtype.str[1:]}"
    if kind not in _DTYPES:
        kind = "<f4"
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in values.shape])
    content = values.astype(kind, copy=False).tobytes()
    return TensorProto(dtype=_DTYPES[kind], tensor_shape=shape, tensor_content=content)


def _to_words(tensor: Any) -> NDArray[Any]:
    return np.array([word.decode() for word in tensor.string_val], np.str_)


def _to_array(tensor: Any) -> NDArray[Any]:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    return np.frombuffer(tensor.tensor_content, _KINDS[tensor.dtype]).reshape(shape)


class Dropped(NamedTuple):
    """The note that a monitor leaves in a run as long as it has no sample.

    Args:
        monitor: The monitor's name.
        samples: How many samples it dropped.
        reason: Why it dropped the last one.
    """

    monitor: str
    samples: int
    reason: str

    def __str__(self) -> str:
        """One sentence for a person."""
        count = f"{self.samples} of {self.samples} samples"
        return f"GeometryMonitor {self.monitor!r} dropped {count}: {self.reason}"


def dropped_event(dropped: Dropped, step: int) -> Any:
    """Return the event for samples that a monitor dropped before its first good one."""
    event = Event(step=step, wall_time=time.time())
    content = json.dumps({"format": _FORMAT, **dropped._asdict()}, separators=(",", ":"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[content.encode()])
    _add(event, f"{PLUGIN}/{dropped.monitor}/{_DROPPED}", tensor)
    return event


def parse_dropped(event: Any) -> Dropped | None:
    """Return the note of a monitor without samples, or None for any other event.

    Raises:
        ValueError: If the event claims to be one but is not.
    """
    for value in event.summary.value:
        if (
            value.tag.startswith(f"{PLUGIN}/")
            and value.tag.endswith(f"/{_DROPPED}")
            and value.tag.count("/") == 2
        ):
            try:
                content = json.loads(value.tensor.string_val[0])
                return Dropped(str(content["monitor"]), int(content["samples"]), str(content["reason"]))
            except (KeyError, TypeError, IndexError, RecursionError) as error:
                raise DamagedError(f"not a note on dropped samples: {error}") from error
    return None


def file_version() -> Any:
    """Return the event that every event file begins with."""
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def session_event(step: int, name: str) -> Any:
    """Return the event that a resumed session begins with: it voids the monitor's samples from ``step`` on.

    TensorBoard's own session start is not used: it would void the user's scalars too, whose steps may count
    something else.
    """
    mark = Event(step=step, wall_time=time.time())
    _add(mark, session_tag(name), _to_tensor(np.zeros(0, np.float32)))
    return mark


def started_at(event: Any) -> tuple[int, str | None] | None:
    """Return the step at which a session takes over and its monitor, or None for any other event.

    TensorBoard's own session start (``SummaryWriter(purge_step=)``) counts for every monitor; its name is
    ``None``.
    """
    if event.session_log.status == SessionLog.START:
        return int(event.step), None
    for value in event.summary.value:
        parts = value.tag.split("/")
        if len(parts) == 3 and parts[0] == PLUGIN and parts[2] == _SESSION:
            return int(event.step), parts[1]
    return None
