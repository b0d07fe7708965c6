"""Runs the notebooks of ``examples/`` and keeps their output: ``python tests/programs/notebooks.py``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
_SECONDS = 600  # for a cell, on a machine that does other things too


def sources(notebook: Any) -> str:
    """Return the hash of a notebook's code, which its output was made with."""
    code = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def executed(path: Path, instead: Mapping[str, str] | None = None, manager: Any = None) -> Any:
    """Return a notebook, run from its first cell to its last.

    Args:
        path: Of the notebook.
        instead: What is written in its code, and what is run instead: fewer steps.
        manager: Jupyter's, of a kernel that runs already; a new one is started if it is not given.

    Raises:
        CellExecutionError: If a cell fails.
        ValueError: If something of ``instead`` is not in its code.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for written, run in (instead or {}).items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and written in cell.source]
        if not cells:
            raise ValueError(f"{path.name}: no cell with {written!r}")
        for cell in cells:
            cell.source = cell.source.replace(written, run)
    # the kernel inherits them: nothing may be downloaded, and this checkout comes before an installed one
    os.environ["HF_HUB_OFFLINE"] = "1"
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, km=manager, timeout=_SECONDS, resources=resources).execute()
    return notebook


def kept(notebook: Any) -> Any:
    """Return an executed notebook as it is stored: without times, ids and the kernel's version."""
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sources": sources(notebook),
    }
    return notebook


def main() -> None:
    """Bring the output of all notebooks up to date."""
    import nbformat

    for path in NOTEBOOKS:
        nbformat.write(kept(executed(path)), path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
