"""Runs Python programs, each in a fork of this process: what they all import is imported once.

Reads a line of JSON from stdin per group of programs that run side by side,
``{"programs": [{"command": …, "environment": …, "folder": …, "stdin": …, "stdout": …, …}], "seconds": …}``.
A command is what follows ``python`` on a command line: a script, or ``-m`` and a module. Writes a line of
JSON per group: the exit statuses, negative for signals. Programs that run for longer are killed.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import io
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

EXAMPLES = Path(__file__).parents[2] / "examples"


def imports() -> None:
    """Import what programs share, nothing of the programs."""
    import torch

    import lightning_geo

    for name in ("accelerate", "datasets", "matplotlib.pyplot", "peft", "pytorch_lightning.loggers",
                 "sklearn.datasets", "wandb", "wandb.sdk.launch.inputs.internal"):  # fmt: skip
        importlib.import_module(name)
    # each is a module of its own that is imported at first use
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    for name in lightning_geo.__all__:
        getattr(lightning_geo, name)
    torch.set_num_threads(1)


@functools.cache
def read_texts() -> None:
    """Read BBC News once: it takes each program that does so two seconds."""
    sys.path.insert(1, str(EXAMPLES))
    importlib.import_module("texts").bbc_news()
    sys.path.remove(str(EXAMPLES))


def environ(environment: dict[str, str]) -> None:
    """Take the program's environment, also where it was read at import."""
    import numpy as np
    from lightning_utilities.core.rank_zero import rank_zero_only
    from wandb.sdk.data_types._private import MEDIA_TMP

    os.environ.clear()
    os.environ.update(environment)
    new = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path not in sys.path]
    sys.path[1:1] = new
    # W&B made a directory for pictures at import, and the first program that ends takes it along
    MEDIA_TMP.name = tempfile.mkdtemp(suffix="wandb-media")
    rank_zero_only.rank = int(environment.get("RANK", 0))
    random.seed()  # else all programs draw the same numbers where they set no seed
    np.random.seed()


def program(
    command: list[str], environment: dict[str, str], folder: str, stdin: str, stdout: str, stderr: str
) -> NoReturn:
    """Be the program: run it, and end as Python ends it."""
    for descriptor, path in enumerate((stdin, stdout, stderr)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if descriptor else os.O_RDONLY
        os.dup2(os.open(path, flags), descriptor)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)), line_buffering=os.isatty(1)
    )
    environ(environment)
    os.chdir(folder)
    status: Any = 0
    try:
        if command[0] == "-m":
            sys.argv, sys.path[0] = command[1:], folder
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def together(programs: list[dict[str, Any]], seconds: float) -> list[int]:
    """Run programs side by side; their exit statuses."""
    if any(Path(given["command"][0]).parent == EXAMPLES for given in programs):
        read_texts()
    deadline, children, ended = time.monotonic() + seconds, [], {}
    for given in programs:
        child = os.fork()
        if child == 0:
            program(**given)
        children.append(child)
    while len(ended) < len(children):
        for child in children:
            if child not in ended and (found := os.waitpid(child, os.WNOHANG))[0]:
                ended[child] = os.waitstatus_to_exitcode(found[1])
            elif child not in ended and time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[child] for child in children]


if __name__ == "__main__":
    gc.disable()  # imports leave no garbage
    imports()
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        print(json.dumps(together(**json.loads(line))), flush=True)
    os._exit(0)  # to take down all that was imported takes two seconds
