"""What a run's report says: sentences whose numbers can be checked."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_geo.report.sentences import run_sentences
from support.records import run_of


def test_sentences_have_the_numbers() -> None:
    drift = [np.full((2, 2), value).tolist() for value in (0.0, 0.5, 0.6)]
    drift[2][1][1] = 0.8
    history = run_of(
        {
            "drift.output": drift,
            "drift.key": [np.full((2, 2), value).tolist() for value in (0.0, 0.1, 0.2)],
            "cone.output": [[0.2, 0.4], [0.2, 0.6], [0.2, 0.8]],
            "normalized_entropy": [[[0.5, 0.01], [0.6, 0.7]]] * 2 + [[[0.5, 0.01], [0.02, 0.04]]],
            "redundancy": [[[0.1, 0.2], [0.3, 0.4]]] * 2 + [[[0.1, 0.2], [0.96, 0.97]]],
        }
    )
    texts = [sentence.text for sentence in run_sentences(history)]
    assert any(text.startswith("Layer 1 changed most") and "Layer 0 changed least" in text for text in texts)
    [rotated] = [text for text in texts if "rotated" in text]
    assert rotated.startswith("The head output subspaces rotated most: by 0.65 on average")
    assert "by 0.80 in layer 1 head 1, half of it by step 10." in rotated
    assert rotated.endswith(" Key subspaces rotated least (0.20).")
    [cone] = [text for text in texts if text.startswith("cone.output")]
    assert "rose from 0.300 to 0.500 (+67 %) on average, most in layer 1 (0.400 to 0.800)" in cone
    assert any("one token" in text and "3 of 4 at the end, 1 at the start" in text for text in texts)
    assert any("near-duplicate" in text and "2 of 4 at the end, 0 at the start" in text for text in texts)


@pytest.mark.parametrize(
    ("speeds", "said"),
    [([0, 0.4, 0.3, 0.1], "are settling: they rotated by 0.100"), ([0, 0.2, 0.3, 0.4], "are still rotating")],
)
def test_settling_is_the_last_speed_against_the_fastest(speeds: list[float], said: str) -> None:
    values = [[[speed, speed]] for speed in speeds]
    texts = [f.text for f in run_sentences(run_of({"velocity.query": values, "entropy": [[[1, 2]]] * 4}))]
    assert any(said in text for text in texts)


def test_a_short_last_interval_is_no_sign_of_settling() -> None:
    history = run_of(
        {"velocity.query": [[[s, s]] for s in (0, 0.4, 0.4, 0.4, 0.01)], "entropy": [[[1, 2]]] * 5}
    )
    history.steps = np.array([0, 10, 20, 30, 31])
    assert any("still rotating" in sentence.text for sentence in run_sentences(history))


def test_one_sample_has_no_change() -> None:
    [only] = run_sentences(run_of({"entropy": [[[1, 2]]]}))
    assert "nothing to compare yet" in only.text
