"""Which heads change gate: the rule on small courses of margins, and the labels against those of torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_geo import GeometryHistory, GeometryRecord, functional
from lightning_geo.analysis.comparison import compare
from lightning_geo.analysis.gate_changes import different_gates, head_gates, lasting_changes
from lightning_geo.analysis.runs import Run
from lightning_geo.cli import compare as compared
from lightning_geo.cli import show
from lightning_geo.metrics.gates import GATES, KINDS, gate_labels
from lightning_geo.report.page import report
from lightning_geo.report.sentences import run_sentences
from support.report_page import Page

OPEN, CLOSED = 0, 1


def run(*courses: dict[str, list[float]], stack: str = "encoder", every: int = 10) -> GeometryHistory:
    """A run of one layer from each head's margins at each sample; what is not named is far outside."""
    count = len(next(iter(courses[0].values())))
    return GeometryHistory(
        [
            GeometryRecord(
                {
                    stack: {
                        f"gate.{gate}": np.array(
                            [[head.get(gate, [-0.9] * count)[sample] for head in courses]], np.float32
                        )
                        for gate in GATES
                    }
                },
                step=every * sample,
            )
            for sample in range(count)
        ]
    )


def changes(**course: list[float]) -> list[tuple[int, str, str]]:
    [gates] = head_gates(run(course))
    return [(change.step, change.before, change.after) for change in lasting_changes(gates)]


def test_labels_are_those_of_the_metric() -> None:
    margins = np.random.default_rng(0).normal(0, 0.3, (7, 50, 20)).round(1)  # with ties and zeros
    margins[2, :3] = np.nan
    theirs = functional.gate_labels(torch.from_numpy(margins)).numpy()
    np.testing.assert_array_equal(gate_labels(np.moveaxis(margins, 0, -1)), theirs)
    assert set(theirs.ravel()) == {-1, *range(len(KINDS))}


def test_a_lasting_change_is_dated_by_its_first_sample() -> None:
    history = run({"open": [0.2, 0.1, -0.1, -0.1], "closed": [-0.3, 0.0, 0.12, 0.3]})
    [gates] = head_gates(history)
    [change] = lasting_changes(gates)
    assert (change.layer, change.head, change.step, change.before, change.after) == (
        0,
        0,
        20,
        "open",
        "closed",
    )
    assert (change.margin, change.last, change.lead) == pytest.approx((0.12, 0.3, 0.4))
    assert gates.counts(0) == {"open": 1}
    assert gates.counts(-1) == {"closed": 1}


def test_one_sample_of_another_gate_is_noise_however_far() -> None:
    assert changes(open=[0.1, -0.3, 0.1, 0.1], closed=[-0.3, 0.3, -0.3, -0.3]) == []


def test_hovering_about_a_threshold_is_noise_however_long() -> None:
    assert changes(open=[0.1, 0.0, -0.01, -0.02, -0.04]) == []
    # it counts from the start of the stay in which it became clear
    assert changes(open=[0.1, 0.0, -0.01, -0.02, -0.06]) == [(20, "open", "mixed")]


def test_a_change_at_the_last_sample_has_nothing_to_flip_back_to() -> None:
    assert changes(open=[0.1, 0.1, -0.2], closed=[-0.2, -0.2, 0.2]) == [(20, "open", "closed")]


def test_there_and_back_for_long_is_two_changes() -> None:
    course = {"open": [0.2, -0.2, -0.2, 0.2, 0.2], "closed": [-0.2, 0.2, 0.2, -0.2, -0.2]}
    assert changes(**course) == [(10, "open", "closed"), (30, "closed", "open")]


def test_a_detour_of_one_sample_does_not_hide_a_change() -> None:
    course = {"open": [0.2, -0.2, -0.2, -0.2], "closed": [-0.3, -0.3, 0.2, 0.2]}
    assert changes(**course) == [(20, "open", "closed")]


def test_samples_without_gates_are_passed_over() -> None:
    assert changes(open=[0.2, np.nan, -0.2, np.nan, -0.2]) == [(20, "open", "mixed")]
    assert list(head_gates(run({"open": [np.nan]}))) == []
    partial = GeometryHistory([GeometryRecord({"encoder": {"gate.open": np.ones((1, 1))}})])
    assert list(head_gates(partial)) == []


def two() -> tuple[GeometryHistory, GeometryHistory]:
    a = run({"open": [0.2, 0.2]}, {"closed": [0.3, 0.3]}, {"open": [0.1, 0.1]})
    b = run(
        {"open": [0.2, -0.01]},
        {"closed": [0.3, -0.5], "open": [-0.2, 0.4]},
        {"open": [0.1, 0.1]},
        stack="model",
    )
    return a, b


def test_different_gates_are_the_clearest_first() -> None:
    both, found = different_gates(*two(), (10, 10))
    assert both == 3
    assert [(d.head, d.a, d.b) for d in found] == [(1, "closed", "open"), (0, "open", "mixed")]
    assert [d.lead for d in found] == pytest.approx([0.9, 0.01])
    assert different_gates(*two(), (0, 0)) == (3, [])


def test_reports_and_commands_say_it() -> None:
    runs = [Run(name, Path(name), history) for name, history in zip("ab", two(), strict=True)]
    text = Page(report(runs)).text
    assert "The gates of 2 of 3 heads differ between A and B" in text
    assert "What the heads do: 1 of 3 changed their gate" in text
    assert "layer 0 head 1: closed → open at step 10 (margin 0.40, later 0.40)" in text
    assert "open: 2, then 2" in text
    [only] = run_sentences(runs[1].history)
    assert only.text == "Heads that changed their gate for good: 1 of 3; most often closed → open (1)."
    shown = show.as_text(runs[1:])
    assert "2 open, 1 mixed; 1 of 3 heads changed their gate" in shown
    found = [compare(runs[0].history, runs[1].history)]
    printed = compared.as_text(runs, found, every_cell=False)
    assert "Heads whose gate differs between A and B: 2 of 3" in printed
    assert '"gates"' in compared.as_json(runs, found)
