"""The notebooks: their output is that of their code, small, and of no machine in particular; and they run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager, BlockingKernelClient, write_connection_file

from programs.notebooks import EXAMPLES, NOTEBOOKS, executed, kept, sources
from support.forks import ROOT, Forks

NAMES = [path.name for path in NOTEBOOKS]
#: What is written in them, and what is run here instead: fewer steps, with as many samples, fewer texts, and
#: of those the beginning.
FEWER = {
    "compare_and_prune.ipynb": {
        "limit=None": "limit=200", "length=32, batch_size=16": "length=12, batch_size=8",
        "steps=30": "steps=6", "every_n_steps=15": "every_n_steps=3", "probe_size=32": "probe_size=8",
        "range(96)": "range(16)",
    },
    "watch_a_finetuning.ipynb": {
        "limit=None": "limit=200", "length=32, batch_size=16": "length=12, batch_size=8",
        "steps=30": "steps=6", "steps=12": "steps=6",
    },
}  # fmt: skip
STALE = "The notebook's output is stale: run `python tests/programs/notebooks.py`."


def read(name: str) -> Any:
    [path] = [path for path in NOTEBOOKS if path.name == name]
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def kinds(notebook: Any) -> list[tuple[str, ...]]:
    """What each cell showed: types, and of which class, without numbers, which differ between machines."""
    return [
        (output.output_type, *sorted(output.get("data", ())), re.split(r"[\d(]", _text(output))[0])
        for output in outputs(notebook)
    ]


def _text(output: Any) -> str:
    return str(output.get("text", output.get("data", {}).get("text/plain", "")))


class Running(AsyncKernelManager):
    """Of a kernel that somebody else started."""

    has_kernel = True


@contextmanager
def kernel(forks: Forks, folder: Path) -> Iterator[Running]:
    """A kernel in a fork: to import what the notebooks import takes longer than to run them."""
    file, _ = write_connection_file(str(folder / "kernel.json"))
    beside = f"--IPKernelApp.exec_lines=import os; os.chdir({str(EXAMPLES)!r})"
    paths = [str(ROOT), str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = ["-m", "ipykernel_launcher", "-f", file, beside]
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(forks.run, command, folder=folder, environments=[environment])
        try:
            running = Running(connection_file=file, owns_kernel=False)
            running.load_connection_file()
            yield running
        finally:
            client = BlockingKernelClient(connection_file=file)
            client.load_connection_file()
            client.start_channels()
            client.shutdown()
            statuses, _, stderr = ended.result()
            client.stop_channels()
    assert statuses == [0], stderr


def test_there_are_two() -> None:
    assert NAMES == ["compare_and_prune.ipynb", "watch_a_finetuning.ipynb"]


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_that_of_the_code(name: str) -> None:
    notebook = read(name)
    assert notebook.metadata.get("sources") == sources(notebook), STALE
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), STALE
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert kept(read(name)) == notebook  # nothing of the machine that ran it


def test_a_change_of_the_code_is_stale() -> None:
    notebook = read(NAMES[0])
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.source += "\n1"
    assert notebook.metadata["sources"] != sources(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_small_and_drawn(name: str) -> None:
    notebook = read(name)
    assert max(len(json.dumps(output)) for output in outputs(notebook)) < 40_000
    assert len(json.dumps(notebook)) < 200_000
    drawn = [
        output["data"]["text/html"]
        for output in outputs(notebook)
        if "data" in output and "text/html" in output.data
    ]
    assert len(drawn) >= 3
    assert sum("<svg class=" in html for html in drawn) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_no_path_and_no_warning_is_in_it(name: str) -> None:
    notebook = read(name)
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", json.dumps(notebook))
    assert re.findall(r"(?<![\w.:/<])/[\w.-]+/[\w./-]+", text) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_shows_what_it_showed(name: str, forks: Forks, tmp_path: Path) -> None:
    [path] = [path for path in NOTEBOOKS if path.name == name]
    before = set(path.parent.iterdir())
    with kernel(forks, tmp_path) as running:
        assert kinds(executed(path, FEWER[name], running)) == kinds(read(name)), STALE
    new = {entry.name for entry in set(path.parent.iterdir()) - before}
    assert new <= {"__pycache__"}
