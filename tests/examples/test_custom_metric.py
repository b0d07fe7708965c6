"""The example with a metric of its own: who reads its run needs neither the example nor torch."""

from __future__ import annotations

import pytest

from lightning_geo import load_history
from lightning_geo.cli.main import main

pytestmark = pytest.mark.slow


def test_the_metric_is_found_by_name(run, tmp_path, capsys):
    run("custom_metric.py", "--max-steps", 4, "--every-n-steps", 2, "--length", 16)
    directory = next(tmp_path.rglob("version_0"))
    history = load_history(directory)
    spec = history.specs["key_gini"]
    assert (spec.unit, spec.range) == ("1", (0.0, 1.0))
    assert 0.0 <= history["key_gini"].min() <= history["key_gini"].max() <= 1.0
    page = tmp_path / "report.html"
    commands = (["show"], ["compare", str(directory)], ["report", "-o", str(page)])
    for command, *more in commands:
        main([command, str(directory), *more])
    assert capsys.readouterr().out.count("key_gini") >= 2
    assert "fewer tokens receive the attention" in page.read_text(encoding="utf-8")
