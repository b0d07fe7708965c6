"""``lightning-geo heads`` on a default run: what it knows, what it does not, and no plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_geo import GeometryMonitor, load_history, pruning_plan
from lightning_geo.cli.main import main
from support.lit import Classifier, fit
from support.records import write


def test_a_default_run_is_ranked_by_redundancy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Classifier(), GeometryMonitor(2, probe_size=4), steps=2)
    run = tmp_path / "lightning_geo" / "version_0"
    history = load_history(run)
    with pytest.raises(ValueError, match="no metric `importance`"):
        pruning_plan(history)
    assert main(["heads", str(run), "--fraction", "0.25"]) == 0
    text, _, table = capsys.readouterr().out.partition("\n\n")
    assert "the 2 of 8 heads that are most like another one" in text
    assert "no `importance`, so this is no order of removal" in text
    assert "what removing each head should cost" in text
    header, *body = table.splitlines()
    assert header.split() == ["layer", "head", "similarity", "most", "like"]
    layer, head, similarity, _, other = body[0].split()
    # the most similar pair of the run is named first, and once
    redundancy = history["redundancy"][-1]
    assert float(similarity) == pytest.approx(redundancy.max(), abs=1e-4)
    assert redundancy[int(layer), int(head)] == redundancy[int(layer), int(other)] == redundancy.max()
    assert len(body) == 2
    for word in ("remove", "keep", "score", "importance rank"):
        assert word not in table


def test_its_json_cannot_be_taken_for_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", metrics=["redundancy"])
    assert main(["heads", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["by"], found["missing"], found["similarities"]) == ("redundancy", "importance", False)
    assert len(found["ranking"]) == 6
    for entry in found["ranking"]:
        assert set(entry) == {"stack", "layer", "head", "redundancy", "similar", "similarity"}


def test_a_run_with_neither_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", metrics=["entropy"])
    assert main(["heads", str(run)]) == 2
    assert (
        'Record them with `GeometryMonitor(metrics=["importance", "head", ...])`' in capsys.readouterr().err
    )
