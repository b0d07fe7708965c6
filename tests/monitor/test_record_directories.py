"""Where the record goes: beside the loggers, or to a directory that the run has for itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers import CSVLogger, Logger

from lightning_geo import GeometryMonitor, load_history
from support.lit import Classifier, fit, loader, trainer
from support.same import steps_in


def test_runs_without_a_logger_have_a_directory_each_and_their_monitors_share_it(tmp_path: Path) -> None:
    root = tmp_path / "lightning_geo"
    for steps in (1, 2):
        monitors = [GeometryMonitor(1, metrics="entropy", name=name, strict=True) for name in ("one", "two")]
        runner = fit(tmp_path, Classifier(), *monitors, steps=steps)
    runner.save_checkpoint(tmp_path / "last.ckpt")
    monitors = [GeometryMonitor(1, metrics="entropy", name=name, strict=True) for name in ("one", "two")]
    resumed = trainer(tmp_path, *monitors, steps=3)
    resumed.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert sorted(path.name for path in root.iterdir()) == ["version_0", "version_1"]
    for name in ("one", "two"):
        assert load_history(root / "version_0", name).steps.tolist() == [0, 1]
        assert load_history(root / "version_1", name).steps.tolist() == [0, 1, 2, 3]


class Plain(Logger):
    """Keeps what it gets, and has no directory."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int | None] = []

    @property
    def name(self) -> str:
        return "plain"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.append(step)


class Homeless(Plain):
    """Fails when it is asked for its directory."""

    @property
    def log_dir(self) -> str:
        raise ConnectionError("the server is down")


class Closed(Plain):
    """Has an experiment that cannot be written to."""

    @property
    def experiment(self) -> Any:
        class Experiment:
            def _get_file_writer(self) -> Any:
                raise ConnectionError("the server is down")

        return Experiment()


@pytest.mark.parametrize("first", [True, False])
def test_a_logger_that_fails_takes_no_other_and_not_the_record(first: bool, tmp_path: Path) -> None:
    plain, homeless, csv = Plain(), Homeless(), CSVLogger(tmp_path, "csv", version=0)
    failing = [homeless, Closed()]
    with pytest.warns(UserWarning, match="the logger Closed could not be opened: ConnectionError"):
        fit(
            tmp_path, Classifier(), GeometryMonitor(1, metrics="entropy"), steps=2,
            logger=[plain, *failing, csv] if first else [csv, *failing, plain],
        )  # fmt: skip
    assert steps_in(tmp_path / "csv" / "version_0") == [0, 1, 2]
    assert plain.steps == homeless.steps == [0, 1, 2]
