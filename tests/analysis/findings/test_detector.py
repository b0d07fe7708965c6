"""Findings open, grow, end and come back; live and afterwards alike."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_geo.analysis.findings.builtin_rules import RULES
from lightning_geo.analysis.findings.detector import Detector
from lightning_geo.analysis.findings.rule import Departure, Level, Rule
from lightning_geo.storage.finding import Finding
from lightning_geo.storage.record import GeometryRecord

LOW = Rule("low", ("entropy",), Level(at_most=0.1), "{where} have {value}, not {usual}.", samples=2)


def record(step: int, stack: str = "encoder", **arrays: object) -> GeometryRecord:
    named = {name.replace("__", "."): np.array(values, np.float32) for name, values in arrays.items()}
    return GeometryRecord({stack: named}, step=step)


def runs(detector: Detector, entropies: list[object]) -> list[list[Finding]]:
    return [detector.update(record(10 * i, entropy=values)) for i, values in enumerate(entropies)]


def test_the_heads_of_a_stack_are_one_finding_that_opens_grows_and_ends() -> None:
    fine, two, four = [[1, 1], [1, 1]], [[0.01, 1], [1, 0.02]], [[0.01, 0.01], [0.01, 0.02]]
    news = runs(detector := Detector([LOW]), [fine, two, two, two, four, four, fine, fine, fine])
    assert [len(found) for found in news] == [0, 0, 1, 0, 0, 1, 0, 1, 0]
    opened, grown, ended = news[2][0], news[5][0], news[7][0]
    assert opened.heads == ((0, 0), (1, 1))
    assert opened.layers == (0, 1)
    assert opened.since_step == 10
    assert opened.value == pytest.approx(0.015)
    assert opened.usual == (1, 1)
    assert opened.message == "2 of 4 heads in layers 0 and 1 have 0.015, not 1.00."
    assert len(grown.heads) == 4
    assert grown.since_step == 10
    assert grown.until_step is None
    assert ended == grown.closed(70)
    assert detector.findings == [ended]


def test_one_sample_without_it_ends_nothing_and_one_with_it_opens_nothing() -> None:
    fine, low = [[1.0]], [[0.0]]
    assert not any(runs(Detector([LOW]), [fine, low, fine, low, fine]))
    news = runs(Detector([LOW]), [low, low, fine, low, low, fine, low])
    assert [len(found) for found in news] == [0, 1, 0, 0, 0, 0, 0]


def test_a_finding_that_comes_back_soon_is_the_same_and_later_another() -> None:
    fine, low = [[1.0]], [[0.0]]
    detector = Detector([LOW])
    news = runs(detector, [low, low, fine, fine, low, low])
    assert [(f.since_step, f.until_step) for f in detector.findings] == [(0, None)]
    assert news[-1] == detector.findings  # the record must not end with a finding that goes on
    detector = Detector([LOW])
    news = runs(detector, [low, low, *[fine] * 10, low, low])
    assert [(f.since_step, f.until_step) for f in detector.findings] == [(0, 30), (120, None)]
    assert sum(map(len, news)) == 3


def test_a_share_of_a_layers_heads_and_a_share_of_the_layers() -> None:
    half = Rule("half", ("entropy",), Level(at_most=0.1), "m", samples=1, heads=0.5, critical_layers=0.5)
    [finding] = Detector([half]).update(record(0, entropy=[[0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 1, 0]]))
    assert finding.layers == (1,)
    assert finding.severity == "warning"
    [finding] = Detector([half]).update(record(0, entropy=[[0, np.nan], [0, 0], [1, 1], [np.nan, np.nan]]))
    assert finding.layers == (0, 1)
    assert finding.severity == "critical"


def test_a_sample_without_the_metric_says_nothing_of_it() -> None:
    detector = Detector([LOW])
    detector.update(record(0, entropy=[[0.0]]))
    assert not detector.update(record(10, redundancy=[[0.0]]))
    assert detector.update(record(20, entropy=[[0.0]]))
    assert detector.unchecked == {}
    assert Detector([LOW]).unchecked == {"low": ("entropy",)}


def test_stacks_have_findings_of_their_own() -> None:
    both = GeometryRecord({s: {"entropy": np.zeros((1, 1))} for s in ("encoder", "decoder")})
    detector = Detector([LOW])
    detector.update(both)
    assert {finding.stack for finding in detector.update(both)} == {"encoder", "decoder"}


def test_a_metric_that_is_measured_less_often_stands_meanwhile() -> None:
    rule = Rule("two", ("future_visible.batch", "future_visible.probe"), Level(at_least=0.1), "m", samples=1)
    detector = Detector([rule])
    for i in range(40):
        batch = {"future_visible__batch": [1.0 if 10 <= i < 30 else 0.0]} if i % 10 == 0 else {}
        if i % 10 == 5:
            batch = {"future_visible__batch": [np.nan]}
        detector.update(record(i, future_visible__probe=[0.0], **batch))
    assert [(f.since_step, f.until_step) for f in detector.findings] == [(10, 30)]


# -- departures


def smooth(samples: int, seed: int, layers: int = 3, heads: int = 4) -> NDArray[np.float64]:
    """A healthy fine-tuning: large exponential movement at the start, then a slow trend, with noise."""
    random = np.random.default_rng(seed)
    time = np.arange(samples)[:, None, None]
    shape = (layers, heads)
    course = random.normal(0, 3, shape) * np.exp(-time / random.uniform(2, 30, shape))
    noise = random.normal(0, random.uniform(0.003, 0.1, shape), (samples, *shape))
    return 10 + course + 0.01 * random.normal(0, 1, shape) * time + noise


@pytest.mark.parametrize("samples", [12, 200])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_movement_at_the_start_of_a_fine_tuning_is_no_departure(samples: int, seed: int) -> None:
    detector = Detector([RULES["departure"]])
    for i, values in enumerate(smooth(samples, seed)):
        assert not detector.update(record(50 * i, query_norm=values))


@given(st.integers(110, 126), st.integers(0, 2), st.sampled_from([-1, 1]), st.integers(0, 2**32 - 1))
def test_a_departure_is_found_where_and_when_it_happens(at: int, layer: int, sign: int, seed: int) -> None:
    values = smooth(130, seed)
    values[at:, layer, :3] += sign * 8  # of about 10
    detector = Detector([RULES["departure"]])
    news = [detector.update(record(i, query_norm=v, key_norm=smooth(1, 1)[0])) for i, v in enumerate(values)]
    assert not any(news[: at + 2])
    [finding] = news[at + 2]
    assert (finding.since_step, finding.layers, finding.metric) == (at, (layer,), "query_norm")
    heads = {(layer, head) for head in range(3)}
    # while the start is in the window, a head that moved as much by itself does not depart
    assert set(finding.heads) <= heads
    low, high = finding.usual
    assert (finding.value < low) if sign < 0 else (finding.value > high)
    assert low < 10 + 3
    assert high > 10 - 3
    assert len([f for f in detector.findings if f.severity != "note"]) == 1  # not again while it lasts


def test_updates_are_compared_after_intervals_of_one_length() -> None:
    quiet = Detector([RULES["update_growth"]])
    for i in range(20):
        assert not quiet.update(record(10 * i, update_size=[0.01, 0.02]))
    assert not quiet.update(record(1000, update_size=[0.8, 0.9]))  # the end of the run, after a gap
    grown = Detector([RULES["update_growth"]])
    sizes = [[0.01 * 1.1 ** max(0, i - 139), 0.02] for i in range(150)]
    news = [grown.update(record(10 * i, update_size=size)) for i, size in enumerate(sizes)]
    [finding] = [finding for found in news for finding in found]
    assert finding.layers == (0,)
    assert finding.since_step <= 1440


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1))
def test_a_change_while_a_model_begins_to_learn_is_no_departure_and_the_same_later_is(seed: int) -> None:
    random = np.random.default_rng(seed)
    for at, found in ((random.integers(20, 60), set()), (150, {"departure", "update_growth"})):
        fall = np.clip((np.arange(170) - at) / 8, 0, 1)[:, None, None]  # heads find what to attend to
        entropy = 4 - 2 * fall + random.normal(0, 0.01, (170, 2, 4))
        update = (0.002 * (1 + 2 * fall[:, :, 0])) * np.exp(random.normal(0, 0.1, (170, 2)))
        detector = Detector([RULES["departure"], RULES["update_growth"]])
        for i in range(170):
            detector.update(record(i, entropy=entropy[i], update_size=update[i]))
        assert {finding.rule for finding in detector.findings} == found


@given(st.integers(20, 300), st.integers(0, 2**32 - 1))
def test_a_usual_schedule_is_no_growth_of_updates(warmup: int, seed: int) -> None:
    steps = np.arange(1, 401)
    rate = np.minimum(1, steps / warmup) * (1 + np.cos(np.pi * steps / 401)) / 2
    noise = np.random.default_rng(seed).normal(0, 0.08, (400, 2))
    detector = Detector([RULES["update_growth"]])
    for step, size in zip(steps, 0.01 * rate[:, None] * np.exp(noise), strict=True):
        assert not detector.update(record(int(step), update_size=size))


@pytest.mark.parametrize("tails", ["normal", "laplace"])
def test_noise_departs_in_none_of_ten_thousand_samples(tails: str) -> None:
    random = np.random.default_rng(0)
    detector = Detector([RULES["departure"], RULES["update_growth"]])
    for i in range(10_000):
        noise = 1 + 0.1 * getattr(random, tails)(0, 1, (2, 32))
        detector.update(record(i, hidden_norm=noise[0], update_size=0.01 * np.abs(noise[1])))
    assert not detector.findings


def test_a_window_of_a_thousand_samples_is_bounded_memory() -> None:
    detector = Detector()
    random = np.random.default_rng(0)
    sizes = []
    for i in range(300):
        values = random.normal(5, 0.1, (2, 3))
        detector.update(record(i, query_norm=values, entropy=values, redundancy=values / 10))
        sizes.append(sum(a.nbytes for a in arrays_in(detector.state_dict())))
    assert sizes[299] == sizes[80]


def arrays_in(state: object) -> list[NDArray[np.generic]]:
    if isinstance(state, np.ndarray):
        return [state]
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [array for value in values for array in arrays_in(value)]


# -- resumed


@pytest.mark.slow
@given(st.integers(0, 59), st.integers(0, 2**32 - 1))
def test_a_resumed_detector_finds_what_one_that_went_on_finds(stop: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = smooth(60, seed)
    for start in random.integers(10, 60, 3):
        values[start : start + 8, random.integers(3)] += 9
    rules = [
        replace(RULES["departure"], test=Departure(settled=20)),
        replace(RULES["update_growth"], test=replace(RULES["update_growth"].test, settled=20, guard=3)),
        LOW, Rule("high", ("query_norm",), Level(at_least=15), "m", samples=3),
    ]  # fmt: skip
    records = [
        record(5 * i, query_norm=v, entropy=np.abs(v - 10) / 3, update_size=np.abs(v[:, 0]))
        for i, v in enumerate(values)
    ]
    whole, first, second = Detector(rules), Detector(rules), Detector(rules)
    expected = [whole.update(r) for r in records]
    found = [first.update(r) for r in records[:stop]]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    found += [second.update(r) for r in records[stop:]]
    assert found == expected
    assert second.findings == whole.findings


def test_other_inputs_begin_new_trends_and_new_starts() -> None:
    collapse = RULES["entropy_collapse"]
    detector = Detector([RULES["departure"], collapse])
    for i, values in enumerate(smooth(200, 0)):
        moved = values + (0 if i < 150 else 12)  # another probe, on which the numbers are others
        entropy = np.full((3, 4), 0.9 if i < 150 else 0.01)
        sample = record(i, query_norm=moved, normalized_entropy=entropy)
        sample.probe_fingerprint = "one" if i < 150 else "other"
        assert not detector.update(sample)


def test_a_rule_that_was_changed_meanwhile_starts_anew_and_the_others_go_on() -> None:
    first = Detector([RULES["departure"], LOW])
    for i, values in enumerate(smooth(40, 1)):
        first.update(record(i, query_norm=values, entropy=[[0.0]]))
    narrow = replace(RULES["departure"], test=Departure(window=12, guard=3))
    second = Detector([narrow, LOW])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for i, values in enumerate(smooth(40, 1)):
        assert not second.update(record(100 + i, query_norm=values, entropy=[[0.0]]))
    assert [finding.rule for finding in second.findings] == ["low"]


@given(st.integers(0, 2**32 - 1))
def test_a_finding_is_the_same_after_json(seed: int) -> None:
    random = np.random.default_rng(seed)
    usual = tuple(random.choice([np.nan, np.inf, 1.5], 2))
    heads = tuple(map(tuple, random.integers(0, 9, (3, 2)).tolist()))
    first = Finding("r", "warning", "entropy", "s", (1, 2), heads, 5, 0.5, usual, "m", ("a",), ("b", "c"))  # type: ignore[arg-type]
    second = Finding.from_dict(json.loads(json.dumps(first.as_dict())))
    third = Finding.from_dict(json.loads(json.dumps(second.as_dict())))
    assert second.as_dict() == third.as_dict() == first.as_dict()
    for damaged in ({}, {**first.as_dict(), "severity": "bad"}, {**first.as_dict(), "layers": 3}):
        with pytest.raises(ValueError, match="not a finding"):
            Finding.from_dict(damaged)
