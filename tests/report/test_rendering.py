"""Templates: every value is escaped, and a name that is missing is an error."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from lightning_geo.report import rendering
from lightning_geo.report.rendering import Table, render
from support.report_page import Page

TEMPLATES = sorted((Path(rendering.__file__).parent / "templates").iterdir())
HOSTILE = '"><script>alert(1)</script>'
EXAMPLE = {
    "level": HOSTILE,
    "verdict": HOSTILE,
    "trust": HOSTILE,
    "balance": HOSTILE,
    "tokens": [{"text": HOSTILE, "share": HOSTILE, "strength": 1.0}],
    "heads": Table((HOSTILE,), [(HOSTILE,)]),
    "layers": Table((HOSTILE, "number"), [(HOSTILE, 1)]),
    "pictures": [HOSTILE],
}


def test_every_value_is_text() -> None:
    page = Page(render("explanation.html.jinja", title=HOSTILE, examples=[EXAMPLE]))
    assert "script" not in {tag for tag, _ in page.elements}
    assert page.text.count(HOSTILE) == 11  # the title twice


def test_a_missing_name_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        render("explanation.html.jinja", examples=[EXAMPLE])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_turns_escaping_off(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert path.name.endswith((".html.jinja", ".svg.jinja", ".css"))
    assert not re.search(r"\|\s*safe\b", source)
    assert "autoescape" not in source
