"""Checks against plain numpy: every value is passed, breached, waived or not measured, and counted once."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_geo.analysis.audit.check import Check, Counts, audit
from lightning_geo.analysis.audit.policy import SAMPLES, Limit, Places, Policy, Waiver
from lightning_geo.analysis.audit.words import found, verdict
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.storage.history import GeometryHistory
from lightning_geo.storage.record import GeometryRecord

DAY = dt.date(2030, 6, 15)
HEADS = [3, 0, 2]
OWN = np.arange(3) < np.array(HEADS)[:, None]
VALUES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 1.0, np.nan, np.inf, -np.inf])


def run(values: list[object], metric: str = "entropy", **fields: object) -> GeometryHistory:
    """Samples at steps 0, 10, …; None for one that lacks the metric."""
    model = {"class": "Tiny", "stacks": {"encoder": {"modules": ["", "", ""], "heads": HEADS}}}
    records = []
    for i, array in enumerate(values):
        stacks = {"encoder": {"hidden_norm": np.ones(3, np.float32)}}
        if array is not None:
            stacks["encoder"][metric] = np.where(OWN, array, np.nan).astype(np.float32)
        records.append(
            GeometryRecord(stacks, model, step=10 * i, **{"probe_fingerprint": "cafe", **fields})  # type: ignore[arg-type]
        )
    return GeometryHistory(records)


def check(
    history: GeometryHistory, limit: Limit, *waivers: Waiver, release: GeometryHistory | None = None
) -> Check:
    [only] = audit(history, Policy("p", "o", (limit,), waivers), release, DAY).checks
    return only


numbers = st.none() | st.sets(st.integers(0, 3), min_size=1).map(lambda s: tuple(sorted(s)))
places = st.builds(Places, st.none(), numbers, numbers)
grids = st.lists(st.none() | st.lists(VALUES, min_size=9, max_size=9), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(
    grids, places, places, st.sampled_from(SAMPLES), st.sampled_from([0, 10, 35]),
    st.sampled_from([(0.3, None), (None, 0.7), (0.3, 0.7)]), st.booleans(),
)  # fmt: skip
def test_every_value_is_counted_once(
    grid: list[list[float] | None], where: Places, waived: Places, samples: str, start: int,
    bounds: tuple[float | None, float | None], valid: bool,
) -> None:  # fmt: skip
    arrays = [None if flat is None else np.reshape(flat, (3, 3)).astype(np.float32) for flat in grid]
    start = 0 if samples == "last" else start
    limit = Limit("a", ("entropy",), where, *bounds, samples=samples, from_step=start)  # type: ignore[arg-type]
    waiver = Waiver("a", "r", "b", DAY if valid else DAY - dt.timedelta(1), None, waived)
    result = audit(run(arrays), Policy("p", "o", (limit,), (waiver,)), day=DAY)  # type: ignore[arg-type]
    [checked] = result.checks

    expected = dict.fromkeys(Counts._fields, 0)
    chosen = [i for i in range(len(arrays)) if 10 * i >= start]
    chosen = [len(arrays) - 1] if samples == "last" else chosen
    chosen = [i for i in chosen if arrays[i] is not None] if samples == "measured" else chosen
    # a layer without heads counts as one value that was not measured
    own = [(layer, head) for layer, heads in enumerate(HEADS) for head in range(max(heads, 1))]
    meant = [(layer, head) for layer, head in own if where.layers is None or layer in where.layers]
    # numbers that the model does not have were not measured, each as one value per sample
    absent = [layer for layer in where.layers or () if layer not in {layer for layer, _ in own}]
    absent += [head for head in where.heads or () if head not in {head for _, head in meant}]
    meant = [(layer, head) for layer, head in meant if where.heads is None or head in where.heads]
    low, high = (np.float32(np.nan if bound is None else bound) for bound in bounds)
    for sample in chosen:
        expected["not_measured"] += len(absent)
        for layer, head in meant:
            lost = arrays[sample] is None or not HEADS[layer]
            value = np.float32(np.nan) if lost else arrays[sample][layer, head]
            excused = valid and (waived.layers is None or layer in waived.layers)
            excused = excused and (waived.heads is None or head in waived.heads)
            if np.isnan(value):
                expected["not_measured"] += 1
            elif value < low or value > high or np.isinf(value):
                expected["waived" if excused else "breached"] += 1
            else:
                expected["passed"] += 1
    if not any(expected.values()):
        expected["not_measured"] = 1
    assert checked.counts._asdict() == expected
    order = ("breached", "not_measured", "waived", "passed")
    assert checked.result == next(name for name in order if expected[name]).replace("_", " ")
    assert result.failed == (checked.result in ("breached", "not measured"))
    assert found(checked)
    assert verdict(result)
    if expected["not_measured"]:
        assert checked.reasons or not chosen


def test_the_limit_has_the_precision_of_the_values() -> None:
    # float32(0.7) is below 0.7
    assert (
        check(run([np.full((3, 3), 0.7)]), Limit("a", ("entropy",), Places(layers=(0,)), 0.7)).result
        == "passed"
    )


def test_worst_value_first_breach_and_how_far() -> None:
    values = np.full((3, 3, 3), 0.5)
    values[1, 2, 1], values[2, 0, 2], values[2, 0, 0] = 0.25, 0.125, np.nan
    checked = check(run(list(values)), Limit("a", ("entropy",), at_least=0.375, samples="all"))
    assert checked.worst is not None
    assert (checked.worst.value, checked.worst.step, checked.worst.layer, checked.worst.head) == (
        0.125,
        20,
        0,
        2,
    )
    assert (checked.worst.beyond, checked.since) == (0.25, 10)
    assert checked.breached.tolist() == [[False, False, True], [False] * 3, [False, True, False]]
    assert found(checked) == (
        "Breached by 2 of 5 heads in layers 0 and 2, first at step 10. Worst: 0.125 nats in layer 0, head 2 "
        "at step 20, 0.25 beyond the limit. 4 of 18 values were not measured. Missing or NaN in layers 0 and "
        "1, in 3 samples (steps 0 to 20)."
    )


def test_change_needs_the_same_probe_model_and_metric() -> None:
    now, before = np.full((3, 3), 0.5), np.full((3, 3), 0.25)
    before[0, 0], before[0, 1] = 1.0, np.nan
    limit = Limit("a", ("entropy",), change_at_most=0.25)
    history, release = run([before, now]), run([now, before])
    changed = check(history, limit, release=release)
    assert changed.counts == Counts(3, 1, 0, 2)
    assert changed.worst is not None
    assert (changed.worst.value, changed.worst.before, changed.worst.beyond) == (-0.5, 1.0, 0.25)
    assert "1.000 → 0.5 nats" in found(changed)
    other = run([now], probe_fingerprint="beef")
    batches = run([now], probe_fingerprint="")
    smaller = GeometryHistory([GeometryRecord({"encoder": {"entropy": np.ones((1, 1))}})])
    for earlier, why in (
        (None, "No earlier release"), (other, "another probe"), (batches, "training batches"),
        (smaller, "different models"), (run([None]), "has no entropy"),
    ):  # fmt: skip
        absent = check(history, limit, release=earlier)
        assert absent.result == "not measured"
        assert absent.counts == Counts(0, 0, 0, 6)
        assert why in found(absent)
    assert check(batches, limit, release=batches).result == "not measured"


def test_metrics_of_the_run_itself_are_audited() -> None:
    spec = MetricSpec("keys_in_use", "mine", ("layer", "head"), "keys", "f", "m", "s")
    history = run([np.full((3, 3), 2.0)], "keys_in_use", specs={"keys_in_use": spec})
    assert check(history, Limit("a", ("keys_in_use",), Places(layers=(0,)), at_least=1.0)).result == "passed"
    other = run([np.full((3, 3), 2.0)], "keys_in_use", specs={"keys_in_use": replace(spec, unit="bits")})
    limit = Limit("a", ("keys_in_use",), Places(layers=(0,)), change_at_most=1.0)
    changed = check(history, limit, release=other)
    assert "another number in the earlier release: its unit differs" in found(changed)


def test_required_waivers_and_the_verdict() -> None:
    history = run([np.full((3, 3), 0.5)])
    good = Limit("good", ("entropy",), Places(layers=(0,)), at_least=0.1)
    bad = replace(good, name="bad", at_least=0.9)
    lost = Limit("lost", ("drift.query",), at_most=0.5)
    optional = replace(lost, required=False)
    stack = replace(good, name="stack", places=Places(("decoder",)))
    waivers = tuple(
        Waiver(name, "r", "b", day, None, place)
        for name, day, place in (
            ("bad", DAY, Places()), ("bad", DAY - dt.timedelta(1), Places()), ("good", DAY, Places()),
            ("bad", DAY, Places(layers=(7,))),
        )
    )  # fmt: skip
    for limits, some, failed, text in (
        ((good,), (), False, "Passed: the only check."),
        ((good, bad), (), True, "Breached: 1 of 2 checks (bad)."),
        ((good, bad), waivers, False, "Passed, with exceptions: 1 of 2 checks passed, 1 waived."),
        ((good, lost), (), True, "Not shown: 1 of 2 checks could not be fully measured."),
        ((good, optional), (), False, "Passed, with exceptions: 1 of 2 checks passed, 1 not fully measured "
                                      "(optional)."),
        ((optional,), (), True, "Not shown: 1 of 1 check could not be fully measured."),
        ((stack,), (), True, "Not shown: 1 of 1 check could not be fully measured."),
    ):  # fmt: skip
        result = audit(history, Policy("p", "o", limits, some), day=DAY)
        assert (result.failed, verdict(result)) == (failed, text)
    damaged = audit(history, Policy("p", "o", (good,)), day=DAY, unread=["Lost."])
    assert (damaged.failed, verdict(damaged)) == (
        True, "Not shown: parts of the record could not be read (1 of 1 check passed).",
    )  # fmt: skip
    states = [use.state for use in audit(history, Policy("p", "o", (good, bad), waivers), day=DAY).waivers]
    assert states == ["used", "expired", "not needed", "matches nothing"]
