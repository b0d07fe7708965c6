"""A training that really is resumed: the tab shows what the history shows."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from werkzeug.test import Client

from dashboard.providers import ask, client_of, eventually, provider_of
from dashboard.test_plugin import KINDS, unpack
from lightning_geo import GeometryMonitor, load_history
from support.lit import Classifier, loader, trainer


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_samples_that_a_resumed_training_replaced_are_left_out(
    logger: type[TensorBoardLogger], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoints" / "epoch=0-step=5.ckpt"
    # the second session takes no sample where the first one took its last two
    for steps, every, path in ((8, 3, None), (9, 7, checkpoint)):
        runner = trainer(
            tmp_path,
            GeometryMonitor(every_n_steps=every, metrics="metric:entropy", strict=True),
            ModelCheckpoint(checkpoint.parent, every_n_train_steps=5, save_top_k=-1),
            steps=steps,
            logger=logger(tmp_path / "runs", "run", version=""),
            enable_checkpointing=True,
        )
        runner.fit(Classifier(), loader(), ckpt_path=path)
    history = load_history(tmp_path / "runs" / "run")
    assert history.steps.tolist() == [0, 3, 7, 9]
    (stack,) = history.stacks
    query = {"run": "run", "monitor": "geometry", "stack": stack, "metric": "entropy"}
    for kind in KINDS:
        client = client_of(provider_of(kind, tmp_path / "runs"))
        eventually(functools.partial(is_complete, client))
        found = unpack(ask(client, "data", **query).data)
        assert found.steps == history.steps.tolist()
        assert (found.values == history["entropy"]).all()


def is_complete(client: Client) -> bool:
    return [run["monitors"][0]["last"][0] for run in ask(client, "index").json["runs"]] == [9]
