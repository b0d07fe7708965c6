"""The notebooks: their output is that of their code, small, and of no machine in particular; and they run."""

from __future__ import annotations

import json
import re
from typing import Any

import nbformat
import pytest

from programs.notebooks import NOTEBOOKS, executed, kept, sources

NAMES = [path.name for path in NOTEBOOKS]
#: What is written in them, and what is run here instead: fewer steps, with as many samples, and fewer texts.
FEWER = {
    "compare_and_prune.ipynb": {
        "limit=None": "limit=400", "steps=30": "steps=6", "every_n_steps=15": "every_n_steps=3",
        "range(96)": "range(32)",
    },
    "watch_a_finetuning.ipynb": {"limit=None": "limit=400", "steps=30": "steps=6", "steps=12": "steps=6"},
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
def test_it_runs_and_shows_what_it_showed(name: str) -> None:
    [path] = [path for path in NOTEBOOKS if path.name == name]
    before = set(path.parent.iterdir())
    assert kinds(executed(path, FEWER[name])) == kinds(read(name)), STALE
    new = {entry.name for entry in set(path.parent.iterdir()) - before}
    assert new <= {"__pycache__"}
