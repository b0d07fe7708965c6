"""Attention calls seen, measured and left out: counted in every record, logged where some are missing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import default_collate

from lightning_geo import GeometryMonitor, GeometryRecord, load_history, measure
from lightning_geo.loggers.tags import scalars
from lightning_geo.measurement import rank_reduction as reduction
from lightning_geo.measurement.sample import Measurement
from lightning_geo.metrics.selection import select
from lightning_geo.observe import UNOBSERVED, Coverage, Tap
from lightning_geo.observe.attention_events import AttentionEvents
from lightning_geo.storage.events import parse_record, record_event
from support.lit import Classifier, bert, fit, loader, sequences

REASON = "Its heads cannot be told. Declare `num_heads` on the module."
FIRST = "bert.encoder.layer.0.attention.self"

LeaveOut = Callable[[Callable[[str], bool]], None]


@pytest.fixture
def leave_out(monkeypatch: pytest.MonkeyPatch) -> LeaveOut:
    """Makes taps leave out the attention of the modules that a function chooses."""
    original = AttentionEvents._see
    chosen: list[Callable[[str], bool]] = []

    def see(self: AttentionEvents, *args: Any, **options: Any) -> None:
        module = self.stack.frames[-1].name
        if any(choose(module) for choose in chosen[-1:]):
            self.leave_out(REASON, module)
        else:
            original(self, *args, **options)

    monkeypatch.setattr(AttentionEvents, "_see", see)
    return chosen.append


def batch() -> dict[str, Tensor]:
    return default_collate(sequences(3))  # type: ignore[no-any-return]


def test_every_call_of_a_measured_batch_is_counted() -> None:
    record = measure(bert(layers=3), batch())
    assert record.coverage == {"seen": 3, "measured": 3, "left_out": {}}
    assert record.coverage_share == 1
    assert "coverage" not in record.summaries()


def test_what_is_left_out_is_counted_and_named(leave_out: LeaveOut) -> None:
    leave_out(lambda module: module == FIRST)
    record = measure(bert(layers=4), batch())
    assert record.coverage == {"seen": 4, "measured": 3, "left_out": {REASON: [FIRST]}}
    assert record.summaries()["coverage"] == scalars(record)["geometry/coverage"] == 0.75
    assert np.isnan(record["entropy"]).all(1).tolist() == [True, False, False, False]
    assert record.model["stacks"]["bert.encoder"]["heads"][0] == 0


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sets(st.integers(0, 3), min_size=1).map(sorted), st.sets(st.integers(0, 3), max_size=3), st.booleans()
)
def test_coverage_is_of_the_layers_that_are_asked_for(
    leave_out: LeaveOut, asked: list[int], hidden: set[int], by_path: bool
) -> None:
    paths = [FIRST.replace(".0.", f".{layer}.") for layer in range(4)]
    leave_out(lambda module: module in paths and paths.index(module) in hidden)
    layers = rf"\.({'|'.join(map(str, asked))})\." if by_path else asked
    left_out = [paths[layer] for layer in asked if layer in hidden]
    if len(left_out) == len(asked):
        with pytest.raises(ValueError, match="`layers` to match at least one layer"):
            measure(bert(layers=4), batch(), layers=layers)
        return
    record = measure(bert(layers=4), batch(), layers=layers)
    counts = {"seen": len(asked), "measured": len(asked) - len(left_out)}
    assert record.coverage == counts | {"left_out": {REASON: left_out} if left_out else {}}


class LinearAttention(nn.Module):
    """Shows neither a softmax nor a call of sdpa."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Mixed(nn.Module):
    """A BERT behind an attention that cannot be observed."""

    def __init__(self) -> None:
        super().__init__()
        self.strange, self.bert = LinearAttention(), bert()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Any:
        x = self.strange(self.bert.bert.embeddings.word_embeddings(input_ids))
        return self.bert(inputs_embeds=x, attention_mask=attention_mask, labels=labels)


def test_a_module_that_looks_like_attention_and_shows_none_counts_as_left_out() -> None:
    record = measure(Mixed(), batch())
    assert record.coverage == {"seen": 3, "measured": 2, "left_out": {UNOBSERVED: ["strange"]}}
    elsewhere = measure(Mixed(), batch(), layers=r"encoder\.layer\.0")
    assert elsewhere.coverage == {"seen": 1, "measured": 1, "left_out": {}}


def test_a_module_whose_calls_were_left_out_is_not_said_to_show_none(leave_out: LeaveOut) -> None:
    leave_out(lambda module: module.startswith("bert.encoder.layer.0"))
    record = measure(bert(), batch())
    assert record.coverage["left_out"] == {REASON: [FIRST]}
    assert record.coverage["seen"] == 2


def test_if_all_was_left_out_the_error_gives_the_reasons(leave_out: LeaveOut) -> None:
    leave_out(lambda module: True)
    with pytest.raises(ValueError, match=f"showed was left out, in {FIRST}, .*: {REASON}"):
        measure(bert(), batch())


def test_a_model_that_is_itself_left_out_goes_by_its_class() -> None:
    taps = {"": Tap(nn.MultiheadAttention(8, 2))}
    measurement = Measurement(taps, select("metric:entropy"))
    taps[""].coverage.leave_out("", REASON)
    assert measurement.coverage.left_out == {REASON: ["MultiheadAttention"]}
    assert measurement.reasons == f"in MultiheadAttention: {REASON}"


def test_a_measurement_counts_anew_adds_models_up_and_names_them() -> None:
    taps = {name: Tap(bert()) for name in ("text", "image")}
    for tap in taps.values():
        tap._events.coverage, tap._modules.unobserved = Coverage(5, 5, {REASON: ["old"]}), {"old": "Old"}
    measurement = Measurement(taps, select("metric:entropy"))
    assert measurement.coverage == Coverage()
    for tap, measured in zip(taps.values(), (2, 1), strict=True):
        tap.coverage.seen, tap.coverage.measured = 3, measured
        tap.coverage.leave_out("layer.0", REASON)
    assert measurement.coverage == Coverage(6, 3, {REASON: ["text.layer.0", "image.layer.0"]})
    assert measurement.coverage == Coverage(6, 3, {REASON: ["text.layer.0", "image.layer.0"]}), (
        "twice the same"
    )
    measurement.discard_values()  # what a rank ran for the layout alone
    assert (measurement.coverage.seen, measurement.coverage.measured) == (0, 0)


def test_counts_add_up_over_ranks_and_reasons_stay_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(into: list[Tensor], mine: Tensor) -> None:
        for place, extra in zip(into, (0, 10), strict=True):
            place.copy_(mine + torch.tensor([0, 0, 0, extra, extra, extra]))

    monkeypatch.setattr(reduction, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    coverage = Coverage(4, 3, {REASON: ["here"]})
    merged = reduction.reduce_over_ranks([], True, torch.device("cpu"), coverage)
    assert merged == (True, True)  # the other rank has something to say
    assert coverage == Coverage(18, 16, {REASON: ["here"]})


def test_it_is_kept_in_the_run_and_read_back() -> None:
    coverage = {"seen": 4, "measured": 3, "left_out": {REASON: ["layers.0"]}}
    found = parse_record(record_event(GeometryRecord({}, coverage=coverage), "geometry"))
    assert found is not None
    assert found[1].coverage == json.loads(json.dumps(coverage))


@pytest.mark.parametrize(
    "coverage",
    [{}, {"seen": 0, "measured": 0}, {"seen": "4", "measured": 1}, {"measured": 2}, {"seen": None}],
)
def test_a_share_that_nobody_can_tell_is_nan_and_no_summary(coverage: dict[str, Any]) -> None:
    record = GeometryRecord({}, coverage=coverage, coverage_shown=True)
    assert np.isnan(record.coverage_share)
    assert record.summaries() == {}


@pytest.mark.parametrize("source", ["probe", "batch"])
def test_the_share_is_logged_from_the_first_sample_that_lacks_something(
    source: Any, tmp_path: Path, leave_out: LeaveOut
) -> None:
    monitor = GeometryMonitor(1, metrics="metric:entropy", source=source, name="geo")
    leave_out(lambda module: module == FIRST and monitor._run.samples.step in (1, 2))
    logger = TensorBoardLogger(tmp_path, name="", version=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner = fit(tmp_path, Classifier(), monitor, steps=5, data=loader(8), logger=logger)
    said = [str(w.message) for w in caught if "GeometryMonitor" in str(w.message)]
    assert said == [f"GeometryMonitor (geo): attention was left out in {FIRST}: {REASON}"]
    history = load_history(tmp_path / "version_0")
    share = dict(zip(history.steps.tolist(), history.metadata["coverage"].tolist(), strict=True))
    assert {step: share[step] for step in range(5)} == {0: 1.0, 1: 0.5, 2: 0.5, 3: 1.0, 4: 1.0}
    assert history.record(1).coverage["left_out"] == {REASON: [FIRST]}
    assert history.record(3).coverage["left_out"] == {}
    events = EventAccumulator(str(tmp_path / "version_0")).Reload()
    seen = {event.step: event.value for event in events.Scalars("geo/coverage")}
    assert {step: value for step, value in seen.items() if step < 5} == {1: 0.5, 2: 0.5, 3: 1.0, 4: 1.0}
    assert float(runner.callback_metrics["geo/coverage"]) == 1.0


def test_a_run_that_lacks_nothing_has_no_such_chart(tmp_path: Path) -> None:
    monitor = GeometryMonitor(1, metrics="metric:entropy")
    runner = fit(tmp_path, Classifier(), monitor, steps=2, data=loader(8))
    assert "geometry/coverage" not in runner.callback_metrics
    assert load_history(tmp_path / "lightning_geo" / "version_0").metadata["coverage"].tolist() == [1.0] * 3


def test_a_run_in_which_all_is_left_out_says_why(tmp_path: Path, leave_out: LeaveOut) -> None:
    leave_out(lambda module: True)
    said = rf"dropped: LookupError: all attention seen in .* was left out, in model.{FIRST}, .*{REASON}"
    with pytest.warns(UserWarning, match=said):
        fit(tmp_path, Classifier(), GeometryMonitor(1), steps=1, data=loader(8))
