"""Runs, records, comparisons and plans in a notebook: short as text, drawn as HTML, and safe."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lightning_geo
from lightning_geo import GeometryHistory, GeometryRecord, compare, diagnose, pruning_plan
from lightning_geo.report.figures import matrix
from support.pictures import pixels
from support.programs import browser_context
from support.records import make_record
from support.report_page import Page

HOSTILE = '"><script>alert(1)</script>'


def history(seed: int = 0, **kwargs: Any) -> GeometryHistory:
    return GeometryHistory([make_record(50 * s, seed=seed, layers=6, heads=12, **kwargs) for s in range(5)])


def collapsed() -> GeometryHistory:
    levels = (0.7, 0.01, 0.01)
    return GeometryHistory(
        [
            GeometryRecord({"encoder": {"normalized_entropy": np.full((4, 4), level)}}, step=50 * i)
            for i, level in enumerate(levels)
        ]
    )


def plan() -> Any:
    importance = np.arange(8.0).reshape(2, 4)
    record = GeometryRecord(
        {"encoder": {"importance": importance}}, {"stacks": {"encoder": {"heads": [4, 4]}}}
    )
    return pruning_plan(GeometryHistory([record]), 0.5)


SHOWN = {
    "record": lambda: history().record(-1),
    "history": history,
    "comparison": lambda: compare(history(), history(1)),
    "plan": plan,
    "findings": lambda: collapsed().findings(),
    "map": lambda: history().record(0).plot("entropy"),
    "key metrics": lambda: history().record(0).plot(),
    "layers": lambda: history().plot("entropy"),
    "roles": lambda: history().plot("effective_rank", by="head"),
    "heads": lambda: history().plot("entropy", by="head", layer=5),
    "model": lambda: history().plot("cone.output", by="model"),
    "difference": lambda: compare(history(), history(1)).plot("entropy"),
    "report": lambda: history().report(history(1)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_text_is_a_line_and_html_is_small(name: str) -> None:
    shown = SHOWN[name]()
    assert len(repr(shown)) < 250
    assert "\n" not in repr(shown)
    html = shown._repr_html_()
    assert "<svg" in html or name in ("findings", "report")
    assert "<script" not in html
    # a record of this size printed 177 kB of arrays
    assert len(html) < (400_000 if name == "report" else 60_000)


#: What can be saved as a file.
DRAWN = ("map", "key metrics", "layers", "roles", "heads", "model", "difference", "report")


@pytest.mark.parametrize("name", SHOWN)
def test_what_draws_itself_is_kept_as_a_file(name: str, tmp_path: Path) -> None:
    shown = SHOWN[name]()
    assert hasattr(shown, "save") == (name in DRAWN)
    if name not in DRAWN:
        return
    shown.save(tmp_path / "x")
    text = (tmp_path / "x").read_text(encoding="utf-8")
    if name == "report":
        assert text.startswith("<!DOCTYPE html>")
    else:
        root = ET.fromstring(text)  # a file of its own: namespace and all
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root)) > 2


def test_a_run_says_its_verdict_and_shows_its_collapse() -> None:
    html = collapsed()._repr_html_()
    assert 'class="verdict critical"' in html
    assert diagnose(collapsed()).verdict in Page(html).text
    assert "0.700 → 0.010" in html


def test_findings_are_those_of_diagnose() -> None:
    found = collapsed().findings()
    assert found == diagnose(collapsed())
    assert [finding.rule for finding in found] == ["entropy_collapse"]


def test_a_map_has_one_pixel_for_each_head() -> None:
    record = history().record(2)
    shown = pixels(record.plot("entropy")._repr_html_())
    expected = pixels(matrix(record["entropy"], "", *_ends(record["entropy"])))
    np.testing.assert_array_equal(shown, expected)


def _ends(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def test_heads_of_a_layer_run_down_and_samples_right() -> None:
    run = history()
    shown = pixels(run.plot("normalized_entropy", by="head", layer=3)._repr_html_())
    expected = pixels(matrix(run["normalized_entropy"][:, 3].T, "", 0.0, 1.0))
    np.testing.assert_array_equal(shown, expected)


def test_two_runs_share_one_scale() -> None:
    a, b = (GeometryHistory([GeometryRecord({"e": {"entropy": np.array([[0.0, x]])}})]) for x in (1.0, 4.0))
    pictures = compare(a, b).plot("entropy")._repr_html_()
    assert len(re.findall(r">4\.00<", pictures)) == 2  # the upper end of both maps
    assert ">+3.00<" in pictures


def test_an_absent_cell_is_hatched_by_a_pattern_of_the_output_itself() -> None:
    values = np.ones((2, 3))
    values[0, 0] = np.nan
    drawn = [GeometryRecord({"encoder": {"entropy": values * k}}).plot("entropy") for k in (1, 2)]
    names = []
    for drawing in drawn:
        for text in (drawing._repr_html_(), drawing.svg):
            [name] = set(re.findall(r"url\(#(absent-\w+)\)", text))
            assert text.count(f'id="{name}"') == 1
            names.append(name)
    assert len(set(names)) == 4


def test_hostile_names_are_text() -> None:
    records = [
        GeometryRecord(
            {HOSTILE: {"entropy": np.random.default_rng(s).random((2, 3))}}, {"class": HOSTILE}, step=s
        )
        for s in (0, 9)
    ]
    run = GeometryHistory(records, HOSTILE, HOSTILE)
    for shown in (run, records[0], compare(run, run), run.plot("entropy"), run.report(run)):
        assert "<script" not in shown._repr_html_()
    assert "<script" not in run.plot("entropy").svg


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "entropy", "by": "heads"}, "`by` to be 'model', 'layer' or 'head', but got 'heads'"),
        ({"metric": "entropy", "layer": 2}, "`layer` with by='head' only, but got layer=2"),
        ({"metric": "entropy", "by": "head", "layer": 6}, "`layer` to be from 0 to 5, but got 6"),
        ({"metric": "cone.output", "by": "head"}, "'cone.output' is of layers"),
    ],
)
def test_what_cannot_be_drawn(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        history().plot(**arguments)


def test_unknown_metrics_are_named_with_the_nearest() -> None:
    with pytest.raises(KeyError, match="Did you mean 'entropy'"):
        history().plot("entropie")
    with pytest.raises(KeyError, match="Did you mean 'entropy'"):
        compare(history(), history(1)).plot("entropie")
    empty = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.full((2, 2), np.nan)}})])
    with pytest.raises(ValueError, match="'entropy' has none at any sample"):
        empty.plot("entropy")


@pytest.mark.browser
def test_a_report_below_a_cell_opens_its_chapters(tmp_path: Path) -> None:
    file = tmp_path / "notebook.html"
    file.write_text(f"<p>A notebook</p>{history().report()._repr_html_()}", encoding="utf-8")
    with browser_context() as context:
        page = context.new_page()
        page.goto(file.as_uri())
        [frame] = page.frames[1:]
        frame.click('nav a[href="#metrics"]')
        frame.wait_for_function("document.querySelector('#metrics').closest('details').open")


def test_every_public_room_can_be_imported_first() -> None:
    # the views are found whichever module was imported, since the root names their room
    buffer = io.StringIO()
    print(lightning_geo.storage.history.GeometryHistory([make_record()])._repr_html_(), file=buffer)
    assert "<svg" in buffer.getvalue()
