"""``lightning-geo heads``: the plan, and without importance what it knows, what it does not, and no plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_geo import GeometryMonitor, load_history, pruning_plan
from lightning_geo.cli.main import main
from support.lit import Classifier, fit
from support.records import write


def test_the_command_prints_the_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = GeometryMonitor(2, metrics=["importance", "head"], probe_size=4)
    fit(tmp_path, Classifier(), monitor, steps=2)
    run = tmp_path / "lightning_geo" / "version_0"
    plan = pruning_plan(load_history(run), 0.25)
    assert plan.similarities
    assert main(["heads", str(run), "--fraction", "0.25"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 of 8 heads to remove" in lines[0]
    body = [line.split()[:3] for line in lines[4:]]
    assert [(int(layer), int(head)) for _, layer, head in body] == [r.head[1:] for r in plan.ranking]
    assert [word for word, *_ in body] == ["remove"] * 2 + ["keep"] * 6
    assert main(["heads", str(run), "--fraction", "0.25", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["remove"] for entry in found["ranking"]] == [True] * 2 + [False] * 6
    assert main(["heads", str(run), "--fraction", "2"]) == 2
    assert "within (0, 1) but got 2.0" in capsys.readouterr().err


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
