"""Runs examples as programs, each in a fork of this process: what they all import is imported once.

Reads a line of JSON per run from stdin, ``{"command": [script, option, …], "folder": …}``. Writes a line of
JSON per run to stdout: the exit status, and what the run wrote to stdout and to stderr.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


def imports() -> None:
    """Import what examples share, nothing of the examples."""
    import torch

    for name in ("datasets", "matplotlib.pyplot", "peft", "pytorch_lightning.loggers", "sklearn.datasets",
                 "wandb", "lightning_geo.functional", "lightning_geo.monitor"):  # fmt: skip
        importlib.import_module(name)
    # each is a module of its own that is imported at first use
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: F401

    torch.set_num_threads(1)


def program(command: list[str], folder: str) -> NoReturn:
    """Be the program: run it, and end as Python ends it."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdin.close()
    os.chdir(folder)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    status: Any = 0
    try:
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


if __name__ == "__main__":
    imports()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            program(**request)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written = [
            (Path(request["folder"]) / name).read_text(errors="replace") for name in ("stdout", "stderr")
        ]
        print(json.dumps([status, *written]), flush=True)
