"""The audit's page: what it says, names as text, and nothing that it loads."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from lightning_geo.analysis.audit.check import audit
from lightning_geo.analysis.audit.ledger import Receipt
from lightning_geo.analysis.audit.policy import Limit, Places, Policy, Waiver
from lightning_geo.analysis.runs import Run
from lightning_geo.cli.audit import as_dict
from lightning_geo.report.audit_page import audit_page
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord
from support.programs import browser_context
from support.report_page import Page, assert_loads_nothing

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


@pytest.fixture(scope="module")
def page() -> str:
    """Every result, with names that are markup."""

    def run(size: float) -> Run:
        values = np.array([[0.5, size], [np.nan, 0.25]], np.float32)
        stacks = {"normalized_entropy": values, "cone.output": values[:, 1], "max_logit": values * 100}
        record = GeometryRecord({HOSTILE: stacks}, {"class": HOSTILE}, probe_fingerprint=HOSTILE, step=40)
        return Run(HOSTILE, Path(HOSTILE), GeometryHistory([record]))

    first = Places(layers=(0,))
    limits = (
        Limit(HOSTILE, ("normalized_entropy",), first, at_least=0.1, why=HOSTILE),
        Limit("wide", ("normalized_entropy",), at_least=0.2, at_most=0.75),
        Limit("cone", ("cone.output",), Places((HOSTILE, "no" + HOSTILE)), at_most=0.9),
        Limit("logit", ("max_logit",), first, at_most=49),
        Limit("change", ("max_logit",), first, change_at_most=10),
    )
    waivers = tuple(
        Waiver(name, HOSTILE, HOSTILE, dt.date(year, 1, 1), None, first)
        for name, year in (("logit", 2030), ("logit", 2020), (HOSTILE, 2030))
    )
    policy = Policy(HOSTILE, HOSTILE, limits, waivers, HOSTILE, HOSTILE, "0" * 64)
    now, before = run(0.125), run(0.5)
    result = audit(now.history, policy, before.history, dt.date(2025, 1, 1))
    content = as_dict(result, now, before, [HOSTILE])
    return audit_page(result, now, before, content, Receipt(HOSTILE, 3, "f" * 64))


def test_names_are_text_and_nothing_is_loaded(page: str) -> None:
    read = Page(page)
    assert_loads_nothing(read)
    assert read.text.count(HOSTILE) > 15


def test_it_says_what_was_asked_found_decided_and_not_measured(page: str) -> None:
    text = " ".join(Page(page).text.split())
    for part in (
        "Breached: 2 of 6 checks (wide, change), 1 waived, 1 not fully measured.",
        "2 passed 1 waived 1 not measured 2 breached",
        "Asked: max_logit within 10 logits of the earlier release, in layer 0, at the last sample.",
        "Worst: 50.00 → 12.50 logits in layer 0, head 1 at step 40, 27.50 beyond the limit.",
        "Breached by head 1 of layer 0, first at step 40. Worst: 0.125 in layer 0, head 1 at step 40, 0.075 "
        "beyond the limit. 1 of 4 values was not measured. Missing or NaN in layer 1",
        "Waiver of “logit” for layer 0: expired",
        "expired on 2020-01-01 and does not hold: 1 value that it covered is breached.",
        "This waiver excuses 1 value, until 2030-01-01.",
        "was not needed",
        "1 of 1 values. The run has no stack",
        f"line 3 Hash of the line{'f' * 64}",
        f"--expect {'f' * 64}",
    ):
        assert part in text, part


@pytest.mark.browser
def test_a_browser_shows_it_on_a_telephone_without_a_request(page: str, tmp_path: Path) -> None:
    file = tmp_path / "audit.html"
    file.write_text(page, encoding="utf-8")
    said: list[str] = []
    with browser_context(viewport={"width": 360, "height": 700}) as context:
        shown = context.new_page()
        shown.on("console", lambda message: said.append(message.text))
        shown.on("request", lambda request: said.append(request.url))
        shown.goto(file.as_uri())
        assert "owned" not in shown.evaluate("document.title").split("<")[0]
        assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert [text for text in said if not text.startswith(("data:", file.as_uri()))] == []
