"""The strip's curves: which tags they are found under, and what the route ``curves`` sends."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from dashboard.providers import ask, client_of, eventually, provider_of, write_run
from lightning_geo.storage.run_curves import epochs_of, evaluation_tag, suggested, thinned
from support.records import make_record

HOSTILE = '<img src=x onerror="alert(1)">'

#: What trainers write by themselves or by their documentation's advice: tags, and the ones that are meant.
LOGGED = {
    "lightning": (
        ["epoch", "lr-AdamW/pg1", "lr-AdamW/pg2", "lr-AdamW-momentum", "train_loss_step", "train_loss_epoch",
         "val_loss", "val_acc", "val_acc_step", "hp_metric"],
        ("train_loss_step", "val_acc", "lr-AdamW/pg1"),
    ),
    "hugging face": (
        ["train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "train/train_loss",
         "train/train_runtime", "eval/loss", "eval/runtime", "eval/accuracy", "eval/steps_per_second"],
        ("train/loss", "eval/accuracy", "train/learning_rate"),
    ),
    "bare": (["loss", "eval_loss", "lr"], ("loss", "eval_loss", "lr")),
    "camel": (["trainLoss", "validAccuracy", "learningRate"], ("trainLoss", "validAccuracy", "learningRate")),
    "test only": (["test_loss", "test_acc"], (None, None, None)),
    "lookalikes": (["flossing", "color", "evaluator", "accretion", "blurr"], (None, None, None)),
    "epochs of validation": (["loss", "val_loss_step/epoch_3", "val_acc_step"], ("loss", None, None)),
}  # fmt: skip


@pytest.mark.parametrize("trainer", LOGGED)
def test_tags_are_found_by_their_names(trainer: str) -> None:
    tags, meant = LOGGED[trainer]
    assert tuple(suggested(tags).values()) == meant


def test_an_evaluation_is_any_number_of_validation() -> None:
    assert evaluation_tag(["eval/runtime", "loss"]) == "eval/runtime"
    assert evaluation_tag(["loss"]) is None


def points(*values: float) -> list[Any]:
    return [SimpleNamespace(step=i, value=value) for i, value in enumerate(values)]


def test_a_long_curve_keeps_its_spikes_and_what_is_not_finite() -> None:
    values = [math.sin(i / 500) for i in range(20_000)]
    values[7_777], values[12_345], values[15_000] = 50.0, -50.0, math.nan
    sent = thinned(points(*values))
    assert len(sent["steps"]) <= 1001
    assert sent["steps"] == sorted(set(sent["steps"]))
    assert (sent["steps"][0], sent["steps"][-1]) == (0, 19_999)
    found = dict(zip(sent["steps"], sent["values"], strict=True))
    assert (found[7_777], found[12_345], found[15_000]) == (50.0, -50.0, None)
    assert thinned(points(1.0, math.inf)) == {"steps": [0, 1], "values": [1.0, None]}
    assert thinned([]) == {"steps": [], "values": []}


def test_an_epoch_begins_where_its_number_is_first_logged() -> None:
    assert epochs_of(points(0, 0, 0.5, 1.0, 1.5, math.nan, 2)) == [(0, 0), (3, 1), (6, 2)]
    assert epochs_of(points(*range(1000))) == []  # a tick at every pixel says nothing


def log(directory: Path, scalars: dict[str, dict[int, float]]) -> None:
    writer = SummaryWriter(str(directory))
    for tag, values in scalars.items():
        for step, value in values.items():
            writer.add_scalar(tag, value, step)
    writer.close()


@pytest.mark.parametrize("kind", ["fast", "slow"])
def test_the_route_sends_the_curves_of_a_run(kind: str, tmp_path: Path) -> None:
    run = tmp_path / HOSTILE
    write_run(run, [make_record(step, metrics=["entropy"], wall_time=time.time()) for step in (0, 10)])
    log(run, {"train/loss": {0: 2.0, 10: math.nan, 20: 0.5}, "val/acc": {20: 0.75}, "epoch": {0: 0, 15: 1},
              "lr-SGD": {0: 0.125}, "geometry/entropy": {0: 1.0}, HOSTILE: {0: 3.0}})  # fmt: skip
    write_run(tmp_path / "bare", [make_record(0, metrics=["entropy"])])
    client = client_of(provider_of(kind, tmp_path))

    def curves(name: str = HOSTILE, **query: str) -> dict[str, Any]:
        return ask(client, "curves", run=name, monitor="geometry", **query).json or {}

    def loss() -> list[int]:
        steps: list[int] = curves().get("curves", {}).get("loss", {}).get("steps", [])
        return steps

    eventually(lambda: loss() == [0, 10, 20] and curves()["evaluations"] and len(curves()["tags"]) == 5)
    eventually(lambda: "bare" in {r["run"] for r in (ask(client, "index").json or {})["runs"]})
    found = curves()
    assert set(found["tags"]) == {"train/loss", "val/acc", "epoch", "lr-SGD", HOSTILE}  # not ours
    assert found["curves"] == {
        "loss": {"tag": "train/loss", "steps": [0, 10, 20], "values": [2.0, None, 0.5]},
        "score": {"tag": "val/acc", "steps": [20], "values": [0.75]},
        "rate": {"tag": "lr-SGD", "steps": [0], "values": [0.125]},
    }
    assert (found["epochs"], found["evaluations"]) == ([[0, 0], [15, 1]], [20])
    assert curves(stamp=found["stamp"]) == {"unchanged": True}
    chosen = curves(loss=f"={HOSTILE}", score="-", rate="=gone")["curves"]
    assert {role: curve["tag"] for role, curve in chosen.items()} == {"loss": HOSTILE, "rate": "lr-SGD"}
    bare = curves("bare")
    assert (bare["tags"], bare["curves"], bare["epochs"], bare["evaluations"]) == ([], {}, [], [])
    assert ask(client, "curves").status_code == 400
    time.sleep(1.1)  # event files are ordered by the second in their name
    write_run(run, [make_record(30, metrics=["entropy"], wall_time=time.time())], resumed_at=15)
    log(run, {"train/loss": {30: 0.25}})
    eventually(lambda: loss() == [0, 10, 30])  # the step 20 of the earlier session is void
