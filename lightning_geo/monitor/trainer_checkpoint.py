"""A monitor's state beside the checkpoints of ``transformers.Trainer``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from lightning_geo.monitor.run import Run
from lightning_geo.utils.errors import MissingPathError
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["load", "save"]


def save(run: Run, args: Any, state: Any, name: str) -> None:
    """Save a run's state in the folder of the checkpoint of this step; every rank calls this.

    Args:
        run: The run.
        args: The TrainingArguments.
        state: The TrainerState.
        name: The monitor's.

    Raises:
        FileNotFoundError: If there is no such folder: a search of hyperparameters has others.
    """
    content = run.state_dict()  # on every rank: the sample that waits is written first
    if not state.is_world_process_zero:
        return
    folder = _folder(args, state)
    if not folder.is_dir():
        raise MissingPathError(f"there is no folder {folder} to save the monitor's state in")
    # a crash in the midst of it leaves the file of before, or none
    temporary = folder / f"{_file(name)}.tmp"
    torch.save(content, temporary)
    temporary.replace(folder / _file(name))


def load(run: Run, args: Any, state: Any, name: str, warn_once: WarnOnce) -> None:
    """Go on where the checkpoint was written that a Trainer resumes from.

    No event tells its folder: it is the one whose ``trainer_state.json`` has the log of ``state``.

    Args:
        run: The run.
        args: The TrainingArguments.
        state: The TrainerState, as it was loaded.
        name: The monitor's.
        warn_once: Warned where the checkpoint is not found, or has no state of the monitor.
    """
    given = args.resume_from_checkpoint
    places = [Path(given)] if isinstance(given, (str, os.PathLike)) else []
    for folder in (*places, _folder(args, state)):
        if _is_of(folder, state) and (folder / _file(name)).exists():
            run.samples.load_state_dict(torch.load(folder / _file(name), "cpu", weights_only=True))
            return
    warn_once.warn(
        "the state of the monitor was not found",
        f"{_file(name)} is not beside the checkpoint of step {state.global_step}, so that probe and drift "
        "start anew. If the checkpoint is not in `output_dir`, set "
        "`TrainingArguments(resume_from_checkpoint=…)` too",
    )


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _file(name: str) -> str:
    return f"lightning_geo-{name}.pt"


def _is_of(folder: Path, state: Any) -> bool:
    """Whether a checkpoint is the one that a TrainerState was loaded from."""
    try:
        saved = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same: bool = saved["global_step"] == state.global_step and saved["log_history"] == state.log_history
    return same
