"""The monitor under either Lightning package, or both: what :mod:`test_lightning` runs here and elsewhere.

``python -m programs.packages <directory> <function>...`` calls functions of this module, the last in an
interpreter that has imported no Lightning, the others in forks of it: each decides which is imported when,
and leaves its result as JSON.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def imported() -> list[str]:
    """Which Lightning packages are loaded."""
    return [name for name in PACKAGES if name in sys.modules]


def toy(package: str) -> type:
    """A LightningModule class of a package, with its own data."""
    import torch
    from torch.utils.data import DataLoader

    pl = importlib.import_module(package)

    class Toy(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, width: int = 8) -> None:
            super().__init__()
            layer = torch.nn.TransformerEncoderLayer(width, 2, width, batch_first=True)
            self.encoder = torch.nn.TransformerEncoder(layer, 2)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.encoder(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

        def train_dataloader(self) -> DataLoader[torch.Tensor]:
            return DataLoader(torch.randn(16, 6, 8), 4)  # type: ignore[arg-type]

    return Toy


def loss(output: Any, *_: Any, **__: Any) -> Any:
    """What importance is importance to."""
    return output.square().mean()


def every_third(step: int) -> bool:
    """A schedule for a YAML file to name."""
    return step % 3 == 0


class Inputs:
    """A probe for a YAML file to name: a dataloader, as far as the monitor is concerned."""

    def __iter__(self) -> Any:
        import torch

        yield torch.ones(2, 6, 8).cumsum(1)


QUIET = {
    "accelerator": "cpu", "devices": 1, "max_steps": 4, "logger": False, "enable_checkpointing": False,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def fit(package: str, directory: Path, callbacks: Any, **options: Any) -> Any:
    """Fit the toy; returns the Trainer."""
    pl = importlib.import_module(package)
    trainer = pl.Trainer(**{**QUIET, **options}, default_root_dir=directory, callbacks=callbacks)
    trainer.fit(toy(package)())
    return trainer


def command_line(package: str, directory: Path, callbacks: Any) -> Any:
    """Fit the toy through a LightningCLI, from a YAML file; returns the Trainer."""
    cli = importlib.import_module(f"{package}.cli")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yaml"
    trainer = {**QUIET, "default_root_dir": str(directory), "callbacks": callbacks}
    config.write_text(json.dumps({"trainer": trainer}))  # JSON is YAML
    return cli.LightningCLI(
        toy(package), args=["fit", "--config", str(config)], save_config_callback=None
    ).trainer


def all_loggers(package: str, directory: Path) -> list[Any]:
    """W&B offline, CSV and TensorBoard."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    loggers = importlib.import_module(f"{package}.loggers")
    return [
        loggers.WandbLogger(save_dir=directory, project="geometry"),
        loggers.CSVLogger(directory, "csv"),
        loggers.TensorBoardLogger(directory, "tensorboard"),
    ]


def samples(trainer: Any) -> list[int]:
    """How many samples each monitor among the callbacks took, told by the steps of its last record."""
    from lightning_geo import GeometryMonitor

    return [c.last_record.step for c in trainer.callbacks if isinstance(c, GeometryMonitor)]


def geometry_first(directory: Path) -> Mapping[str, Any]:
    """lightning_geo, then lightning.pytorch, then the monitor: the other package is never loaded."""
    import lightning_geo

    result: dict[str, Any] = {"before": imported()}
    package = "lightning.pytorch"
    importlib.import_module(package)
    GeometryMonitor = lightning_geo.GeometryMonitor
    entry = {"class_path": "lightning_geo.GeometryMonitor", "init_args": {"every_n_steps": 2}}
    result["cli"] = [samples(command_line(package, directory, c)) for c in (entry, [entry])]
    monitor = GeometryMonitor(2)
    result["bare"] = samples(fit(package, directory, monitor))
    result["list"] = samples(fit(package, directory, [monitor]))
    trainer = fit(package, directory, monitor, logger=all_loggers(package, directory), log_every_n_steps=1)
    result["after"] = imported()
    result["where"] = where(trainer)
    return result


def neither(directory: Path) -> Mapping[str, Any]:
    """A monitor from a pickle before any Lightning is there: it loads one, and works in the other's list."""
    monitor = pickle.loads((directory.parent / "monitor.pickle").read_bytes())
    result: dict[str, Any] = {"unpickled": imported()}
    for package in PACKAGES:
        result[package] = isinstance(monitor, importlib.import_module(package).Callback)
        result[f"fit {package}"] = samples(fit(package, directory, [monitor]))
    return result


def both(directory: Path) -> Mapping[str, Any]:
    """Both packages, then the monitor: it is a callback of both."""
    callbacks = [importlib.import_module(package).Callback for package in PACKAGES]
    from lightning_geo import GeometryMonitor

    monitor = GeometryMonitor(2)
    return {
        "callback": [isinstance(monitor, callback) for callback in callbacks],
        "bare": [samples(fit(package, directory, monitor)) for package in PACKAGES],
    }


def where(trainer: Any) -> dict[str, list[float]]:
    """The entropies that each logger of a finished fit holds, read from its files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from support.wandb_file import sent

    tag = "geometry/entropy"
    wandb_logger, csv_logger, tensorboard_logger = trainer.loggers
    run = Path(wandb_logger.experiment.dir).parent
    wandb_logger.experiment.finish()
    rows = [item for record in sent(run) for item in record.history.item]
    with open(Path(csv_logger.log_dir) / "metrics.csv") as lines:
        table = [row[tag] for row in csv.DictReader(lines) if row.get(tag)]
    events = EventAccumulator(tensorboard_logger.log_dir).Reload()
    return {
        "wandb": [float(item.value_json) for item in rows if tag in (item.key, "/".join(item.nested_key))],
        "csv": [float(value) for value in table],
        "tensorboard": [event.value for event in events.Scalars(tag)],
    }


def main() -> None:
    """Call the functions that are named on the command line."""
    # what both Lightnings and their loggers import takes seconds: once for all functions
    for name in ("jsonargparse", "scipy.signal", "tensorboard.compat.proto.event_pb2", "torch._dynamo",
                 "torch.distributed.fsdp", "torchmetrics", "transformers", "wandb.sdk.launch"):  # fmt: skip
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    assert "lightning_geo" not in sys.modules
    assert not [name for name in sys.modules if name.startswith(("lightning.", "pytorch_lightning"))]
    directory, (*names, last) = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        if (child := os.fork()) == 0:
            leave(name, directory)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
    leave(last, directory)


def leave(function: str, directory: Path) -> None:
    """Leave what a function returns in a file of its name."""
    result = globals()[function](directory / function)
    (directory / f"{function}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
