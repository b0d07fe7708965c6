"""The README says what the code says. ``python tests/test_readme.py`` prints its table of metrics anew."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from lightning_geo.metrics.catalog import CATALOG

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def metric_table() -> str:
    """The metrics as the README lists them, family by family."""
    lines = ["| metric | axes | formula | what a change means |", "| --- | --- | --- | --- |"]
    for spec in CATALOG.values():
        # one row for all roles or stages of a metric
        name = f"{spec.name}.{{{','.join(spec.parts)}}}" if spec.parts else spec.name
        cells = f"{spec.family}: `{name}`", ", ".join(spec.axes), spec.formula, spec.meaning
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def test_table_of_metrics_is_the_catalog():
    assert metric_table() in README, "paste what `python tests/test_readme.py` prints after <!-- metrics -->"


def test_commands_are_fenced_after_their_markers():
    # `.ci/run` takes the second from there
    for marker, last in (("main", "examples/finetune_bert.py"), ("test", "-m pytest -n 2 --dist loadscope")):
        [command] = re.findall(rf"^<!-- {marker} -->\n```bash\n(.+)\n```$", README, re.MULTILINE)
        assert command.startswith("python -m venv .venv && ")
        assert command.endswith(last)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_ci_finds_the_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [line] = re.findall(r"^command=\$\((.+)\)$", script, re.MULTILINE)
    found = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip().endswith("-m pytest -n 2 --dist loadscope")
    assert len(found.strip().splitlines()) == 1


if __name__ == "__main__":
    print(metric_table())
