"""Records as events, read by TensorBoard's own functions and by ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util import tensor_util

from lightning_geo.metrics.selection import select
from lightning_geo.storage.events import (
    PLUGIN,
    parse_record,
    record_event,
    session_event,
    session_tag,
    started_at,
)
from lightning_geo.storage.record import GeometryRecord
from support.records import assert_same, make_record

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.float64]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    elements=st.floats(width=16),  # NaN and infinities among them
)
NAMES = st.sampled_from(["geometry", "train", "a/b", "record", "my.name"])


def through_the_wire(event: Any) -> Any:
    return Event.FromString(event.SerializeToString())


@given(ARRAYS, ARRAYS, NAMES)
def test_a_record_comes_back_bit_for_bit(values: Any, basis: Any, name: str) -> None:
    record = make_record(7, stacks=("encoder", "decoder.cross"))
    record.stacks["encoder"]["entropy"] = values
    record.matrices = {"decoder.cross": {"basis.query": basis}}
    found = parse_record(through_the_wire(record_event(record, name)))
    assert found is not None
    assert found[0] == name
    assert_same(found[1], record)


def test_tensorboard_reads_every_tensor() -> None:
    record = make_record(50)
    event = through_the_wire(record_event(record, "geometry"))
    assert (event.step, event.wall_time) == (50, record.wall_time)
    tensors = {value.tag: tensor_util.make_ndarray(value.tensor) for value in event.summary.value}
    metadata = json.loads(tensors.pop("lightning_geo/geometry/record").item())
    assert metadata["batches_seen"] == 51
    assert metadata["model"] == record.model
    assert tensors.keys() == {f"lightning_geo/geometry/encoder/{key}" for key in select()}
    np.testing.assert_array_equal(tensors["lightning_geo/geometry/encoder/entropy"], record["entropy"])


def test_every_value_names_plugin_and_class() -> None:
    # without them TensorBoard drops the tensors or the dashboard does not find them
    for value in record_event(make_record(), "geometry").summary.value:
        assert value.metadata.plugin_data.plugin_name == "lightning_geo"
        assert value.metadata.data_class == DATA_CLASS_TENSOR


def test_a_name_within_a_name_takes_nothing_from_it() -> None:
    event = record_event(make_record(metrics=["entropy"]), "a")
    event.summary.value.add(tag="lightning_geo/ab/encoder/attention_distance", simple_value=1.0)
    event.summary.value.add(tag="geometry/entropy", simple_value=1.0)
    found = parse_record(event)
    assert found is not None
    assert found[1].keys() == ["entropy"]


def test_arrays_of_other_types_become_float32() -> None:
    record = GeometryRecord({"encoder": {"entropy": np.arange(4).reshape(2, 2)}})
    found = parse_record(record_event(record, "geometry"))
    assert found is not None
    assert found[1]["entropy"].dtype == np.float32
    np.testing.assert_array_equal(found[1]["entropy"], [[0, 1], [2, 3]])


def test_events_of_others_are_none() -> None:
    event = Event(step=3)
    event.summary.value.add(tag="train_loss", simple_value=1.0)
    assert parse_record(event) is None
    assert parse_record(Event(file_version="brain.Event:2")) is None
    assert started_at(event) is None


@pytest.mark.parametrize(
    "metadata",
    [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}', b'{"format": "1", "name": "geometry"}',
     b'{"format": 1, "name": 3}', b'{"format": 1, "name": "geometry", "step": "7"}',
     b'{"format": 1, "name": "geometry", "step": 1e400}',
     b'{"format": 1, "name": "geometry", "of_tomorrow": 1}',
     b'{"format": 1, "name": "geometry", "model": []}',
     b'{"format": 1, "name": "geometry", "step": 9999999999999999999999}'],
)  # fmt: skip
def test_what_only_claims_to_be_a_record_is_a_value_error(metadata: bytes) -> None:
    event = record_event(make_record(), "geometry")
    event.summary.value[0].tensor.string_val[0] = metadata
    with pytest.raises(ValueError, match=r"not a record|JSON|Expecting|codec|newer"):
        parse_record(event)


def test_a_tensor_that_is_none_is_a_value_error() -> None:
    for spoil in ({"dtype": 7}, {"tensor_content": b"odd"}):
        event = record_event(make_record(metrics=["entropy"]), "geometry")
        for name, value in spoil.items():
            setattr(event.summary.value[1].tensor, name, value)
        with pytest.raises(ValueError, match=r"not a record|buffer|reshape"):
            parse_record(event)


def test_a_newer_format_says_so() -> None:
    event = record_event(make_record(), "geometry")
    value = event.summary.value[0]
    metadata = json.loads(value.tensor.string_val[0])
    value.tensor.string_val[0] = json.dumps({**metadata, "format": 2}).encode()
    with pytest.raises(ValueError, match="newer version of lightning_geo"):
        parse_record(event)


def test_a_session_begins_with_a_mark_of_the_monitors_own() -> None:
    mark = through_the_wire(session_event(100, "geometry"))
    (value,) = mark.summary.value
    assert (mark.step, value.tag) == (100, session_tag("geometry"))
    assert value.metadata.plugin_data.plugin_name == PLUGIN
    assert value.metadata.data_class == DATA_CLASS_TENSOR
    assert not mark.HasField("session_log")  # at which TensorBoard drops the user's own scalars too
    assert parse_record(mark) is None
    assert started_at(mark) == (100, "geometry")


def test_tensorboards_session_start_is_one_of_all_monitors() -> None:
    event = through_the_wire(Event(step=100, session_log=SessionLog(status=SessionLog.START)))
    assert started_at(event) == (100, None)
