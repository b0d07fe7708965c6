"""The guides say what the code says: commands, links, pictures, and the tables of metrics."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import lightning_geo
from lightning_geo.analysis.findings.document import GUIDE as FINDINGS
from lightning_geo.analysis.findings.document import table as rules_table
from lightning_geo.cli.main import main
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.metrics.document import GUIDE, tables, updated

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
#: What the repository holds; installs and runs below it bring pages of their own.
FOLDERS = ("examples", "lightning_geo", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

_BLOCK = re.MULTILINE | re.DOTALL
_FENCED = re.compile(r"^```.*?^```$", _BLOCK)
#: ``[text](target)`` and ``![text](target)``
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_EXTERNAL = re.compile(r"[a-z]+:")


def prose(page: str) -> str:
    """A page without its fenced blocks and code spans, whose brackets are no links."""
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), _FENCED.sub("", page))


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _FENCED.sub("", page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of one."""
    broken = []
    for link in _LINK.findall(prose(text)):
        if _EXTERNAL.match(link):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target) if target else path
        inside = file.resolve().is_relative_to(ROOT)
        if not inside or not file.exists() or (anchor and anchor not in anchors(_text(path, text, file))):
            broken.append(link)
    return broken


def _text(path: Path, text: str, file: Path) -> str:
    return text if file.resolve() == path.resolve() else file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name: str) -> None:
    path = ROOT / name
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[a](nowhere.md)", ["nowhere.md"]),
        ("![a](examples/pictures/nothing.png)", ["examples/pictures/nothing.png"]),
        ("[a](LICENSE) and [b](../elsewhere)", ["../elsewhere"]),
        ("## A head's `gate`: what?\n[a](#a-heads-gate-what) [b](#a-head)", ["#a-head"]),
        ("[a](examples/README.md#no-such-heading)", ["examples/README.md#no-such-heading"]),
        ("# A\n# A\n[a](#a-1) [b](#a-2)", ["#a-2"]),
        ("`x[0](y)` and\n```python\nx[0](y)\n```\n[site](https://example.org/x)", []),
    ],
)
def test_a_broken_link_is_found(text: str, broken: list[str]) -> None:
    assert broken_links(ROOT / "README.md", text) == broken


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in _LINK.findall(page.read_text(encoding="utf-8"))
        if link.endswith((".png", ".svg"))
    }
    files = (ROOT / "examples" / "pictures").resolve().rglob("*.*")
    assert shown == {path for path in files if path.is_file()}


def pictures_without_a_command(gallery: str) -> list[str]:
    """Pictures without a command in their section; those of ``gallery/``: without one in the next line."""
    missing = []
    for section in re.split(r"^(?=## )", gallery, flags=re.MULTILINE):
        for line, below in itertools.pairwise([*section.splitlines(), ""]):
            targets = [link for link in _LINK.findall(line) if link.endswith((".png", ".svg"))]
            commands = re.findall(r"`[^`]+`", below)
            several = below.count("|") > 1
            for link in targets if "gallery/" in line else []:
                if len(commands) < (len(targets) if several else 1):
                    missing.append(link)
            if targets and "gallery/" not in line and "```bash" not in section:
                missing += targets
    return missing


def test_every_picture_of_the_examples_is_made_by_a_command_that_stands_by_it() -> None:
    assert pictures_without_a_command((ROOT / "examples" / "README.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("page", "missing"),
    [
        ("## A\n![a](p/a.png)\n", ["p/a.png"]),
        ("## A\n![a](p/a.png)\n```bash\nrun\n```\n## B\n![b](p/b.png)\n", ["p/b.png"]),
        ("![a](p/gallery/a.png)\n\n`run`\n```bash\n```\n", ["p/gallery/a.png"]),
        ("| ![a](gallery/a.svg) | ![a](gallery/b.svg) |\n| `run` | |\n", ["gallery/a.svg", "gallery/b.svg"]),
        ("| ![a](p/gallery/a.svg) |\n| `run` |\n![b](p/gallery/b.png)\n`run`\n", []),
    ],
)
def test_a_picture_without_a_command_is_found(page: str, missing: list[str]) -> None:
    assert pictures_without_a_command(page) == missing


def test_every_guide_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached:
            reached.add(page)
            links = _LINK.findall(prose(page.read_text(encoding="utf-8")))
            targets = (link.partition("#")[0] for link in links if not _EXTERNAL.match(link))
            waiting += [page.parent / target for target in targets if target.endswith(".md")]
    assert {page.resolve() for page in PAGES} - reached == {ROOT.resolve() / "CHANGELOG.md"}


@pytest.mark.parametrize("name", NAMES)
def test_python_is_python_and_imports_what_is_public(name: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), _BLOCK):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "lightning_geo":
                assert {alias.name for alias in node.names} <= set(lightning_geo.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    for command in set(re.findall(r"lightning-geo ([a-z]+(?:-[a-z]+)*)\b", page)):
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0, f"lightning-geo {command}"
    for script in re.findall(r"python ((?:examples|tests)/\w+(?:/\w+)*\.py)", page):
        assert (ROOT / script).exists(), script
    for module in re.findall(r"python -m (lightning_geo[\w.]+)", page):
        assert importlib.util.find_spec(module), module


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_every_example_is_in_the_gallery() -> None:
    gallery = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    files = [*(ROOT / "examples").glob("*.py"), *(ROOT / "examples").glob("*.ipynb")]
    scripts = {path.name for path in files} - {"common.py", "texts.py"}
    assert {script for script in scripts if f"[{script}]({script})" in gallery} == scripts


def test_tables_of_metrics_are_those_of_the_catalogue() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert updated(guide) == guide, "METRICS.md is stale: run `python -m lightning_geo.metrics.document`"
    assert "python -m lightning_geo.metrics.document" in guide.splitlines()[0]


def test_the_table_of_rules_is_theirs() -> None:
    guide = FINDINGS.read_text(encoding="utf-8")
    stale = "FINDINGS.md is stale: run `python -m lightning_geo.analysis.findings.document`"
    assert updated(guide, rules_table()) == guide, stale


def test_every_metric_is_in_the_tables_once() -> None:
    rows = re.findall(r"^\| `([^`{]+?)\.?(?:\{.*?\})?` \|", tables(), re.MULTILINE)
    assert rows == list(CATALOG)


def test_a_stale_table_is_found() -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    assert updated(guide.replace("| `max_logit` |", "| `max_logits` |")) == guide
    with pytest.raises(ValueError, match="found 0"):
        updated(guide.replace("<!-- end of tables -->", ""))


#: How the README's test command ends.
TESTS = '-m pytest -n 2 --dist loadscope -m "not slow"'


def test_commands_are_fenced_after_their_markers() -> None:
    # `.ci/run` takes the second from there
    for marker, last in (("main", "examples/finetune_bert.py"), ("test", TESTS)):
        [command] = re.findall(rf"^<!-- {marker} -->\n```bash\n(.+)\n```$", README, re.MULTILINE)
        assert command.startswith("python -m venv .venv && ")
        assert command.endswith(last)


def test_ci_finds_the_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [line] = re.findall(r"^command=\$\((.+)\)$", script, re.MULTILINE)
    found = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip().endswith(TESTS)
    assert len(found.strip().splitlines()) == 1


def test_ci_runs_what_the_test_command_leaves_out() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    rest = re.sub(r'"not (\w+)"', r"\1", TESTS)
    assert re.search(rf"^\.venv/bin/python {re.escape(rest)} .*\|\| failed=1$", script, re.MULTILINE)
