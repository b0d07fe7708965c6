"""The W&B sink in a real offline run, read back from the file that ``wandb sync`` would send."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import FilesItem

from lightning_geo import load_history
from lightning_geo.loggers import open_sinks
from lightning_geo.loggers.pictures import PictureSchedule
from lightning_geo.loggers.tags import layer_range, scalars
from lightning_geo.metrics.selection import select
from lightning_geo.utils.colours import sequential_colours
from support.records import assert_same, make_record
from support.wandb_file import rows_of, sent
from support.wandb_runs import written

pytestmark = pytest.mark.usefixtures("quiet_wandb")


def test_each_sample_is_one_row_over_lightnings_step(tmp_path: Path) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path / "runs [1]", offline=True)
    sinks = open_sinks([logger], schedule=PictureSchedule(100))
    assert [type(sink).__name__ for sink in sinks] == ["WandbSink", "RecordFile"]
    directory = Path(logger.experiment.dir)
    records = [make_record(step) for step in (0, 5, 100)]
    records[1].stacks["encoder"]["entropy"][0] = np.nan  # a layer without a value
    for record in records:
        logger.log_metrics({"train_loss": 1.0}, step=record.step + 1)  # W&B fills a missing step
        for sink in sinks:
            sink.write(record, final=record.step == 100)
    logger.experiment.finish()
    everything = sent(directory.parent)

    rows = [row for row in rows_of(everything) if "train_loss" not in row]
    for row, record in zip(rows, records, strict=True):
        numbers = {key: value for key, value in row.items() if "\0" not in key}  # without the pictures' parts
        assert numbers.pop("trainer/global_step") == record.step
        assert numbers == pytest.approx(scalars(record) | layer_range(record), rel=1e-12)
    low, high = ([row[f"geometry_layers/entropy/{end}"] for row in rows] for end in ("min", "max"))
    assert low[0] < high[0]
    assert low[1] == high[1]  # one layer alone has a value

    shown = [{key.split("\0")[0] for key in row if key.endswith("\0filenames")} for row in rows]
    assert shown == [{"geometry/layer_by_head"}, set(), {"geometry/layer_by_head", "geometry/layer_by_step"}]
    for key in shown[2]:
        files = [directory / file for file in rows[2][f"{key}\0filenames"]]
        assert {Image.open(file).size for file in files} == {(350, 215)}
        captions = rows[2][f"{key}\0captions"]
        assert len(captions) == len(files)
        assert {"cone", "cone.output"} & {
            caption.partition(",")[0].rpartition("/")[2] for caption in captions
        }

    # the record lies among the run's files, is uploaded with it, and holds the same numbers
    (file,) = directory.glob("*tfevents*")
    files = [f for r in everything if r.WhichOneof("record_type") == "files" for f in r.files.files]
    saved = [(f.path, f.policy) for f in files if "tfevents" in f.path]
    assert saved == [(file.name, FilesItem.PolicyType.END)]
    for path in (directory, directory.parent, file):
        history = load_history(path)
        assert history.steps.tolist() == [0, 5, 100]
        for sample, record in enumerate(records):
            assert_same(history.record(sample), record)


def test_a_run_of_the_users_own_gets_the_step_axis_with_dots_escaped(tmp_path: Path) -> None:
    run = wandb.init(project="test", dir=tmp_path, mode="offline")
    sink, _ = open_sinks([WandbLogger(experiment=run)])
    for step in (0, 50):
        sink.write(make_record(step, metrics=["entropy", "drift.output"]))
    directory = Path(run.dir).parent
    run.finish()
    defined = [r.metric for r in sent(directory) if r.WhichOneof("record_type") == "metric"]
    axes = {m.name or m.glob_name: m.step_metric for m in defined}
    assert len(axes) == len(defined)  # each once, not once per sample
    assert {m.name for m in defined if m.summary.min and m.summary.max and m.summary.last} == {
        "geometry/entropy",
        r"geometry/drift\.output",
    }
    expected = {
        "trainer/global_step": "",
        "geometry*": "trainer/global_step",
        "geometry/entropy": "trainer/global_step",
        r"geometry/drift\.output": "trainer/global_step",
        "geometry_layers/entropy/min": "trainer/global_step",
        "geometry_layers/entropy/max": "trainer/global_step",
        r"geometry_layers/drift\.output/min": "trainer/global_step",
        r"geometry_layers/drift\.output/max": "trainer/global_step",
    }
    # W&B before 0.27 also notes what falls under the pattern
    assert expected.items() <= axes.items()
    assert all(axes[name] == "trainer/global_step" for name in axes.keys() - expected.keys())
    hidden = {m.name for m in defined if m.options.hidden}
    assert hidden == {name for name in axes if name.startswith("geometry_layers/")}


def panels_of(records: list[Any]) -> set[str]:
    """Keys of which W&B makes panels by itself: those of the history that are not hidden."""
    hidden = {
        r.metric.name.replace("\\.", ".")
        for r in records
        if r.WhichOneof("record_type") == "metric" and r.metric.options.hidden
    }
    keys = {key.split("\0")[0] for row in rows_of(records) for key in row}
    return keys - hidden - {"trainer/global_step"}


@pytest.mark.parametrize("level", ["model", "layer"])
@pytest.mark.parametrize("layers", [6, 80])
def test_there_are_20_panels_at_most_for_any_depth(tmp_path: Path, layers: int, level: Any) -> None:
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    sinks = open_sinks([logger], level=level, schedule=PictureSchedule(100), config={"metrics": select()})
    for step in (0, 50, 100):
        record = make_record(step, layers=layers, heads=8, matrices={})
        record.coverage = {"seen": 4, "measured": 3, "left_out": {}}
        for sink in sinks:
            sink.write(record, final=step == 100)
    for sink in sinks:
        sink.close()
    directory = Path(logger.experiment.dir)
    logger.experiment.finish()
    panels = panels_of(sent(directory.parent))
    media = {"heads", "layer_by_head", "layer_by_step", "report"}
    assert {f"geometry/{key}" for key in media} < panels
    assert len(panels) <= 20
    assert all(panel.startswith("geometry/") for panel in panels)


def test_the_layers_course_goes_on_in_a_resumed_run(tmp_path: Path) -> None:
    written(tmp_path, (0, 50, 100), metrics=["entropy"])
    rows = rows_of(written(tmp_path, (50, 150), resumed_at=50, metrics=["entropy"]))
    first = next(row for row in rows if "geometry/layer_by_step\0filenames" in row)
    # the resumed run's first sample shows the one before as well
    assert first["trainer/global_step"] == 50
    assert first["geometry/layer_by_step\0captions"] == ["entropy"]


def test_pictures_that_fail_cost_no_numbers(tmp_path: Path) -> None:
    run = wandb.init(project="test", dir=tmp_path, mode="offline")
    sink, _ = open_sinks([WandbLogger(experiment=run)])
    record = make_record(3, metrics=["first_mass"])
    record.stacks["encoder"]["entropy"] = np.zeros((2, 0), np.float32)  # nothing to draw
    with pytest.raises(ZeroDivisionError):
        sink.write(record)
    directory = Path(run.dir).parent
    run.finish()
    (row,) = rows_of(sent(directory))
    assert row["geometry/first_mass"] == pytest.approx(record["first_mass"].mean())


def test_a_resumed_run_is_read_as_one(tmp_path: Path) -> None:
    # W&B begins a new directory each time; killed at 160, resumed at 100, stopped at 120
    directories = []
    for steps, resumed_at in ((range(0, 161, 20), None), ((100, 120), 100)):
        logger = WandbLogger(project="test", save_dir=tmp_path, offline=True, id="same")
        (_, record) = open_sinks([logger], resumed_at=resumed_at)
        for step in steps:
            record.write(make_record(step, metrics=["entropy"], seed=int(resumed_at is not None)))
        record.close()
        directories.append(Path(logger.experiment.dir))
        logger.experiment.finish()
    assert directories[0] != directories[1]
    for directory in directories:
        history = load_history(directory)
        assert history.steps.tolist() == list(range(0, 121, 20))
        for record in (history.record(sample) for sample in range(len(history))):
            assert_same(record, make_record(record.step, metrics=["entropy"], seed=int(record.step >= 100)))


def test_beside_tensorboard_the_record_is_there_alone(tmp_path: Path) -> None:
    wandb_logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    loggers = [wandb_logger, TensorBoardLogger(tmp_path / "tb"), CSVLogger(tmp_path / "csv")]
    sinks = open_sinks(loggers, directory=lambda: tmp_path / "records")
    assert [type(sink).__name__ for sink in sinks] == ["WandbSink", "TensorBoardSink", "ScalarSink"]
    for sink in sinks:
        sink.write(make_record(metrics=["entropy"]))
    assert {file.parent for file in tmp_path.rglob("*tfevents*")} == {Path(loggers[1].log_dir)}


def test_a_disabled_run_keeps_no_record(tmp_path: Path) -> None:
    run = wandb.init(project="test", dir=tmp_path, mode="disabled")
    sinks = open_sinks([WandbLogger(experiment=run)], directory=lambda: tmp_path / "records")
    for sink in sinks:
        sink.write(make_record(metrics=["entropy"]))
    assert load_history(tmp_path / "records").steps.tolist() == [0]


def test_pictures_of_all_loggers_keep_one_scale_over_the_run(tmp_path: Path) -> None:
    ends: dict[str, list[float]] = {}
    loggers = [
        WandbLogger(project="test", save_dir=tmp_path, offline=True),
        TensorBoardLogger(tmp_path / "tb"),
    ]
    directory = Path(loggers[0].experiment.dir)
    sinks = open_sinks(loggers, schedule=PictureSchedule(20), picture_scales=ends)
    for step, most in ((0, 9.0), (10, 4.0), (20, 4.0)):
        record = make_record(step, metrics=["max_logit"])
        record.stacks["encoder"]["max_logit"][:] = np.linspace(2, most, 6).reshape(2, 3)
        for sink in sinks:
            sink.write(record, final=step == 20)
    loggers[0].experiment.finish()
    assert ends["geometry_entropy/max_logit"] == [2.0, 9.0]
    key = "geometry/layer_by_head\0filenames"
    rows = [row for row in rows_of(sent(directory.parent)) if key in row]
    pictures = [Image.open(directory / row[key][0]) for row in rows]
    reader = EventAccumulator(str(tmp_path / "tb" / "lightning_logs" / "version_0")).Reload()
    images = reader.Images("geometry_entropy/max_logit")
    pictures += [Image.open(io.BytesIO(image.encoded_image_string)) for image in images]
    assert len(pictures) == 6
    # the middle of the last cell: 9 is the end of the scale, and 4 two sevenths of the way
    shown = [picture.convert("RGB").getpixel((44 + 2 * 58 + 29, 40 + 58 + 29)) for picture in pictures]
    first, later = map(tuple, sequential_colours()[[239, round(2 / 7 * 239)]].tolist())
    assert shown == 2 * [first, later, later]
