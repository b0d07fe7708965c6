"""Finds a run's event files, and reads their events."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator
from typing import Any

from lightning_geo.storage.places import Place, named, place, walk
from lightning_geo.utils.errors import MissingPathError, RunError

__all__ = ["event_files", "find_runs", "opened", "read_events", "wandb_logs"]


#: Names of event files, as TensorBoard knows them.
_EVENT_FILES = "*tfevents*"


def read_events(file: Place) -> Iterator[Any]:
    """Yield the events of a file; in place of an unreadable one, a message."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    from lightning_geo.storage.tfrecord import Damage, read_frames

    for data in read_frames(file):
        if isinstance(data, Damage):
            yield str(data)
            continue
        try:
            yield Event.FromString(data)
        except DecodeError:
            yield f"{file}: skipped {len(data)} bytes that are not a TensorBoard event"


def event_files(path: Place) -> tuple[list[Place], list[str]]:
    """Return the event files of a run in the order in which they were begun, and a line for each one skipped.

    Args:
        path: As for :func:`load_history`. It may be a link itself, but links in it that lead out of it are
            skipped: they could lead anywhere.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return [path], []
    if not path.exists():
        raise MissingPathError(f"Expected `path` to be a run's directory, but {str(path)!r} does not exist.")
    folders = _folders(path)
    inside = path.resolve() if folders == [path] else folders[0].resolve().parent.parent
    candidates = [file for folder in folders for file in folder.glob(_EVENT_FILES) if file.is_file()]
    files = [file for file in candidates if file.resolve().is_relative_to(inside)]
    skipped = [
        f"{file}: skipped, because it links to a file outside the run's directory"
        for file in candidates
        if not file.resolve().is_relative_to(inside)
    ]
    if candidates:
        return sorted(files, key=_begun), skipped
    deeper = (path.glob(f"{folders}/{_EVENT_FILES}") for folders in ("*", "*/*", "*/*/*"))
    below = sorted({str(file.parent) for files_below in deeper for file in files_below})
    if below:
        shown = ", ".join(below[:10]) + (", …" if len(below) > 10 else "")
        raise MissingPathError(
            f"Expected `path` to be the directory of one run, but {str(path)!r} has no event file. "
            f"These directories below it have: {shown}."
        )
    content = sorted(entry.name for entry in path.iterdir())[:10]
    raise MissingPathError(
        f"Expected `path` to be the directory of a run, with a file named *tfevents*, but {str(path)!r} "
        + (f"holds {', '.join(content)}." if content else "is empty.")
    )


def _folders(path: Place) -> list[Place]:
    """Directories that hold a run's event files. W&B makes a new one each time it resumes a run."""
    logs = wandb_logs(path)
    if not logs:
        return [path]
    run = logs[0].parent
    sessions = [log.parent / "files" for log in run.parent.glob(f"*run-*/{glob.escape(logs[0].name)}")]
    return sessions or [run / "files"]  # the directory was renamed


def wandb_logs(path: Place) -> list[Place]:
    """Return the files in which W&B keeps what a run logged, which W&B alone reads; none of other runs.

    Args:
        path: As for :func:`load_history`.
    """
    run = path.resolve()  # `latest-run` is a link
    run = run.parent if run.name == "files" else run
    return list(run.glob("run-*.wandb"))


def _begun(file: Place) -> tuple[int, float, str]:
    second = re.search(r"tfevents\.(\d+)", file.name)
    first = next(read_events(file), "")
    return int(second[1]) if second else 0, 0.0 if isinstance(first, str) else first.wall_time, file.name


def find_runs(path: str | os.PathLike[str]) -> list[Place]:
    """Return the directories of the runs at and below ``path``, sorted.

    A directory with event files is a run, as in TensorBoard; a resumed W&B run has several directories, of
    which the newest counts. Links below ``path`` are not followed: they could lead anywhere, and directories
    within ``path`` are found without them.

    Args:
        path: Directory of one run or of several, or one event file; or a URL that fsspec knows.

    Raises:
        RunError: If it does not exist or there is no event file in it.
    """
    root = opened(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise RunError(f"{os.fspath(path)!r} does not exist.")
    runs: list[Place] = []
    of_wandb: dict[str, Place] = {}
    # links below the path are not followed, but the path itself may be one: the user named it
    for folder, files in walk(root.resolve() if root.is_symlink() else root):
        if not fnmatch.filter(files, _EVENT_FILES):
            continue
        logs = [log.name for log in folder.parent.glob("run-*.wandb")] if folder.name == "files" else []
        if logs:
            of_wandb[min(logs)] = folder.parent
        else:
            runs.append(folder)
    runs += of_wandb.values()
    if not runs:
        content = sorted(entry.name for entry in root.iterdir())[:10]
        held = f"holds {', '.join(content)}" if content else "is empty"
        raise RunError(f"{os.fspath(path)!r} has no event file (*tfevents*) in or below it; it {held}.")
    return sorted(runs, key=named)


def opened(path: str | os.PathLike[str]) -> Place:
    """Return the place that a path or URL names.

    Raises:
        RunError: If it is a URL that fsspec cannot open.
    """
    try:
        return place(path)
    except ImportError as error:
        raise RunError(f"Cannot open {os.fspath(path)!r}: {error}.") from error
