"""Every rule of the table: a run that it finds something in, and one close by that it must leave alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.rule import Level, Rule
from lightning_geo.metrics.selection import spec_of
from lightning_geo.storage.record import GeometryRecord

Layers = list[float] | list[list[float]]

#: rule -> metric, first sample, later samples that show it, later samples that do not
CASES: dict[str, tuple[str, Layers, Layers, Layers]] = {
    "entropy_collapse": ("normalized_entropy", [[0.7, 0.01]], [[0.02, 0.01]], [[0.1, 0.01]]),
    "logit_growth": ("max_logit", [[9.0, 90.0]], [[300.0, 300.0]], [[150.0, 300.0]]),
    "logit_overflow": ("max_logit", [[9.0]], [[np.inf]], [[1e4]]),
    "rank_collapse": ("effective_rank.key", [[20.0, 2.0]], [[1.2, 2.0]], [[1.7, 1.0]]),
    "cone_collapse": ("cone.output", [0.5, 0.9], [0.98, 0.9], [0.9, 0.99]),
    "first_token_sink": ("first_mass", [[0.1, 0.1]], [[0.95, 0.1]], [[0.6, 0.1]]),
    "frozen_layer": ("unchanged_share", [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]),
    "never_trained": ("unchanged_share", [1.0, 0.0], [1.0, 0.0], [0.9, 1.0]),
    "rounded_updates": ("bf16_share", [0.0, 0.0], [1.0, 1.0], [0.1, 0.0]),
    "lost_updates": ("unchanged_share", [0.0, 0.0], [0.8, 0.9], [0.1, 0.0]),
    "future_visible": ("future_visible.batch", [0.0, 0.0], [0.0, 1e-6], [0.0, 0.0]),
    "padding_visible": ("padding_visible.batch", [np.nan, 0.0], [1.0, 0.0], [0.0, np.nan]),
    "twin_heads": ("redundancy", [[0.5, 0.5, 0.999]], [[1.0, 1.0, 0.5]], [[0.99, 0.99, 1.0]]),
    "twin_layers": ("weight_similarity", [0.1, 0.1, 0.1], [1.0, 1.0, 0.1], [0.9, 0.9, 0.1]),
}


def found(metric: str, *samples: object) -> set[str]:
    detector = Detector()
    for i, values in enumerate(samples):
        detector.update(GeometryRecord({"encoder": {metric: np.array(values, np.float32)}}, step=10 * i))
    return {finding.rule for finding in detector.findings}


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_its_fault_and_leaves_alone_what_is_close_to_it(rule: str) -> None:
    metric, start, fault, close = CASES[rule]
    assert rule in found(metric, start, fault, fault, fault)
    assert rule not in found(metric, start, close, close, close)
    if RULES[rule].samples > 1:
        assert rule not in found(metric, start, fault, close, fault, close)


def test_what_a_model_is_from_the_start_is_no_collapse() -> None:
    for rule in ("entropy_collapse", "rank_collapse", "cone_collapse", "first_token_sink", "twin_heads"):
        metric, _, fault, _ = CASES[rule]
        assert rule not in found(metric, fault, fault, fault)
    # a bidirectional model sees later tokens from the start, and its share may differ between batches
    assert not found("future_visible.batch", [0.9], [1.0], [1.0])


def test_one_head_of_four_is_no_collapse_of_rank() -> None:
    start = [[20.0, 20.0, 20.0, 20.0]]
    assert not found("effective_rank.output", start, *[[[1.2, 20.0, 20.0, 20.0]]] * 3)
    assert found("effective_rank.output", start, *[[[1.2, 1.2, 20.0, 20.0]]] * 3) == {"rank_collapse"}


def test_layers_that_never_train_are_no_others_for_a_frozen_one() -> None:
    # the learning rate ends at 0: nothing changes any more, the first layer never did
    assert found("unchanged_share", [1.0, 0.0], [1.0, 0.0], *[[1.0, 1.0]] * 3) == {"never_trained"}


def test_a_mask_lost_in_training_alone_shows_from_the_first_batch() -> None:
    record = GeometryRecord(
        {"decoder": {"future_visible.probe": np.zeros(2), "future_visible.batch": np.array([0.0, 1.0])}}
    )
    [finding] = Detector().update(record)
    assert (finding.rule, finding.layers, finding.severity) == ("future_visible", (1,), "critical")


def test_layers_that_are_not_finite_are_found_by_the_records_own_word() -> None:
    arrays = {"entropy": np.ones((3, 2), np.float32)}
    detector = Detector()
    assert not detector.update(GeometryRecord({"encoder": arrays}, step=0))
    coverage = {"not_finite": {"encoder": [1]}}
    [finding] = detector.update(GeometryRecord({"encoder": arrays}, step=10, coverage=coverage))
    assert (finding.rule, finding.layers, finding.severity) == ("not_finite", (1,), "critical")
    assert finding.message == "Activations of layer 1 are NaN or infinite."
    [ended] = detector.update(GeometryRecord({"encoder": arrays}, step=20))
    assert ended.until_step == 20


def test_every_rule_has_a_case_known_metrics_and_all_its_texts() -> None:
    assert set(CASES) | {"departure", "update_growth", "not_finite"} == set(RULES)
    for name, rule in RULES.items():
        assert name == rule.name
        assert rule.causes
        assert rule.next
        assert rule.source
        for metric in rule.metrics:
            spec_of(metric)


LEVELS = [(rule, rule.test) for rule in RULES.values() if isinstance(rule.test, Level)]


@pytest.mark.parametrize(("rule", "level"), LEVELS, ids=[rule.name for rule, _ in LEVELS])
def test_the_catalogue_says_to_worry_at_the_limits_of_the_rules(rule: Rule, level: Level) -> None:
    ends = level.at_most, level.at_least, level.start_at_most, level.start_at_least
    limits = {end for end in ends if end is not None and end > 1e-6}  # the words for less: above 0
    for name in rule.metrics:
        worry = spec_of(name).worry.replace(",", "")
        assert limits <= {float(number) for number in re.findall(r"\d+(?:\.\d+)?", worry)}
