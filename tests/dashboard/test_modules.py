"""The page's modules: their units under node, and what none of them may do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import lightning_geo.dashboard
from lightning_geo.metrics.catalog import CATALOG
from lightning_geo.utils import colours
from support.programs import node_path

STATIC = Path(lightning_geo.dashboard.__file__).parent / "static"
MODULES = sorted(STATIC.glob("*.js"))
SHEETS = sorted(STATIC.glob("*.css"))


@pytest.mark.node
def test_units_pass_under_node() -> None:
    tests = sorted(str(path) for path in (Path(__file__).parent / "js").glob("*.test.js"))
    assert tests
    node = node_path()
    assert node
    done = subprocess.run([node, "--test", *tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_module_makes_markup_or_code_of_text(module: Path) -> None:
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.findall(forbidden, module.read_text())


@pytest.mark.parametrize("path", [*MODULES, *SHEETS], ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere(path: Path) -> None:
    named = path.read_text().replace('"http://www.w3.org/2000/svg"', "")  # a name of SVG's, no address
    assert not re.findall(r"https?://|@import|url\(", named)


def test_every_import_is_a_file_that_is_there() -> None:
    for module in MODULES:
        for name in re.findall(r'from "([^"]+)"', module.read_text()):
            assert (STATIC / name).is_file()


def test_examples_are_of_metrics_that_there_are() -> None:
    source = (STATIC / "examples.js").read_text()
    drawn = set(re.findall(r'^  "?([a-z0-9_.]+)"?: ', source, re.MULTILINE))
    stored = {name for spec in CATALOG.values() for name in spec.stored_names}
    assert drawn <= {*stored, *(name.partition(".")[0] for name in stored)}
    without = {name for name in stored if not {name, name.partition(".")[0]} & drawn}
    assert {name.partition(".")[0] for name in without} == {"score_norm_share", "importance"}


def test_the_colours_are_those_of_the_pictures() -> None:
    source = (STATIC / "colour.js").read_text()
    for name, known in (("VIRIDIS", colours.SEQUENTIAL), ("DIVERGING", colours.DIVERGING)):
        start = source.index(f"const {name} =")
        ours = re.findall(r"\b[0-9a-f]{6}\b", source[start : source.index(";", start)])
        assert ours == known.split(), name
    lines = source[source.index("const LINES") :].partition(";")[0]
    assert tuple(re.findall(r"#[0-9a-f]{6}", lines)) == colours.CATEGORICAL
