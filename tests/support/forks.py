"""Programs in processes of their own, forked from one that has imported what takes seconds to import."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Forks:
    """Runs programs; where there is no ``fork``, in interpreters of their own."""

    def __init__(self, process: subprocess.Popen[str] | None) -> None:
        self._process = process

    def run(
        self,
        *commands: list[str],
        folder: Path,
        environments: list[dict[str, str]] | None = None,
        terminal: str | None = None,
        alone: bool = False,
        seconds: int = 400,
    ) -> tuple[list[int], list[str], list[str]]:
        """Run programs side by side.

        Args:
            commands: What follows ``python`` on the command line of each.
            folder: Where they run.
            environments: Of each; that of this process if it is not given.
            terminal: Path of a terminal for input and output, instead of files.
            alone: In an interpreter that has imported nothing before.
            seconds: How long each may take.

        Returns:
            Exit statuses, and what each wrote to stdout and to stderr.
        """
        programs: list[dict[str, Any]] = []
        for place, command in enumerate(commands):
            environment = environments[place] if environments else dict(os.environ)
            files = {name: terminal or str(folder / f"{name}.{place}") for name in ("stdout", "stderr")}
            for path in () if terminal else files.values():
                Path(path).write_bytes(b"")
            programs.append({
                "command": command, "environment": environment, "folder": str(folder),
                "stdin": terminal or os.devnull, **files,
            })  # fmt: skip
        if self._process is None or alone:
            statuses = _interpreters(programs, seconds)
        else:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps({"programs": programs, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
            statuses = json.loads(self._process.stdout.readline())
        if terminal:
            return statuses, [], []
        stdout, stderr = (
            [Path(program[name]).read_text(errors="replace") for program in programs]
            for name in ("stdout", "stderr")
        )
        return statuses, stdout, stderr

    def ranks(self, world: int, *arguments: str, folder: Path, seconds: int = 400) -> None:
        """Run ``python -m …`` in each of several ranks, which have to end well."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            **os.environ, "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "NODE_RANK": "0",
            "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }  # fmt: skip
        environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
        statuses, stdout, stderr = self.run(
            *[["-m", *arguments]] * world, folder=folder, environments=environments, seconds=seconds
        )
        assert statuses == [0] * world, "\n".join(text[-3000:] for text in (*stdout, *stderr))


def _interpreters(programs: list[dict[str, Any]], seconds: int) -> list[int]:
    running = []
    for program in programs:
        with contextlib.ExitStack() as stack:
            stdin, stdout, stderr = (
                stack.enter_context(Path(program[name]).open(mode))
                for name, mode in (("stdin", "rb"), ("stdout", "ab"), ("stderr", "ab"))
            )
            running.append(subprocess.Popen(
                [sys.executable, *program["command"]], env=program["environment"], cwd=program["folder"],
                stdin=stdin, stdout=stdout, stderr=stderr,
            ))  # fmt: skip
    try:
        return [process.wait(timeout=seconds) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    """A process that runs programs in forks of itself."""
    if not hasattr(os, "fork"):
        yield Forks(None)
        return
    # this checkout, installed or not, and nothing of the tests; nothing may be downloaded
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command, pipe = [sys.executable, str(ROOT / "tests" / "programs" / "forks.py")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        yield Forks(process)
        assert process.stdin is not None
        process.stdin.close()
