"""The TensorBoard sink, through the real logger, read by TensorBoard's own accumulator."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorboardX
from lightning.pytorch.loggers import TensorBoardLogger as OtherTensorBoardLogger
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.util import tensor_util

from lightning_geo import load_history
from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.pictures import PictureSchedule
from lightning_geo.loggers.tags import layer_range, scalars
from lightning_geo.metrics.key_metrics import SCALARS, key_metrics
from lightning_geo.metrics.selection import select
from lightning_geo.storage.events import Dropped
from support.records import assert_same, make_record


def read(directory: str | Path) -> EventAccumulator:
    """The run as TensorBoard holds it, but for the limits on how many events it keeps."""
    return EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()


def tags(run: EventAccumulator, plugin: str) -> list[str]:
    return [t for t, meta in run.AllSummaryMetadata().items() if meta.plugin_data.plugin_name == plugin]


def series(run: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {
        tag: [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in run.Tensors(tag)]
        for tag in tags(run, "scalars")
    }


def layout_of(run: EventAccumulator) -> dict[str, list[str]]:
    """What the custom-scalars plugin shows: the last layout written."""
    event = run.Tensors("custom_scalars__config__")[-1]
    layout = Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    return {category.title: [chart.title for chart in category.chart] for category in layout.category}


@pytest.mark.parametrize("logger_class", [TensorBoardLogger, OtherTensorBoardLogger])
def test_every_number_is_on_disk_when_write_returns(tmp_path: Path, logger_class: Any) -> None:
    logger = logger_class(tmp_path)
    sinks = open_sinks([logger], schedule=PictureSchedule(10_000))
    assert [type(sink).__name__ for sink in sinks] == ["TensorBoardSink"]
    assert logger.log_dir in sinks[0].where
    # so large, and all but the first without pictures, that the writer's thread is still busy with them if
    # nobody waited for it
    records = [make_record(step, layers=24, heads=24) for step in (0, 50, 100)]
    for count, record in enumerate(records, 1):
        sinks[0].write(record)
        disk = shutil.copytree(logger.log_dir, tmp_path / f"disk_{count}")
        expected: dict[str, list[tuple[int, float]]] = {}
        for earlier in records[:count]:
            for tag, value in (scalars(earlier) | layer_range(earlier)).items():
                expected.setdefault(tag, []).append((earlier.step, float(np.float32(value))))
        assert series(read(disk)) == expected


def test_tensors_carry_the_record_and_its_time(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger])
    record = make_record(50, stacks=("encoder", "decoder"))
    sink.write(record)
    run = read(logger.log_dir)
    for stack, arrays in record.stacks.items():
        for metric, values in arrays.items():
            (event,) = run.Tensors(f"lightning_geo/geometry/{stack}/{metric}")
            assert (event.step, event.wall_time) == (50, record.wall_time)
            np.testing.assert_array_equal(tensor_util.make_ndarray(event.tensor_proto), values)
    assert_same(load_history(logger.log_dir).record(0), record)


def test_pictures_decode_and_are_at_most_ten(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger], schedule=PictureSchedule(1450))
    for step in range(0, 1500, 50):
        sink.write(make_record(step, metrics=["entropy", "attention_distance"]), final=step == 1450)
    run = read(logger.log_dir)
    assert tags(run, "images") == ["geometry_entropy/entropy", "geometry_pattern/attention_distance"]
    events = run.Tensors("geometry_entropy/entropy")
    assert len(events) == 10
    assert (events[0].step, events[-1].step) == (0, 1450)
    width, height, data = tensor_util.make_ndarray(events[3].tensor_proto)
    picture = Image.open(io.BytesIO(data))
    assert picture.size == (int(width), int(height)) == (350, 215)


MARGINS = "geometry: lowest, mean and highest layer"


def test_the_users_scalars_are_not_buried(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger], config={"metrics": select()})
    for step in (0, 50):
        sink.write(make_record(step, layers=80, heads=64))
    found = tags(read(logger.log_dir), "scalars")
    by_group = {
        group: [t for t in found if t.startswith(f"{group}/")] for group in ("geometry", "geometry_layers")
    }
    assert sorted([*by_group["geometry"], *by_group["geometry_layers"]]) == sorted(found)
    assert len(by_group["geometry"]) <= SCALARS
    assert len(by_group["geometry_layers"]) <= 2 * SCALARS + 1  # for any depth


@pytest.mark.parametrize("stacks", [("encoder",), ("encoder", "decoder.cross")])
def test_each_key_metric_has_a_chart_of_lowest_mean_and_highest_layer(
    tmp_path: Path, stacks: tuple[str, ...]
) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger], config={"metrics": select()})
    first = make_record(0, layers=5, stacks=stacks)
    for arrays in first.stacks.values():
        del arrays["velocity.output"], arrays["update_size"]  # they compare two samples
    for record in (first, make_record(50, layers=5, stacks=stacks)):
        sink.write(record)
    run = read(logger.log_dir)
    event = run.Tensors("custom_scalars__config__")[-1]
    layout = Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    (category,) = layout.category
    assert category.title == MARGINS
    shown = series(run)
    names = key_metrics(select())
    assert len(category.chart) == (len(names) if len(stacks) == 1 else 14)
    for chart in category.chart:
        (lines,) = chart.margin.series
        values = [[value for _, value in shown[tag]] for tag in (lines.lower, lines.value, lines.upper)]
        for low, mean, high in zip(*values, strict=True):
            assert low < mean < high, chart.title
    assert "Attention entropy (" in category.chart[-1].title  # which TensorBoard shows first
    assert {tag for tag in shown if tag.startswith("geometry_layers/")} == {
        tag
        for chart in category.chart
        for tag in (chart.margin.series[0].lower, chart.margin.series[0].value, chart.margin.series[0].upper)
        if tag.startswith("geometry_layers/")
    }


def test_on_request_all_layers_of_a_metric_are_in_one_chart_by_family(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger], level="layer")
    both = ("encoder", "decoder.cross")
    metrics = ["entropy", "max_logit", "concentration", "effective_rank.query"]
    sink.write(make_record(metrics=metrics, stacks=both))
    found = layout_of(read(logger.log_dir))
    assert "Attention entropy (encoder/entropy)" in found.pop(MARGINS)
    assert found == {
        "geometry_entropy": [f"{stack}/{metric}" for stack in both for metric in ("entropy", "max_logit")],
        "geometry_subspace": [f"{stack}/effective_rank.query" for stack in both],
    }


def test_charts_match_the_layers_tags_and_no_others(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger], level="head")
    sink.write(make_record(layers=3, metrics=["entropy", "normalized_entropy", "drift.query"]))
    run = read(logger.log_dir)
    event = run.Tensors("custom_scalars__config__")[-1]
    layout = Layout.FromString(tensor_util.make_ndarray(event.tensor_proto).item())
    assert len(layout.category) == 3
    for category in layout.category[1:]:
        for chart in category.chart:
            (pattern,) = chart.multiline.tag
            # as TensorBoard's plugin matches them
            found = [tag for tag in tags(run, "scalars") if re.match(pattern, tag)]
            assert found == [f"{category.title}/{chart.title}/layer_{layer:02d}" for layer in range(3)]


def test_tensorboardx_gets_events_of_its_own_class(tmp_path: Path) -> None:
    # its thread dies of any other, and the next writes wait for it forever
    logger = SimpleNamespace(experiment=tensorboardX.SummaryWriter(str(tmp_path)))
    (sink,) = open_sinks([logger], resumed_at=0)
    records = [make_record(step) for step in range(0, 600, 50)]  # more than its queue holds
    for record in records:
        sink.write(record)
    logger.experiment.close()
    assert [step for step, _ in series(read(tmp_path))["geometry/entropy"]] == [r.step for r in records]
    for sample, record in enumerate(records):
        assert_same(load_history(tmp_path).record(sample), record)


def test_two_monitors_and_the_users_own_layout_are_all_shown(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    logger.experiment.add_custom_scalars({"mine": {"losses": ["Multiline", ["train_loss", "val_loss"]]}})
    (first,) = open_sinks([logger], config={"metrics": ["entropy"]})
    (second,) = open_sinks([logger], name="train", config={"metrics": ["entropy", "velocity.output"]})
    first.write(make_record(0, metrics=["entropy"]))
    second.write(make_record(0, metrics=["entropy", "attention_distance"], seed=1))
    first.write(make_record(50, metrics=["entropy"]))
    assert layout_of(read(logger.log_dir)) == {
        MARGINS.replace("geometry", "train"): [
            "Turning between samples (velocity.output)",  # it has no value yet: it compares two samples
            "Attention entropy (entropy)",
        ],
        MARGINS: ["Attention entropy (entropy)"],
        "mine": ["losses"],
    }
    assert load_history(logger.log_dir, "geometry").steps.tolist() == [0, 50]
    assert load_history(logger.log_dir, "train").keys() == ["entropy", "attention_distance"]


def test_a_resumed_run_takes_over_and_voids_nothing_of_the_users(tmp_path: Path) -> None:
    # killed at 160, resumed at 100, stopped at 120; the user's steps count tokens
    first = TensorBoardLogger(tmp_path, version="run")
    (sink,) = open_sinks([first])
    for step in range(0, 161, 20):
        sink.write(make_record(step, metrics=["entropy"]))
        first.log_metrics({"train_loss": 1.0}, step=1000 * step)
    first.experiment.close()
    second = TensorBoardLogger(tmp_path, version="run")
    (sink,) = open_sinks([second], resumed_at=100)
    for step in (100, 120):
        sink.write(make_record(step, metrics=["entropy"], seed=1))
    history, run = load_history(second.log_dir), read(second.log_dir)
    assert history.steps.tolist() == list(range(0, 121, 20))
    for step, entropy in zip(history.steps, history["entropy"], strict=True):
        expected = make_record(int(step), metrics=["entropy"], seed=int(step >= 100))
        np.testing.assert_array_equal(entropy, expected["entropy"])
    assert [step for step, _ in series(run)["train_loss"]] == list(range(0, 160_001, 20_000))
    assert set(layout_of(run)) == {MARGINS}


def test_a_second_fit_with_the_same_logger_goes_on_in_a_new_file(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger])
    sink.write(make_record(0))
    logger.finalize("success")
    sink.write(make_record(50))
    logger.finalize("success")
    assert len(list(Path(logger.log_dir).glob("*tfevents*"))) == 2
    assert load_history(logger.log_dir).steps.tolist() == [0, 50]


def test_pictures_that_fail_cost_no_numbers(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger])
    record = make_record(3, metrics=["first_mass"])
    record.stacks["encoder"]["entropy"] = np.zeros((2, 0), np.float32)  # nothing to draw
    with pytest.raises(ZeroDivisionError):
        sink.write(record)
    mean = pytest.approx(record["first_mass"].mean())
    assert series(read(logger.log_dir))["geometry/first_mass"] == [(3, mean)]
    assert load_history(logger.log_dir).steps.tolist() == [3]


def test_a_record_without_a_time_gets_the_present(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    (sink,) = open_sinks([logger])
    sink.write(make_record(metrics=["entropy"], wall_time=0.0))
    assert read(logger.log_dir).Tensors("geometry/entropy")[0].wall_time > 1.7e9


def test_of_two_writers_the_first_holds_the_record(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, version=version) for version in ("a", "b")]
    record = make_record()
    for sink in open_sinks(loggers):
        sink.write(record)
    assert series(read(loggers[0].log_dir)) == series(read(loggers[1].log_dir))
    assert_same(load_history(loggers[0].log_dir).record(0), record)
    with pytest.raises(ValueError, match="only tags such as"):
        load_history(loggers[1].log_dir)


@pytest.mark.parametrize("writer", ["torch", "tensorboardX"])
def test_dropped_samples_are_marked_where_the_record_is(tmp_path: Path, writer: str) -> None:
    loggers: list[Any] = [TensorBoardLogger(tmp_path, name=name, version="") for name in ("first", "second")]
    if writer == "tensorboardX":
        experiment = tensorboardX.SummaryWriter(str(tmp_path / "first"))
        loggers[0] = SimpleNamespace(experiment=experiment)
    for sink in open_sinks(loggers):
        sink.note(Dropped("geometry", 3, "no heads"), 7)  # type: ignore[attr-defined]
    if writer == "tensorboardX":
        experiment.close()
    with pytest.raises(ValueError, match="'geometry' dropped 3 of 3 samples: no heads"):
        load_history(tmp_path / "first")
    with pytest.raises(ValueError, match="Was the monitor among"):
        load_history(tmp_path / "second")
